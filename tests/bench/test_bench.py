"""The published algorithm, written without lib, gives the engine's correlations; the benchmark's table and page."""

import json

import pytest
import torch
from conftest import TEXT, small_model
from torch.nn.functional import gelu

from bench import engine, published, table, whole
from lib.kernels.correlation import haar_rotation
from lib.models.trunk import load_model

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


def test_published_algorithm_and_ours_agree_on_whole_runs(make_run, seed_folders):
    run = make_run(seed_folders, rotations=1)
    theirs, _ = whole.published_way(run)
    ours, _ = engine.whole(run)
    assert theirs["corr"].shape == (2, 96) and (theirs["corr"] < 0.999).all()
    for kind in ("corr", "baseline"):  # fp32 products of some five thousand tokens against fp64
        torch.testing.assert_close(ours[kind].double(), theirs[kind], atol=2e-5, rtol=0)


@pytest.mark.parametrize("precision, tolerance", [("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 5e-3)])
def test_statistics_alone_agree_with_the_published_sums(precision, tolerance):
    torch.manual_seed(0)
    rows = engine.batch_blocks("cpu", engine.CONTEXT, 24, 2**20) * engine.CONTEXT
    features = torch.randn(rows, 8)
    pre = {name: [features @ torch.randn(8, 24) + torch.randn(rows, 24) for _ in range(2)] for name in "ab"}
    given = {name: engine.Given(own, [gelu(x, approximate="tanh") for x in own]) for name, own in pre.items()}
    ours = engine.Statistics(given, precision, rows, exact=True)
    for _ in range(2):  # reads the tokens twice, which changes no correlation
        ours.stream()
    wide = [[x.double() for x in given[name].post] for name in "ab"]
    turn = haar_rotation(24, engine.RANDOM_SEED, 0).expand(2, -1, -1)
    found = ours.result()
    for kind, other in (("corr", wide[1]), ("baseline", published.rotate(wide[1], turn))):
        exact = published.StreamedCorrelation(2, 24)
        exact.update(wide[0], other)
        error = (found[kind][0].double() - exact.largest()).abs().max()
        assert error < (tolerance if kind == "corr" else max(tolerance, 1e-6))  # baselines are kept in fp32


def test_published_sums_over_batches_are_numpy_correlations():
    generator = torch.Generator().manual_seed(1)
    a, b = ([torch.randn(70, 5, generator=generator) for _ in range(2)] for _ in range(2))
    b[1] = b[1] + a[0]
    a[0][:, 3] = 2.5  # a dead neuron
    streamed = published.StreamedCorrelation(2, 5)
    for rows in (slice(0, 50), slice(50, 70)):
        streamed.update([x[rows] for x in a], [y[rows] for y in b])
    matrix = torch.corrcoef(torch.cat(a + b, 1).double().T)[:10, 10:].nan_to_num(0)
    torch.testing.assert_close(streamed.largest(), matrix.amax(1), atol=1e-6, rtol=0)
    assert streamed.largest()[3] == 0


def test_published_activations_are_the_counted_tokens_of_the_mlps(make_run, seed_folders):
    run = make_run(seed_folders, text=str(TEXT))
    tokens, counted = run.text.tokens[:2], run.text.counted()[:2]
    model = load_model(seed_folders["a"])
    seen = published.activations(model, tokens, counted)
    hidden = small_model(0)(tokens, output_hidden_states=True).hidden_states
    block = model.transformer.h[0]
    attended = hidden[0] + block.attn(block.ln_1(hidden[0]))[0]
    expected = block.mlp.act(block.mlp.c_fc(block.ln_2(attended)))[counted]
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)
    assert len(seen) == 2 and len(expected) == int(counted.sum())


def test_table_extrapolates_only_the_pass():
    record = {"fixed_seconds": 4.0, "pass_seconds": 10.0, "tokens": 1000}
    assert table.at_tokens(record, 3000) == 34.0
    found = {"forward": dict(plain=100.0, plain_with_logits=80.0, bridge=25.0, trunk_fp32=110.0, trunk_mixed=400.0)}
    text = table.text(
        {"machine": dict(device="X", date="2026-01-01", torch="2", commit="c"), "rows": table.rows(found)}
    )
    assert "our trunk, MLPs in bf16: 400 tokens/s, 4.00 of plain" in text and "2026-01-01" in text


def test_record_keeps_parts_of_the_same_machine_only(tmp_path):
    machine = dict(device="X", cores=2, torch="2", date="2026-01-01T00:00", commit="c1")
    found = dict(plain=100.0, plain_with_logits=80.0, bridge=25.0, trunk_fp32=110.0, trunk_mixed=400.0)
    record = table.Record.read(tmp_path / "x.json", machine)
    record.add("forward", found)
    (tmp_path / "x.json").write_text(json.dumps(record.content()))
    later = table.Record.read(tmp_path / "x.json", machine | {"date": "2026-01-03T00:00", "commit": "c2"})
    later.add("overhead", {"forward passes alone": 100.0, "pass": 80.0})
    content = later.content()
    assert content["machine"]["date"] == "2026-01-01 to 2026-01-03" and content["machine"]["commit"] == "c1, c2"
    assert {row["group"].split()[0] for row in content["rows"]} == {"Forward", "The"}
    assert table.Record.read(tmp_path / "x.json", machine | {"torch": "3"}).parts == {}
