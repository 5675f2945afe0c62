"""Each accumulator against a plain fp64 NumPy/SciPy computation on all activations at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib.correlation import Scale, best_matches, compare, haar_rotation, rotations
from lib.kernels.covariance import OPERAND_DTYPES, CrossCovariance
from lib.kernels.examples import TopExamples
from lib.kernels.fused import fastest_layer_statistics, layer_statistics
from lib.kernels.histogram import Histogram
from lib.kernels.moments import Moments

LAYERS, NEURONS = 2, 5


def scalings(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Shift and scale (layers, 2, neurons) as the pilot of the pass sets them."""
    if dtype == torch.int8:
        low, high = values.amin(1), values.amax(1)
        return torch.stack([(low + high) / 2, 254 / ((high - low) * 1.5).clamp(min=1e-6)], 1)
    return torch.stack([values.mean(1), 1 / values.std(1, correction=0).clamp(min=1e-6)], 1)


def accumulate(pre, post, counted, precision="fp64", chunks=3):
    """Moments and operands of activations (layers, tokens, neurons), fed in ragged chunks."""
    dtype = OPERAND_DTYPES[precision]
    generator = torch.Generator().manual_seed(5)
    moments = Moments(scalings(pre, torch.float32), scalings(post, dtype))
    operands = []
    for rows in torch.arange(pre.shape[1]).chunk(chunks):
        parts = []
        for layer in range(len(pre)):
            dither = torch.rand(len(rows), pre.shape[2], generator=generator)
            weights = counted[rows].to(pre.dtype)[:, None]
            sums, part = layer_statistics(
                pre[layer, rows], post[layer, rows], weights,
                moments.pre_scaling[layer], moments.post_scaling[layer], dither, dtype,
            )  # fmt: skip
            moments.update(layer, sums)
            parts.append(part)
        moments.count(int(counted[rows].sum()))
        operands.append(torch.cat(parts, 1))
    return moments, operands


def activations(seed: int, tokens: int, mean: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(LAYERS, tokens, NEURONS, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    own = torch.randn(LAYERS, tokens, NEURONS, generator=generator, dtype=torch.float64)
    return (shared + own) * spread + mean


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 60),
    mean=st.sampled_from([0.0, -3.0, 1e4]),
    spread=st.sampled_from([1e-3, 1.0, 50.0]),
    chunks=st.integers(1, 7),
    data=st.data(),
)
def test_moments_equal_scipy(tokens, mean, spread, chunks, data):
    pre = activations(1, tokens, mean, spread)
    counted = torch.tensor(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    counted[0] = True
    moments, _ = accumulate(pre, pre.clamp(min=0), counted, chunks=chunks)
    kept = pre[:, counted].numpy()
    got = moments.pre_moments()
    np.testing.assert_allclose(got["mean"], kept.mean(1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got["var"], kept.var(1), rtol=1e-6, atol=1e-9 * spread**2)
    np.testing.assert_allclose(moments.frequency(), (kept > 0).mean(1))
    if counted.sum() > 3:
        np.testing.assert_allclose(got["skew"], stats.skew(kept, axis=1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["kurt"], stats.kurtosis(kept, axis=1, fisher=False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 1e-2), ("int8", 1e-2)])
def test_correlations_equal_numpy(precision, tolerance):
    tokens = 4000
    counted = torch.rand(tokens, generator=torch.Generator().manual_seed(0)) > 0.1
    post = {seed: activations(i, tokens).clamp(min=-0.2) for i, seed in enumerate("abc")}
    post["b"][1, :, 2] = 0.25  # a dead neuron
    moments, operands = {}, {}
    for seed, values in post.items():
        moments[seed], operands[seed] = accumulate(values, values, counted, precision)
    dtype = OPERAND_DTYPES[precision]
    covariance = CrossCovariance(list("abc"), LAYERS, NEURONS, dtype, torch.device("cpu"))
    for chunk in range(len(operands["a"])):
        covariance.update({seed: parts[chunk] for seed, parts in operands.items()})
    comparison = compare(covariance, moments, random_seed=3, draws=2)
    flat = {seed: values.transpose(0, 1).flatten(1)[counted].numpy() for seed, values in post.items()}
    for i, a in enumerate("abc"):
        for j, b in enumerate("abc"):
            if i == j:
                continue
            want = numpy_correlation(flat[a], flat[b])
            np.testing.assert_allclose(comparison.corr[i, j], want.max(1), atol=tolerance)
            for draw in range(2):
                turn = rotations(LAYERS, NEURONS, 3, j, draw).numpy()
                turned = np.einsum("lij,tlj->tli", turn, flat[b].reshape(-1, LAYERS, NEURONS)).reshape(len(flat[b]), -1)
                want = numpy_correlation(flat[a], turned).max(1)
                np.testing.assert_allclose(comparison.baseline[draw, i, j], want, atol=tolerance)
    dead = NEURONS + 2
    assert comparison.corr[1, 0, dead] == 0 and comparison.corr[1, 2, dead] == 0


def numpy_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """fp64 Pearson correlations (columns of x, columns of y), 0 where a column is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        corr = np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :]
    return np.nan_to_num(corr)


def test_int8_rounding_is_unbiased_where_plain_rounding_is_not():
    """Two neurons whose values sit inside one rounding step: their covariance survives stochastic rounding only."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(200_000, 1, generator=generator) * 0.3 + 0.1  # always rounds to 0
    scaling = torch.tensor([[0.0], [1.0]])
    ones = torch.ones(len(small), 1)
    rounded = []
    for _ in range(2):
        dither = torch.rand(len(small), 1, generator=generator)
        rounded.append(layer_statistics(small, small, ones, scaling, scaling, dither, torch.int8)[1].float().squeeze())
    covariance = float(torch.cov(torch.stack(rounded))[0, 1])
    assert covariance == pytest.approx(float(small.var()), rel=0.2)


def test_clipping_is_counted():
    scaling = torch.tensor([[0.0], [1.0]])
    values, ones = torch.tensor([[200.0], [10.0]]), torch.ones(2, 1)
    sums, operand = layer_statistics(values, values, ones, scaling, scaling, torch.zeros(2, 1), torch.int8)
    assert operand.squeeze().tolist() == [127, 10] and float(sums[-1]) == 73**2


def test_merge_of_two_halves_equals_one_pass():
    tokens = 300
    counted = torch.ones(tokens, dtype=torch.bool)
    post = {seed: activations(i, tokens) for i, seed in enumerate("ab")}
    whole = {seed: accumulate(values, values, counted, chunks=2) for seed, values in post.items()}

    def covariance(chunks):
        result = CrossCovariance(list("ab"), LAYERS, NEURONS, torch.float64, torch.device("cpu"))
        for chunk in chunks:
            result.update({seed: parts[chunk] for seed, (_, parts) in whole.items()})
        return result

    both, first, second = covariance([0, 1]), covariance([0]), covariance([1])
    second.merge(first)
    for name, tensor in both.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)


def test_best_match_of_a_permuted_copy_is_the_permuted_self():
    values = activations(4, 500)
    order = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(2))
    post = {"a": values, "b": values[:, :, order]}
    done = {seed: accumulate(v, v, torch.ones(500, dtype=torch.bool)) for seed, v in post.items()}
    covariance = CrossCovariance(["a", "b"], LAYERS, NEURONS, torch.float64, torch.device("cpu"))
    for chunk in range(3):
        covariance.update({seed: parts[chunk] for seed, (_, parts) in done.items()})
    scales = {seed: Scale.of(moments) for seed, (moments, _) in done.items()}
    forward, backward = best_matches(covariance.pairs[("a", "b")], scales["a"], scales["b"])
    want = torch.cat([order.argsort() + layer * NEURONS for layer in range(LAYERS)])
    assert forward.partner.tolist() == want.tolist()
    assert backward.partner[want].tolist() == list(range(LAYERS * NEURONS))
    torch.testing.assert_close(forward.corr, torch.ones(LAYERS * NEURONS, dtype=torch.float64))


def test_rotations_are_orthogonal_seeded_and_different_by_draw_and_model():
    turn = rotations(2, 16, 0, 1, 0)
    for layer in turn:
        torch.testing.assert_close(layer @ layer.T, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(turn, rotations(2, 16, 0, 1, 0))
    for other in (rotations(2, 16, 0, 1, 1), rotations(2, 16, 0, 2, 0), rotations(2, 16, 1, 1, 0)):
        assert not torch.allclose(turn, other)


def test_haar_rotation_has_no_preferred_sign():
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.stack([haar_rotation(4, generator).diagonal() for _ in range(400)])
    assert abs(float(diagonal.mean())) < 0.05  # a plain QR gives about −0.3 here


@settings(max_examples=20, deadline=None)
@given(blocks=st.integers(1, 12), k=st.integers(1, 6), seed=st.integers(0, 100), split=st.integers(0, 12))
def test_top_examples_equal_a_sort(blocks, k, seed, split):
    context, generator = 7, torch.Generator().manual_seed(seed)
    post = torch.randint(0, 9, (blocks, context, NEURONS), generator=generator).float()  # ties wanted
    counted = torch.rand(blocks, context, generator=generator) > 0.2
    number = torch.arange(blocks)
    parts = [TopExamples(1, NEURONS, k, radius=2) for _ in range(2)]
    for part, chosen in zip(parts, (number[:split], number[split:]), strict=True):
        if len(chosen):
            part.update(0, post[chosen], counted[chosen], chosen)
    parts[0].merge(parts[1])
    for neuron in range(NEURONS):
        want = []
        for block in range(blocks):
            own = sorted((float(v) for v, c in zip(post[block, :, neuron], counted[block], strict=True) if c))
            want += own[::-1][:2]
        want = sorted(want, reverse=True)[:k]
        got = parts[0].value[0, neuron]
        assert got[got.isfinite()].tolist() == want
        for value, block, position, window in zip(
            got, parts[0].block[0, neuron], parts[0].position[0, neuron], parts[0].window[0, neuron], strict=True
        ):
            if value.isfinite():
                assert post[block, position, neuron] == value == window[2] and counted[block, position]


def test_histogram_equals_numpy():
    values = activations(7, 500)
    low, high = values.amin(1) + 0.5, values.amax(1) - 0.5
    counted = torch.rand(500, generator=torch.Generator().manual_seed(1)) > 0.3
    histogram = Histogram(low.float(), high.float(), bins=16)
    for rows in torch.arange(500).chunk(4):
        for layer in range(LAYERS):
            histogram.update(layer, values[layer, rows], counted[rows])
    for layer in range(LAYERS):
        for neuron in range(NEURONS):
            edges = np.linspace(float(low[layer, neuron]), float(high[layer, neuron]), 17)
            edges[0], edges[-1] = -np.inf, np.inf
            want, _ = np.histogram(values[layer, counted, neuron], edges)
            got = histogram.counts[layer, neuron].numpy()
            assert (
                got.sum() == counted.sum() and np.abs(got - want).sum() <= 2
            )  # a value on an edge may fall either way


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_compiled_statistics_equal_plain_ones(dtype):
    generator = torch.Generator().manual_seed(0)
    pre, dither = torch.randn(64, 32, generator=generator), torch.rand(64, 32, generator=generator)
    counted = (torch.rand(64, 1, generator=generator) > 0.1).float()
    scaling = torch.stack([torch.full((32,), 0.1), torch.full((32,), 20.0)])
    arguments = pre, torch.nn.functional.gelu(pre), counted, scaling, scaling, dither, dtype
    (sums, operand), (want_sums, want) = fastest_layer_statistics()(*arguments), layer_statistics(*arguments)
    torch.testing.assert_close(sums, want_sums, rtol=1e-4, atol=1e-3)
    # the compiled expression may round the last bit otherwise: at most one step, and that rarely
    difference = (operand.double() - want.double()).abs()
    assert difference.max() <= (1 if dtype == torch.int8 else 1e-5) and (difference > 1e-5).double().mean() < 0.01
