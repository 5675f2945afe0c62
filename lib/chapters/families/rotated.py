"""Grouped moments of rotated neurons that are still outputs of a nonlinearity: the chance level of the families.

A layer's pre-activations are rotated, each gets the mean and deviation of the neuron of its index, and passes the
activation function again (docs/method.md §5). It takes a run of the model on a sample of the text, and sums the same
labels as the pass.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from scipy.sparse import csc_array
from torch import Tensor

from lib.base.hub import seed_config
from lib.base.machine import device_of
from lib.chapters.families.statistics import KnownLabels, SeedStatistics
from lib.chapters.universality.null_bases import inverse, mean_and_deviation
from lib.chapters.universality.null_tables import trunk_of, wide
from lib.kernels.correlation import haar_rotation
from lib.kernels.grouped import SQUARE, SUM, GroupedMoments, Places, Table
from lib.labels.labels import Grouping
from lib.models.architectures import ARCHITECTURES
from lib.models.trunk import read_config
from lib.run import Run
from lib.text.blocks import evenly_spaced

ROTATION_DRAW = 1_000  # none of chapter 2's draws
ROTATED = 512  # rotated neurons of a layer, at most
MAX_TOKENS = 24_576  # positions of text that they are read on; eight times as many move no level by more than 0.012
PAIR = 2  # of an even and an odd block: labels are chosen on the one half and scored on the other
BATCH_BLOCKS = 8


def keeps_nonlinearity(run: Run, seed: str) -> bool:
    """Whether one vector reads into each of the seed's neurons, so that rotated ones can pass the nonlinearity."""
    return ARCHITECTURES[read_config(seed, Path(seed_config(run.params, seed))).model_type].one_reader


class Rotated:
    """Rotated neurons of any seed of a run, on a sample of its text."""

    def __init__(self, run: Run, labels: KnownLabels, groupings: Mapping[str, Grouping]):
        self.run, self.text, self.device = run, run.labelled, device_of(run.params)
        self.blocks = evenly_spaced(len(self.text.tokens), MAX_TOKENS // self.text.context, PAIR)
        self.batches = [slice(at, at + BATCH_BLOCKS) for at in range(0, len(self.blocks), BATCH_BLOCKS)]
        self.counted = self.text.counted(self.blocks).to(self.device)
        tables = {one.table: Table(one.grouping, csc_array(one.member), (SUM, SQUARE)) for one in labels.sets}
        ids = {one.grouping: groupings[one.grouping].ids for one in labels.sets}
        self.places = Places(ids, tables, self.device)

    @torch.inference_mode()
    def statistics(self, seed: str, own: SeedStatistics) -> list[dict[str, Tensor]]:
        """A seed's layers as `GroupedMoments.compact` gives them, of rotated neurons, with a row for each label.

        Without `keeps_nonlinearity` (a gated MLP) activations are rotated, each in its deviations, those of `own`.
        """
        run, trunk, (layers, neurons) = self.run, trunk_of(self.run, seed), self.run.done["shapes"][seed]
        plain, number = keeps_nonlinearity(run, seed), min(neurons, ROTATED)
        turn = haar_rotation(neurons, run.params.random_seed, ROTATION_DRAW, self.device)[:number]
        turn = turn.to(self.device, wide(run))
        units = [1 if plain else inverse(own[layer]["deviation"]).to(turn) for layer in range(layers)]
        sums = torch.zeros(layers, 2, 2, number, dtype=torch.float64, device=self.device)  # (own or rotated, Σ and Σ²)
        rotated = torch.zeros(layers, *self.counted.shape, number, device=self.device)
        for part in self.batches:

            def visit(layer: int, before: Tensor, after: Tensor, part=part) -> None:
                values = (before if plain else after).to(turn) * units[layer]
                turned = values @ turn.T
                rotated[layer, part] = turned.float()
                for of, some in zip(sums[layer], (values[..., :number], turned), strict=True):
                    kept = some[self.counted[part]]
                    of += torch.stack([kept.sum(0), kept.square().sum(0)])

            trunk.run(self.text.tokens[self.blocks[part]].to(self.device), visit, layers)
        acts = [trunk.activations[layer] if plain else None for layer in range(layers)]
        return [self._sums(*of_layer) for of_layer in zip(rotated, sums, acts, strict=True)]

    def _sums(
        self, rotated: Float[Tensor, "blocks context n"], sums: Float[Tensor, "2 2 n"], act: Callable | None
    ) -> dict[str, Tensor]:
        """Rotated neurons of a layer by label; `act` is passed with the moments of the neurons of their index."""
        tokens = int(self.counted.sum())
        (mean, deviation), (middle, spread) = (mean_and_deviation(*some, tokens, rotated) for some in sums)
        rotated.sub_(middle).mul_(inverse(spread))
        if act is not None:
            rotated = act(rotated.mul_(deviation).add_(mean))
        kept = rotated[self.counted].double()
        center, width = mean_and_deviation(kept.sum(0), kept.square().sum(0), tokens, rotated)
        work = GroupedMoments(self.places.layout, torch.stack([center, inverse(width)]))
        for part in self.batches:
            work.update(rotated[part].flatten(0, 1), self.places.at(self.blocks[part], self.counted[part].flatten()))
        return work.compact()
