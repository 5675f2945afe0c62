"""Matches and rotation baseline from products, exact or sketched, against plain fp64 NumPy on all activations."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.collect.statistics import sketched
from lib.kernels.correlation import Covariance, Matches, Scale, candidates, compare, haar_rotation, without_bias
from lib.kernels.followed import Followed, union
from lib.kernels.fused import OPERAND_DTYPES, layer_statistics
from lib.kernels.moments import Moments
from lib.kernels.sketch import Products, Sketch, Within, placed

SHAPES = {"a": (2, 5), "b": (2, 5), "c": (3, 4)}  # layers, neurons a layer; seeds may differ
KINDS = ["sums", "own rows"]  # how exact products are kept


def activations(seed: int, tokens: int, shape=(2, 5), mean: float = 0.0) -> torch.Tensor:
    """(layers, tokens, neurons), which share something with those of other seeds."""
    generator, (layers, neurons) = torch.Generator().manual_seed(seed), shape
    shared = torch.randn(tokens, 5, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    mixed = shared @ torch.randn(layers, 5, neurons, generator=generator, dtype=torch.float64)
    return mixed + torch.randn(layers, tokens, neurons, generator=generator, dtype=torch.float64) + mean


def scaling_of(values: torch.Tensor) -> torch.Tensor:
    """Shift and scale (layers, 2, neurons), as the pilot of the pass sets them."""
    return torch.stack([values.mean(1), 1 / values.std(1, correction=0).clamp(min=1e-2)], 1)


def measured(post: dict, counted: torch.Tensor, precision: str) -> tuple[dict[str, Scale], dict[str, torch.Tensor]]:
    """Scales and operands (tokens, total) of each seed's activations, fed in ragged batches."""
    scales, operands = {}, {}
    for seed, values in post.items():
        scaling = scaling_of(values)
        moments, parts = Moments(scaling, scaling), []
        for rows in torch.arange(values.shape[1]).chunk(3):
            made = torch.empty(len(rows), len(values), values.shape[2], dtype=OPERAND_DTYPES[precision])
            weights = counted[rows].to(values.dtype)[:, None]
            for layer, own in enumerate(values[:, rows]):
                sums = layer_statistics(
                    own, own, weights, torch.ones_like(weights), scaling[layer], scaling[layer], made[:, layer]
                )
                moments.update(layer, sums)
            moments.count(int(counted[rows].sum()))
            parts.append(made.flatten(1))
        scales[seed], operands[seed] = Scale.of(moments), torch.cat(parts)
    return scales, operands


def exact(operands: dict[str, torch.Tensor], shapes: dict, kind: str = "sums") -> Covariance:
    """All products of some seeds' operands."""
    seeds, pairs = tuple(operands), tuple(combinations(operands, 2))
    if kind == "own rows":
        return sketched(seeds, pairs, seeds, shapes, operands, exact=True)
    between, within = {}, {}
    for seed, own in operands.items():
        layers, neurons = shapes[seed]
        within[seed] = Within(layers, neurons, neurons, own.dtype)
        within[seed].update(own)
        for other in (other for one, other in pairs if one == seed):
            between[seed, other] = Products(layers, neurons, operands[other].shape[1], own.dtype)
            between[seed, other].update(own, operands[other])
    return Covariance(
        *(seeds, pairs, seeds, shapes),
        stripe=lambda a, layer, b: between[a, b].sums[layer],
        within=lambda seed, layer: within[seed].sums[layer],
    )


def estimated(operands: dict[str, torch.Tensor], shapes: dict, rows: int, random_seed: int = 0) -> Covariance:
    """The products estimated from sketches."""
    made = {}
    for seed, own in operands.items():
        row, sign = placed(torch.arange(len(own)), rows, random_seed, own=False)
        made[seed] = Sketch(rows, own.shape[1], own.dtype)
        made[seed].update(own * sign[:, None].to(own.dtype), row)
    seeds, rows_of = tuple(operands), {seed: one.rows for seed, one in made.items()}
    return sketched(seeds, tuple(combinations(seeds, 2)), seeds, shapes, rows_of, exact=False)


def numpy_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """fp64 Pearson correlations (columns of x, columns of y), 0 where a column is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        corr = np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :]
    return np.nan_to_num(corr)


def flat(values: torch.Tensor) -> np.ndarray:
    """(tokens, total) of (layers, tokens, neurons)."""
    return values.double().transpose(0, 1).flatten(1).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 1e-2)])
def test_correlations_equal_numpy(precision, tolerance, kind):
    tokens = 4000
    counted = torch.rand(tokens, generator=torch.Generator().manual_seed(0)) > 0.1
    post = {seed: activations(i, tokens, SHAPES[seed]).clamp(min=-0.2) for i, seed in enumerate("abc")}
    post["b"][1, :, 2] = 0.25  # a dead neuron
    scales, operands = measured(post, counted, precision)
    made = compare(exact(operands, SHAPES, kind), scales, None, random_seed=3, draws=2)
    plain = {seed: flat(values)[counted] for seed, values in post.items()}
    assert set(made.corr) == {(a, b) for a in "abc" for b in "abc" if a != b}
    for a, b in made.corr:
        want = numpy_correlation(plain[a], plain[b])
        np.testing.assert_allclose(made.corr[a, b], want.max(1), atol=tolerance)
        layers, neurons = SHAPES[b]
        for draw in range(2):
            turn = haar_rotation(neurons, 3, draw).numpy()
            turned = np.einsum("ij,tlj->tli", turn, plain[b].reshape(-1, layers, neurons)).reshape(len(plain[b]), -1)
            turned = numpy_correlation(plain[a], turned).max(1)
            np.testing.assert_allclose(made.baseline[a, b][draw], turned, atol=max(tolerance, 1e-7))  # kept in fp32
        if precision == "fp64":
            best, back = want.argmax(1), want.argmax(0)
            live = want.max(1) > 0
            assert made.partner[a, b][live].tolist() == best[live].tolist()
            assert made.mutual[a, b].tolist() == (live & (back[best] == np.arange(len(best)))).tolist()
        assert made.outsiders[a, b] == 0
    dead = 5 + 2
    assert made.corr["b", "a"][dead] == 0 and made.corr["b", "c"][dead] == 0 and not made.mutual["b", "a"][dead]
    assert (made.baseline["b", "a"][:, dead] == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 80),
    mean=st.sampled_from([0.0, -3.0, 1e4]),
    outlier=st.sampled_from([0.0, 30.0, 3000.0]),
    dead=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(KINDS),
)
def test_hard_activations_have_the_correlations_of_fp64(tokens, mean, outlier, dead, seed, kind):
    """Dead neurons, large means, a single token and outliers, against np.corrcoef, up to rounding."""
    generator, shapes = torch.Generator().manual_seed(seed), {"a": (2, 5), "b": (2, 5)}
    post = {name: activations(seed + i, tokens, mean=mean).float() for i, name in enumerate("ab")}
    for values in post.values():
        values[:, torch.randint(0, tokens, (1,), generator=generator), 0] += outlier
        values[:, :, dead] = mean + 0.5
    scales, operands = measured(post, torch.ones(tokens, dtype=torch.bool), "fp32")
    made = compare(exact(operands, shapes, kind), scales, None, 0, 1)
    want = numpy_correlation(*map(flat, post.values())).max(1)
    assert torch.isfinite(made.corr["a", "b"]).all() and torch.isfinite(made.baseline["a", "b"]).all()
    np.testing.assert_allclose(made.corr["a", "b"], want, atol=1e-4)
    assert all(made.corr["a", "b"][5 * layer + i] == 0 for i in dead for layer in range(2))


def test_candidates_are_the_largest_of_all_correlations():
    post = {seed: activations(i, 800, SHAPES[seed]) for i, seed in enumerate("ac")}
    shapes = {seed: SHAPES[seed] for seed in "ac"}
    scales, operands = measured(post, torch.ones(800, dtype=torch.bool), "fp64")
    corr = torch.from_numpy(numpy_correlation(*map(flat, post.values())))
    for kind in KINDS:
        for k in (1, 4, 100):
            forward, backward = candidates(exact(operands, shapes, kind), ("a", "c"), scales, k)
            assert torch.equal(forward, corr.topk(min(k, 12), dim=1).indices)
            assert torch.equal(backward, corr.T.topk(min(k, 10), dim=1).indices)


def planted(tokens: int) -> tuple[dict, torch.Tensor]:
    """Activations of seeds a and b, 2 × 40 neurons, b those of a with noise and in another order; partners of a."""
    values = activations(4, tokens, (2, 40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    partner = torch.cat([order.argsort() + 40 * layer for layer in range(2)])
    return {"a": values, "b": values[:, :, order] + 0.2 * noise}, partner


def test_sketch_and_followed_pairs_find_planted_partners():
    """Candidates from a sketch of the first part, correlations from the rest of the text."""
    tokens, first, shapes = 6000, 1500, {"a": (2, 40), "b": (2, 40)}
    post, partner = planted(tokens)
    scales, operands = measured(post, torch.ones(tokens, dtype=torch.bool), "fp64")
    early = {seed: values[:, :first] for seed, values in post.items()}
    scales_early, operands_early = measured(early, torch.ones(first, dtype=torch.bool), "fp64")
    pairs = {("a", "b"): union(*candidates(estimated(operands_early, shapes, 512), ("a", "b"), scales_early, 4))}
    followed = Followed(pairs, {"a": 80, "b": 80}, 2, torch.float64)
    for part, rows in enumerate(torch.arange(first, tokens).split(2500)):
        own = {seed: one[rows] for seed, one in operands.items()}
        sums = {seed: torch.stack([one.sum(0), one.square().sum(0)]) for seed, one in own.items()}
        followed.update(part, own, sums, len(rows))
    covariance = estimated(operands, shapes, 512)
    made = compare(covariance, scales, followed, 0, 2)
    corr = numpy_correlation(*(flat(values[:, first:]) for values in post.values()))
    assert made.partner["a", "b"].tolist() == partner.tolist() and made.mutual["a", "b"].all()
    assert made.partner["b", "a"][partner].tolist() == list(range(80)) and made.mutual["b", "a"].all()
    np.testing.assert_allclose(made.corr["a", "b"], corr[np.arange(80), partner], atol=1e-9)
    np.testing.assert_allclose(made.corr["b", "a"][partner], made.corr["a", "b"], atol=1e-12)
    assert made.outsiders == {("a", "b"): 0, ("b", "a"): 0}
    # where the true partners of ten neurons of a are not followed, the sketch tells
    left, right = pairs["a", "b"]
    kept = ~((left < 10) & (right == partner[left]))
    fewer = Followed({("a", "b"): torch.stack([left[kept], right[kept]])}, {"a": 80, "b": 80}, 2, torch.float64)
    fewer.load_state_dict(
        followed.state_dict() | {"a.b.products": followed.products["a", "b"][:, kept], "digest": fewer.digest}
    )
    found = compare(covariance, scales, fewer, 0, 1).outsiders
    assert 8 <= found["a", "b"] <= 10 and 8 <= found["b", "a"] <= 10


def test_mutual_needs_a_positive_correlation():
    forward, back = Matches(3), Matches(3)
    forward.update(slice(0, 3), torch.tensor([[0.5, 0.2], [-0.1, -0.2], [0.0, 0.0]]), 0)
    forward.update(slice(0, 3), torch.tensor([[0.5], [-0.3], [0.1]]), 2)
    back.update(slice(0, 3), torch.tensor([[0.5, -0.1, 0.0], [0.2, -0.2, 0.0], [0.5, -0.3, 0.6]]), 0)
    assert forward.partner.tolist() == [0, 0, 2] and back.partner.tolist() == [0, 0, 2]
    assert forward.corr.tolist() == pytest.approx([0.5, -0.1, 0.1])
    assert forward.returned(back).tolist() == [True, False, True]


def test_rotations_are_orthogonal_seeded_and_different_by_draw_and_size():
    turn = haar_rotation(16, 0, 0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(turn, haar_rotation.__wrapped__(16, 0, 0))
    for other in (haar_rotation(16, 0, 1), haar_rotation(16, 1, 0), haar_rotation(17, 0, 0)[:16, :16]):
        assert not torch.allclose(turn, other)


def test_haar_rotation_has_no_preferred_sign():
    diagonal = torch.stack([haar_rotation.__wrapped__(4, 0, draw).diagonal() for draw in range(400)])
    assert abs(float(diagonal.mean())) < 0.05  # a plain QR gives about −0.3 here


def layers_of(kind: str, tokens: int) -> dict[str, torch.Tensor]:
    """Activations (2, tokens, 256) of two seeds that see the same features, more and less.

    `one direction`: a feature that most neurons share, so that all have large baselines; `few neurons`: the units of
    two neurons are large. Either holds most of a layer's variance.
    """
    features, made = torch.randn(tokens, 60, generator=torch.Generator().manual_seed(0)), {}
    for number, seed in enumerate("ab"):
        generator = torch.Generator().manual_seed(1 + number)
        weights = torch.randn(2, 60, 256, generator=generator) * torch.rand(2, 1, 256, generator=generator)
        mixed = features @ weights + 4 * torch.randn(2, tokens, 256, generator=generator)
        if kind == "one direction":
            mixed = mixed + 20 * features[:, :1] * torch.randn(2, 1, 256, generator=generator)
        made[seed] = torch.nn.functional.gelu(mixed) * torch.rand(2, 1, 256, generator=generator).add(0.1)
        if kind == "few neurons":
            made[seed][:, :, :2] *= 40
    return made


@pytest.mark.parametrize("kind", ["random", "one direction", "few neurons"])
def test_a_sketched_baseline_is_without_bias(kind):
    """Against exact products with the same rotations, over four random seeds of the sketch.

    With 16,384 rows the bias is to be below 1e-3 and the median error below 4e-3; errors grow as 1/√rows.
    """
    tokens, rows, draws, shapes = 16384, 4096, 3, {"a": (2, 256), "b": (2, 256)}
    post = layers_of(kind, tokens)
    largest = torch.linalg.eigvalsh(torch.cov(post["b"][0].T))[-1] / post["b"][0].var(0).sum()
    assert (largest > 0.5) == (kind != "random")
    scales, operands = measured(post, torch.ones(tokens, dtype=torch.bool), "fp32")
    truth = compare(exact(operands, shapes), scales, None, 0, draws).baseline
    followed = Followed({("a", "b"): torch.zeros(2, 1, dtype=torch.int64)}, {"a": 512, "b": 512}, 1, torch.float64)
    errors, growth = [], (16384 / rows) ** 0.5
    for random_seed in range(4):
        made = compare(estimated(operands, shapes, rows, random_seed), scales, followed, 0, draws).baseline
        errors.append(torch.cat([(made[pair] - truth[pair]).mean(0) for pair in truth]))
        assert errors[-1].abs().median() < 4e-3 * growth
    assert abs(torch.stack(errors).mean()) < 1e-3 * growth


def test_without_what_noise_adds_to_a_maximum():
    """A bias that grows with 1/rows and falls with the size of the baseline is taken off; no neuron adds much noise."""
    truth = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0)) * 0.01 + torch.linspace(0, 1, 1000)
    noise = 0.02 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    bias = 0.03 * (1 - truth.mean(0))
    found = without_bias(
        truth + bias, (truth + bias).mean(0), ((truth + bias)[:2] - (truth + 2 * bias)[:2] - noise).mean(0)
    )
    assert (found - truth).abs().max() < 5 * 0.02 / (2 * 128) ** 0.5
    torch.testing.assert_close(
        without_bias(truth[:, :5] + 0.1, truth[:, :5].mean(0) + 0.1, torch.full((5,), -0.1)), truth[:, :5]
    )  # fewer than NEAREST
