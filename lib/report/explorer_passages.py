"""The same passages through all seeds: what a neuron's best matches do on its own strongest examples, and their label.

Only the blocks of those examples are read again, once by each seed: those of the universal neurons of all seeds and of
the reference's most universal ones, until MAX_TOKENS positions of text are reached.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from lib.base.machine import device_of
from lib.cache import kept
from lib.chapters.families.summary import EXPLAINED
from lib.chapters.universality.null_tables import trunk_of
from lib.models.trunk import Trunk
from lib.run import Run

PASSAGES = 3  # of a neuron
NEURONS = 300  # of the reference
MAX_TOKENS = 240_000  # positions of text that each seed reads
BATCH_TOKENS = 2_048
KEY = ["seed", "layer", "neuron"]
Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------- which passages


def shown_neurons(neurons: pd.DataFrame, reference: str) -> pd.DataFrame:
    """KEY of the universal neurons of every seed and of the NEURONS of the reference with the largest excess, the
    largest first; `neurons` is `neurons_all_seeds` with `is_universal`."""
    ordered = neurons.sort_values("excess_corr", ascending=False, kind="stable")
    best = ordered[ordered["seed"] == reference].head(NEURONS)
    chosen = ordered[ordered["is_universal"] | ordered.index.isin(best.index)]
    return chosen.loc[chosen["excess_corr"].notna(), KEY].reset_index(drop=True)


def strongest(examples: Arrays, chosen: pd.DataFrame, context: int) -> pd.DataFrame:
    """A row for each of the chosen neurons' PASSAGES strongest examples: KEY, rank, block, position.

    Neurons whose blocks would exceed MAX_TOKENS positions together with those of the neurons before are left out.
    """
    blocks: set[int] = set()
    rows = []
    for seed, layer, neuron in chosen.itertuples(index=False):
        found = [examples[f"{seed}.{name}"][layer, neuron][:PASSAGES] for name in ("block", "position")]
        more = blocks | {int(block) for block in found[0] if block >= 0}
        if len(more) * context > MAX_TOKENS:
            break
        blocks = more
        places = zip(*found, strict=True)
        rows += [(seed, layer, neuron, rank, *map(int, at)) for rank, at in enumerate(places) if at[0] >= 0]
    return pd.DataFrame(rows, columns=[*KEY, "rank", "block", "position"])


# ---------------------------------------------------------------- their activations in the other seeds


def windows(
    trunk: Trunk, text: torch.Tensor, asked: pd.DataFrame, radius: int, device: torch.device
) -> Iterator[tuple[int, Float[np.ndarray, "window"]]]:
    """(index, activations around the position) of each row of `asked`: block, position, match_layer, match_neuron.

    NaN outside the block; `text` is (blocks, context). A block is read as far as its last window.
    """
    size = max(1, BATCH_TOKENS // text.shape[1])
    ends = (asked.groupby("block")["position"].max() + radius + 1).clip(upper=text.shape[1]).sort_values()
    for start in range(0, len(ends), size):
        batch, end = ends.index[start : start + size].tolist(), int(ends.iloc[start : start + size].max())
        own = asked[asked["block"].isin(batch)]
        layers = {int(layer): rows for layer, rows in own.groupby("match_layer")}
        found: list[tuple[int, np.ndarray]] = []

        def visit(layer, _pre, post, layers=layers, batch=batch, found=found) -> None:
            if layer not in layers:
                return
            rows = layers[layer]
            at = torch.tensor(rows["position"].to_numpy(copy=True))[:, None] + torch.arange(-radius, radius + 1)
            block = torch.tensor([batch.index(one) for one in rows["block"]])[:, None]
            neuron = torch.tensor(rows["match_neuron"].to_numpy(copy=True))[:, None]
            inside = (at >= 0) & (at < post.shape[1])
            values = post[block, at.clamp(0, post.shape[1] - 1), neuron].float().cpu()
            found += zip(rows.index, values.masked_fill(~inside, torch.nan).numpy(), strict=True)

        trunk.run(text[batch, :end].to(device), visit, max(layers) + 1)
        yield from found


def passage_table(run: Run) -> pd.DataFrame:
    """passages.parquet: KEY, rank, block, position of a neuron's strongest examples, and for each compared seed
    `model, match_layer, match_neuron` and `activation`, a list over the tokens around the position.

    No rows while the pass over the text goes on: a preview should not take the machine from it.
    """
    neurons, matches = run.table("neurons_all_seeds"), run.table("matches_all_seeds")
    chosen = shown_neurons(neurons, run.params.reference) if "excess_corr" in neurons else neurons[KEY].head(0)
    chosen = chosen.head(0) if run.done.get("preliminary") else chosen

    def make() -> pd.DataFrame:
        examples, device = run.stats("examples"), device_of(run.params)
        places = strongest(examples, chosen, run.text.context)
        asked = places.merge(matches[[*KEY, "model", "match_layer", "match_neuron"]], on=KEY)
        asked = asked[asked["match_neuron"] >= 0].reset_index(drop=True)
        found = {}
        for seed, own in asked.groupby("model"):
            radius = examples[f"{seed}.window"].shape[-1] // 2
            found |= dict(windows(trunk_of(run, seed), run.text.tokens, own, radius, device))
        return asked.assign(activation=pd.Series({index: list(one) for index, one in found.items()}, dtype=object))

    depends_on = {
        "neurons": [len(chosen), *chosen.sum(numeric_only=True).tolist()],
        "matches": int(matches["match_neuron"].sum()),
        "text": run.done["text_hash"],
        "limits": [PASSAGES, MAX_TOKENS],
    }
    return kept(run, "passages", __name__, depends_on, make)


def passage_arrays(table: pd.DataFrame, seeds: list[str], widths: dict[str, int], examples: Arrays) -> Arrays:
    """The table as the page reads it: `seed` (rows), an index of `seeds`, and `flat` (rows) name the neurons.

    `activation` (rows, PASSAGES, seeds, window) is NaN where nothing is known; `top` (rows, seeds) is the largest
    activation of each best match on the run's text.
    """
    keys = table[KEY].drop_duplicates().reset_index(drop=True)
    window = len(table["activation"].iloc[0]) if len(table) else 1
    shape = (len(keys), PASSAGES, len(seeds), window)
    made = {"activation": np.full(shape, np.nan, np.float32), "top": np.full((len(keys), len(seeds)), np.nan)}
    row = table.merge(keys.reset_index(names="row"), on=KEY)["row"]
    model = table["model"].map({seed: index for index, seed in enumerate(seeds)})
    for at, rank, other, one in zip(row, table["rank"], model, table.itertuples(), strict=True):
        made["activation"][at, rank, other] = one.activation
        made["top"][at, other] = examples[f"{one.model}.value"][one.match_layer, one.match_neuron, 0]
    made["seed"] = keys["seed"].map({seed: index for index, seed in enumerate(seeds)}).to_numpy(np.uint8)
    made["flat"] = (keys["layer"] * keys["seed"].map(widths) + keys["neuron"]).to_numpy(np.int32)
    return made


# ---------------------------------------------------------------- a label for a neuron and its best matches


def consensus(families: pd.DataFrame, matches: pd.DataFrame) -> pd.DataFrame:
    """KEY of each neuron with the label that it and its best matches have in common: consensus, consensus_votes,
    consensus_members, consensus_score.

    A neuron has the best label of each family if its score exceeds the neuron's chance level. Of the labels that more
    than half of the members have, the one with the largest mean score over all members is taken; without any, the most
    frequent one, if two members have it.
    """
    parts = [
        families[[*KEY, "chance", f"label_{one}", f"score_{one}"]].set_axis([*KEY, "chance", "label", "score"], axis=1)
        for one in EXPLAINED
        if f"label_{one}" in families
    ]
    labels = pd.concat(parts, ignore_index=True)
    labels = labels.loc[labels["score"] > labels["chance"], [*KEY, "label", "score"]]
    others = matches[[*KEY, "model", "match_layer", "match_neuron"]]
    own = families[KEY].assign(model=families["seed"], match_layer=families["layer"], match_neuron=families["neuron"])
    members = pd.concat([own, others[others["model"].isin(families["seed"].unique())]], ignore_index=True)
    renamed = dict(zip(KEY, ["model", "match_layer", "match_neuron"], strict=True))
    labels = labels.groupby([*KEY, "label"])["score"].max().reset_index()  # two families may share a label
    votes = members.merge(labels.rename(columns=renamed), on=list(renamed.values()))
    counted = votes.groupby([*KEY, "label"], sort=False)["score"].agg(["size", "sum"]).reset_index()
    counted = counted.merge(members.groupby(KEY).size().rename("consensus_members").reset_index(), on=KEY)
    most = 2 * counted["size"] > counted["consensus_members"]
    counted["rank"] = np.where(most, counted["consensus_members"], counted["size"])
    counted = counted[counted["size"] > 1].sort_values(["rank", "sum"], ascending=False)
    best = counted.drop_duplicates(KEY).rename(columns={"label": "consensus", "size": "consensus_votes"})
    best["consensus_score"] = best["sum"] / best["consensus_members"]
    return best[[*KEY, "consensus", "consensus_votes", "consensus_members", "consensus_score"]]
