"""Each accumulator against a plain fp64 NumPy/SciPy computation on all activations at once."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lib.kernels import native
from lib.kernels.examples import TopExamples
from lib.kernels.fused import OPERAND_DTYPES, SUMS, fastest_layer_statistics, layer_statistics
from lib.kernels.histogram import Histogram
from lib.kernels.moments import Moments
from lib.kernels.native import LANES

LAYERS, NEURONS = 2, 5
needs_compiler = pytest.mark.skipif(not native.libraries(), reason="no C++ compiler")


def accumulate(pre: torch.Tensor, post: torch.Tensor, counted: torch.Tensor, chunks: int) -> Moments:
    """Moments of activations (layers, tokens, neurons), fed in ragged chunks; merged of two, each of some chunks."""
    scaling = [torch.stack([one.mean(1), 1 / one.std(1, correction=0).clamp(min=1e-6)], 1) for one in (pre, post)]
    parts = [Moments(*scaling) for _ in range(2)]
    for number, rows in enumerate(torch.arange(pre.shape[1]).chunk(chunks)):
        moments, weights = parts[number % 2], counted[rows].to(pre.dtype)[:, None]
        for layer in range(len(pre)):
            given = pre[layer, rows], post[layer, rows], weights, weights, scaling[0][layer], scaling[1][layer]
            moments.update(layer, layer_statistics(*given, torch.empty(given[0].shape, dtype=torch.float64)))
        moments.count(int(counted[rows].sum()))
    saved = Moments(*scaling)
    saved.load_state_dict(parts[1].state_dict())
    parts[0].merge(saved)
    return parts[0]


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
    post = pre.clamp(min=0)
    moments = accumulate(pre, post, counted, chunks)
    kept = pre[:, counted].numpy()
    got = moments.pre_moments()
    np.testing.assert_allclose(got["mean"], kept.mean(1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got["var"], kept.var(1), rtol=1e-6, atol=1e-9 * spread**2)
    np.testing.assert_allclose(moments.frequency(), (kept > 0).mean(1))
    mean, deviation = moments.activation_mean_and_deviation()
    np.testing.assert_allclose(mean, post[:, counted].mean(1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(deviation, post[:, counted].numpy().std(1), rtol=1e-5, atol=1e-6 * spread)
    if counted.sum() > 3:
        np.testing.assert_allclose(got["skew"], stats.skew(kept, axis=1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["kurt"], stats.kurtosis(kept, axis=1, fisher=False), rtol=1e-4, atol=1e-6)


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


def some_activations(tokens: int, neurons: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Arguments of `layer_statistics` but the operand."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(tokens, neurons, generator=generator)
    counted, sign = (torch.rand(tokens, 1, generator=generator) for _ in range(2))
    scaling = torch.stack([torch.full((neurons,), 0.1), torch.linspace(20.0, 120.0, neurons)])
    post = torch.nn.functional.gelu(pre)
    return (pre.to(dtype), post.to(dtype), (counted > 0.1).float(), 1 - 2 * (sign > 0.5).float(), scaling, 2 * scaling)


@pytest.mark.parametrize("operand_type", list(OPERAND_DTYPES.values()))
def test_sums_and_operands_equal_numpy(operand_type):
    """A token that does not count is 0 everywhere, its sign is in the operand only."""
    given = some_activations(599, 24)
    operand = torch.empty(599, 24, dtype=operand_type)
    sums = layer_statistics(*given, operand)
    pre, post, counted, sign, pre_scaling, post_scaling = (one.double().numpy() for one in given)
    x, y = ((one - scale[0]) * scale[1] for one, scale in ((pre, pre_scaling), (post, post_scaling)))
    wanted = [x, x**2, x**3, x**4, pre > 0, y, y**2]
    rounding = 1e-12 if operand_type == torch.float64 else 1e-5
    for name, got, want in zip(SUMS, sums.double().numpy(), wanted, strict=True):
        assert (np.abs(got - (want * counted).sum(0)) <= rounding * (np.abs(want) * counted).sum(0)).all(), name
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}[operand_type]
    np.testing.assert_allclose(operand.double(), y * counted * sign, rtol=step, atol=step)


@needs_compiler
@pytest.mark.parametrize("operand_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 8, 256, 599])
def test_native_statistics_equal_plain_ones(dtype, operand_type, tokens):
    """The C++ loop writes into a layer's part of the operands: operands exactly, sums to the last digits."""
    given = some_activations(tokens, 64, dtype)
    want = torch.empty(tokens, 64, dtype=operand_type)
    layer_statistics(*given, want)
    operands = torch.full((tokens + 8, 3 * 64), 55.0, dtype=operand_type)
    assert native.takes("statistics", *given[:2])
    sums = fastest_layer_statistics(*given, operands[4 : 4 + tokens, 64:128])
    assert torch.equal(operands[4 : 4 + tokens, 64:128], want)
    operands[4 : 4 + tokens, 64:128] = 55
    assert (operands == 55).all()  # nothing else is touched
    pre, post, counted, _, pre_scaling, post_scaling = (one.double() for one in given)
    x, y = ((one - scale[0]) * scale[1] for one, scale in ((pre, pre_scaling), (post, post_scaling)))
    for name, got, values in zip(SUMS, sums.double(), (x, x**2, x**3, x**4, pre > 0, y, y**2), strict=True):
        error = 0 if name == "active" else 1e-6 * (values.abs() * counted).sum(0)  # what cancels is lost
        assert ((got - (values * counted).sum(0)).abs() <= error).all(), name


@needs_compiler
def test_the_loop_leaves_to_torch_what_it_does_not_take(monkeypatch):
    """fp64, a stride between neurons, a width that is no multiple of LANES: the same numbers without a loop."""
    called = []
    monkeypatch.setattr(native, "call", lambda *arguments: called.append(arguments))
    given = some_activations(8, 64)
    for changed, operand_type in (
        ((given[0].double(), given[1].double(), *given[2:]), torch.float64),
        ((given[0].T.contiguous().T, *given[1:]), torch.float32),
        (some_activations(8, 24), torch.float32),
        (given, torch.float64),
    ):
        operands = [torch.empty(changed[0].shape, dtype=operand_type) for _ in range(2)]
        found = fastest_layer_statistics(*changed, operands[0])
        assert torch.equal(found, layer_statistics(*changed, operands[1])) and torch.equal(*operands)
    assert not called
    fastest_layer_statistics(*given, torch.empty(8, 64))
    assert len(called) == 1


@pytest.fixture
def afresh():
    """The loops are compiled anew in the test, and once more after it."""
    caches = (native._loaded, native.libraries, native.function)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


@needs_compiler
def test_a_source_that_does_not_compile_leaves_the_others(afresh, monkeypatch):
    monkeypatch.setattr(native, "SOURCES", {"forward.cpp": "-ffp-contract=fast", "missing.cpp": ""})
    (library,) = native.libraries()
    assert hasattr(library, "gelu_float")
    assert native.why_slower() == f"{native.COMPILER} could not compile missing.cpp of lib/kernels"


def test_no_compiler_is_said(afresh, monkeypatch):
    monkeypatch.setattr(native, "COMPILER", "a-compiler-that-is-not-there")
    assert native.libraries() == () and native.why_slower() == "there is no a-compiler-that-is-not-there"


@needs_compiler
def test_loops_are_made_elsewhere_where_temporary_programs_may_not_run(afresh, tmp_path, monkeypatch):
    beside, load = Path(native.__file__).parent, ctypes.CDLL
    before = sorted(beside.iterdir())

    def refused(path, *arguments):
        if path and beside not in Path(path).parents:
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path, *arguments)

    monkeypatch.setattr("ctypes.CDLL", refused)
    assert len(native.libraries()) == len(native.SOURCES) and native.why_slower() is None
    assert sorted(beside.iterdir()) == before
    native._loaded.cache_clear()
    native.libraries.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda path: refused("/elsewhere"))
    assert native.libraries() == () and "no program can be made and run in" in native.why_slower()
