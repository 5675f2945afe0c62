"""The neuron explorer's content: what its page shows of every neuron, from a run's tables and statistics.

Only the tokens that a neuron promotes and suppresses are read from the seeds' weights here, once
(logit_tokens.parquet). Runs of large models show their most universal neurons.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lib.cache import kept
from lib.chapters.circuits.tables import weights_of
from lib.chapters.families.summary import FAMILIES
from lib.chapters.universality.properties import PROPERTIES
from lib.chapters.universality.tables import neuron_index
from lib.report import explorer_weights
from lib.report.explorer_passages import consensus
from lib.run import Run
from lib.text.tokens import token_text

SEARCH = Path(__file__).with_name("explorer_search.yaml")  # synonyms, and names of signs
MAX_NEURONS = 32_768  # over all seeds
BEST = "those that match other seeds best"  # of a seed's neurons, where the page has not all
LOGIT_TOKENS = 10  # promoted, and as many suppressed
LOGITS_AT_ONCE = 2**24  # cosines in one temporary matrix
KEY = ["seed", "layer", "neuron"]

# Shown with their percentile within the layer, by heading. Columns that a run lacks are left out.
RANKED = {
    "Universality": {
        "excess_corr": "excess correlation",
        "mean_corr": "best match, mean over seeds",
        "max_corr": "best match, largest over seeds",
        "min_corr": "best match, smallest over seeds",
        "mean_baseline": "best match in a rotated basis",
    },
    "Activation": {
        **{name: PROPERTIES[name] for name in ("sparsity", "mean", "var", "skew", "kurt")},
        "activation_mean": "mean activation",
        "activation_std": "standard deviation of activation",
        "position_information": "information on the position [bits]",
    },
    "Weights": {
        **{name: PROPERTIES[name] for name in ("input_bias", "w_in_norm", "w_out_norm", "in_out_sim", "l2_penalty")},
        "max_cos_in": "largest cosine with another w_in",
        "max_cos_out": "largest cosine with another w_out",
        **{name: PROPERTIES[name] for name in ("vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt")},
    },
    "Circuits": {
        "null_share": "share of w_out in W_U's effective null space",
        "frequency_share": "cosine of w_out's effect on the logits with token frequency",
        "entropy_score": "length of w_out in W_U's effective null space",
        "attention_score": "attention score of the best later head",
    },
}
PLAIN = tuple(  # numbers without a percentile
    "score chosen_score chance difference runner_up_score raised_score lowered_score null_score attention_head_layer "
    "attention_head attention_deviations partner_layer partner_neuron partner_cos consensus_votes consensus_members "
    "consensus_score".split()
)
WORDS = tuple(
    "family best_family label runner_up_family runner_up_label raised lowered role_published role_learned "
    "consensus".split()
)
OUTCOMES = ("loss", "entropy", "kl_unigram", "reciprocal_rank", "scale")  # of an intervention


def optional(run: Run, name: str) -> pd.DataFrame | None:
    """A table of the run; None where it is missing or empty."""
    table = run.table(name) if run.has(name) else pd.DataFrame()
    return None if table.empty else table


def can_explore(run: Run) -> bool:
    """Whether a run has tables of neurons and their strongest examples."""
    stats = run.folder / "stats"
    tables = run.has("neurons_all_seeds") and run.has("matches_all_seeds")
    return tables and (stats / "done.json").exists() and any(stats.glob("examples-*.safetensors"))


def seed_frame(run: Run, seed: str) -> pd.DataFrame:
    """One row per neuron of a seed, by flat index, with the columns of RANKED, PLAIN and WORDS that the run has.

    NaN for a seed that was never the reference.
    """
    frame = neuron_index(*run.done["shapes"][seed])
    for name in ("neurons_all_seeds", "families", "circuits", "roles"):
        table = optional(run, name)
        if table is not None:
            new = [column for column in table if column not in frame and column != "seed"]
            own = table.loc[table["seed"] == seed, ["layer", "neuron", *new]]
            frame = frame.merge(own, on=["layer", "neuron"], how="left", validate="one_to_one")
    return frame


def seed_frames(run: Run) -> dict[str, pd.DataFrame]:
    """`seed_frame` of every seed, with each neuron's `consensus` with its best matches if the run has families."""
    frames = {seed: seed_frame(run, seed) for seed in run.done["seeds"]}
    families = optional(run, "families")
    if families is not None:
        found = consensus(families, run.table("matches_all_seeds"))
        for seed, frame in frames.items():
            own = found[found["seed"] == seed].drop(columns="seed")
            frames[seed] = frame.merge(own, on=["layer", "neuron"], how="left", validate="one_to_one")
    return frames


def ranked_columns(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(column, words, heading) of the RANKED columns that have a value for some neuron."""
    every = [(name, words, heading) for heading, columns in RANKED.items() for name, words in columns.items()]
    return [column for column in every if column[0] in frame and frame[column[0]].notna().any()]


def rows_shown(frame: pd.DataFrame, matches: pd.DataFrame, seed: str, limit: int) -> Int[np.ndarray, "rows"]:
    """Rows of a seed's frame that the page shows, ascending: at most `limit`, those of largest excess correlation.

    A seed that was never the reference has no excess; its best matches with the reference come first.
    """
    if len(frame) <= limit:
        return np.arange(len(frame))
    rank = frame["excess_corr"] if "excess_corr" in frame else pd.Series(np.nan, frame.index)
    if not rank.notna().any():
        best = matches[matches["model"] == seed].groupby(["match_layer", "match_neuron"])["corr"].max()
        at = pd.MultiIndex.from_frame(frame[["layer", "neuron"]])
        rank = pd.Series(best.reindex(at).to_numpy(), frame.index)
    order = np.argsort(-rank.fillna(-np.inf).to_numpy(), kind="stable")
    return np.sort(order[:limit])


# ---------------------------------------------------------------- tokens promoted and suppressed


@torch.no_grad()
def extreme_tokens(
    w_out: Float[Tensor, "neurons d_model"],
    unit_unembedding: Float[Tensor, "d_model vocabulary"],
    number: int = LOGIT_TOKENS,
) -> dict[str, np.ndarray]:
    """Tokens with the largest and the smallest cos(w_out, W_U[:, v]), and these cosines, all (neurons, number).

    Names: promoted, promoted_cos, suppressed, suppressed_cos, the most extreme first. Columns of `unit_unembedding`
    have length 1.
    """
    number = min(number, unit_unembedding.shape[1])
    parts: dict[str, list[Tensor]] = {name: [] for name in ("promoted", "promoted_cos", "suppressed", "suppressed_cos")}
    for some in normalize(w_out, dim=1).split(max(1, LOGITS_AT_ONCE // unit_unembedding.shape[1])):
        cosine = some @ unit_unembedding  # (neurons, vocabulary)
        for name in ("promoted", "suppressed"):
            values, tokens = cosine.topk(number, dim=1, largest=name == "promoted")
            parts[name].append(tokens)
            parts[f"{name}_cos"].append(values)
    return {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}


def logit_tokens(run: Run, shown: dict[str, Int[np.ndarray, "rows"]]) -> pd.DataFrame:
    """logit_tokens.parquet: `extreme_tokens` of the shown neurons of every seed, as lists in four columns."""
    widths = {seed: neurons for seed, (_, neurons) in run.done["shapes"].items()}

    def make() -> pd.DataFrame:
        parts = []
        for seed, rows in shown.items():
            w_out, unembedding = weights_of(run, seed)
            asked = torch.from_numpy(rows).to(unembedding.device)
            found = extreme_tokens(torch.cat(w_out)[asked], unembedding[:, : run.text.vocab_size])
            table = pd.DataFrame({"seed": seed, "layer": rows // widths[seed], "neuron": rows % widths[seed]})
            parts.append(table.assign(**{name: list(values) for name, values in found.items()}))
        return pd.concat(parts, ignore_index=True)

    depends_on = {"number": LOGIT_TOKENS, "rows": {seed: [len(rows), int(rows.sum())] for seed, rows in shown.items()}}
    return kept(run, "logit_tokens", __name__, depends_on, make)


# ---------------------------------------------------------------- strongest examples and matches


def windows(
    run: Run, arrays: dict[str, np.ndarray], seed: str, rows: Int[np.ndarray, "rows"], limit: int
) -> dict[str, np.ndarray]:
    """The strongest `limit` examples of some neurons of a seed; block −1 where there is none.

    `value` (rows, k), the activation; `block`, `position`, `domain` (rows, k); `tokens` (rows, k, window), −1 outside
    the block; `activation` (rows, k, window), NaN where a token does not count.
    """
    value, block, position, window = (
        arrays[f"{seed}.{name}"].reshape(-1, *arrays[f"{seed}.{name}"].shape[2:])[rows, :limit]
        for name in ("value", "block", "position", "window")
    )
    text, radius = run.text.tokens.numpy(), window.shape[-1] // 2
    at = position.astype(np.int64)[..., None] + np.arange(-radius, radius + 1)
    inside = (at >= 0) & (at < text.shape[1]) & (block >= 0)[..., None]
    tokens = text[np.maximum(block, 0)[..., None], at.clip(0, text.shape[1] - 1)]
    return {
        "value": value,
        "block": block,
        "position": position,
        "domain": run.text.domain.numpy()[np.maximum(block, 0)],
        "tokens": np.where(inside, tokens, -1),
        "activation": np.where(inside, window.astype(np.float32), np.nan),
    }


def match_arrays(
    matches: pd.DataFrame, seed: str, others: list[str], rows: Int[np.ndarray, "rows"], widths: dict[str, int]
) -> dict[str, np.ndarray]:
    """Each neuron's best match in every other seed, all (rows, others): `partner` (flat index, −1 for none),
    `corr` and `baseline`. `widths` has the neurons in a layer of each seed."""
    own = matches[matches["seed"] == seed]
    partner = own["match_layer"] * own["model"].map(widths).astype("int64") + own["match_neuron"]
    own = own.assign(row=own["layer"] * widths[seed] + own["neuron"], partner=partner)
    wide = own.pivot(index="row", columns="model", values=["partner", "corr", "baseline"])
    partner, corr, baseline = (
        wide.reindex(index=rows, columns=[(name, other) for other in others]).to_numpy(float)
        for name in ("partner", "corr", "baseline")
    )
    return {"partner": np.where(np.isfinite(corr), partner, -1).astype(int), "corr": corr, "baseline": baseline}


# ---------------------------------------------------------------- effects


def measured(run: Run) -> dict[str, dict]:
    """What interventions on single neurons changed in the reference seed, by `layer/neuron`.

    `ablation` and `fixed`: rows of means and errors, as in mean_ablation.parquet and fixed_activation.parquet. `heads`:
    one row per attention head whose query was cut from the neuron, with the correlation of the neuron's activation with
    what the cut changes (docs/method.md §6).
    """
    found: dict[str, dict] = {}
    for kind, name, column in (("ablation", "mean_ablation", "variant"), ("fixed", "fixed_activation", "value")):
        table = _of_reference(run, name)
        if table is None:
            continue
        outcomes = [f"{one}_{part}" for one in OUTCOMES for part in ("change", "error") if f"{one}_{part}" in table]
        for (layer, neuron), rows in table.groupby(["layer", "neuron"]):
            own = found.setdefault(f"{layer}/{neuron}", {})
            distinct = rows.drop_duplicates(column).to_dict("records")
            own[kind] = [{column: row[column]} | {one: _number(row[one]) for one in outcomes} for row in distinct]
            own["group"], own["tokens"] = sorted(set(rows["group"])), int(rows["tokens"].iloc[0])
    paths = _of_reference(run, "query_paths")
    for at, rows in paths.groupby(["layer", "neuron", "head_layer", "head"]) if paths is not None else ():
        head = {"layer": int(at[2]), "head": int(at[3]), "role": rows["role"].iloc[0], "destinations": len(rows)}
        for one in ("bos", "norm"):
            head[f"{one}_corr"] = _number(rows["activation"].corr(rows[f"{one}_change"]))
        found.setdefault(f"{at[0]}/{at[1]}", {}).setdefault("heads", []).append(head)
    return found


def _of_reference(run: Run, name: str) -> pd.DataFrame | None:
    """The reference seed's rows of a table of all seeds; None without any."""
    table = optional(run, name)
    return None if table is None else table[table["seed"] == run.params.reference]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---------------------------------------------------------------- the run


def description(run: Run, columns: list[tuple[str, str, str]], shown: dict[str, np.ndarray], words: list[str]) -> dict:
    """What the page needs to know of the run; `words` are the strings that the neurons' columns index."""
    params, done = run.params, run.done
    return {
        "run": params.run,
        "seeds": list(done["seeds"]),
        "references": list(done["references"]),
        "reference": params.reference,
        "threshold": params.threshold,
        "shapes": done["shapes"],
        "tokens_counted": done["tokens_counted"],
        "ranked": [{"name": name, "words": text, "heading": heading} for name, text, heading in columns],
        "families": FAMILIES,
        "words": words,
        "domains": list(run.text.domains),
        "vocabulary": [token_text(run.tokenizer, token) for token in range(len(run.tokenizer))],
        "chance_z": {name: _chance_z(*shape) for name, shape in done["shapes"].items()},
        "search": yaml.safe_load(SEARCH.read_text(encoding="utf-8")),
        "shown": {seed: len(rows) for seed, rows in shown.items()},
        "holds": BEST,
        "measured": measured(run),
    }


def _chance_z(layers: int, neurons: int) -> list[list[float | None]]:
    """By layer: the largest |z| to expect by chance of all earlier and of all later neurons."""
    numbers = [(neurons * layer, neurons * (layers - 1 - layer)) for layer in range(layers)]
    return [[explorer_weights.chance_z(number) for number in pair] for pair in numbers]


def as_json(content: dict) -> bytes:
    """JSON without blanks; NaN is an error."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
