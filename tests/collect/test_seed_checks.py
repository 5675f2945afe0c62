"""Seeds that are not what they are called: shared initialisation, equal checkpoints, another model's logits."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_seed, small_model
from small_models import ARCHITECTURES

from lib.base.hub import listed_sha256, weights_sha256
from lib.chapters.emergence import checkpoints
from lib.chapters.emergence.captions import identity
from lib.chapters.universality import captions_activations as captions
from lib.collect import seed_checks
from lib.collect.passes import collect
from lib.models.trunk import Trunk
from tests.base.test_params import is_sentence

pytestmark = pytest.mark.usefixtures("without_grouped_moments")


def moved(seed: int, by: float, order: int):
    """A small model whose weights have gone from those of `seed` by noise of `by` times their size."""
    model, generator = small_model(seed), torch.Generator().manual_seed(order)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return model


def test_mean_cosines_are_those_of_plain_numpy():
    vectors = {name: torch.randn(30, 8, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("ba")}
    vectors["a"] = 0.5 * vectors["b"] + vectors["a"] + 1.0  # with a direction that all neurons share
    (row,) = seed_checks.initialisation_table(vectors | {"c": torch.ones(20, 8)}).to_dict("records")
    a, b = (vectors[name].double().numpy() for name in "ab")
    cosine = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    own, other = np.diag(cosine), cosine[~np.eye(30, dtype=bool)]
    assert (row["seed"], row["model"]) == ("a", "b")
    assert row["same_index"] == pytest.approx(own.mean()) and row["other_index"] == pytest.approx(
        other.mean(), abs=1e-6
    )
    assert row["errors"] == pytest.approx((own.mean() - other.mean()) / (own.std(ddof=1) / 30**0.5), rel=1e-4)


def test_seeds_of_one_initialisation_are_one_group():
    pairs = [("a", "b", True), ("a", "c", False), ("b", "d", True), ("c", "e", True), ("d", "f", False)]
    table = pd.DataFrame(pairs, columns=["seed", "model", "shared"])
    assert seed_checks.shared_groups(table) == [["a", "b", "d"], ["c", "e"]]
    assert seed_checks.groups_in_words([["a", "b", "d"], ["c", "e"]]) == "a, b and d; c and e"
    assert seed_checks.shared_groups(table.iloc[:0]) == []


def test_seeds_of_one_initialisation_are_named_before_the_pass(make_run, tmp_path, capsys):
    """a and b went the same distance from one initialisation in two directions, so their cosine is about 1/2."""
    models = {
        "a": moved(0, 1, 1),
        "b": moved(0, 1, 2),
        "c": moved(3, 1, 3),
        "deep": small_model(4, layers=3, neurons=32),
    }
    run = make_run({name: save_seed(model, tmp_path / name) for name, model in models.items()})
    collect(run)
    assert "note: seeds that share an initialisation: a and b (chapter 01)." in capsys.readouterr().err
    table = run.table("initialisation")
    assert table[["seed", "model"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert seed_checks.shared_groups(table) == [["a", "b"]] and 0.4 < table.loc[0, "same_index"] < 0.6
    said = captions.initialisations(table)
    assert said.startswith("**Seeds that share an initialisation: a and b**") and is_sentence(said)
    others = captions.initialisations(table.iloc[1:])
    assert others.startswith("**No two seeds share an initialisation**") and is_sentence(others)
    assert is_sentence(captions.initialisations(table.iloc[:0])) and is_sentence(captions.initialisations(None))
    checks = run.table("seed_checks")
    assert checks["logit_difference"].between(0, 1e-4).all() and (checks["logit_spread"] > 0.1).all()
    assert is_sentence(captions.same_logits(checks))


@pytest.mark.parametrize("kind", ["crfm", "neox", "llama"])
def test_logits_of_the_trunk_are_compared_with_plain_ones(kind, monkeypatch):
    from lib.models import trunk

    attention, tokens = trunk.causal_attention, torch.randint(1, 8000, (3, 64))

    def difference() -> float:
        model = ARCHITECTURES[kind](0)
        w_in, plain = seed_checks.first_w_in(model), seed_checks.plain_logits(model, tokens)
        assert w_in.shape == (48, 32) and plain.shape[:2] == (2, 64)
        Trunk(model)
        return seed_checks.seed_check("a", w_in, plain, seed_checks.logits_of(model, tokens))["logit_difference"]

    assert difference() < 1e-4
    monkeypatch.setattr(trunk, "causal_attention", lambda q, k, v, scale: attention(q, k, v, scale / 2))
    if kind != "llama":  # whose keys are fewer than its queries, which transformers' own attention takes
        assert difference() > 1e-2


def test_a_digest_is_of_values():
    weight = torch.tensor([[0.0, 1.5]])
    assert seed_checks.digest(weight) == seed_checks.digest(weight.bfloat16())
    assert seed_checks.digest(torch.tensor([[-0.0, 1.5]])) == seed_checks.digest(weight)
    assert seed_checks.digest(torch.tensor([[0.0, 1.25]])) != seed_checks.digest(weight)


def record(w_in: list[str | None], files: list[str], shared: list | None = None) -> dict:
    """A record of checkpoints 1, 2, … of a seed a with these digests, and of a seed b whose weights all differ."""
    points = []
    for step, (own, file) in enumerate(zip(w_in, files, strict=True), 1):
        of_point = {"label": f"checkpoint-{step}", "seeds": {"a": file, "b": f"b{step}"}}
        of_point |= {"w_in": own and {"a": own, "b": f"b{step}"}, "shared": shared and shared[step - 1]}
        points.append(of_point)
    return {"points": points}


def test_equal_checkpoints_are_named():
    plain = identity(record(["x", "y", "z"], ["1", "2", "3"], [[], [], []]))
    assert "No seed has the same w_in in the first layer at two checkpoints." in plain
    assert "No two seeds share an initialisation, at 3 checkpoints of 3 compared." in plain
    equal = identity(
        record(["x", "x", "z"], ["1", "2", "3"], [[["a", "b"]], [], []])
    )  # files that differ, equal values
    assert (
        "**These checkpoints have the same w_in in the first layer**: seed a at checkpoint-1 and checkpoint-2." in equal
    )
    assert "**These seeds share an initialisation**: a and b at checkpoint-1." in equal
    older = identity(record([None, "x", "x"], ["1", "2", "1"]))  # the tables of some points know whole files only
    assert older == "**These checkpoints have the same weights**: seed a at checkpoint-1 and checkpoint-3."


def test_weights_of_checkpoints_on_the_hub_are_known_without_a_download(hub, tmp_path):
    folders = [save_seed(small_model(seed), tmp_path / str(seed)) for seed in (0, 1)]
    for step, folder in ((1, folders[0]), (2, folders[0]), (4, folders[1])):
        hub.add("models", "owner/seed", {**_files(folder), "step.txt": str(step).encode()}, f"step{step}")
    assert listed_sha256("owner/seed", "step1") == weights_sha256(folders[0])
    points = [
        checkpoints.Point(f"checkpoint-{step}", step, None, {"a": "owner/seed"}, {"a": f"step{step}"})
        for step in (1, 2, 4)
    ]
    equal = checkpoints.equal_points(checkpoints.weights_of_points(points))
    assert equal == [("a", ["checkpoint-1", "checkpoint-2"])]
    assert not any("resolve" in path or "storage" in path for _, path, _ in hub.requests)


def _files(folder):
    return {path.name: path for path in folder.iterdir()}
