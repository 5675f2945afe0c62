"""Chapter 8's claims by seed, written anew with plain loops."""

import numpy as np
import pandas as pd

SCORES = ("bos", "previous", "induction")


def functions(tables: dict[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    """Claim → seed → value; a seed that cannot be asked has NaN."""
    found: dict[str, dict[str, float]] = {}
    parts = {"ladder": _ladder, "transplants": _replaced, "residual_map": _mapped, "heads": _heads}
    for table, values_of in parts.items():
        for seed, own in tables[table].groupby("seed"):
            for name, value in values_of(own.to_dict("records")).items():
                found.setdefault(name, {})[seed] = value
    return found


def functions_left_out(tables: dict[str, pd.DataFrame], seeds: list[str]) -> dict[str, dict[str, float]]:
    """Claim → seed → mean of the values without the seed; claims that cannot be asked are left out."""
    means: dict[str, dict[str, float]] = {}
    for seed in seeds:
        rest = {
            name: table[(table["seed"] != seed) & (table["model"] != seed)]
            for name, table in tables.items()
            if name in ("ladder", "transplants", "residual_map", "heads")
        }
        for name, values in functions(rest).items():
            known = [value for value in values.values() if not np.isnan(value)]
            means.setdefault(name, {})[seed] = np.mean(known) if known else np.nan
    return {name: own for name, own in means.items() if not np.isnan(list(own.values())).any()}


def _ladder(rows: list[dict]) -> dict[str, float]:
    def mean(name: str) -> float:
        return np.mean([row[name] for row in rows])

    return {
        "same_one_neuron": mean("r2_one") - mean("null_r2_one"),
        "same_basis": mean("r2_all") - mean("null_r2_all"),
        "same_outside_one": 1 - mean("r2_one") / mean("r2_all"),
    }


def _replaced(rows: list[dict]) -> dict[str, float]:
    of = {row["partner"]: row["recovered"] for row in rows if row["set"] == "universal"}
    return {"transplant_matches": of["match"], "transplant_beyond_random": of["match"] - of["random"]}


def _mapped(rows: list[dict]) -> dict[str, float]:
    universal = [row for row in rows if row["is_universal"]]
    sampled = [row for row in rows if row["sampled"]]
    enough = len({(row["layer"], row["neuron"]) for row in universal}) >= 10
    first = np.mean([row["rank"] == 1 for row in universal]) if enough else np.nan
    beyond = np.mean([1 / row["rank"] - 1 / row["matched"] for row in sampled])
    return {"map_finds_partner": first, "map_beats_matched": beyond}


def _heads(rows: list[dict]) -> dict[str, float]:
    alike = []
    for score in SCORES:
        own, match = ([row[f"{part}{score}_rank"] for row in rows] for part in ("", "match_"))
        products = sum(one * other for one, other in zip(own, match, strict=True))
        alike.append(products / (sum(one**2 for one in own) * sum(one**2 for one in match)) ** 0.5)
    excess = np.mean([row["corr"] - row["baseline"] for row in rows])
    return {"head_excess": excess, "head_scores": np.mean(alike)}
