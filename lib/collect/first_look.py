"""A first look at each seed: its losses, the range of its activations, and whether it is what it is called."""

import sys
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib.base.errors import InputError
from lib.base.tensors import write_table, write_tensors
from lib.collect.planner import BATCH_TOKENS
from lib.collect.preflight import Preflight
from lib.collect.reader import refuse_nan
from lib.collect.seed_checks import (
    first_w_in,
    groups_in_words,
    initialisation_table,
    logits_of,
    plain_logits,
    seed_check,
    shared_groups,
)
from lib.models.trunk import Trunk, load_model, token_losses
from lib.text.blocks import Text

LOSS_BLOCKS = 128  # blocks on which each seed's loss is measured, at most; of a short text a quarter,
FEWEST_LOSS_BLOCKS = 8  # but not fewer than these
LOSS_LOGITS = 2**22  # logits computed at a time; larger buffers return to the OS and are slow to reallocate
PILOT_BLOCKS = 64  # blocks, spread over the text, that fix shifts and scales
# The same model in another format or precision; two seeds agree in neither, nor do two models of one initialisation.
SAME_LOSS, SAME_MEANS = 1e-3, 0.9999  # relative difference of the losses, correlation of the neurons' mean activations
PILOT_NAMES = ("pre_scaling", "post_scaling", "low", "high")


def loss_blocks(blocks: int) -> int:
    """On how many blocks of a text the losses are measured."""
    return min(blocks, LOSS_BLOCKS, max(FEWEST_LOSS_BLOCKS, blocks // 4))


def losses(name: str, model, text) -> list[dict]:
    """One seed's loss in nats per token on the first blocks of the text, over all and by domain."""
    number = loss_blocks(len(text.tokens))
    tokens, domain = text.tokens[:number], text.domain[:number]
    size = max(1, min(BATCH_TOKENS, LOSS_LOGITS // text.vocab_size) // text.context)
    found = torch.cat([token_losses(model, part.to(model.device)).cpu() for part in tokens.split(size)]).double()
    predicted = tokens[:, 1:] != text.bos_id  # BOS begins the next document or fills the end of a block
    rows = []
    for index, title in [(None, "all"), *((index, text.domains[index]) for index in domain.unique().tolist())]:
        own = found[predicted] if index is None else found[domain == index][predicted[domain == index]]
        if len(own):
            title = f"{title} (domain)" if title == "all" and index is not None else title
            rows.append({"seed": name, "domain": title, "loss": float(own.mean()), "tokens": len(own)})
    return rows


def first_look(inputs: Preflight, precision: str, device: torch.device) -> None:
    """One model at a time: writes the tables losses, seed_checks and initialisation, and stats/pilot.safetensors."""
    run, rows, scalings, w_in, checks = inputs.run, [], {}, {}, []
    for name in tqdm(sorted(inputs.folders), desc="losses and ranges", unit="seed"):
        model = load_model(inputs.folders[name]).to(device)
        w_in[name], plain = first_w_in(model), plain_logits(model, run.text.tokens)
        trunk = Trunk(model, precision == "bf16")  # which gives the model its fast steps
        checks.append(seed_check(name, w_in[name], plain, logits_of(model, run.text.tokens)))
        rows += losses(name, model, run.text)
        found = pilot(name, trunk, run.text, device)
        scalings |= {f"{name}.{key}": tensor for key, tensor in found.items()}
    refuse_copies(rows, {name: scalings[f"{name}.post_scaling"][:, 0].flatten() for name in inputs.folders})
    initial = initialisation_table(w_in)
    if shared := shared_groups(initial):
        print(f"note: seeds that share an initialisation: {groups_in_words(shared)} (chapter 01).", file=sys.stderr)
    tables = {"losses": pd.DataFrame(rows), "seed_checks": pd.DataFrame(checks), "initialisation": initial}
    for name, table in tables.items():
        write_table(run.folder / "tables" / f"{name}.parquet", table)
    write_tensors(run.folder / "stats" / "pilot.safetensors", scalings)


def refuse_copies(losses: list[dict], means: dict[str, Float[Tensor, "total"]]) -> None:
    """Raises InputError if two seeds have the same losses and the same mean activation of every neuron."""
    of = dict.fromkeys(means, 0.0) | {row["seed"]: row["loss"] for row in losses if row["domain"] == "all"}
    for one, two in combinations(sorted(means), 2):
        if len(means[one]) != len(means[two]) or abs(of[one] - of[two]) > SAME_LOSS * of[one]:
            continue
        if float(torch.corrcoef(torch.stack([means[one], means[two]]).double())[0, 1]) > SAME_MEANS:
            raise InputError(
                f"seeds: '{one}' and '{two}' are one model in two formats: their losses and the mean activations of "
                "their neurons agree; name models that were trained from different random seeds."
            )


def pilot(name: str, trunk: Trunk, text: Text, device: torch.device) -> dict[str, Tensor]:
    """Shifts and scales of one seed from blocks spread over the text, by PILOT_NAMES.

    Scalings (layers, 2, neurons) of pre-activation and activation, mean and inverse deviation, and the range (layers,
    neurons) of the pre-activation.
    """
    spread = torch.linspace(0, len(text.tokens) - 1, min(PILOT_BLOCKS, len(text.tokens))).long()
    tokens, counted = text.tokens[spread], text.counted(spread)
    ranges: dict[tuple[str, int], _Range] = {}
    size = max(1, BATCH_TOKENS // text.context)
    for start in range(0, len(tokens), size):
        rows = counted[start : start + size].flatten().to(device)

        def visit(layer: int, pre: Tensor, post: Tensor, rows=rows) -> None:
            for kind, values in (("pre", pre), ("post", post)):
                ranges.setdefault((kind, layer), _Range()).update(values.flatten(0, 1)[rows])

        trunk.run(tokens[start : start + size].to(device), visit)
    made: dict[str, list[Tensor]] = {key: [] for key in PILOT_NAMES}
    layers = range(len(ranges) // 2)
    refuse_nan(name, torch.stack([ranges["pre", layer].mean + ranges["post", layer].mean for layer in layers]))
    for layer in layers:
        pre, post = ranges["pre", layer], ranges["post", layer]
        deviation = _floored(pre.deviation)
        made["pre_scaling"].append(torch.stack([pre.mean, 1 / deviation]))
        made["low"].append(pre.low - deviation / 2)
        made["high"].append(pre.high + deviation / 2)
        made["post_scaling"].append(torch.stack([post.mean, 1 / _floored(post.deviation)]))
    return {key: torch.stack(values).float() for key, values in made.items()}


class _Range:
    """Count, sums and extremes of neurons' values; sums are taken about the first values' mean, to lose few digits."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.about: Tensor | None = None
        self.low, self.high = torch.inf, -torch.inf

    def update(self, values: Float[Tensor, "tokens neurons"]) -> None:
        if not len(values):
            values = torch.zeros(1, values.shape[1], device=values.device)  # no token counts: all scales are floors
        low, high = values.amin(0).double(), values.amax(0).double()
        self.low = torch.minimum(low, torch.as_tensor(self.low, device=values.device).double())
        self.high = torch.maximum(high, torch.as_tensor(self.high, device=values.device).double())
        if values.dtype != torch.float64:
            values = values.float()
        if self.about is None:
            self.about = values.mean(0)
        moved = values - self.about
        self.count += len(values)
        self.total = moved.sum(0).double() + self.total
        self.squares = moved.square_().sum(0).double() + self.squares

    @property
    def mean(self) -> Tensor:
        return self.about + self.total / self.count

    @property
    def deviation(self) -> Tensor:
        return (self.squares / self.count - (self.total / self.count) ** 2).clamp(min=0).sqrt()


def _floored(scale: Tensor) -> Tensor:
    """Scales no smaller than a hundredth of their median: a neuron silent in the pilot may still fire later."""
    return scale.clamp(min=max(float(scale.median()) / 100, 1e-6))
