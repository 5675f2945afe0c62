"""Grouped moments against pandas in fp64, for every kind of grouping and ragged batches."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.kernels import grouped, native
from lib.kernels.grouped import GroupedMoments, Places, memory_bytes
from lib.kernels.native import LANES

CONTEXT, NEURONS = 12, 5


def made_up(blocks: int, seed: int = 0, groups: int = 40, neurons: int = NEURONS):
    """(v, ids, counted): activations of five kinds, one with a large mean, one dead; groups of all tokens to few."""
    generator = np.random.default_rng(seed)
    v = generator.normal(0, 1, (blocks, CONTEXT, NEURONS)) ** 3 * np.array([1, 0.1, 30, 1, 1]) + np.array(
        [0, 2, 50, 0, 0]
    )
    v[..., 4] = 0.25
    zipf = np.minimum(generator.zipf(1.3, (blocks, CONTEXT)) - 1, groups - 1)
    ids = {
        "token": zipf,
        "position": np.broadcast_to(np.arange(CONTEXT), zipf.shape),
        "domain": np.broadcast_to((np.arange(blocks) % 3)[:, None], zipf.shape),
        "linguistics": np.where(generator.random(zipf.shape) < 0.4, generator.integers(0, 7, zipf.shape), -1),
    }
    return (
        np.ascontiguousarray(v.astype(np.float32)[..., np.arange(neurons) % NEURONS]),
        ids,
        generator.random(zipf.shape) < 0.9,
    )


GROUPS = {"token": 40, "position": CONTEXT, "domain": 3, "linguistics": 8}


def accumulated(v, ids, counted, batches) -> GroupedMoments:
    kinds = torch.arange(v.shape[-1]) % NEURONS
    work = GroupedMoments(GROUPS, torch.tensor([[0.1, 2.0, 49.0, 0.0, 0.0], [1.0, 9.0, 0.02, 0.5, 1.0]])[:, kinds])
    places = Places({name: torch.tensor(own) for name, own in ids.items()}, GROUPS)
    for blocks in batches:
        at = places.at(torch.tensor(blocks), torch.tensor(counted[blocks]).flatten())
        work.update(torch.as_tensor(v[blocks]).flatten(0, 1), places, at)
    return work


def oracle(v, ids, counted, name):
    """pandas groupby in fp64: index (half, group), columns count and per neuron Σv, Σv², active."""
    blocks = len(v)
    half = np.broadcast_to((np.arange(blocks) % 2)[:, None], counted.shape)
    keep = counted & (ids[name] >= 0)
    frame = pd.DataFrame(v[keep].astype(np.float64))
    return frame, pd.Series(half[keep], name="half"), pd.Series(ids[name][keep], name="group")


@pytest.mark.parametrize("name", list(GROUPS))
@pytest.mark.parametrize("neurons, dtype", [(NEURONS, torch.float32), (LANES, torch.float32), (LANES, torch.bfloat16)])
def test_every_grouping_agrees_with_pandas_in_fp64(name, neurons, dtype):
    v, ids, counted = made_up(400, neurons=neurons)
    given = torch.tensor(v).to(dtype)
    v = given.float().numpy()
    assert native.takes("grouped", given[0]) == (
        neurons == LANES and native.function("grouped_float") is not None
    )  # by the loop in C++, or by torch
    work = accumulated(given, ids, counted, [list(range(start, min(start + 7, 400))) for start in range(0, 400, 7)])
    frame, half, group = oracle(v, ids, counted, name)
    shift, scale = work.scaling.double().numpy()
    x = (frame - shift) * scale
    size = GROUPS[name]
    index = pd.MultiIndex.from_product([range(2), range(size)], names=["half", "group"])

    def shaped(table):
        return table.reindex(index, fill_value=0).to_numpy().reshape(2, size, -1)

    by = [half, group]
    count, total, square = (
        shaped(table) for table in (frame.groupby(by).size(), x.groupby(by).sum(), (x**2).groupby(by).sum())
    )
    own = {
        key: work.tensors[f"{name}.{key}"].double().numpy()
        for key in ("count", "sum", "square", "total_square", "active")
    }
    np.testing.assert_array_equal(own["count"], count[..., 0])
    magnitude = np.sqrt(count * square) + 1e-30  # |Σx| is at most √(count · Σx²)
    assert (np.abs(own["sum"] - total) / magnitude).max() < 1e-5
    np.testing.assert_allclose(own["square"], square.sum(0), rtol=1e-5)
    np.testing.assert_allclose(own["total_square"], square.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(own["active"], shaped((frame > 0).groupby(by).sum()))


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
    again = GroupedMoments(GROUPS, whole.scaling)
    again.load_state_dict({name: tensor.clone() for name, tensor in second.state_dict().items()})
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-4, atol=1e-2)


def test_compact_means_and_variances_agree_with_pandas():
    v, ids, counted = made_up(200)
    work = accumulated(v, ids, counted, [list(range(200))])
    compact = work.compact()
    everything = v[counted].astype(np.float64)
    np.testing.assert_allclose(compact["mean"], everything.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(compact["deviation"], everything.std(0), rtol=1e-4, atol=1e-7)
    assert compact["deviation"][4] == 0 and (compact["token.mean"][..., 4] == 0).all()  # the dead neuron
    frame, half, group = oracle(v, ids, counted, "linguistics")
    z = ((frame - everything.mean(0)) / everything.std(0).clip(1e-9)).iloc[:, :4]
    np.testing.assert_allclose(compact["linguistics.center"][:, :4], z.groupby(half).mean(), atol=1e-5)
    np.testing.assert_allclose(compact["linguistics.variance"][:, :4], z.groupby(half).var(ddof=0), rtol=1e-4)
    np.testing.assert_allclose(
        compact["linguistics.spread"][:7, :4], z.groupby(group).std(ddof=0), rtol=1e-3, atol=1e-4
    )
    mean = z.groupby([half, group]).mean().to_numpy().reshape(2, 7, 4)
    np.testing.assert_allclose(compact["linguistics.mean"][:, :7, :4], mean, atol=1e-5)


def test_memory_is_what_the_tensors_hold(monkeypatch):
    work = GroupedMoments(GROUPS, torch.ones(2, NEURONS))
    assert memory_bytes(GROUPS, NEURONS) == sum(tensor.nbytes for tensor in work.tensors.values())
    monkeypatch.setattr(grouped, "FEW", 10)
    assert "token.active" not in GroupedMoments(GROUPS, torch.ones(2, NEURONS)).tensors
