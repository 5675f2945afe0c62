"""The whole rule on planted layers: permuted neurons, a rotated basis, neurons split by context, noise; and chance."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch.nn.functional import gelu

from lib.chapters.same_function import ladder, maps
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
    parts = ladder.Parts.of(torch.ones(BLOCKS, CONTEXT, dtype=torch.bool))
    made = []
    for null in (False, True):
        targets = [ladder.Target(ladder.Layer.of(gelu(pre), parts.part), parts, keeps=not null) for pre in own]

        def predictor(layer: int, null=null) -> ladder.Predictor:
            pre = other[layer]
            turned = (
                ladder.rotated_activations(pre, gelu, haar_rotation(pre.shape[1], 0, 7).to(pre)) if null else gelu(pre)
            )
            return ladder.Predictor.of(turned, parts.part)

        ladder.explained_by(targets, predictor, len(other))
        made.append(targets)
    rows = [ladder.neuron_rows(*pair, range(N)) for pair in zip(*made, strict=True)]
    return SimpleNamespace(targets=made[0], nulls=made[1], rows=rows, parts=parts)


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
    first, second = (list(zip(rows[f"{one}_layer"], rows[f"{one}_neuron"], strict=True)) for one in ("match", "second"))
    assert not any(one == other for one, other in zip(first, second, strict=True))
    assert [max(one.pairs, key=lambda row: row["cka"])["other_layer"] for one in planted_seeds.targets] == [0, 1, 2, 3]


def test_a_rotated_basis_is_at_its_null_on_every_rung(planted_seeds):
    """Layer 1 of the other seed is a draw of the null itself."""
    rows = planted_seeds.rows[1]
    for name in (*ladder.RUNGS, *ladder.WHOLE):
        assert abs((rows[f"r2_{name}"] - rows[f"null_r2_{name}"]).mean()) < 0.02, name


def test_held_out_r2_of_all_neurons_equals_scikit_learn(planted_seeds):
    """With the penalty and the layer that the second part of the text chooses, in fp64."""
    found, own, layer = planted_seeds, planted_seeds.own, 1
    act = [gelu(one).double().numpy() for one in (own[layer], planted("spread", own[layer]))]
    part = found.parts.part.numpy()
    x, y = ((one - one[part == ladder.FIT].mean(0)) / one[part == ladder.FIT].std(0) for one in act)
    fit, tune, score = (part == one for one in (ladder.FIT, ladder.TUNE, ladder.SCORE))
    models = [Ridge(alpha=one * fit.sum(), fit_intercept=False).fit(y[fit], x[fit]) for one in maps.PENALTIES]
    tuned = np.stack([np.square(x[tune] - one.predict(y[tune])).mean(0) for one in models])
    scored = np.stack([r2_score(x[score], one.predict(y[score]), multioutput="raw_values") for one in models])
    expected = np.take_along_axis(scored, tuned.argmin(0)[None], 0)[0]
    clear = np.sort(tuned, 0)[1] - tuned.min(0) > 1e-5  # in fp32 other penalties may win
    np.testing.assert_allclose(found.rows[layer]["r2_all"][clear], expected[clear], atol=1e-4)
    one = found.rows[0]["r2_one"]  # a constant slope and an intercept of the first part
    assert one.min() > 0.9999


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
