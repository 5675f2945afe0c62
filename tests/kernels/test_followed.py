"""Sums over chosen pairs of neurons against plain fp64 NumPy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.kernels import native
from lib.kernels.correlation import Matches, followed_matches
from lib.kernels.followed import Followed, _Fused, best, digest, pair_sums, union
from lib.kernels.native import LANES

TOTALS = {"a": 30, "b": 22, "c": 17}  # seeds may differ in their number of neurons
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6}  # of Σ |x y|; operands are exact in fp64


def some_pairs(seed: int = 0, number: int = 40) -> dict[tuple[str, str], torch.Tensor]:
    """Random pairs of neurons of a and b, and of a and c, each once."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for a, b in (("a", "b"), ("a", "c")):
        flat = torch.randperm(TOTALS[a] * TOTALS[b], generator=generator)[:number].sort().values
        made[a, b] = torch.stack([flat // TOTALS[b], flat % TOTALS[b]])
    return made


def operands(tokens: int, dtype=torch.float64, seed: int = 1) -> dict[str, torch.Tensor]:
    """Operands (tokens, total) of each seed, with means that differ from neuron to neuron."""
    generator, made = torch.Generator().manual_seed(seed), {}
    shared = torch.randn(tokens, 5, generator=generator, dtype=torch.float64)
    for name, total in TOTALS.items():
        mixed = shared @ torch.randn(5, total, generator=generator, dtype=torch.float64)
        own = torch.randn(tokens, total, generator=generator, dtype=torch.float64)
        made[name] = (mixed + own + torch.linspace(-1, 1, total)).to(dtype)
    return made


def followed(pairs, values, cuts: list[int], parts: list[int], count: int) -> Followed:
    """Followed over values cut into batches, each in its part."""
    made = Followed(pairs, TOTALS, count, torch.float64)
    batches = {name: torch.tensor_split(one, cuts) for name, one in values.items()}
    for batch, part in enumerate(parts):
        own = {name: one[batch] for name, one in batches.items()}
        sums = {name: torch.stack([one.double().sum(0), one.double().square().sum(0)]) for name, one in own.items()}
        made.update(part, own, sums, len(own["a"]))
    return made


@pytest.mark.parametrize("dtype", list(RELATIVE))
@pytest.mark.parametrize("tokens", [64, 96, 640])
@pytest.mark.parametrize("loop", [True, False])
def test_sums_of_pairs_equal_numpy(dtype, tokens, loop, monkeypatch):
    """By the loop in C++, which takes multiples of LANES tokens, and by torch in several pieces."""
    if not loop:
        monkeypatch.setattr(native, "function", lambda name: None)
        monkeypatch.setattr("lib.kernels.followed.AT_ONCE", 7 * tokens)
    values, (pair, _) = operands(tokens, dtype), some_pairs().values()
    x, y = (values[name].T.contiguous() for name in "ab")
    known = loop and native.function("follow_float") is not None
    assert native.takes("follow", x, y) == (known and tokens % LANES == 0 and dtype != torch.float64)
    left, right = (one.double().numpy()[index] for one, index in zip((x, y), pair, strict=True))
    error = np.abs(pair_sums(x, y, pair).double().numpy() - (left * right).sum(1))
    assert (error <= RELATIVE[dtype] * np.abs(left * right).sum(1) + 1e-12).all()


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(3, 150),
    dtype=st.sampled_from(list(RELATIVE)),
    cuts=st.lists(st.integers(1, 150), max_size=4),
    data=st.data(),
)
def test_correlations_of_weighted_parts_equal_numpy(tokens, dtype, cuts, data):
    """Batches of any size, in any parts; the correlations of a bootstrap's draws are those of repeated parts."""
    values, pairs, cuts = operands(tokens, dtype), some_pairs(), sorted({cut for cut in cuts if cut < tokens})
    parts = data.draw(st.lists(st.integers(0, 2), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    made = followed(pairs, values, cuts, parts, count=3)
    sizes = np.diff([0, *cuts, tokens])
    assert made.tokens.tolist() == [sum(n for n, part in zip(sizes, parts, strict=True) if part == p) for p in range(3)]
    weights = torch.tensor([[1.0, 1, 1], [0, 2, 1], [3, 0, 0]])
    for (a, b), (left, right) in pairs.items():
        got = made.correlations((a, b), weights).numpy()
        for draw, own in enumerate(weights):
            rows = np.repeat(np.arange(tokens), own[np.repeat(parts, sizes)].int())
            if len(rows) < 3:
                continue
            x, y = (values[name].double().numpy()[rows][:, index] for name, index in ((a, left), (b, right)))
            x, y = x - x.mean(0), y - y.mean(0)
            want = (x * y).mean(0) / np.sqrt((x**2).mean(0) * (y**2).mean(0))
            np.testing.assert_allclose(got[draw], want, atol=1e-9 if dtype == torch.float64 else 1e-4)
        some = torch.tensor([3, 0, 8])
        np.testing.assert_array_equal(made.correlations((a, b), weights, some), got[:, some])


def test_a_constant_neuron_correlates_with_nothing():
    values, pairs = operands(50), some_pairs()
    values["a"][:, :] = 0.3
    assert (followed(pairs, values, [20], [0, 1], 2).correlations(("a", "b"), torch.ones(1, 2)) == 0).all()


def test_where_torch_compile_gives_up_torch_goes_on_and_says_so_once(monkeypatch):
    """On a GPU; the second call fails, as at the compiler's limit of shapes."""
    calls = []

    def compiled(function, **options):
        assert options == {"dynamic": True, "fullgraph": True}  # else it would give up without a word

        def run(*given):
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("too many shapes")
            return function(*given)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(_Fused, "works", True)
    _Fused._compiled.cache_clear()
    native.warn_slower.cache_clear()
    values, pairs = operands(40), some_pairs()["a", "b"]
    given = *(values[seed].T.contiguous() for seed in "ab"), *pairs
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [_Fused.products(*given) for _ in range(4)]
    _Fused._compiled.cache_clear()
    assert len(calls) == 2 and not _Fused.works
    assert [str(one.message) for one in said] == [
        "torch.compile does not work here (RuntimeError) to follow pairs; torch does its work, several times as slowly"
    ]
    for one in found:
        assert torch.equal(one, (given[0][pairs[0]] * given[1][pairs[1]]).sum(1))


def test_merged_and_saved_sums_are_those_of_one_process():
    values, pairs = operands(90), some_pairs()
    whole = followed(pairs, values, [40], [0, 1], 2)
    one = followed(pairs, {name: own[:40] for name, own in values.items()}, [], [0], 2)
    two = followed(pairs, {name: own[40:] for name, own in values.items()}, [], [1], 2)
    saved = Followed(pairs, TOTALS, 2, torch.float64)
    saved.load_state_dict({name: tensor.clone() for name, tensor in two.state_dict().items()})
    one.merge(saved)
    assert set(one.state_dict()) == {"a.b.products", "a.c.products", "a.sums", "b.sums", "c.sums", "tokens", "digest"}
    for name, tensor in whole.state_dict().items():
        assert torch.equal(one.state_dict()[name], tensor), name


def test_sums_of_other_candidates_are_refused():
    pairs, other = some_pairs(0), some_pairs(1)
    assert torch.equal(digest(pairs), digest(dict(reversed(pairs.items())))) and not torch.equal(
        *map(digest, (pairs, other))
    )
    one, two = (Followed(chosen, TOTALS, 2, torch.float64) for chosen in (pairs, other))
    with pytest.raises(ValueError, match=r"other candidates.*make clean"):
        one.merge(two)
    with pytest.raises(ValueError, match=r"other candidates.*make clean"):
        one.load_state_dict(two.state_dict())


@settings(max_examples=50, deadline=None)
@given(number=st.integers(1, 40), total=st.integers(1, 8), seed=st.integers(0, 1000))
def test_the_best_of_a_neuron_is_the_first_at_a_tie(number, total, seed):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(total * 9, generator=generator)[:number]
    own, partner = flat // 9, flat % 9
    values = torch.randint(-2, 3, (len(flat),), generator=generator).double()  # ties wanted
    value, who, pair = best(values, own, partner, total)
    for neuron in range(total):
        found = [(-float(values[i]), int(partner[i]), i) for i in range(len(flat)) if own[i] == neuron]
        low, other, index = min(found, default=(torch.inf, -1, -1))
        assert (value[neuron], who[neuron], pair[neuron]) == (-low, other, index)


def test_best_pairs_of_either_seed():
    """A pair is stored once; from the second seed it is read the other way round."""
    values, pairs = operands(200), some_pairs(number=200)
    made = followed(pairs, values, [90], [0, 1], 2)
    corr = np.corrcoef(values["a"].T, values["b"].T)[: TOTALS["a"], TOTALS["a"] :]
    known = np.full(corr.shape, -np.inf)
    known[tuple(pairs["a", "b"])] = corr[tuple(pairs["a", "b"])]
    forward, backward = followed_matches(made, ("a", "b"))
    for matches, table in ((forward, known), (backward, known.T)):
        assert isinstance(matches, Matches)
        np.testing.assert_allclose(matches.corr, table.max(1), atol=1e-9)
        found = table.max(1) > -np.inf
        assert matches.partner[found].tolist() == table.argmax(1)[found].tolist()
        assert (matches.partner[~found] == -1).all()
    assert made.stored(("b", "a")) == made.stored(("a", "b")) == ("a", "b")


def test_the_union_has_each_candidate_of_either_side_once():
    generator = torch.Generator().manual_seed(0)
    forward = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(6)])
    backward = torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(9)])
    wanted = {(i, j) for i, own in enumerate(forward.tolist()) for j in own}
    wanted |= {(i, j) for j, own in enumerate(backward.tolist()) for i in own}
    assert list(zip(*union(forward, backward).tolist(), strict=True)) == sorted(wanted)


def test_no_correlation_is_beyond_one_where_products_are_of_rounded_activations():
    values, number = operands(640)["a"], torch.arange(TOTALS["a"])
    pairs, rounded = {("a", "b"): torch.stack([number, number])}, values.bfloat16()
    sums = torch.stack([values.sum(0), values.square().sum(0)])
    made = Followed(pairs, {"a": len(number), "b": len(number)}, 1, torch.float32)
    made.update(0, {"a": rounded, "b": rounded}, {"a": sums, "b": sums}, len(values))
    x = rounded.double().numpy()
    beyond = (x * x).mean(0) - values.numpy().mean(0) ** 2 > values.numpy().var(0)
    assert beyond.any()
    found = made.correlations(("a", "b"), torch.ones(1, 1))[0]
    assert (found[torch.from_numpy(beyond)] == 1).all() and (found > 0.99).all()
