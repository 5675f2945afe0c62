"""The sketch's estimates and their error against fp64 sums, and exact products."""

import numpy as np
import pytest
import torch

from lib.kernels.sketch import EXACT, Products, Sketch, Within, halved, hashed, placed, product

ROWS, TOKENS = 256, 5000


def standardised(tokens: int, columns: int, seed: int) -> torch.Tensor:
    """Values (tokens, columns) of mean 0 and deviation 1, of which the second half copies the first, more or less."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    half = columns // 2
    share = torch.linspace(0, 1, half, dtype=torch.float64)
    values[:, half:] = share.sqrt() * values[:, :half] + (1 - share).sqrt() * values[:, half:]
    values -= values.mean(0)
    return values / values.std(0, correction=0)


def sketch_of(values: torch.Tensor, rows: int, random_seed: int, chunk: int = 700, numbers=None) -> Sketch:
    """A sketch of tokens (tokens, total) with these numbers, in batches."""
    made = Sketch(rows, values.shape[1], values.dtype)
    numbers = torch.arange(len(values)) if numbers is None else numbers
    for own in torch.arange(len(values)).split(chunk):
        row, sign = placed(numbers[own], rows, random_seed, own=False)
        made.update(values[own] * sign[:, None], row)
    return made


def test_hashes_are_those_of_splitmix64():
    """Against the published algorithm in whole numbers of Python, and one of its published values."""

    def mixed(value):
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    assert mixed(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the first number of its generator from 0
    numbers = torch.tensor([0, 1, 2, 12345, 10**11])
    for random_seed in (0, 7, 2**31 - 1):
        want = [mixed((number + mixed(random_seed + 1)) % 2**64) % 2**63 for number in numbers.tolist()]
        assert hashed(numbers, random_seed).tolist() == want


def test_rows_and_signs_are_even_and_differ_by_random_seed():
    numbers = torch.arange(100_000)
    row, sign = placed(numbers, ROWS, 0, own=False)
    other_row, other_sign = placed(numbers, ROWS, 1, own=False)
    again = placed(numbers[500:600], ROWS, 0, own=False)
    assert torch.equal(again[0], row[500:600]) and torch.equal(again[1], sign[500:600])
    count = torch.bincount(row, minlength=ROWS).double()
    assert 0.8 < count.var() / count.mean() < 1.2  # as of independent draws
    for same in (row == other_row, row[1:] == row[:-1]):
        assert abs(same.double().mean() - 1 / ROWS) < 4 * (1 / ROWS / len(numbers)) ** 0.5
    for drawn in (sign, sign * other_sign, sign[1:] * sign[:-1], sign * (1 - 2 * (row % 2))):
        assert set(drawn.tolist()) == {1.0, -1.0} and abs(drawn.double().mean()) < 4 / len(numbers) ** 0.5


def test_estimates_are_unbiased_with_variance_of_one_and_rho_squared_by_rows():
    """Over 400 random seeds, for 16 pairs of neurons with correlations from 0 to 1."""
    x = standardised(TOKENS, 32, seed=0)
    left, right = x[:, :16], x[:, 16:]
    rho = (left * right).mean(0)
    estimates = []
    for random_seed in range(400):
        row, sign = placed(torch.arange(TOKENS), ROWS, random_seed, own=False)
        rows = np.zeros((ROWS, 32))
        np.add.at(rows, row.numpy(), (x * sign[:, None]).numpy())
        if random_seed < 3:  # the oracle's sums are the sketch's
            np.testing.assert_allclose(sketch_of(x, ROWS, random_seed).rows, rows, atol=1e-10)
        estimates.append((rows[:, :16] * rows[:, 16:]).sum(0) / TOKENS)
    estimates = torch.from_numpy(np.stack(estimates))
    variance = (1 + rho**2) / ROWS
    error = (estimates.mean(0) - rho) / (variance / len(estimates)).sqrt()
    assert error.abs().max() < 4
    ratio = estimates.var(0) / variance
    assert (ratio - 1).abs().max() < 0.35 and abs(ratio.mean() - 1) < 0.1  # one alone is known to √(2/400) = 0.07


def test_estimates_from_half_the_rows_are_those_of_a_sketch_of_half_as_many():
    x = standardised(TOKENS, 32, seed=0)
    whole = torch.stack([sketch_of(x, ROWS, seed).rows for seed in range(60)])
    spread = {}
    for name, rows in (("whole", whole), ("half", torch.stack([halved(one) for one in whole]))):
        found = (rows[:, :, :16] * rows[:, :, 16:]).sum(1) / TOKENS
        spread[name] = (found - (x[:, :16] * x[:, 16:]).mean(0)).square().mean()
    assert halved(whole[0]).shape == (ROWS // 2, 32)
    assert float(spread["half"] / spread["whole"]) == pytest.approx(2, rel=0.25)


def test_neurons_that_know_the_position_are_estimated_as_well_as_others():
    """Tokens of 200 blocks of 256; rows by the remainder would hold one position of the blocks only."""
    context, blocks, rows = 256, 200, 1024
    tokens, generator = context * blocks, torch.Generator().manual_seed(0)
    position = torch.arange(tokens) % context
    early = torch.exp(-position / 3.0)[:, None] + 0.01 * torch.randn(tokens, 2, generator=generator).double()
    other = torch.randn(tokens, 2, generator=generator, dtype=torch.float64)
    values = torch.cat([early, other], 1)
    values = (values - values.mean(0)) / values.std(0, correction=0)
    truth = (values[:, ::2] * values[:, 1::2]).mean(0)

    def error(remainder: bool) -> tuple[float, float]:
        """Root mean square error of the correlation of the two position neurons, and of the two others."""
        found = []
        for random_seed in range(60):
            row, sign = placed(torch.arange(tokens), rows, random_seed, own=False)
            made = Sketch(rows, 4, torch.float64)
            made.update(values * sign[:, None], torch.arange(tokens) % rows if remainder else row)
            found.append((made.rows[:, ::2] * made.rows[:, 1::2]).sum(0) / tokens)
        return tuple((torch.stack(found) - truth).square().mean(0).sqrt().tolist())

    by_position, by_others = error(remainder=False)
    assert truth[0] > 0.98 and abs(truth[1]) < 0.02
    assert by_position == pytest.approx((2 / rows) ** 0.5, rel=0.35) and by_others == pytest.approx(
        (1 / rows) ** 0.5, rel=0.35
    )
    assert error(remainder=True)[0] > 4 * by_position


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_merged_sketches_of_several_processes_are_that_of_one(dtype):
    """Whichever tokens each has seen, in any order."""
    x = standardised(TOKENS, 32, seed=0).to(dtype)
    whole = sketch_of(x, ROWS, 0).rows
    merged = Sketch(ROWS, 32, dtype)
    for own in torch.randperm(TOKENS, generator=torch.Generator().manual_seed(1)).tensor_split(5):
        saved = Sketch(ROWS, 32, dtype)
        saved.load_state_dict(sketch_of(x[own], ROWS, 0, chunk=333, numbers=own).state_dict())
        merged.merge(saved)
    torch.testing.assert_close(merged.rows, whole, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert (sketch_of(x, ROWS, 1).rows - whole).abs().mean() > 1


def test_own_rows_are_exact():
    """In any order; with rows of their own no token changes its sign."""
    x = standardised(600, 16, seed=3)
    made = Sketch(600, 16, torch.float64)
    for own in torch.randperm(600, generator=torch.Generator().manual_seed(0)).split(70):
        row, sign = placed(own, 600, 0, own=True)
        made.update(x[own] * sign[:, None], row)
    np.testing.assert_allclose(made.rows.T @ made.rows, x.numpy().T @ x.numpy(), rtol=1e-12, atol=1e-10)
    assert torch.equal(made.rows, x)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_products_equal_numpy(dtype, tolerance):
    """Relative to the norms; in bf16 in several pieces, which come back rounded from a CPU."""
    left, right = (standardised(2 * EXACT + 100, 12, seed=seed).to(dtype) for seed in (1, 2))
    x, y = left.double().numpy(), right.double().numpy()
    scale = np.linalg.norm(x, axis=0)[:, None] * np.linalg.norm(y, axis=0)
    assert np.abs(product(left, right).double().numpy() - x.T @ y).max() < tolerance * scale.max()
    pair, own = Products(3, 4, 12, dtype), Within(3, 4, 4, dtype)
    other = Products(3, 4, 12, dtype), Within(3, 4, 4, dtype)
    for rows in torch.arange(len(left)).split(1500):
        first = int(rows[0]) < len(left) // 2
        one, two = (pair, own) if first else other
        one.update(left[rows], right[rows])
        two.update(left[rows])
    for made, part in zip((pair, own), other, strict=True):
        saved = type(part)(3, *part.sums.shape[1:], dtype)
        saved.load_state_dict(part.state_dict())
        made.merge(saved)
    assert pair.sums.dtype == own.sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert np.abs(pair.sums.double().flatten(0, 1).numpy() - x.T @ y).max() < tolerance * scale.max()
    for layer in range(3):
        part = x[:, 4 * layer : 4 * layer + 4]
        assert np.abs(own.sums[layer].double().numpy() - part.T @ part).max() < tolerance * (part**2).sum(0).max()
