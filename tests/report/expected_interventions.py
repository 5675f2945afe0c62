"""Chapter 6's claims by seed, written anew with plain loops."""

import numpy as np
import pandas as pd
from scipy.stats import pearsonr

CONTROLS = {"entropy": "control", "frequency": "frequency control"}


def interventions(tables: dict[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    """Claim → seed → value; a seed that cannot be asked is missing or NaN."""
    found: dict[str, dict[str, float]] = {}
    rows = {name: table.to_dict("records") for name, table in tables.items()}
    for seed in sorted(set(tables["causal_weights"]["seed"])):
        own = {
            name: [row for row in rows[name] if row["seed"] == seed]
            for name in (
                "causal_weights",
                "fixed_activation",
                "mean_ablation",
                "query_paths",
                "value_norms",
                "ablations",
            )
        }
        values = {
            **_held(own["fixed_activation"]),
            **_removed(own["mean_ablation"]),
            **_paths(own["query_paths"]),
            **_sets(own["ablations"]),
            "antipodal": _antipodal(own["causal_weights"]),
            "bos_resting": np.median([row["ratio"] for row in own["value_norms"]]),
        }
        for name, value in values.items():
            found.setdefault(name, {})[seed] = value
    return found


def _held(rows: list[dict]) -> dict[str, float]:
    """Median candidate less median control at the largest value."""
    top, found = [row for row in rows if row["value"] == 6], {}
    columns = {"entropy_scale": "scale", "entropy_entropy": "entropy", "entropy_order": "reciprocal_rank"}
    for name, outcome in columns.items():
        groups = {
            group: [row[f"{outcome}_change"] for row in top if row["group"] == group]
            for group in ("entropy", "control")
        }
        ours, others = groups.values()
        if name == "entropy_order":
            ours, others = np.abs(ours), np.abs(others)
        found[name] = np.median(ours) - np.median(others) if len(ours) and len(others) else np.nan
    return found


def _removed(rows: list[dict]) -> dict[str, float]:
    """Of all pairs of a candidate and a control, in how many the candidate loses more of its effect, less the rest."""
    found = {}
    for name, group, outcome, variant in (
        ("entropy_through_scale", "entropy", "entropy", "frozen scale"),
        ("frequency_direction", "frequency", "kl_unigram", "fixed frequency"),
    ):
        left = {(row["group"], row["neuron"]): row[f"{outcome}_change"] for row in rows if row["variant"] == variant}
        lost: dict[str, list[float]] = {group: [], CONTROLS[group]: []}
        for row in rows:
            whole = row[f"{outcome}_change"]
            if row["variant"] == "total" and row["group"] in lost and abs(whole) > 2 * row[f"{outcome}_error"]:
                lost[row["group"]].append(1 - left[row["group"], row["neuron"]] / whole)
        ours, others = lost.values()
        more, less = (sum(sign * (one - other) > 0 for one in ours for other in others) for sign in (1, -1))
        found[name] = (more - less) / (len(ours) * len(others)) if ours and others else np.nan
    return found


def _paths(rows: list[dict]) -> dict[str, float]:
    """The first deactivation pair whose head gives BOS a tenth of its attention."""
    pairs: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["role"] == "deactivation":
            pairs.setdefault((row["layer"], row["neuron"], row["head_layer"], row["head"]), []).append(row)
    seen = [own for own in pairs.values() if np.mean([row["bos"] for row in own]) >= 0.1]
    if not seen:
        return dict.fromkeys(("deactivation_bos", "deactivation_norm"), np.nan)
    active = [row["activation"] for row in seen[0]]
    changes = {"deactivation_bos": "bos_change", "deactivation_norm": "norm_change"}
    return {name: pearsonr(active, [row[column] for row in seen[0]]).statistic for name, column in changes.items()}


def _antipodal(rows: list[dict]) -> float:
    chosen = sorted((row for row in rows if row["entropy"]), key=lambda row: -row["null_share"])[:6]
    return min(row["partner_cos"] for row in chosen) if chosen else np.nan


def _sets(rows: list[dict]) -> dict[str, float]:
    """Ranks among random sets, and the first layer's lead over the layer that comes next."""
    held = [row for row in rows if row["kind"] == "mean"]
    ours = {row["layer"]: row for row in held if row["group"] == "universal"}
    if sum(row["neurons"] for row in ours.values()) < 10:
        return dict.fromkeys(("ablation_universal", "ablation_first_layer"), np.nan)
    ranks, excess = [], {}
    for layer, own in ours.items():
        others = [row["loss_change"] for row in held if row["group"] == "random" and row["layer"] == layer]
        ranks += [other < own["loss_change"] for other in others]
        excess[layer] = own["loss_change"] - sum(others) / len(others)
    lead = excess[0] - max(value for layer, value in excess.items() if layer)
    return {"ablation_universal": np.mean(ranks), "ablation_first_layer": lead}
