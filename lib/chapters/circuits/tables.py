"""The chapter's tables: what each seed's weights say about its neurons, and their activations by the next token.

A table is made once per run and again when the seeds, its parameters or the code that makes it have changed.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch.nn.functional import normalize

from lib.base.hub import seed_source
from lib.base.machine import device_of
from lib.cache import kept
from lib.chapters.circuits import roles
from lib.chapters.circuits.next_token import GROUPING, class_sums, next_token_table
from lib.chapters.circuits.roles import best_class_by_sign, class_scores
from lib.chapters.families.statistics import known_labels, seed_statistics
from lib.chapters.universality.properties import holm
from lib.labels import labels
from lib.labels.labels import LabelSet, token_counts, token_labels
from lib.models import weights
from lib.models.folded import folded, folding_error, full_precision
from lib.models.trunk import load_model
from lib.run import Run
from lib.text import tokens as text_tokens

PREFIX = "next: "  # of a label's name when it is one of the next token
SPLIT_PER_ROLE = 10  # neurons of a role and seed that are split by the next token
_weights: dict[tuple, tuple[list[torch.Tensor], torch.Tensor]] = {}


@cache
def label_set(run: Run) -> LabelSet:
    """Classes of tokens over the run's vocabulary, and the words that are frequent in its text."""
    return token_labels(run.tokenizer, token_counts(run.labelled), run.text.vocab_size)


@full_precision()
def weights_of(run: Run, seed: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """A seed's folded writing weights, (d_mlp, d_model) by layer, and its unembedding with columns of length 1, on the
    run's device. Those of the seed last asked for stay."""
    key = str(run.folder), seed, device_of(run.params)
    if key not in _weights:
        _weights.clear()
        own = folded(load_model(seed_source(run.params, seed)).to(key[-1]))
        _weights[key] = own.w_out, normalize(own.unembedding, dim=0)
    return _weights[key]


@full_precision()
def seed_roles(
    w_out, unit_unembedding, classes: LabelSet, random_seed: int, pieces: Sequence[bytes] = ()
) -> pd.DataFrame:
    """One row per neuron of one seed: moments of its logit effects, its role, and its token class.

    Columns: layer, neuron; vocab_mean, vocab_var, vocab_skew, vocab_kurt over all tokens. Everything else is over the
    learned tokens (`roles.unlearned_tokens`; `pieces` are the tokens' bytes): learned_var, learned_skew, learned_kurt;
    role_learned by the calibrated cuts and role_published by the published ones; skew_sign; raised, raised_score,
    lowered, lowered_score: the class that explains most of the variance (docs/method.md §5) of those with higher, and
    with lower logit effects than the other tokens; label, label_family, label_score: the better of the two, unnamed if
    its score is within chance. The same for all neurons: null_kurt, null_var, null_score, which one random direction
    in a thousand exceeds, and the number of `unlearned` tokens. For comparison, role_calibrated is role_learned over
    all tokens, with cuts over all tokens.
    """
    width, device = len(unit_unembedding), unit_unembedding.device
    directions = roles.random_directions(roles.NULL_DIRECTIONS, width, random_seed).to(device)
    unlearned = roles.unlearned_tokens(unit_unembedding, pieces)
    # random directions and all neurons meet the vocabulary in one product
    both = weights.moments_with_and_without(torch.cat([directions, *w_out]), unit_unembedding, unlearned)
    number = len(directions)
    null_of_all, null = ({name: values[:number] for name, values in of.items()} for of in both)
    cuts_of_all, cuts = roles.null_cuts(null_of_all), roles.null_cuts(null)
    member = classes.member[:, ~unlearned.cpu().numpy()[: classes.member.shape[1]]]
    contrasts = roles.class_contrasts(unit_unembedding[:, ~unlearned], member)
    null_score = class_scores(directions, contrasts, null["vocab_var"]).score.amax(dim=1)
    score_cut = float(np.quantile(null_score.cpu().numpy(), roles.NULL_QUANTILE))

    table, learned = (pd.DataFrame({name: values[number:].cpu().numpy() for name, values in of.items()}) for of in both)
    sizes = [len(writes) for writes in w_out]
    table.insert(0, "layer", np.repeat(np.arange(len(sizes)), sizes))
    table.insert(1, "neuron", np.concatenate([np.arange(size) for size in sizes]))
    for name in ("var", "skew", "kurt"):
        table[f"learned_{name}"] = learned[f"vocab_{name}"]
    for name, one in (("role_learned", cuts), ("role_published", roles.PUBLISHED_CUTS)):
        table[name] = roles.roles(learned, one)
    variances = both[1]["vocab_var"][number:].split(sizes)
    found = []  # by layer: index and score of the best class that is raised, then those of the best one that is lowered
    for writes, variance in zip(w_out, variances, strict=True):
        scores = class_scores(writes, contrasts, variance)
        found.append(best_class_by_sign(scores, 1) + best_class_by_sign(scores, -1))
    raised, raised_score, lowered, lowered_score = map(np.concatenate, zip(*found, strict=True))
    names = classes.labels["label"].to_numpy()
    table = table.assign(raised=names[raised], raised_score=raised_score)
    table = table.assign(lowered=names[lowered], lowered_score=lowered_score)
    index = np.where(table["raised_score"] >= table["lowered_score"], raised, lowered)
    table["label_score"] = table[["raised_score", "lowered_score"]].max(axis=1)
    for column, source in (("label", "label"), ("label_family", "family")):
        table[column] = pd.Series(classes.labels[source].to_numpy()[index]).where(table["label_score"] > score_cut)
    return table.assign(
        role_calibrated=roles.roles(table, cuts_of_all),
        skew_sign=np.sign(table["learned_skew"]),
        null_kurt=cuts.kurtosis,
        null_var=cuts.variance,
        null_score=score_cut,
        unlearned=int(unlearned.sum()),
    )


def role_table(run: Run) -> pd.DataFrame:
    """roles.parquet: `seed_roles` of every seed, with a column seed in front."""

    def make() -> pd.DataFrame:
        classes, pieces = label_set(run), text_tokens.token_bytes(run.tokenizer)
        parts = {
            seed: seed_roles(*weights_of(run, seed), classes, run.params.random_seed, pieces)
            for seed in sorted(run.params.seeds)
        }
        return pd.concat(parts, names=["seed"]).reset_index("seed").reset_index(drop=True)

    depends_on = {"random_seed": run.params.random_seed, "tokens": run.text.tokens.numel()}
    return kept(run, "roles", __name__, depends_on, make)


def chosen_for_next_token(table: pd.DataFrame, number: int = SPLIT_PER_ROLE) -> pd.DataFrame:
    """Each seed's suppression and prediction neurons of largest kurtosis, `number` each, with a class.

    They have a class that explains more than chance: `label`, which the suppression neuron lowers, or the prediction
    neuron raises, most clearly.
    """
    columns = ["seed", "layer", "neuron", "role", "learned_kurt", "label", "label_score", "null_score"]
    chosen = []
    for role in ("suppression", "prediction"):
        own = roles.neurons_of_role(table, role)
        own = own[own["label_score"] > own["null_score"]].sort_values("learned_kurt", ascending=False, kind="stable")
        chosen.append(own.groupby("seed", sort=True).head(number).sort_values("seed", kind="stable"))
    return pd.concat(chosen, ignore_index=True)[columns]


@full_precision()
def logit_effects(run: Run, seed: str, chosen: pd.DataFrame) -> Float[np.ndarray, "neurons vocabulary"]:
    """cos(w_out, W_U[:, v]) of the neurons in `chosen` (layer, neuron) for the tokens v; NaN if v was never learned."""
    w_out, unit_unembedding = weights_of(run, seed)
    unlearned = roles.unlearned_tokens(unit_unembedding, text_tokens.token_bytes(run.tokenizer))
    unit_unembedding = unit_unembedding.masked_fill(unlearned, torch.nan)
    unit_unembedding = unit_unembedding[:, : run.text.vocab_size]  # without those of a padded embedding
    if chosen.empty:
        return np.zeros((0, unit_unembedding.shape[1]), dtype=np.float32)
    rows = torch.stack([w_out[row.layer][row.neuron] for row in chosen.itertuples()])
    return (normalize(rows, dim=1) @ unit_unembedding).cpu().numpy()


@full_precision()
def processing_error(run: Run, seed: str, blocks: int = 2) -> float:
    """Largest difference between logits of the folded weights and of the raw model, without each position's mean."""
    model = load_model(seed_source(run.params, seed)).to(device_of(run.params))
    return folding_error(model, folded(model), run.text.tokens[:blocks])


def next_token_effects(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """next_token.parquet: the chosen neurons' activations by whether the next token is in their class (figure 24).

    From the grouped moments of the run's pass, hence for seeds that serve as reference and classes that the pass knew.
    `p_corrected` is Holm's.
    """
    known = known_labels(
        run, [one for one in labels.label_sets(run.labelled, run.tokenizer) if one.grouping == GROUPING]
    )
    unknown = [label.removeprefix(PREFIX) for label in known.left_out]
    chosen = chosen_for_next_token(table[table["seed"].isin(run.done["references"]) & ~table["label"].isin(unknown)])
    names = [f"{row.seed} {row.layer} {row.neuron} {row.label}" for row in chosen.itertuples()]

    def make() -> pd.DataFrame:
        parts, rows = [], {label: row for one in known.sets for row, label in enumerate(one.labels["label"])}
        for seed, of_seed in chosen.groupby("seed"):
            own, sums, place = seed_statistics(run, seed, known), {}, {}
            for layer, of_layer in of_seed.groupby("layer"):
                distinct = list(dict.fromkeys(of_layer["label"]))
                sums[layer] = class_sums(own[layer], [rows.get(f"{PREFIX}{label}", -1) for label in distinct])
                place |= {index: distinct.index(label) for index, label in of_layer["label"].items()}
            parts.append(next_token_table(of_seed.assign(class_row=pd.Series(place)), sums))
        found = pd.concat(parts) if parts else next_token_table(chosen.assign(class_row=0), {})
        return found.assign(p_corrected=holm(found["p_value"]))

    return kept(run, "next_token", __name__, {"tokens": run.text.tokens.numel(), "neurons": names}, make)
