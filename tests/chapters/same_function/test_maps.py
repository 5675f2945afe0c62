"""The ladder's maps against SciPy, scikit-learn and NumPy in fp64, and the rule on planted pairs of layers."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import OrthogonalMatchingPursuit, Ridge
from sklearn.metrics import r2_score

from lib.chapters.same_function import maps

TOKENS, N, K = 400, 12, 9


@pytest.fixture(scope="module")
def layers() -> tuple[np.ndarray, np.ndarray]:
    """Two standardised layers: k neurons to explain, and n correlated ones that explain them in part."""
    random = np.random.default_rng(0)
    y = random.normal(size=(TOKENS, N)) @ random.normal(size=(N, N)) + random.normal(size=(TOKENS, N))
    x = y @ random.normal(size=(N, K)) + 4 * random.normal(size=(TOKENS, K))
    return tuple((one - one.mean(0)) / one.std(0) for one in (x, y))


def moments(x, y) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(y.T @ y / len(y)), torch.from_numpy(y.T @ x / len(y))


def test_ridge_equals_scikit_learn(layers):
    x, y = layers
    within, cross = moments(x, y)
    for penalty, found in zip(maps.PENALTIES, maps.ridge(maps.ridge_factors(within), cross), strict=True):
        expected = Ridge(alpha=penalty * TOKENS, fit_intercept=False).fit(y, x).coef_.T
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_sparse_regression_equals_scikit_learn(layers):
    x, y = layers
    chosen, steps = maps.forward_selection(*moments(x, y))
    for size in (1, *maps.FEW):
        for target in range(K):
            pursuit = OrthogonalMatchingPursuit(n_nonzero_coefs=size, fit_intercept=False).fit(y, x[:, target])
            assert set(chosen[:size, target].tolist()) == set(np.flatnonzero(pursuit.coef_))
            found = np.zeros(N)
            found[chosen[:size, target]] = steps[size - 1][:, target]
            np.testing.assert_allclose(found, pursuit.coef_, atol=1e-9)


def test_orthogonal_map_equals_scipy(layers):
    x, y = layers
    found = maps.orthogonal(moments(x, y[:, :K])[1])
    np.testing.assert_allclose(found.numpy(), orthogonal_procrustes(y[:, :K], x)[0], atol=1e-6)
    wide = maps.orthogonal(moments(x, y)[1])  # of more neurons than targets: orthonormal columns
    np.testing.assert_allclose((wide.T @ wide).numpy(), np.eye(K), atol=1e-12)


def test_one_to_one_equals_scipy(layers):
    cross = moments(*layers)[1]
    columns, rows = linear_sum_assignment(-np.abs(cross.numpy().T))
    assert maps.one_to_one(cross)[columns].tolist() == rows.tolist()
    assert sorted(maps.one_to_one(cross.T).tolist()).count(-1) == N - K  # more neurons than partners


def test_linear_cka_equals_kernels(layers):
    x, y = layers
    a, b = x @ x.T, y @ y.T  # of centred data
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    norms = (float(moments(one, one)[0].norm()) for one in (x, y))
    found = maps.linear_cka(*norms, moments(x, y)[1])
    assert found == pytest.approx(expected, abs=1e-12)


def test_explained_is_r2_on_other_tokens(layers):
    x, y = layers
    within, cross = moments(x[:200], y[:200])
    fitted = maps.ridge(maps.ridge_factors(within), cross)
    x, y = x[200:] - x[200:].mean(0), y[200:] - y[200:].mean(0)
    within, cross = moments(x, y)
    found = maps.explained(fitted, within, cross).numpy() / np.square(x).mean(0)
    expected = [r2_score(x, y @ one.numpy(), multioutput="raw_values") for one in fitted]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    chosen = torch.stack([torch.randperm(N)[:3] for _ in range(K)], 1)
    weights = torch.randn(3, K, dtype=torch.float64)
    sparse = torch.zeros(N, K, dtype=torch.float64).scatter_(0, chosen, weights)
    few = maps.explained_by_few(chosen, weights, within, cross)
    np.testing.assert_allclose(few, maps.explained(sparse, within, cross), atol=1e-12)


def test_the_rule_at_its_bounds():
    cases = [  # one, few, everything, null of one, null of few
        ("twin", (0.51, 0.6, 0.55, 0.4, 0.5)),
        ("split", (0.49, 0.6, 0.6, 0.0, 0.49)),
        ("split", (0.6, 0.75, 0.8, 0.0, 0.0)),  # half of a neuron is no twin
        ("split", (0.6, 0.65, 0.65, 0.51, 0.5)),  # one neuron of a rotated basis does nearly as well
        ("spread", (0.6, 0.6, 0.75, 0.0, 0.0)),
        ("spread", (0.49, 0.6, 0.6, 0.0, 0.51)),
        ("part", (0.0, 0.1, 0.0, 0.0, 0.0)),
        ("part", (0.4, 0.45, 0.49, 0.0, 0.0)),
        ("own", (-3.0, 0.09, 0.05, 0.0, 0.0)),
        ("", (np.nan, np.nan, np.nan, np.nan, np.nan)),
    ]
    names, numbers = zip(*cases, strict=True)
    assert maps.classes(*np.array(numbers).T).tolist() == list(names)
