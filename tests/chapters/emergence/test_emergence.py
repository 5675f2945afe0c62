"""Chapter 7: planted checkpoints, indicators against plain NumPy in fp64, and an interrupted run resumes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TEXT, save_seed, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.base.errors import InputError
from lib.base.files import write_json
from lib.base.hub import seed_folder
from lib.base.params import ROOT, Params
from lib.base.tensors import write_table
from lib.chapters.emergence import captions, checkpoints, claims, figures, statistics
from lib.chapters.emergence import tables as emergence_tables
from lib.chapters.emergence.tables import Emergence, open_chapter, tabulate_emergence
from lib.chapters.universality.properties import layer_shares
from lib.display.claims import FAILS, HOLDS, UNKNOWN, Evidence
from lib.run import with_universal
from lib.text.blocks import read_text

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

STEPS = (1, 2)
BORN = (1, 7)  # the planted neuron, (layer, index)


def planted(seed: int, step: int):
    """A model whose neuron BORN is, from step 2 on, the same function of the token as in every other seed."""
    model = small_model(seed)
    generator = torch.Generator().manual_seed(99)
    token = torch.randn(model.config.n_embd, generator=generator)
    with torch.no_grad():
        # every seed reads one shared embedding of the tokens, which attention and the first MLP leave alone
        shared = torch.randn(8192, 32, generator=generator)
        model.transformer.wte.weight.copy_(shared)
        model.transformer.wpe.weight.zero_()
        for block in model.transformer.h:
            block.attn.c_proj.weight.mul_(0.02)
            block.mlp.c_proj.weight.mul_(0.02)
        if step >= 2:
            mlp = model.transformer.h[BORN[0]].mlp
            mlp.c_fc.weight[:, BORN[1]] = 0.5 * token
            mlp.c_fc.bias[BORN[1]] = 0.0
    return model


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Three seeds with checkpoints of STEPS in their own folders, without tokeniser, as a trainer leaves them."""
    root = tmp_path_factory.mktemp("trained")
    for number, name in enumerate("abc"):
        for step in STEPS:
            planted(number, step).save_pretrained(root / name / f"checkpoint-{step}")
        save_seed(planted(number, 8), root / name)
    return root


@pytest.fixture
def params(make_run, trained, monkeypatch) -> Params:
    monkeypatch.setattr("lib.chapters.circuits.roles.NULL_DIRECTIONS", 200)
    return make_run({name: trained / name for name in "abc"}, token_budget=8 * 256).params


def test_a_planted_neuron_is_born_when_it_is_copied_and_stays(params):
    found = Emergence(tabulate_emergence(params, 8 * 256), 0.5)
    assert found.tables["points"]["point"].tolist() == ["checkpoint-1", "checkpoint-2", "final"]
    neurons = found.tables["neurons"]
    own = neurons[(neurons["layer"] == BORN[0]) & (neurons["neuron"] == BORN[1])]
    by_point = own.groupby("point")["excess_corr"].min()
    assert by_point["checkpoint-2"] > 0.25 > by_point["checkpoint-1"] + 0.05
    threshold = float(by_point["checkpoint-2"]) - 0.05
    flat = BORN[0] * 48 + BORN[1]
    last = own[own["point"] == "final"]
    for row in last.itertuples():
        assert [getattr(row, f"partner_{other}") for other in "abc" if other != row.seed] == [flat, flat]
        assert getattr(row, f"partner_{row.seed}") == -1
    flagged = with_universal(neurons, threshold)
    since = statistics.first_universal(flagged).set_index(["seed", "layer", "neuron"])["since"]
    assert {since[(seed, *BORN)] for seed in "abc"} == {"checkpoint-2"}
    kept = statistics.persistence(flagged).set_index(["seed", "point"])
    assert (kept.loc[(slice(None), "checkpoint-2"), "kept"] >= 1).all()
    assert (kept.loc[(slice(None), "checkpoint-2"), "same_partner"] > 0).all()
    # the run's own folders are gone, what ships is small
    assert not list((params.folder.parent).glob("emergence-*"))
    assert set(found.tables["heads"].columns) >= {"bos", "previous", "induction"}
    assert not found.tables["points"]["constant"].any()  # nothing is known of the learning rate


def test_equal_checkpoints_and_seeds_of_one_initialisation_are_named(make_run, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lib.chapters.circuits.roles.NULL_DIRECTIONS", 200)
    shutil.copytree(trained, tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained" / "c" / "checkpoint-2")
    shutil.copytree(trained / "c" / "checkpoint-1", tmp_path / "trained" / "c" / "checkpoint-2")
    moved = planted(0, 1)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += (
                0.3 * weight.std(correction=0) * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
            )
    moved.save_pretrained(tmp_path / "trained" / "b" / "checkpoint-1")
    params = make_run({name: tmp_path / "trained" / name for name in "abc"}, token_budget=4 * 256).params
    record = Emergence(tabulate_emergence(params, 4 * 256, steps=[1, 2]), 0.5).record
    said = capsys.readouterr().err
    # the planted seeds stay as they are after step 2, and their first layer from the start; b began elsewhere here
    equal = (
        "seed a at checkpoint-2 and final; seed b at checkpoint-2 and final; seed c at checkpoint-1 and checkpoint-2"
    )
    assert f"note: equal weights: {equal} (chapter 07)." in said
    text = captions.identity(record)
    assert "**These checkpoints have the same w_in in the first layer**: seed a at checkpoint-1, checkpoint-2" in text
    assert "seed b at checkpoint-2 and final; seed c at checkpoint-1, checkpoint-2 and final." in text
    assert "**These seeds share an initialisation**: a and b at checkpoint-1." in text


def test_points_of_older_tables_are_kept_beside_new_ones(params, trained, tmp_path):
    older = tmp_path / "older"
    emergence_tables.export(tabulate_emergence(params, 8 * 256), older)
    whole = Emergence(older, 0.5)
    emergence_tables.export(tabulate_emergence(params, 8 * 256, steps=[], keep=older), tmp_path / "again")
    again = Emergence(tmp_path / "again", 0.5)
    assert again.record == whole.record | {"points": again.record["points"]}
    assert again.tables["points"]["point"].tolist() == whole.tables["points"]["point"].tolist()
    for name, table in whole.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)

    measured, shipped = pd.read_parquet(params.folder / "emergence" / "neurons.parquet"), whole.tables["neurons"]
    far = shipped["excess_corr"] < emergence_tables.PARTNERS_FROM
    assert far.any() and not far.all() and (shipped.loc[far, "partner_b"] == -1).all()
    assert (
        shipped.loc[~far, "partner_b"]
        == measured.set_index(["point", *statistics.KEYS])["partner_b"]
        .reindex(pd.MultiIndex.from_frame(shipped.loc[~far, ["point", *statistics.KEYS]]))
        .to_numpy()
    ).all()

    record = json.loads((older / "emergence.json").read_text())
    record["points"][-1] |= {"seeds": {"a": "other weights"}, "step": 4}
    (older / "emergence.json").write_text(json.dumps(record))
    mixed = Emergence(tabulate_emergence(params, 8 * 256, steps=[2], keep=older), 0.5)
    labels = mixed.tables["points"]["point"].tolist()
    assert labels == ["checkpoint-1", "checkpoint-2", "shipped-4", "final"]
    with pytest.raises(InputError, match="another token_budget and"):
        tabulate_emergence(params, 4 * 256, steps=[], keep=older)
    with pytest.raises(InputError, match="could be kept"):
        tabulate_emergence(params, 8 * 256, keep=tmp_path)


def test_interrupted_run_resumes_and_finished_points_are_not_measured_again(params, monkeypatch):
    real, seen = emergence_tables.measure, []

    def dies(run):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(run.params.run)
        return real(run)

    monkeypatch.setattr(emergence_tables, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        tabulate_emergence(params, 8 * 256)
    assert (params.folder.parent / "emergence-test-checkpoint-2" / "stats" / "done.json").exists()
    assert not (params.folder / "emergence" / "emergence.json").exists()
    seen.clear()
    monkeypatch.setattr(emergence_tables, "measure", lambda run: seen.append(run.params.run) or real(run))
    monkeypatch.setattr("lib.collect.passes._run_pass", lambda work, *_: _only("final", work))
    with pytest.raises(AssertionError):  # the second point's pass was complete; only the last one has still to be run
        tabulate_emergence(params, 8 * 256)
    assert seen == ["emergence-test-checkpoint-2"]


def _only(label, work):
    assert work.inputs.run.params.run.endswith(label)
    raise AssertionError("reached")


# ---------------------------------------------------------------- oracles


def softmax_patterns(number: int, heads: int, size: int) -> np.ndarray:
    score = np.random.default_rng(number).normal(size=(2, heads, size, size)) * 3
    score[..., ~np.tri(size, dtype=bool)] = -np.inf
    raised = np.exp(score - score.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 9))
def test_head_scores_equal_loops(number, heads, length):
    size = 2 * length + 1
    pattern = softmax_patterns(number, heads, size)
    tensor = torch.from_numpy(pattern)
    for head in range(heads):
        own = pattern[:, head]
        bos = np.mean([[block[d, 0] for d in range(size // 2, size)] for block in own])
        previous = np.mean([[block[d, d - 1] for d in range(2, size)] for block in own])
        # the token of destination length + i first stood at i, and after it stood i + 1
        induction = np.mean([[block[length + i, i + 1] for i in range(1, length + 1)] for block in own])
        assert np.isclose(statistics.bos_attention(tensor)[head], bos)
        assert np.isclose(statistics.previous_token_score(tensor)[head], previous)
        assert np.isclose(statistics.induction_score(tensor, length)[head], induction)


def test_repeated_tokens_repeat():
    allowed = torch.tensor([5, 6, 7, 9])
    tokens = statistics.repeated_tokens(3, 12, allowed, 0, 1)
    assert tokens.shape == (3, 11) and (tokens[:, 0] == 0).all()
    assert (tokens[:, 1:6] == tokens[:, 6:]).all() and set(tokens[:, 1:].flatten().tolist()) <= set(allowed.tolist())


def test_patterns_of_the_first_layer_equal_plain_attention():
    model = small_model(3)
    tokens = read_text(TEXT).tokens[:2, :21]
    table = statistics.head_table(model, tokens, tokens)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    read = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:21]
    read = (read - read.mean(-1, keepdims=True)) / np.sqrt(read.var(-1, keepdims=True) + 1e-5)
    qkv = read @ weights["transformer.h.0.attn.c_attn.weight"]  # biases are 0, gains 1
    query, key, _ = (part.reshape(2, 21, 2, 16).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1))
    score = query @ key.transpose(0, 1, 3, 2) / 4
    score[..., ~np.tri(21, dtype=bool)] = -np.inf
    raised = np.exp(score - score.max(-1, keepdims=True))
    pattern = raised / raised.sum(-1, keepdims=True)
    want = [np.mean(pattern[:, head, 10:, 0]) for head in range(2)]
    np.testing.assert_allclose(table.loc[table["layer"] == 0, "bos"], want, rtol=1e-4)
    want = [np.mean([pattern[:, head, d, d - 1] for d in range(2, 21)]) for head in range(2)]
    np.testing.assert_allclose(table.loc[table["layer"] == 0, "previous"], want, rtol=1e-4)


def neuron_history(excess: dict[str, list[float]], partners: dict[str, list[int]]) -> pd.DataFrame:
    rows = [
        {
            "point": point,
            "seed": "a",
            "layer": index // 2,
            "neuron": index % 2,
            "excess_corr": value,
            "partner_a": -1,
            "partner_b": partners[point][index],
            "role": "none",
        }
        for point, values in excess.items()
        for index, value in enumerate(values)
    ]
    return with_universal(pd.DataFrame(rows), 0.5)


def test_births_deaths_and_persistence_of_a_small_history():
    neurons = neuron_history(
        {"one": [0.9, 0.1, 0.9, 0.9], "two": [0.9, 0.9, 0.1, 0.9], "end": [0.9, 0.9, 0.1, np.nan]},
        {"one": [0, 1, 2, 3], "two": [5, 1, 2, 3], "end": [5, 1, 2, 3]},
    )
    changes = statistics.transitions(neurons)
    assert changes[["before", "after", "stay", "births", "deaths"]].to_numpy().tolist() == [
        [3, 3, 2, 1, 1],
        [3, 2, 2, 0, 1],
    ]
    kept = statistics.persistence(neurons).set_index("point")
    assert kept.loc["one", ["universal", "kept"]].tolist() == [3, 1] and kept.loc["two", "kept"] == 2
    # at the end all of layer 0 and none of layer 1 are universal: chance is the mean over the three
    assert np.isclose(kept.loc["one", "chance"], 1 / 3) and np.isclose(kept.loc["two", "chance"], 2 / 3)
    assert kept.loc["one", "same_partner"] == 0 and kept.loc["two", "same_partner"] == 1
    since = statistics.first_universal(neurons).set_index(["layer", "neuron"])["since"]
    assert since.to_dict() == {(0, 0): "one", (0, 1): "two"}
    assert neurons[neurons["point"] == "end"]["is_universal"].sum() == 2


def test_no_universal_neuron_at_all_gives_empty_tables():
    neurons = neuron_history({"one": [0.0] * 4, "end": [0.1] * 4}, {"one": [0] * 4, "end": [0] * 4})
    assert statistics.first_universal(neurons).empty
    kept = statistics.persistence(neurons)
    assert kept["universal"].eq(0).all() and kept[["persistence", "chance", "same_partner"]].isna().all().all()


# ---------------------------------------------------------------- which checkpoints there are


@pytest.mark.parametrize(
    "name, step", [("checkpoint-400000", 400_000), ("step128", 128), ("main", None), ("step1-of-2", None)]
)
def test_steps_in_names(name, step):
    assert checkpoints.step_of(name) == step


def test_log_spaced_keeps_the_ends():
    assert checkpoints.log_spaced([0, 4, 2, 1]) == [1, 2, 4]
    many = checkpoints.log_spaced([2**k for k in range(10)] + list(range(1000, 144_000, 1000)), 12)
    assert many[0] == 1 and many[-1] == 143_000 and len(many) <= 12


def test_missing_checkpoints_are_refused_in_one_sentence(make_run, seed_folders, params):
    with pytest.raises(InputError, match="no checkpoints that all of the seeds a, b, c have") as error:
        checkpoints.points(make_run(seed_folders).params)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no checkpoints of step 3 .* there are 1, 2"):
        checkpoints.points(params, [1, 3])


def test_hub_models_without_a_chosen_checkpoint_are_refused(make_run, hub, trained):
    for name in "ab":
        hub.add("models", f"EleutherAI/pythia-{name}", trained / name, revision="step1")
    params = make_run({name: f"EleutherAI/pythia-{name}" for name in "ab"}).params
    with pytest.raises(InputError, match="no point of their own"):
        checkpoints.points(params, [], beside=13)


def test_revisions_of_a_hub_model(make_run, hub, trained):
    for name in "ab":
        for revision in ("step1", "step512", "notes", *(["step4"] if name == "a" else [])):
            hub.add("models", f"EleutherAI/pythia-{name}", trained / name, revision=revision)
    params = make_run({name: f"EleutherAI/pythia-{name}" for name in "ab"}).params
    found = checkpoints.points(params)
    assert [point.step for point in found] == [1, 512] and found[1].revisions == {"a": "step512", "b": "step512"}
    assert found[1].tokens == 512 * 2_097_152


# ---------------------------------------------------------------- what is said


def history(excess: dict[str, float]) -> dict[str, pd.DataFrame]:
    """All tables of two checkpoints of two seeds with 3 layers of 20 neurons, every neuron with the given excess."""
    points = pd.DataFrame({"point": list(excess), "step": [1, 8], "tokens": [2048, 16384], "constant": False})
    neurons, layers, heads, losses = [], [], [], []
    for point, value in excess.items():
        for seed in "abc":
            where = {"point": point, "seed": seed}
            losses += [where | {"domain": domain, "loss": 5.0, "tokens": 10} for domain in ("all", "law", "verse")]
            for layer in range(3):
                heads.append(
                    where
                    | {"layer": layer, "head": 0, "bos": 0.6, "previous": 0.6, "induction": np.nan if layer else 0.1}
                )
                layers.append(
                    where
                    | {
                        "layer": layer,
                        "neurons": 20,
                        "prediction": 2 if layer else 0,
                        "suppression": 5 if layer == 2 else 0,
                        "partition": 0,
                        "peaked_positive": 0,
                        "peaked_negative": 0,
                        "low_variance": 3,
                        "max_kurt": 4.0,
                        "same_layer": 0.8,
                        "null_kurt": 3.5,
                        "null_var": 0.01,
                        "null_low": 0.001,
                    }
                )
                neurons += [
                    where
                    | {
                        "layer": layer,
                        "neuron": index,
                        "max_corr": value,
                        "excess_corr": value,
                        "dead": False,
                        "role": "none",
                        "partner_a": index,
                        "partner_b": index,
                    }
                    for index in range(20)
                ]
    made = {"neurons": neurons, "layers": layers, "heads": heads, "losses": losses}
    tables = {name: pd.DataFrame(rows) for name, rows in made.items()} | {"points": points}
    return {name: with_universal(table, 0.5) for name, table in tables.items()}


@pytest.mark.parametrize(
    "excess",
    [{"checkpoint-1": 0.0, "final": 0.0}, {"checkpoint-1": 0.9, "final": 0.9}, {"checkpoint-1": 0.9, "final": 0.1}],
)
def test_every_figure_and_caption_of_the_chapter_exists_without_universal_neurons_too(excess):
    tables = history(excess)
    neurons, heads, layers, points = (tables[name] for name in ("neurons", "heads", "layers", "points"))
    time = figures.timeline(points, 6)
    shares = statistics.by_point(neurons, statistics.seed_shares)
    by_layer = statistics.by_point(neurons, layer_shares)
    changes, kept = statistics.transitions(neurons), statistics.persistence(neurons)
    start = statistics.middle_point(points)
    groups = statistics.first_universal(neurons).assign(when="early")
    kinds = statistics.kinds_of(groups, groups["role"])
    appear = statistics.appearances(statistics.indicators(heads, layers, shares))
    pairs = [
        (captions.losses(tables["losses"], time), figures.losses(tables["losses"], time)),
        (captions.shares(shares, points, time, 0.5), figures.shares(shares, time)),
        (captions.by_layer(by_layer, time), figures.by_layer(by_layer, time)),
        (
            captions.births_and_deaths(changes, kept, points, time, start),
            figures.births_and_deaths(changes, kept, time),
        ),
        (captions.early_and_late(groups, kinds, start, time, "role"), figures.early_and_late(groups, kinds, 3, "role")),
        (captions.circuits_appear(appear, time), figures.circuits_appear(heads, layers, time)),
        (captions.heads_at_the_end(heads), figures.heads_at_the_end(heads)),
    ]
    for caption, fig in pairs:
        assert caption.title and caption.text and caption.alt and "nan" not in caption.text
        fig.canvas.draw()
    assert not captions.appearance_table(appear, time).astype(str).eq("nan").any().any()
    table = claims.claims(Evidence(tables, "a", 0.5)).set_index("name")
    shown = captions.claims_table(table.reset_index())
    assert not table["here"].str.contains("nan|undefined").any() and len(shown) == len(claims.CLAIMS)
    assert captions.claims(table).startswith(f"Of {len(claims.CLAIMS)} claims, **")
    assert table.loc[["bos_head", "previous_head"], "verdict"].tolist() == [HOLDS, HOLDS]
    assert table.loc["induction_head", "verdict"] == FAILS
    # two checkpoints of an unknown schedule do not show growth; the row has the shares nevertheless
    assert table.loc["growth", "verdict"] == UNKNOWN and "the same learning rate" in table.loc["growth", "here"]
    if excess["checkpoint-1"] < 0.5:
        needed = "10 universal neurons are needed halfway, and a has 0, b has 0, c has 0"
        assert table.loc["persistent", "here"] == needed and table.loc["outer_layers", "verdict"] == UNKNOWN
    elif excess["final"] > 0.5:  # where all neurons are universal at the end, random ones persist as they do
        assert table.loc["persistent", "decides"] == "chance alone keeps 100 %"
        assert table.loc["same_partners", "verdict"] == HOLDS
    else:
        assert table.loc["persistent", "verdict"] == FAILS and table.loc["persistent", "control"] == "0 %"


def trained_history() -> dict[str, pd.DataFrame]:
    """Five seeds of 200 neurons whose learning rate is constant from step 2 to step 8: at 8 most universal neurons of
    step 4 are left, with new ones beside them, and the decay to step 10 gives more."""
    steps, size = (1, 2, 4, 6, 8, 10), 200
    random, rows, heads = np.random.default_rng(3), [], []
    for seed in "abcde":
        order = random.permutation(size)
        for step in steps:
            number = {1: 0, 2: 10, 4: 30, 6: 40, 8: 50, 10: 70}[step] + int(random.integers(0, 3))
            gone = set(order[:4]) if step >= 8 else set()
            universal = set(order[:number]) - gone
            for index in range(size):
                where = {"point": f"p{step}", "seed": seed, "layer": index // 40, "neuron": index % 40}
                partners = {f"partner_{other}": (index if index % 5 or step < 8 else -2 - step) for other in "abcde"}
                rows.append(where | partners | {"excess_corr": 0.9 if index in universal else 0.1, "role": "none"})
            heads.append(
                {"point": f"p{step}", "seed": seed, "bos": 0.9, "previous": 0.1, "induction": random.uniform()}
            )
    points = pd.DataFrame({"point": [f"p{step}" for step in steps], "step": steps, "tokens": steps})
    points["constant"] = points["step"].between(2, 8)
    return {"neurons": with_universal(pd.DataFrame(rows), 0.5), "heads": pd.DataFrame(heads), "points": points}


def test_claims_on_training_are_what_plain_sets_give():
    tables = trained_history()
    table = claims.claims(Evidence(tables, "a", 0.5)).set_index("name")
    n = tables["neurons"]
    sets = {
        (seed, point): set(zip(own["layer"], own["neuron"], strict=True))
        for (seed, point), own in n[n["is_universal"]].groupby(["seed", "point"])
    }
    growth = [100 * (len(sets[seed, "p8"]) - len(sets[seed, "p4"])) / 200 for seed in "abcde"]
    persist, control, outer, same = [], [], [], []
    for seed in "abcde":
        # half of ten steps have passed at step 4, the last checkpoint at no more than five
        start, end = sets[seed, "p4"], sets[seed, "p10"]
        persist.append(len(start & end) / len(start))
        by_layer = [sum(layer == wanted for layer, _ in end) / 40 for wanted in range(5)]
        control.append(np.mean([by_layer[layer] for layer, _ in start]))
        ends, between = ({one for one in start if (one[0] in (0, 4)) == first} for first in (True, False))
        enough = min(len(ends), len(between)) >= 10
        outer.append(100 * (len(ends & end) / len(ends) - len(between & end) / len(between)) if enough else np.nan)
        kept = [layer * 40 + neuron for layer, neuron in start & end]
        same.append(np.mean([index % 5 > 0 for index in kept]) if kept else np.nan)  # the others have none at the end
    for name, values in {"growth": growth, "persistent": persist, "outer_layers": outer}.items():
        assert table.loc[name, "value"] == pytest.approx(np.nanmean(values)), name
        own = json.loads(table.loc[name, "by_seed"])
        assert own == pytest.approx({seed: v for seed, v in zip("abcde", values, strict=True) if np.isfinite(v)}), name
    assert table.loc["growth", "verdict"] == HOLDS and "at the end, after the decay" in table.loc["growth", "here"]
    assert table.loc["persistent", "verdict"] == HOLDS
    assert table.loc["persistent", "control"] == f"{100 * np.mean(control):.1f} %"
    until = np.mean([len(sets[seed, "p4"] & sets[seed, "p8"]) / len(sets[seed, "p4"]) for seed in "abcde"])
    stated = f"; of those universal at 4 tokens, {100 * until:.1f} % are so at 8 tokens, before the decay"
    assert stated in table.loc["persistent", "here"] and " % at 4 tokens to " in table.loc["growth", "here"]
    assert table.loc["same_partners", "value"] == 1.0  # partners that the table lacks do not count
    best = tables["heads"].query("point == 'p10'").set_index("seed")["induction"]
    assert table.loc["induction_head", "value"] == pytest.approx(best.mean())
    assert table.loc["bos_head", "verdict"] == HOLDS and table.loc["previous_head", "verdict"] == FAILS
    assert (table.loc[table["verdict"] == UNKNOWN, "decides"] != "").all()


def test_births_in_the_decay_are_counted_and_shaded():
    tables = trained_history()
    neurons, points = tables["neurons"], tables["points"]
    time = figures.timeline(points, 8)
    assert time.decay == 8 and time.decayed("p10") and not time.decayed("p8")
    assert figures.timeline(points).decay is None and figures.timeline(points, 10).decay is None
    changes, kept = statistics.transitions(neurons), statistics.persistence(neurons)
    flags = neurons.pivot_table(index=["seed", "layer", "neuron"], columns="point", values="is_universal") > 0
    late, births = int((flags["p10"] & ~flags["p8"]).sum()), 0
    for before, after in zip(points["point"][:-1], points["point"][1:], strict=True):
        births += int((flags[after] & ~flags[before]).sum())
    caption = captions.births_and_deaths(changes, kept, points, time, "p4")
    stated = (
        f"**{late}** of {births} births fall after 8 tokens (grey); the learning rate decays over the last 2 tokens."
    )
    assert stated in caption.text
    assert f"the mean excess of these {late} neurons was 0.10." in caption.text
    steady = captions.births_and_deaths(changes, kept, points, figures.timeline(points), "p4")
    assert "mean excess" not in steady.text and "grey" not in steady.text
    fig = figures.births_and_deaths(changes, kept, time)
    assert [len(axes.patches) - len(fig.axes[1].patches) for axes in fig.axes] == [
        3 * 5 + 1,
        0,
    ]  # bars and a span on the left


@pytest.mark.parametrize("excess, words", [(0.0, "stays at **0.250**."), (-0.2, "goes from 0.250 to **0.050**.")])
def test_the_sentence_on_tail_and_bulk_follows_from_the_shares(excess, words):
    start = pd.DataFrame({"seed": ["a", "b"], "point": "p1", "share": [0.1, 0.2], "median_excess": 0.25})
    end = start.assign(point="p9", share=[0.2, 0.3] if excess >= 0 else [0.3, 0.1], median_excess=0.25 + excess)
    time = figures.timeline(pd.DataFrame({"point": ["p1", "p9"], "step": [1, 9], "tokens": [1, 9]}))
    text = captions.tail_and_bulk(pd.concat([start, end]), "p1", time)
    assert words in text and f"share {'rises' if excess >= 0 else 'goes'} from 15.00 %" in text
    assert captions.tail_and_bulk(end, "p9", time).startswith("There the share is **")


def test_the_fullest_layers_hold_half_of_the_last_universal_neurons():
    rows = [
        (point, seed, layer, at[layer])
        for point, at in (("p1", [0, 0, 3, 0]), ("p2", [4, 3, 2, 1]))
        for seed in "ab"
        for layer in range(4)
    ]
    table = pd.DataFrame(rows, columns=["point", "seed", "layer", "universal"]).assign(
        share=lambda own: own["universal"] / 10
    )
    time = figures.timeline(pd.DataFrame({"point": ["p1", "p2"], "step": [1, 2], "tokens": [1, 2]}))
    assert statistics.fullest_layers(table)[0] == [0, 1]
    caption = captions.by_layer(table, time)
    assert caption.title == "Layers 0 and 1 hold 14 of 20 universal neurons at the end, and none of the first 6"
    assert "layer **0** has the largest mean share, 40.00 %; it has the largest in 2 of 2 seeds." in caption.text
    assert captions.layer_names(range(9)) == "the fullest 9 layers"


@pytest.mark.parametrize("size", [10, 200])
def test_early_and_late_kinds_are_compared_only_if_chance_does_not_explain_the_difference(size):
    """Six of ten against three of ten is chance; the same shares of 200 are not."""
    groups = pd.DataFrame({"seed": ["a", "a", "b", "b"], "layer": [3, 1, 1, 2], "when": ["early", "late"] * 2})
    rows = [("early", "x", 0.6), ("early", "y", 0.4), ("late", "x", 0.3), ("late", "y", 0.7)]
    kinds = pd.DataFrame(rows, columns=["when", "kind", "share"]).assign(of=size)
    time = figures.timeline(pd.DataFrame({"point": ["p1"], "step": [1], "tokens": [1]}))
    text = captions.early_and_late(groups, kinds, "p1", time, "family").text
    assert "mean layers are 2.0 and 1.5; that of the early ones is higher in 1 of 2 seeds." in text
    assert ("too few to tell" in text) == (size == 10) and ("60.0 % of early, 30.0 % of late" in text) == (size == 200)


def test_the_schedule_is_read_from_the_trainers_record(params, monkeypatch):
    record = {"constant_steps": 80, "decay_steps": 20, "tokens": 1, "begun": 5}
    record["recipe"] = {"warmup_steps": 10, "phases": [{"step": 0}, {"step": 30}]}
    monkeypatch.setattr(checkpoints, "_training_record", lambda params: record)
    assert checkpoints.constant_rate_steps(params) == [30, 80]
    record["recipe"]["phases"].pop()
    assert checkpoints.constant_rate_steps(params) == [15, 80]
    monkeypatch.setattr(checkpoints, "_training_record", lambda params: {})
    assert checkpoints.constant_rate_steps(params) is None


def test_the_shipped_checkpoints_know_their_schedule():
    """The record that ships beside the tables is that of the shipped seeds' training."""
    chapter = Emergence(ROOT / "data" / "emergence", 0.5)
    shipped = chapter.tables["points"].set_index("step")["constant"]
    training = json.loads((ROOT / "data" / "seeds" / "a" / "training.json").read_text())
    warm, until = training["recipe"]["warmup_steps"], training["constant_steps"]
    assert chapter.constant_until == until
    assert shipped.to_dict() == {step: warm <= step <= until for step in shipped.index}
    assert shipped[shipped].index.tolist() == [256, 512, 1024, 1536, 2048] and not shipped[3197]


def test_own_tables_come_first_and_shipped_ones_need_shipped_seeds(params, make_run, monkeypatch, tmp_path):
    run = make_run({name: seed_folder(params, name) for name in "abc"})
    monkeypatch.setattr("lib.base.params.ROOT", tmp_path)
    assert open_chapter(run) is None  # no checkpoint tables: one sentence in the chapter
    tables = history({"checkpoint-1": 0.0, "final": 0.9})
    points = tables.pop("points")
    record = {
        "points": [
            {"label": row.point, "step": row.step, "tokens": row.tokens, "seeds": {}} for row in points.itertuples()
        ]
    }
    for folder in (run.folder / "emergence", tmp_path / "data" / "emergence"):
        for name, table in tables.items():
            write_table(folder / f"{name}.parquet", table[::-1])
        write_json(folder / "emergence.json", record)
    own = open_chapter(run)
    assert not own.shipped and own.tables["neurons"]["point"].iloc[0] == "checkpoint-1"
    (run.folder / "emergence" / "emergence.json").unlink()
    assert open_chapter(run) is None
    ours = {name: tmp_path / "data" / "seeds" / name for name in "ab"}
    for name in "ab":
        shutil.copytree(seed_folder(params, name), ours[name], ignore=shutil.ignore_patterns("checkpoint-*"))
    assert open_chapter(make_run(ours)).shipped
