"""A run beside a published table: perturbed copies are found exactly; an unusable table is refused in one sentence."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import SHIPPED

from lib.base.errors import InputError
from lib.base.tensors import write_table
from lib.chapters.published import captions, comparison, figures
from lib.run import with_universal

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

LAYERS, NEURONS, THRESHOLD = 3, 100, 0.5


@pytest.fixture(scope="module")
def neurons() -> pd.DataFrame:
    """A per-neuron table with every published column; a third of its neurons are universal."""
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"layer": np.repeat(range(LAYERS), NEURONS), "neuron": np.tile(range(NEURONS), LAYERS)})
    for place, column in enumerate(comparison.COLUMNS):
        table[column] = generator.normal(place, 10.0 ** (place % 5 - 3), len(table))
    table["excess_corr"] = generator.permutation(np.linspace(0.2, 0.65, len(table)))
    return table


@pytest.fixture(scope="module")
def published(neurons) -> pd.DataFrame:
    """As the paper's tables: the universal neurons only, rounded."""
    return neurons[neurons["excess_corr"] > THRESHOLD].round(6).reset_index(drop=True)


def joined(neurons: pd.DataFrame, published: pd.DataFrame, threshold: float = THRESHOLD) -> pd.DataFrame:
    return comparison.joined(with_universal(neurons, threshold), with_universal(published, threshold))


def exchanged(table: pd.DataFrame, share: float) -> tuple[pd.DataFrame, set[tuple[int, int]]]:
    """A copy in which a share of the neurons have another one's values, and which they are."""
    places = np.random.default_rng(1).choice(len(table), round(share * len(table)), replace=False)
    copy, values = table.copy(), [column for column in table if column not in ("layer", "neuron")]
    copy.loc[places, values] = table.loc[np.roll(places, 1), values].to_numpy()
    return copy, set(map(tuple, table.loc[places, ["layer", "neuron"]].to_numpy()))


def test_table_agrees_with_itself(neurons, published):
    table = joined(neurons, published)
    totals = comparison.overlap(table)
    assert totals["jaccard"] == totals["precision"] == totals["recall"] == 1 and totals["both"] == len(published) == 100
    assert totals["differs"] == 0 and totals["chance_recall"] == 1 / 3 and len(comparison.most_different(table, 9)) == 0
    assert (comparison.column_correlations(table)["pearson"] > 0.999999).all() and set(
        comparison.shared_columns(table)
    ) == set(comparison.COLUMNS)


def test_exchanged_neurons_are_found_exactly(neurons, published):
    copy, expected = exchanged(published, 0.1)
    table = joined(neurons, copy)
    found = comparison.most_different(table, 1000)
    assert set(map(tuple, found[["layer", "neuron"]].to_numpy())) == expected and len(expected) == 10
    assert comparison.overlap(table)["jaccard"] == 1 and found["distance"].is_monotonic_decreasing
    rows = comparison.column_correlations(table)
    assert (
        (rows["differs"] == 10).all() and rows["pearson"].between(0.5, 0.999).all() and (rows["neurons"] == 100).all()
    )
    assert "**10** of the 100 listed neurons (10.0 %) differ" in captions.differing(table)
    for row in rows.itertuples():  # against numpy on the two tables as they are
        both = neurons.merge(copy, on=["layer", "neuron"], suffixes=("", "_p"))
        assert row.pearson == pytest.approx(np.corrcoef(both[row.column], both[f"{row.column}_p"])[0, 1])
    top = found.iloc[0]
    differences = {name: (top[name] - top[f"{name}_published"]) / copy[name].std(ddof=0) for name in comparison.COLUMNS}
    assert top["distance"] == pytest.approx(np.sqrt(np.mean(np.square(list(differences.values())))))
    assert top["worst"] == max(differences, key=lambda name: abs(differences[name])) and top[
        "worst_difference"
    ] == pytest.approx(differences[top["worst"]])


def test_replaced_universal_neurons_are_found_exactly(neurons, published):
    others = neurons[neurons["excess_corr"] <= THRESHOLD].iloc[:10]
    copy = published.copy()
    copy.loc[:9, ["layer", "neuron"]] = others[["layer", "neuron"]].to_numpy()
    table = joined(neurons, copy)
    totals = comparison.overlap(table)
    assert (totals["both"], totals["precision"], totals["recall"]) == (90, 0.9, 0.9) and totals["jaccard"] == 90 / 110
    sides = comparison.one_sided(table, 1000)
    for side, expected in (("here", published.iloc[:10]), ("there", others)):
        assert set(sides[side]["neuron"] + NEURONS * sides[side]["layer"]) == set(
            expected["neuron"] + NEURONS * expected["layer"]
        )
    by_layer = comparison.overlap_by_layer(table)
    assert by_layer["both"].sum() == 90 and by_layer["universal"].sum() == by_layer["published"].sum() == 100
    assert "90.0 % of this run's are published" in captions.overlap(totals, THRESHOLD).text


PLANTED = {"max_corr": 0.9, "min_corr": 0.5, "max_baseline": 0.99, "min_baseline": 0.1}  # shares of the tolerance


@pytest.mark.parametrize("over", [None, "min_corr"])
def test_a_run_is_judged_by_the_difference_of_two_published_runs(neurons, published, over):
    copy = published.copy()
    signs = np.where(np.arange(len(copy)) % 2, 1, -1)  # which cancel in a mean that is not of absolute differences
    for column, share in PLANTED.items():
        exact = neurons.loc[neurons["excess_corr"] > THRESHOLD, column].to_numpy()
        copy[column] = exact + signs * comparison.TOLERANCE[column] * (1.01 if column == over else share)
    rows = comparison.against_tolerance(joined(neurons, copy))
    assert rows["neurons"].tolist() == [len(copy)] * 4 and rows["column"].tolist() == list(PLANTED)
    shares = PLANTED | ({over: 1.01} if over else {})
    assert np.allclose(rows["difference"] / rows["tolerance"], list(shares.values()))
    assert rows["within"].tolist() == [column != over for column in PLANTED]
    said = captions.judgement(rows)
    verdict = "**The run does not reproduce" if over else "**The run reproduces"
    assert said.startswith(verdict) and said.count(". ") == 0 and said.endswith(".")
    assert ("largest best match" in said) == (over is None) and "smallest best match" in said
    both = captions.judgement_table({"one": rows, "two": rows})
    assert both["within"].tolist() == [("no" if column == over else "yes") for column in PLANTED] * 2


def test_a_table_without_matches_cannot_be_judged(neurons, published):
    rows = comparison.against_tolerance(joined(neurons, published[["layer", "neuron", "excess_corr"]]))
    assert (
        not len(rows)
        and "cannot be told" in captions.judgement(rows)
        and not len(captions.judgement_table({"one": rows}))
    )


def cases(neurons, published):
    constant = neurons.assign(var=1.0, skew=np.nan)
    yield neurons, published, THRESHOLD
    yield neurons, exchanged(published, 0.1)[0], THRESHOLD
    yield neurons, published.iloc[:1], THRESHOLD  # one neuron
    yield neurons, published[["layer", "neuron", "excess_corr"]], THRESHOLD
    yield constant, constant, THRESHOLD  # every neuron listed
    yield neurons, neurons, 0.9  # none universal on either side
    yield neurons.assign(excess_corr=0.0), published, THRESHOLD
    yield neurons, published.assign(excess_corr=0.0), THRESHOLD


@pytest.mark.parametrize("case", range(8))
def test_figures_and_captions_exist_for_every_kind_of_table(neurons, published, case, tmp_path):
    table = joined(*list(cases(neurons, published))[case])
    totals, rows, matrix = (
        comparison.overlap(table),
        comparison.column_correlations(table),
        comparison.correlations_by_layer(table),
    )
    shown = [captions.overlap(totals, THRESHOLD), captions.layers(matrix)]
    shown += [captions.values(rows[part], "values") for part in (slice(7), slice(7, None))]
    texts = [text for caption in shown for text in caption]
    texts += [captions.differing(table), captions.is_partial(table, THRESHOLD)]
    texts.append(captions.one_sided(comparison.one_sided(table, 20), totals))
    assert not any("nan" in text or "undefined" in text or "None universal" in text for text in texts), texts
    assert all(
        text.endswith((".", ":"))
        for text in texts
        if " " in text and not any(text == caption.title for caption in shown)
    )
    for figure in (
        figures.overlap(comparison.overlap_by_layer(table)),
        figures.values(table, rows[rows.index > 0][:3]),
        figures.layers(matrix),
    ):
        figure.savefig(tmp_path / "x.png", dpi=20)
    assert len(captions.difference_table(comparison.most_different(table, 20))) == min(20, totals["differs"])


WRONG = {
    "no_file": (None, "does not exist"),
    "no_column": ("layer,neuron,feature\n0,1,x\n", "no column 'excess_corr', only layer, neuron, feature"),
    "words": ("layer,neuron,excess_corr\n0,1,high\n", "something other than numbers in its column 'excess_corr'"),
    "fraction": ("layer,neuron,excess_corr\n0,1.5,0.5\n", "values in 'neuron' that are not whole numbers"),
    "twice": ("layer,neuron,excess_corr\n0,1,0.5\n0,1,0.6\n", "more than one row of the same neuron"),
    "no_rows": ("layer,neuron,excess_corr\n", "no rows"),
    "binary": (b"\x00\xff\xfe" * 50, "cannot be read"),
    "empty": ("", "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_unusable_table_is_refused_in_one_sentence(tmp_path, name):
    content, expected = WRONG[name]
    path = tmp_path / "published.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        comparison.read_published(path)
    text = str(caught.value)
    assert expected in text and text.endswith(".") and "\n" not in text and ". " not in text, text


def test_table_of_a_larger_model_is_refused(neurons, published):
    with pytest.raises(InputError, match="layer 7 neuron 0, but the run's layers go to 2 and its neurons to 99"):
        joined(neurons, published.assign(layer=7, neuron=0).iloc[:1])


def test_table_is_kept_with_the_run(make_run, neurons, published, tmp_path, capsys):
    run = make_run({"a": SHIPPED / "a", "b": SHIPPED / "b"})
    write_table(run.folder / "tables" / "neurons_all_seeds.parquet", neurons.assign(seed="a"))
    for path, written in (
        (tmp_path / "p.csv", published.to_csv),
        (tmp_path / "p.tsv", lambda path: published.to_csv(path, sep="\t")),
    ):
        written(path)  # with the unnamed index column that pandas adds
        (first,) = comparison.compare(run, [path]).values()
        (kept,) = run.recorded("tables/published.json")["tables"]
        assert comparison.overlap(first)["jaccard"] == 1 and kept["file"] == path.name and kept["sha256"]
    pd.testing.assert_frame_equal(comparison.compare(run)["p"], first)
    table = run.table("comparison").drop(columns="table")
    pd.testing.assert_frame_equal(table, with_universal(first, run.params.threshold))
    assert comparison.main([]) == comparison.main(["x", ""]) == 2
    assert capsys.readouterr().err.count("error: PUBLISHED is missing") == 2


def test_several_tables_at_once(make_run, neurons, published, tmp_path, capsys):
    run = make_run({"a": SHIPPED / "a", "b": SHIPPED / "b"})
    write_table(run.folder / "tables" / "neurons_all_seeds.parquet", neurons.assign(seed="a"))
    few = ["layer", "neuron", "excess_corr", "max_corr"]
    published.to_csv(tmp_path / "whole.csv", index=False)
    published[few].iloc[:30].to_csv(tmp_path / "few.csv", index=False)
    found = comparison.compare(run, [tmp_path / "whole.csv", tmp_path / "few.csv"])
    assert list(found) == ["whole", "few"] == list(comparison.kept(run))
    assert found["few"]["listed"].sum() == 30 and comparison.shared_columns(found["few"]) == ["max_corr", "excess_corr"]
    assert [len(comparison.against_tolerance(own)) for own in found.values()] == [4, 1]
    assert run.table("comparison").groupby("table").size().to_dict() == {"few": 300, "whole": 300}
    text = captions.for_each(found, lambda table: captions.judgement(comparison.against_tolerance(table)))
    assert text.startswith("`whole`: **The run reproduces") and "\n\n`few`: **The run reproduces" in text
    names = [captions.figure_name("overlap", name, found) for name in found]
    assert names == ["published_overlap_whole", "published_overlap_few"]

    published.assign(layer=7).iloc[:1].to_csv(tmp_path / "larger.csv")
    (tmp_path / "other").mkdir()
    published.to_csv(tmp_path / "other" / "few.csv")
    before = (run.folder / "tables" / "published.parquet").read_bytes()
    for wrong, expected in (("larger.csv", "larger: the published"), ("other/few.csv", "give each file another name")):
        with pytest.raises(InputError, match=expected):
            comparison.compare(run, [tmp_path / "few.csv", tmp_path / wrong])
    assert (run.folder / "tables" / "published.parquet").read_bytes() == before

    # as it was kept when there could be one only
    table = pd.read_parquet(run.folder / "tables" / "published.parquet")
    write_table(run.folder / "tables" / "published.parquet", table[table["table"] == "few"].drop(columns="table"))
    (run.folder / "tables" / "published.json").write_text(json.dumps({"file": "few.csv", "sha256": "0"}))
    assert list(comparison.compare(run)) == ["published"]
    assert run.recorded("tables/published.json")["tables"][0] == {
        "table": "published",
        "file": "few.csv",
        "sha256": "0",
    }


def test_rounding_is_no_difference(neurons, published):
    table = neurons.copy()
    deviation = published["max_corr"].std(ddof=0)
    table.loc[table["excess_corr"] > THRESHOLD, "max_corr"] = published["max_corr"].to_numpy() + 5e-4 * deviation
    assert comparison.overlap(joined(table, published))["differs"] == 0
    place = table.index[table["excess_corr"] > THRESHOLD][7]
    table.loc[place, "max_corr"] += 5e-3 * deviation
    found = comparison.most_different(joined(table, published), 9)
    assert found[["layer", "neuron", "worst"]].to_numpy().tolist() == [
        [*table.loc[place, ["layer", "neuron"]].astype(int), "max_corr"]
    ]
