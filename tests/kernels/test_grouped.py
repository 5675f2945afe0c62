"""Grouped moments against plain NumPy in fp64: groups, overlapping labels, previous and next tokens, ragged batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from lib.kernels import grouped
from lib.kernels.grouped import ACTIVE, SQUARE, SUM, GroupedMoments, Places, Table, layout_of, memory_bytes

CONTEXT, NEURONS, TOKENS, KEPT = 12, 5, 40, 30
SCALING = torch.tensor([[0.1, 2.0, 49.0, 0.0, 0.0], [1.0, 9.0, 0.02, 0.5, 1.0]])


def membership(rows: int, groups: int, seed: int) -> np.ndarray:
    """Overlapping labels; the first is carried by every group, the last by none."""
    member = np.random.default_rng(seed).random((rows, groups)) < 0.2
    member[0], member[-1] = True, False
    return member


TABLES = {
    "token_labels": Table("token", csc_array(membership(9, TOKENS, 0)), (SUM, SQUARE)),
    "previous_labels": Table("previous", csc_array(membership(9, TOKENS, 0)), (SUM, SQUARE)),
    "next_labels": Table("next", csc_array(membership(7, TOKENS, 1)), (SUM, SQUARE)),
    "position_labels": Table("position", csc_array(np.arange(CONTEXT) < np.array([[2], [5]])), (SUM, SQUARE)),
    "token": Table("token", csc_array(np.arange(KEPT + 1)[:, None] == np.arange(TOKENS).clip(max=KEPT)), (SUM,)),
    "position": Table("position", csc_array(np.eye(CONTEXT, dtype=bool)), (SUM, ACTIVE)),
    "syntax": Table("syntax", csc_array(np.eye(8, dtype=bool)), (SUM, SQUARE)),
}
LAYOUT = layout_of(TABLES)


def made_up(blocks: int, seed: int = 0):
    """(v, ids, counted): activations of five kinds, one with a large mean, one dead; groups of all tokens to few. Group
    7 of syntax has no token."""
    generator = np.random.default_rng(seed)
    v = generator.normal(0, 1, (blocks, CONTEXT, NEURONS)) ** 3 * np.array([1, 0.1, 30, 1, 1])
    v += np.array([0, 2, 50, 0, 0])
    v[..., 4] = 0.25
    tokens = np.minimum(generator.zipf(1.3, (blocks, CONTEXT)) - 1, TOKENS - 1)
    none = np.full((blocks, 1), -1)
    ids = {
        "token": tokens,
        "previous": np.concatenate([none, tokens[:, :-1]], axis=1),
        "next": np.concatenate([tokens[:, 1:], none], axis=1),
        "position": np.broadcast_to(np.arange(CONTEXT), tokens.shape),
        "syntax": np.where(generator.random(tokens.shape) < 0.4, generator.integers(0, 7, tokens.shape), -1),
    }
    return v.astype(np.float32), ids, generator.random(tokens.shape) < 0.9


def accumulated(v, ids, counted, batches) -> GroupedMoments:
    places = Places({name: torch.tensor(own, dtype=torch.int32) for name, own in ids.items()}, TABLES)
    work = GroupedMoments(places.layout, SCALING)
    for blocks in batches:
        at = places.at(torch.tensor(blocks), torch.tensor(counted[blocks]).flatten())
        work.update(torch.as_tensor(v[blocks]).flatten(0, 1), at)
    return work


def in_batches(blocks: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, blocks))) for start in range(0, blocks, size)]


def tokens_of(name, ids, counted, half) -> list[np.ndarray]:
    """Masks (blocks, context) of the tokens of each row of a table, and of all that have a group, by definition."""
    table = TABLES[name]
    inside = counted & (ids[table.grouping] >= 0) & (np.arange(len(counted)) % 2 == half)[:, None]
    rows = [inside & row[ids[table.grouping]] for row in table.member.toarray()]
    return [*rows, inside] if SQUARE in table.kinds else rows


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [7, 50])  # blocks; in the larger batches most rows are sums of pieces
def test_sums_of_every_table_agree_with_numpy_in_fp64(name, dtype, batch):
    v, ids, counted = made_up(400)
    given = torch.tensor(v).to(dtype)
    sums = accumulated(given, ids, counted, in_batches(400, batch)).by_table(name)
    own = {kind: tensor.numpy() for kind, tensor in sums.items()}
    assert set(own) == {"count", *TABLES[name].kinds}
    error = 1e-5 if dtype == torch.float32 else 2**-7  # activations in bf16 are shifted, squared and summed in it
    v = given.double().numpy()
    x = (v - SCALING[0].double().numpy()) * SCALING[1].double().numpy()
    for half in (0, 1):
        rows = tokens_of(name, ids, counted, half)
        assert len(rows) == own["count"].shape[1]
        for row, inside in enumerate(rows):
            assert own["count"][half, row] == inside.sum()
            total, square = x[inside].sum(0), (x[inside] ** 2).sum(0)
            magnitude = np.sqrt(inside.sum() * square) + 1e-30  # |Σx| is at most √(count · Σx²)
            assert (np.abs(own[SUM][half, row] - total) / magnitude).max() < error
            if SQUARE in own:
                np.testing.assert_allclose(own[SQUARE][half, row], square, rtol=error, atol=error)
            if ACTIVE in own:
                np.testing.assert_array_equal(own[ACTIVE][half, row], (v[inside] > 0).sum(0))


def test_long_rows_are_summed_from_pieces_that_they_share():
    v, ids, counted = made_up(50)
    places = Places({name: torch.tensor(own) for name, own in ids.items()}, TABLES)
    place = places.at(torch.arange(50), torch.tensor(counted).flatten())[SUM]
    lengths = torch.cat([place.pieces.first, torch.tensor([len(place.pieces.index)])]).diff()
    assert len(place.many_rows) and lengths.max() == grouped.PIECE
    assert len(place.pieces.index) < place.tokens[place.many_rows].sum() / 2
    assert not set(place.few_rows.tolist()) & set(place.many_rows.tolist())


@given(cut=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_batches_and_processes_in_any_order_give_the_same_sums(cut, seed):
    blocks = 31
    v, ids, counted = made_up(blocks, seed)
    edges = sorted({0, blocks, *cut})
    batches = [list(range(a, b)) for a, b in zip(edges, edges[1:], strict=False)]
    whole = accumulated(v, ids, counted, [list(range(blocks))])
    first, second = accumulated(v, ids, counted, batches[::2]), accumulated(v, ids, counted, batches[1::2])
    second.merge(first)
    again = GroupedMoments(LAYOUT, whole.scaling)
    again.load_state_dict({name: tensor.clone() for name, tensor in second.state_dict().items()})
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-4, atol=1e-2)


def test_a_batch_without_counted_tokens_adds_nothing():
    v, ids, counted = made_up(4)
    work = accumulated(v, ids, counted & False, [[0, 1, 2, 3]])
    assert all((tensor == 0).all() for tensor in work.tensors.values())
    compact = work.compact()
    assert all((tensor == 0).all() for name, tensor in compact.items() if "." in name)


def test_compact_means_and_variances_agree_with_numpy():
    v, ids, counted = made_up(200)
    compact = accumulated(v, ids, counted, in_batches(200, 50)).compact()
    everything = v[counted].astype(np.float64)
    np.testing.assert_allclose(compact["mean"], everything.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(compact["deviation"], everything.std(0), rtol=1e-4, atol=1e-7)
    assert compact["deviation"][4] == 0 and (compact["token.mean"][..., 4] == 0).all()  # the dead neuron
    z = ((v - everything.mean(0)) / everything.std(0).clip(1e-9))[..., :4]
    for name, table in TABLES.items():
        halves = [tokens_of(name, ids, counted, half) for half in (0, 1)]
        rows = table.member.shape[0]
        assert compact[f"{name}.count"].shape == (2, rows) and compact[f"{name}.mean"].shape == (2, rows, NEURONS)
        for half, masks in enumerate(halves):
            means = [z[inside].mean(0) if inside.any() else np.zeros(4) for inside in masks[:rows]]
            np.testing.assert_allclose(compact[f"{name}.mean"][half, :, :4], means, atol=1e-5)
            if ACTIVE in table.kinds:
                shares = [(v[inside] > 0).mean(0) for inside in masks]
                np.testing.assert_allclose(compact[f"{name}.active"][half], shares, atol=1e-6)
            if SQUARE in table.kinds:
                inside = masks[-1]
                assert compact[f"{name}.tokens"][half] == inside.sum()
                np.testing.assert_allclose(compact[f"{name}.center"][half, :4], z[inside].mean(0), atol=1e-5)
                np.testing.assert_allclose(compact[f"{name}.variance"][half, :4], z[inside].var(0), rtol=1e-4)
        if SQUARE in table.kinds:
            both = [even | odd for even, odd in zip(*halves, strict=True)][:rows]
            spread = [z[inside].std(0) if inside.any() else np.zeros(4) for inside in both]
            np.testing.assert_allclose(compact[f"{name}.spread"][:, :4], spread, rtol=1e-3, atol=1e-3)


def test_means_of_large_tables_are_stored_in_half_precision(monkeypatch):
    v, ids, counted = made_up(20)
    exact = accumulated(v, ids, counted, [list(range(20))]).compact()["token.mean"]
    monkeypatch.setattr(grouped, "FEW", 10)
    made = accumulated(v, ids, counted, [list(range(20))]).compact()
    assert made["token.mean"].dtype == torch.float16 and made["token_labels.mean"].dtype == torch.float32
    torch.testing.assert_close(made["token.mean"].float(), exact, rtol=1e-3, atol=1e-6)


def test_memory_is_what_the_tensors_hold():
    work = GroupedMoments(LAYOUT, torch.ones(2, NEURONS))
    assert memory_bytes(LAYOUT, NEURONS) == sum(tensor.nbytes for tensor in work.tensors.values())
    assert memory_bytes((), NEURONS) == 0
