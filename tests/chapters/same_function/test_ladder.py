"""The whole rule on planted layers: permuted neurons, a rotated basis, neurons split by context, noise; and chance."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn.functional import gelu

from lib.chapters.same_function import folds, ladder, maps
from lib.kernels.correlation import haar_rotation

BLOCKS, CONTEXT, D, N = 40, 128, 96, 160
TOKENS = BLOCKS * CONTEXT


def pre_activations(seed: int) -> torch.Tensor:
    """(tokens, N) of deviation 1, N directions of D dimensions."""
    random = torch.Generator().manual_seed(seed)
    made = torch.randn(TOKENS, D, generator=random) @ torch.randn(D, N, generator=random)
    return made / made.std(0)


def planted(kind: str, pre: torch.Tensor) -> torch.Tensor:
    """The other seed's pre-activations of a layer."""
    random = torch.Generator().manual_seed(1)
    if kind == "twin":
        return pre[:, torch.randperm(N, generator=random)]
    if kind == "spread":
        return pre @ haar_rotation(N, 0, 3).to(pre).T
    if kind == "split":  # f·1[c] and f·1[not c], where the activation of −30 is 0
        context = torch.rand(TOKENS, 1, generator=random) < 0.5
        return torch.cat([pre.where(context, torch.tensor(-30.0)), pre.where(~context, torch.tensor(-30.0))], 1)
    return torch.stack([column[torch.randperm(TOKENS, generator=random)] for column in pre.T], 1)


def rows_of(own: list[torch.Tensor], other: list[torch.Tensor]) -> tuple:
    """The ladder of a seed's layers from the other's, both as pre-activations: targets, their nulls, rows by layer."""
    fold = folds.Blocks.of(torch.ones(BLOCKS, CONTEXT, dtype=torch.bool)).fold
    made = []
    for null in (False, True):
        targets = [ladder.Target(folds.Layer.of(gelu(pre), fold), keeps=not null) for pre in own]

        def predictor(layer: int, null=null) -> ladder.Predictor:
            pre = other[layer]
            turned = (
                ladder.rotated_activations(pre, gelu, haar_rotation(pre.shape[1], 0, 7).to(pre)) if null else gelu(pre)
            )
            return ladder.Predictor.of(turned, fold)

        ladder.explained_by(targets, predictor, len(other))
        ladder.whole_layers(targets, predictor)
        made.append(targets)
    rows = [ladder.neuron_rows(*pair, range(N)) for pair in zip(*made, strict=True)]
    return SimpleNamespace(targets=made[0], nulls=made[1], rows=rows, fold=fold.numpy())


KINDS = ("twin", "spread", "split", "own")


@pytest.fixture(scope="module")
def planted_seeds() -> SimpleNamespace:
    own = [pre_activations(10 + layer) for layer in range(len(KINDS))]
    found = rows_of(own, [planted(kind, pre) for kind, pre in zip(KINDS, own, strict=True)])
    found.own = own
    return found


@pytest.mark.parametrize("layer", range(len(KINDS)), ids=KINDS)
def test_planted_layers_are_called_what_they_are(planted_seeds, layer):
    rows = planted_seeds.rows[layer]
    assert (rows["kind"] == KINDS[layer]).mean() >= 0.99, rows["kind"].value_counts()
    if KINDS[layer] != "own":
        assert (rows["all_layer"] == layer).mean() >= 0.99


def test_twins_are_the_permuted_neurons(planted_seeds):
    rows, order = planted_seeds.rows[0], torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert (order[rows["match_neuron"]].numpy() == np.arange(N)).all() and (rows["match_layer"] == 0).all()
    assert np.allclose(rows[["corr", "r2_one", "r2_few_8", "r2_one_to_one", "r2_orthogonal"]], 1, atol=1e-4)
    for turn in range(folds.FOLDS):
        best, second = planted_seeds.targets[0].best(turn), planted_seeds.targets[0].second(turn)
        assert (best[1] == torch.tensor(rows["match_neuron"])).all() and (best != second).any(0).all()
    assert [max(one.pairs, key=lambda row: row["cka"])["other_layer"] for one in planted_seeds.targets] == [0, 1, 2, 3]


def test_a_rotated_basis_is_at_its_null_on_every_rung(planted_seeds):
    """Layer 1 of the other seed is a draw of the null itself."""
    rows = planted_seeds.rows[1]
    for name in (*ladder.RUNGS, *ladder.WHOLE[:2]):
        assert abs((rows[f"r2_{name}"] - rows[f"null_r2_{name}"]).mean()) < 0.02, name


def test_held_out_r2_equals_scikit_learn_in_every_turn(planted_seeds):
    """Of all neurons and of one, in fp64: the penalty that the choosing fold takes, errors pooled over the folds."""
    found, own, layer = planted_seeds, planted_seeds.own, 1
    x, y = (gelu(one).double().numpy() for one in (own[layer], planted("spread", own[layer])))
    errors, single, clear = 0.0, 0.0, np.full(N, True)
    for turn in range(4):
        fit, tune, score = ((np.isin(found.fold, (np.array(some) + turn) % 4)) for some in ([2, 3], [1], [0]))
        a, b = ((one - one[fit].mean(0)) / one[fit].std(0) for one in (x, y))
        models = [Ridge(alpha=one * fit.sum(), fit_intercept=False).fit(b[fit], a[fit]) for one in maps.PENALTIES]
        tuned = np.stack([np.square(a[tune] - one.predict(b[tune])).mean(0) for one in models])
        squares = np.stack([np.square(a[score] - one.predict(b[score])).sum(0) for one in models])
        errors = errors + np.take_along_axis(squares, tuned.argmin(0)[None], 0)[0] * x[fit].var(0)
        clear &= np.sort(tuned, 0)[1] - tuned.min(0) > 1e-5  # in fp32 other penalties may win
        corr = b[fit].T @ a[fit] / fit.sum()
        best = np.abs(corr).argmax(0)
        slope = corr[best, np.arange(N)]
        known = np.square(a[tune] - b[tune][:, best] * slope).sum(0) < np.square(a[tune]).sum(0)
        known &= found.targets[layer].rungs["one"].layer[turn].numpy() == layer
        single = single + np.square(a[score] - b[score][:, best] * slope).sum(0) * x[fit].var(0)
        clear_single = known if turn == 0 else clear_single & known
    total = np.square(x - x.mean(0)).sum(0)
    np.testing.assert_allclose(found.rows[layer]["r2_all"][clear], (1 - errors / total)[clear], atol=1e-4)
    assert clear.sum() > N / 2 and clear_single.sum() > 5
    np.testing.assert_allclose(found.rows[layer]["r2_one"][clear_single], (1 - single / total)[clear_single], atol=1e-4)
    assert found.rows[0]["r2_one"].min() > 0.9999  # a constant slope and an intercept of the fitting folds


def test_every_block_is_scored_once_by_maps_of_other_blocks():
    assert sorted(turn.score for turn in folds.TURNS) == list(range(folds.FOLDS))
    for turn in folds.TURNS:
        assert sorted([*turn.fit, turn.tune, turn.score]) == list(range(folds.FOLDS))


def test_a_neuron_that_fires_in_one_fold_has_no_class(planted_seeds):
    """What no map was fitted on says nothing, even where a copy of the neuron is there."""
    pre = planted_seeds.own[0].clone()
    pre[:, 3] = torch.where(torch.from_numpy(planted_seeds.fold == 2), pre[:, 3], -4.0)
    rows = rows_of([pre], [pre]).rows[0]
    assert (
        rows["kind"][3] == "" and rows["largest_fold"][3] > ladder.ONE_FOLD and (rows["kind"].drop(3) == "twin").all()
    )


def test_a_neuron_that_does_not_vary_is_of_no_class(planted_seeds):
    pre = planted_seeds.own[0].clone()
    pre[:, 3] = -2.0
    rows = rows_of([pre], [planted_seeds.own[0]]).rows[0]
    assert rows["kind"][3] == "" and np.isnan(rows["r2_one"][3]) and (rows["kind"].drop(3) == "twin").all()


def test_layers_far_apart_are_not_compared():
    assert list(ladder.near(0, 12, 12)) == [0, 1, 2, 3, 4, 5] and list(ladder.near(11, 12, 24)) == [
        18,
        19,
        20,
        21,
        22,
        23,
    ]
    assert list(ladder.near(3, 6, 6)) == [0, 1, 2, 3, 4, 5] and list(ladder.near(0, 1, 1)) == [0]
