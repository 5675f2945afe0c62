"""Covariances between layers of seeds, streamed over tokens: Σ_t x(t) y(t)ᵀ for pairs of layers.

`LayerProducts` sums products of operands chunk by chunk; it never sees more than one chunk of tokens. Operands are
activations shifted and scaled by pilot values (`lib.kernels.fused`) and cast to the precision of the product.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from lib.kernels import native

OPERAND_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}

INT8_TOKENS = 50_000


def fastest_precision(device: torch.device, tokens: int) -> str:
    """The cheapest operand type that this device multiplies natively with an error within 1e-3 ("auto").

    The rounding noise that int8 operands add to a correlation falls with the square root of the tokens; below
    INT8_TOKENS it may pass 1e-3 for neurons with very long tails, and products are cheap enough in fp32.
    """
    if device.type == "cuda":
        return "bf16"
    return "int8" if tokens >= INT8_TOKENS and torch.cpu._is_vnni_supported() else "fp32"


class Clipped:
    """What the cast to int8 cut off: few entries, each with a token, a neuron and the excess that the operand lacks.

    `tokens` and `neurons` are those with an entry, each once. Entries are sorted by neuron; those of neuron number n
    beginning at `first[n]`; `row` is each one's place in `tokens`.
    """

    def __init__(self, token: Int[Tensor, "entries"], neuron: Int[Tensor, "entries"], excess: Float[Tensor, "entries"]):
        neuron, order = neuron.sort()
        self.neurons, counts = neuron.unique_consecutive(return_counts=True)
        self.first = counts.cumsum(0) - counts
        self.tokens, self.row = token[order].unique(return_inverse=True)
        self.neuron, self.excess = neuron, excess[order]

    def times(self, values: Float[Tensor, "tokens a"]) -> Float[Tensor, "neurons a"]:
        """Σ excess · value over the entries of each neuron, the rows of `values` being those of `tokens`."""
        return embedding_bag(self.row, values, self.first, mode="sum", per_sample_weights=self.excess.to(values.dtype))


class Operand:
    """One layer's scaled activations on a chunk of tokens, cast; and, for int8, what the cast cut off.

    `values` is (tokens, neurons), or (panels, tokens / 4, PANEL, 4) for the loop in products.cpp.
    """

    def __init__(self, values: Tensor, clipped: Clipped | None = None):
        self.values, self.clipped = values, clipped if clipped is not None and len(clipped.excess) else None

    @property
    def in_panels(self) -> bool:
        """Whether it is laid out for the loop in products.cpp."""
        return self.values.dim() == 4

    def rows(self, tokens: Int[Tensor, "wanted"], dtype: torch.dtype) -> Float[Tensor, "wanted neurons"]:
        """Some tokens' activations as they were cast."""
        if self.in_panels:
            panels = len(self.values)
            rows = torch.empty(len(tokens), panels * PANEL)
            native.call("rows", self.values, tokens, len(tokens), panels, self.values.stride(0), rows)
            return rows.to(dtype)
        return self.values.index_select(0, tokens).to(dtype)

    def whole_rows(self, tokens: Int[Tensor, "wanted"], dtype: torch.dtype) -> Float[Tensor, "wanted neurons"]:
        """Some tokens' activations (sorted, each token once) with what was cut off put back."""
        rows = self.rows(tokens, dtype)
        if self.clipped is None:
            return rows
        place = torch.searchsorted(tokens, self.clipped.tokens).clamp(max=len(tokens) - 1)
        place = torch.where(tokens[place] == self.clipped.tokens, place, -1)[self.clipped.row]
        kept = place >= 0
        rows[place[kept], self.clipped.neuron[kept]] += self.clipped.excess[kept].to(dtype)
        return rows


def product(left: Float[Tensor, "tokens a"], right: Float[Tensor, "tokens b"]) -> Float[Tensor, "a b"]:
    """leftᵀ·right over one chunk: int8 operands give exact int32 sums, or fp32 sums on a CPU without 8-bit dot products
    (VNNI); bf16 ones fp32 sums where the device can.

    On CPU a bf16 product comes back rounded to bf16; the roundings of different chunks are independent, so the
    relative error of a sum over n chunks is about 2⁻⁹/√n.
    """
    if left.dtype == torch.int8:
        if left.is_cuda or torch.cpu._is_vnni_supported():
            return torch._int_mm(left.T, right)
        return (
            left.T.float() @ right.float()
        )  # _int_mm then multiplies one by one, a hundred times more slowly than fp32
    if left.dtype == torch.bfloat16 and left.is_cuda:
        return torch.mm(left.T, right, out_dtype=torch.float32)
    return left.T @ right


def add_clipped(sums: Float[Tensor, "a b"], left: Operand, right: Operand) -> None:
    """Adds EᵀY + (X + E)ᵀF to `sums`, X and Y being the operands' values and E and F what clipping cut off them."""
    if left.clipped is not None:  # EᵀY
        own = left.clipped
        sums.index_add_(0, own.neurons, own.times(right.rows(own.tokens, sums.dtype)))
    if right.clipped is not None:  # (X + E)ᵀF
        own = right.clipped
        sums[:, own.neurons] += own.times(left.whole_rows(own.tokens, sums.dtype)).T


class Operands:
    """One seed's operands on a chunk of tokens, and what was cut off each layer's.

    `values` is (tokens, layers, neurons), or (layers, panels, tokens / 4, PANEL, 4) for the loop in products.cpp.
    """

    def __init__(self, values: Tensor, clipped: Sequence[Clipped | None] = ()):
        self.values = values
        layers = values.unbind(0 if values.dim() == 5 else 1)
        self.layers = [Operand(layer, own) for layer, own in zip(layers, clipped or [None] * len(layers), strict=True)]

    @classmethod
    def empty(
        cls, tokens: int, layers: int, neurons: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> "Operands":
        """Room for a chunk, in the layout in which it is multiplied fastest."""
        if (
            dtype == torch.int8
            and torch.device(device).type == "cpu"
            and tokens % 4 == 0
            and multiplies_panels(neurons)
        ):
            return cls(torch.empty(layers, neurons // PANEL, tokens // 4, PANEL, 4, dtype=dtype))
        return cls(torch.empty(tokens, layers, neurons, dtype=dtype, device=device))

    def in_order(self, first: int, stop: int | None = None) -> Tensor:
        """A view of some tokens, (layers, tokens, neurons), or of panels (layers, tokens / 4, 4, panels, PANEL)."""
        if self.values.dim() == 5:
            return self.values.permute(0, 2, 4, 1, 3)[:, first // 4 : None if stop is None else stop // 4]
        return self.values.movedim(1, 0)[:, first:stop]

    def __getitem__(self, layer: int) -> Operand:
        return self.layers[layer]

    def __len__(self) -> int:
        return len(self.layers)


PANEL, GROUP = 32, 8  # COLUMNS and GROUP in products.cpp


def multiplies_panels(neurons: int) -> bool:
    """Whether products.cpp multiplies 8-bit operands of so many neurons here, which it does faster than torch."""
    return neurons % native.LANES == 0 and native.function("products_int8") is not None


WIDE = {
    "cpu": 64e6,
    "cuda": 1e9,
}  # bytes of one product, at most: of one layer with as many layers as fit, since wide ones are faster

STRIPES = {
    "cpu": 2,
    "cuda": 1,
}  # into which the rows of a symmetric product are cut, each computed from the diagonal on


def symmetric_share(neurons: int, dtype: torch.dtype, device_type: str) -> float:
    """Operations of a layer's product with itself, as a share of those with another layer."""
    panels = dtype == torch.int8 and device_type == "cpu" and multiplies_panels(neurons)
    parts = -(-neurons // (GROUP * PANEL)) if panels else STRIPES[device_type]
    return (parts + 1) / (2 * parts)


def layers_at_once(neurons: int, accumulator_bytes: int, device_type: str) -> int:
    """With how many layers of a seed one layer of another is multiplied in one product."""
    return max(1, int(WIDE[device_type] // (neurons**2 * accumulator_bytes)))


class LayerProducts:
    """Sums Σ_t x(t) y(t)ᵀ of layers against layers, axes (layers of y, neurons of x, neurons of y)."""

    def __init__(self, layers: int, neurons: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        self.sums = torch.zeros(layers, neurons, neurons, dtype=accumulator, device=device)

    def update(self, left: Operand, right: Operands) -> None:
        """Adds one chunk: one layer of a seed with every layer of another, rows in the same order of tokens."""
        if left.in_panels:
            self._add_panels(self.sums, left.values, right.values, own=False)
        else:
            self._add(left.values, right.values)
        for sums, y in zip(self.sums, right, strict=True):
            add_clipped(sums, left, y)

    def _add(self, left: Float[Tensor, "tokens neurons"], right: Float[Tensor, "tokens layers neurons"]) -> None:
        neurons = self.sums.shape[1]
        for sums, y in zip(*(x.split(self._width(), axis) for x, axis in ((self.sums, 0), (right, 1))), strict=True):
            made = product(left, y.flatten(1))  # (neurons of x, layers · neurons of y)
            for own, part in zip(sums, made.split(neurons, 1), strict=True):  # one at a time, since a cast makes a copy
                own += part

    def _add_panels(
        self, sums: Float[Tensor, "layers neurons neurons"], left: Tensor, right: Tensor, own: bool
    ) -> None:
        panels, steps = left.shape[:2]
        native.call("products", left, right, panels, len(sums), steps, left.stride(0), int(own), sums)

    def update_own(self, own: Operands) -> None:
        """Adds one chunk of tokens: each layer of a seed with itself, whose product is symmetric."""
        neurons = self.sums.shape[1]
        step = -(-neurons // STRIPES[self.sums.device.type])
        for sums, x in zip(self.sums, own, strict=True):
            if x.in_panels:
                self._add_panels(sums[None], x.values, x.values, own=True)
            else:
                for start in range(0, neurons, step):
                    stop = min(start + step, neurons)
                    made = product(x.values[:, start:stop], x.values[:, start:])
                    sums[start:stop, start:] += made
                    sums[stop:, start:stop] += made[:, stop - start :].T
            add_clipped(sums, x, x)

    def _width(self) -> int:
        return layers_at_once(self.sums.shape[1], self.sums.element_size(), self.sums.device.type)

    def merge(self, other: "LayerProducts") -> None:
        """Adds what another process accumulated."""
        self.sums += other.sums

    def state_dict(self) -> dict[str, Tensor]:
        """`sums` (layers, neurons, neurons)."""
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state."""
        self.sums = state["sums"]
