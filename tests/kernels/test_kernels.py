"""Each accumulator against a plain fp64 NumPy/SciPy computation on all activations at once."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib.collect.first_look import INT8_DEVIATIONS, INT8_TOKENS, _int8_scaling, _Range
from lib.kernels import native
from lib.kernels.correlation import Covariance, Scale, best_matches, compare, haar_rotation, rotations
from lib.kernels.covariance import OPERAND_DTYPES, PANEL, Clipped, LayerProducts, Operands
from lib.kernels.examples import TopExamples
from lib.kernels.fused import (
    INT8_LIMIT,
    SUMS,
    clipped_entries,
    fastest_layer_statistics,
    layer_statistics,
    native_layer_statistics,
)
from lib.kernels.histogram import Histogram
from lib.kernels.moments import Moments
from lib.kernels.native import LANES

LAYERS, NEURONS = 2, 5
needs_compiler = pytest.mark.skipif(not native.libraries(), reason="no C++ compiler")


def scalings(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Shift and scale (layers, 2, neurons) as the pilot of the pass sets them."""
    if dtype == torch.int8:
        low, high = values.amin(1), values.amax(1)
        return torch.stack([(low + high) / 2, 254 / ((high - low) * 1.5).clamp(min=1e-6)], 1)
    return torch.stack([values.mean(1), 1 / values.std(1, correction=0).clamp(min=1e-6)], 1)


def statistics(*given, dtype, kernel=layer_statistics):
    """The sums of the activations `given` (pre, post, counted, both scalings, dither), and their operand in a type."""
    operand = torch.empty(given[0].shape, dtype=dtype)
    return kernel(*given, operand), operand


def in_panels(values: torch.Tensor) -> Operands:
    """Operands (tokens, layers, neurons) as products.cpp reads them."""
    made = Operands(
        torch.empty(values.shape[1], values.shape[2] // PANEL, len(values) // 4, PANEL, 4, dtype=torch.int8)
    )
    view = made.in_order(0)
    view.copy_(values.movedim(1, 0).reshape(view.shape))
    return made


def accumulate(pre, post, counted, precision="fp64", chunks=3, scaling=None):
    """Moments and, for each chunk, the operands of activations (layers, tokens, neurons), fed in ragged chunks."""
    dtype = OPERAND_DTYPES[precision]
    generator = torch.Generator().manual_seed(5)
    moments = Moments(scalings(pre, torch.float32), scalings(post, dtype) if scaling is None else scaling)
    operands = []
    for rows in torch.arange(pre.shape[1]).chunk(chunks):
        parts = []
        for layer in range(len(pre)):
            dither = torch.rand(len(rows), pre.shape[2], generator=generator)
            weights = counted[rows].to(pre.dtype)[:, None]
            both = moments.pre_scaling[layer], moments.post_scaling[layer]
            sums, part = statistics(pre[layer, rows], post[layer, rows], weights, *both, dither, dtype=dtype)
            moments.update(layer, sums)
            every = torch.arange(pre.shape[2] if precision == "int8" else 0)
            clipped = clipped_entries(post[layer, rows], weights, moments.post_scaling[layer], dither, every)
            parts.append((part, Clipped(*clipped)))
        moments.count(int(counted[rows].sum()))
        operands.append(Operands(torch.stack([part for part, _ in parts], 1), [own for _, own in parts]))
    return moments, operands


def covariance_of(operands: dict[str, list[Operands]], dtype=torch.float64, merged=False) -> Covariance:
    """All products of some seeds' chunks; `merged`: each chunk by itself, last first, and then added up."""
    seeds = tuple(operands)
    layers, neurons = len(operands[seeds[0]][0]), operands[seeds[0]][0][0].values.shape[1]
    every = [(a, layer, b) for a, b in combinations(seeds, 2) for layer in range(layers)] + [(a, a) for a in seeds]
    products = {key: LayerProducts(layers, neurons, dtype) for key in every}
    for chunk in reversed(range(len(operands[seeds[0]]))):
        for key, own in products.items():
            part = LayerProducts(layers, neurons, dtype) if merged else own
            a, b = operands[key[0]][chunk], operands[key[-1]][chunk]
            part.update(a[key[1]], b) if len(key) == 3 else part.update_own(a)
            if merged:
                own.merge(part)
    return Covariance(
        seeds,
        tuple(combinations(seeds, 2)),
        seeds,
        layers,
        neurons,
        pair=lambda a, layer, b, other: products[a, layer, b].sums[other],
        within=lambda seed, layer: products[seed, seed].sums[layer],
    )


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
    covariance = covariance_of(operands, OPERAND_DTYPES[precision])
    comparison = compare(covariance, moments, random_seed=3, draws=2)
    flat = {seed: values.transpose(0, 1).flatten(1)[counted].numpy() for seed, values in post.items()}
    for i, a in enumerate("abc"):
        for j, b in enumerate("abc"):
            if i == j:
                continue
            want = numpy_correlation(flat[a], flat[b])
            np.testing.assert_allclose(comparison.corr[i, j], want.max(1), atol=tolerance)
            for draw in range(2):
                turn = torch.stack(list(rotations(LAYERS, NEURONS, 3, j, draw))).numpy()
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
        rounded.append(statistics(small, small, ones, scaling, scaling, dither, dtype=torch.int8)[1].float().squeeze())
    covariance = float(torch.cov(torch.stack(rounded))[0, 1])
    assert covariance == pytest.approx(float(small.var()), rel=0.2)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 80),
    mean=st.sampled_from([0.0, -3.0, 1e4]),
    outlier=st.sampled_from([0.0, 30.0, 3000.0]),
    dead=st.lists(st.integers(0, NEURONS - 1), max_size=3),
    seed=st.integers(0, 1000),
)
def test_hard_activations_have_the_correlations_of_fp64(tokens, mean, outlier, dead, seed):
    """Dead neurons, large means, a single token and outliers beyond int8, against np.corrcoef, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    post = {name: activations(seed + i, tokens, mean).float() for i, name in enumerate("ab")}
    for values in post.values():
        values[:, :, dead] = mean + 0.5
    scaling = {name: scalings(values, torch.int8) for name, values in post.items()}  # from before the outliers
    for values in post.values():
        if tokens > 4:  # of fewer tokens the pilot misses none
            values[:, torch.randint(0, tokens, (1,), generator=generator), 0] += outlier * (0 not in dead)
    for precision, tolerance in (("fp32", 1e-4), ("int8", 6 / 40 / tokens**0.5 + 1e-4)):
        done = {}
        for name, values in post.items():
            own = scaling[name] if precision == "int8" else None
            done[name] = accumulate(values, values, torch.ones(tokens, dtype=torch.bool), precision, scaling=own)
        covariance = covariance_of({name: parts for name, (_, parts) in done.items()}, OPERAND_DTYPES[precision])
        comparison = compare(covariance, {name: moments for name, (moments, _) in done.items()}, 0, 1)
        flat = [values.double().transpose(0, 1).flatten(1).numpy() for values in post.values()]
        want = numpy_correlation(*flat)
        assert torch.isfinite(comparison.corr[0, 1]).all() and torch.isfinite(comparison.baseline[0, 0, 1]).all()
        np.testing.assert_allclose(comparison.corr[0, 1], want.max(1), atol=tolerance)
        assert all(comparison.corr[0, 1, layer * NEURONS + i] == 0 for i in dead for layer in range(LAYERS))


def test_int8_steps_grow_with_the_root_of_the_tokens():
    """A long tail limits the range in deviations; without one the range goes a little beyond the pilot's."""
    seen = _Range()
    seen.update(
        torch.cat([torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[60.0, 3.0]])])
    )
    half = {
        tokens: INT8_LIMIT / _int8_scaling(seen, tokens)[1] for tokens in (1000, INT8_TOKENS, 4 * INT8_TOKENS, 10**9)
    }
    deviation, span = float(seen.deviation[0]), float(seen.high[1] - seen.low[1])
    low = float(seen.low[0])
    for tokens, growth, margin in ((1000, 1, 1), (INT8_TOKENS, 1, 1), (4 * INT8_TOKENS, 2, 2), (10**9, 4, 2)):
        high = float(seen.mean[0]) + growth * INT8_DEVIATIONS * deviation
        assert half[tokens].tolist() == pytest.approx([margin * (high - low) / 2, margin * span / 2], rel=1e-5)


@pytest.mark.parametrize(
    ("neurons", "dot_products", "panels"), [(NEURONS, True, False), (NEURONS, False, False), (LANES, True, True)]
)
def test_what_int8_clips_is_added_exactly(neurons, dot_products, panels, monkeypatch):
    """Products of clipped operands equal those of the same rounded values without a limit."""
    if panels and native.function("products_int8") is None:
        pytest.skip("no compiler, or no AVX-512 VNNI")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: dot_products)
    generator = torch.Generator().manual_seed(1)
    scaling, ones = torch.tensor([[0.0] * neurons, [1.0] * neurons]), torch.ones(52, 1)
    made = []
    for _ in range(2):
        values = torch.randn(52, neurons, generator=generator) * 90  # a sixth is beyond 127
        dither = torch.rand(52, neurons, generator=generator)
        sums, part = statistics(values, values, ones, scaling, scaling, dither, dtype=torch.int8)
        entries = clipped_entries(values, ones, scaling, dither, torch.arange(neurons))
        rounded = torch.floor(values + dither)
        assert sums[-1].sum() == len(entries[0]) == (rounded.abs() > INT8_LIMIT).sum() > 10
        assert torch.equal(sums[-2], rounded.sum(0))
        operands = in_panels(part[:, None]) if panels else Operands(part[:, None])
        made.append((Operands(operands.values, [Clipped(*entries)]), rounded))
    (left, x), (right, y) = made
    products, own = (LayerProducts(1, neurons, torch.int8) for _ in range(2))
    products.update(left[0], right)
    own.update_own(left)
    torch.testing.assert_close(products.sums[0], x.T @ y, rtol=0, atol=0.5)
    torch.testing.assert_close(own.sums[0], x.T @ x, rtol=0, atol=0.5)


def test_merge_of_two_halves_equals_one_pass():
    tokens = 300
    counted = torch.ones(tokens, dtype=torch.bool)
    post = {seed: activations(i, tokens) for i, seed in enumerate("ab")}
    whole = {seed: accumulate(values, values, counted, chunks=2) for seed, values in post.items()}

    operands = {seed: parts for seed, (_, parts) in whole.items()}
    one, merged = covariance_of(operands), covariance_of(operands, merged=True)
    for layer in range(LAYERS):
        for other in range(LAYERS):
            torch.testing.assert_close(
                merged.pair("a", layer, "b", other), one.pair("a", layer, "b", other), rtol=1e-12, atol=1e-12
            )


def test_best_match_of_a_permuted_copy_is_the_permuted_self():
    values = activations(4, 500)
    order = torch.randperm(NEURONS, generator=torch.Generator().manual_seed(2))
    post = {"a": values, "b": values[:, :, order]}
    done = {seed: accumulate(v, v, torch.ones(500, dtype=torch.bool)) for seed, v in post.items()}
    covariance = covariance_of({seed: parts for seed, (_, parts) in done.items()})
    scales = {seed: Scale.of(moments) for seed, (moments, _) in done.items()}
    forward, backward = best_matches(covariance, "a", "b", scales)
    want = torch.cat([order.argsort() + layer * NEURONS for layer in range(LAYERS)])
    assert forward.partner.tolist() == want.tolist()
    assert backward.partner[want].tolist() == list(range(LAYERS * NEURONS))
    torch.testing.assert_close(forward.corr, torch.ones(LAYERS * NEURONS, dtype=torch.float64))


def test_rotations_are_orthogonal_seeded_and_different_by_draw_and_model():
    def turns(*key):
        return torch.stack(list(rotations(2, 16, *key)))

    turn = turns(0, 1, 0)
    for layer in turn:
        torch.testing.assert_close(layer @ layer.T, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(turn, turns(0, 1, 0))
    for other in (turns(0, 1, 1), turns(0, 2, 0), turns(1, 1, 0)):
        assert not torch.allclose(turn, other)


def test_haar_rotation_has_no_preferred_sign():
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.stack([haar_rotation(4, generator).diagonal() for _ in range(400)])
    assert abs(float(diagonal.mean())) < 0.05  # a plain QR gives about −0.3 here


@pytest.mark.parametrize("neurons", [5, LANES])  # by torch, or by the loop in C++
@settings(max_examples=20, deadline=None)
@given(
    blocks=st.integers(1, 12),
    k=st.integers(1, 6),
    seed=st.integers(0, 100),
    split=st.integers(0, 12),
    whole=st.booleans(),
)
def test_top_examples_equal_a_sort(neurons, blocks, k, seed, split, whole):
    context, radius, generator = 7, 2, torch.Generator().manual_seed(seed)
    post = torch.randint(0, 9, (blocks, context, neurons), generator=generator).float()  # ties wanted
    post = post if whole else post.bfloat16()
    assert native.takes("examples", post) == (neurons == LANES and native.function("examples_float") is not None)
    counted = torch.rand(blocks, context, generator=generator) > 0.2
    number = torch.arange(blocks)
    parts = [TopExamples(1, neurons, k, radius) for _ in range(2)]
    for part, chosen in zip(parts, (number[:split], number[split:]), strict=True):
        if len(chosen):
            part.update(0, post[chosen], counted[chosen], chosen)
    parts[0].merge(parts[1])
    post = post.float().numpy()
    around = np.pad(
        np.where(counted[..., None], post, np.nan), ((0, 0), (radius, radius), (0, 0)), constant_values=np.nan
    )
    for neuron in range(0, neurons, 5):
        want = []
        for block in range(blocks):
            want += sorted(post[block, counted[block], neuron].tolist())[::-1][:2]
        want = sorted(want, reverse=True)[:k]
        got = parts[0].value[0, neuron]
        assert got[got.isfinite()].tolist() == want
        for value, block, position, window in zip(
            got, parts[0].block[0, neuron], parts[0].position[0, neuron], parts[0].window[0, neuron], strict=True
        ):
            if value.isfinite():
                assert post[block, position, neuron] == value and counted[block, position]
                np.testing.assert_array_equal(window, around[block, position : position + 2 * radius + 1, neuron])


def test_windows_are_clipped_to_half_precision():
    examples, post = TopExamples(1, LANES, k=1, radius=1), torch.zeros(1, 3, LANES)
    post[0, 1], post[0, 2] = 1e9, -1e9
    examples.update(0, post, torch.ones(1, 3, dtype=torch.bool), torch.tensor([7]))
    assert (
        examples.value[0, 3, 0] == 1e9
        and examples.block[0, 3, 0] == 7
        and examples.window[0, 3, 0].tolist() == [0, 65504, -65504]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])  # by torch, or by the loop in C++
def test_histogram_equals_numpy(dtype):
    values = torch.randn(LAYERS, 500, LANES, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    low, high = values.float().amin(1) + 0.5, values.float().amax(1) - 0.5
    counted = torch.rand(500, generator=torch.Generator().manual_seed(1)) > 0.3
    histogram = Histogram(low, high, bins=16)
    assert native.takes("histogram", values[0]) == (
        dtype != torch.float64 and native.function("histogram_float") is not None
    )
    for rows in torch.arange(500).chunk(4):
        for layer in range(LAYERS):
            histogram.update(layer, values[layer, rows], counted[rows])
    for layer in range(LAYERS):
        for neuron in range(LANES):
            edges = np.linspace(float(low[layer, neuron]), float(high[layer, neuron]), 17)
            edges[0], edges[-1] = -np.inf, np.inf
            want, _ = np.histogram(values[layer, counted, neuron].double(), edges)
            got = histogram.counts[layer, neuron].numpy()
            assert (
                got.sum() == counted.sum() and np.abs(got - want).sum() <= 2
            )  # a value on an edge may fall either way


def some_activations(tokens: int, neurons: int):
    """Arguments of `layer_statistics` but the operand, most within the reach of 8 bits and some beyond."""
    generator = torch.Generator().manual_seed(0)
    pre, dither = torch.randn(tokens, neurons, generator=generator), torch.rand(tokens, neurons, generator=generator)
    counted = (torch.rand(tokens, 1, generator=generator) > 0.1).float()
    scaling = torch.stack([torch.full((neurons,), 0.1), torch.linspace(20.0, 120.0, neurons)])
    return pre, torch.nn.functional.gelu(pre), counted, scaling, scaling, dither


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "panels"), [(3, False), (256, False), (599, False), (8, True), (600, True)])
def test_native_statistics_equal_plain_ones(dtype, tokens, panels):
    """The C++ loop writes into a layer's part of the operands: operands and counts exactly, sums to the last digits."""
    pre, post, *others = some_activations(tokens, 64)
    given = pre.to(dtype), post.to(dtype), *others
    want_sums, want = statistics(*given, dtype=torch.int8)
    shape = (3, 2, tokens // 4 + 2, PANEL, 4) if panels else (tokens + 8, 3, 64)
    operands = Operands(torch.full(shape, 55, dtype=torch.int8))
    sums = native_layer_statistics(*given, operands.in_order(4, 4 + tokens)[1])
    assert torch.equal(operands[1].rows(torch.arange(4, 4 + tokens), torch.int8), want)
    assert (operands.values == 55).sum() - (
        want == 55
    ).sum() == operands.values.numel() - want.numel()  # nothing else is touched
    exact = [SUMS.index(name) for name in ("active", "operand1", "clipped")]
    assert torch.equal(sums[exact], want_sums[exact]) and (tokens < 10 or sums[exact[-1]].sum() > 10)
    x, y = ((values.double() - others[1][0]) * others[1][1] for values in given[:2])
    for name, values in [(f"pre{power}", x**power) for power in (1, 2, 3, 4)] + [("post1", y), ("post2", y**2)]:
        want, error = (
            (values * others[0]).sum(0),
            1e-6 * values.abs().sum(0),
        )  # what cancels is lost with the last digits
        assert ((sums[SUMS.index(name)] - want).abs() <= error).all(), name


@pytest.mark.skipif(native.function("products_int8") is None, reason="no compiler, or no AVX-512 VNNI")
@pytest.mark.parametrize(("tokens", "neurons"), [(4, 64), (1400, 320), (200, 640)])
# the second in more than one step and group of panels, the third in more than one part of left ones
def test_products_of_panels_are_exact(tokens, neurons):
    generator = torch.Generator().manual_seed(tokens)
    left, right = torch.randint(-127, 128, (2, tokens, 2, neurons), dtype=torch.int8, generator=generator)
    left[:, 0, 0], right[:, 1, 1] = 127, -127  # the largest sums
    pair, own = LayerProducts(2, neurons, torch.int8), LayerProducts(2, neurons, torch.int8)
    for _ in range(2):
        pair.update(in_panels(left)[0], in_panels(right))
        own.update_own(in_panels(left))
    wide_left, wide_right = left.long().numpy(), right.long().numpy()
    np.testing.assert_array_equal(pair.sums, 2 * np.einsum("tn,tlm->lnm", wide_left[:, 0], wide_right))
    np.testing.assert_array_equal(own.sums, 2 * np.einsum("tln,tlm->lnm", wide_left, wide_left))


@needs_compiler
def test_a_source_that_does_not_compile_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "SOURCES", {"forward.cpp": "-ffp-contract=fast", "missing.cpp": ""})
    with pytest.warns(UserWarning, match="could not compile missing.cpp"):
        (library,) = native.libraries.__wrapped__()
    assert hasattr(library, "gelu_float")
    monkeypatch.setattr(
        "tempfile.TemporaryDirectory", lambda: (_ for _ in ()).throw(FileNotFoundError("no place to write"))
    )
    assert native.libraries.__wrapped__() == ()


@needs_compiler
def test_native_statistics_decline_what_they_do_not_take():
    given = some_activations(8, 64)
    for changed in ((given[0].double(), *given[1:]), (given[0].T.contiguous().T, *given[1:]), some_activations(8, 24)):
        assert native_layer_statistics(*changed, torch.empty(changed[0].shape, dtype=torch.int8)) is None
    assert native_layer_statistics(*given, torch.empty(8, 64)) is None
    assert native_layer_statistics(*given, torch.empty(8, 64, dtype=torch.int8)) is not None


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_compiled_statistics_equal_plain_ones(dtype):
    arguments = some_activations(64, 24)  # a width that the loop in C++ does not take
    (sums, operand), (want_sums, want) = (
        statistics(*arguments, dtype=dtype, kernel=kernel) for kernel in (fastest_layer_statistics(), layer_statistics)
    )
    torch.testing.assert_close(sums, want_sums, rtol=1e-4, atol=1e-3)
    # the compiled expression may round the last bit otherwise: at most one step, and that rarely
    difference = (operand.double() - want.double()).abs()
    assert difference.max() <= (1 if dtype == torch.int8 else 1e-5) and (difference > 1e-5).double().mean() < 0.01
