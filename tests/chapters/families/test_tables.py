"""From a run to its tables of families: all neurons of all seeds, and a new token class without a model."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.base.errors import InputError
from lib.base.hub import seed_source
from lib.chapters.families.tables import SeedStatistics, open_families
from lib.chapters.universality.tables import tabulate
from lib.collect import first_look, one_pass, passes
from lib.labels.labels import occurring
from lib.labels.token_classes import looks
from lib.models.trunk import Trunk, load_model


def direct_activations(run, seed: str, layer: int) -> torch.Tensor:
    """Activations of one layer of the plain model on the run's text, (blocks, context, neurons), fp64."""
    found = []
    trunk = Trunk(load_model(seed_source(run.params, seed)))
    trunk.run(run.text.tokens, lambda at, pre, post: found.append(post.double()) if at == layer else None)
    return found[0]


def test_families_of_a_seed_do_not_depend_on_the_other_references(make_run, seed_folders, monkeypatch):
    found = []
    for compare in ("all", "reference"):
        run = make_run(seed_folders, run=compare, compare=compare, reference="b", token_budget=8 * 256)
        passes.collect(run)
        tabulate(run)
        found.append(open_families(run).reference.set_index(["layer", "neuron"])[["family", "label", "score"]])
    pd.testing.assert_frame_equal(*found)


def test_families_follow_the_token_classes_without_a_model(make_run, seed_folders, monkeypatch):
    run = make_run(seed_folders, token_budget=16 * 256)
    passes.collect(run)
    tabulate(run)
    for module in (first_look, one_pass):
        monkeypatch.setattr(module, "load_model", None)  # no model from here on
    data = open_families(run)
    assert len(data.all_seeds) == 3 * 2 * 48 and data.all_seeds["score"].between(0, 1).all()
    assert set(data.all_seeds["seed"]) == {"a", "b", "c"} and len(data.reference) == 96
    assert len(run.table("labels")) == sum(len(one.labels) for one in data.sets) > 500
    assert len(data.pairs) == (run.table("matches_all_seeds")["corr"] > 0).sum()

    post, counted = direct_activations(run, "b", 1), run.text.counted()
    own = SeedStatistics(run.folder / "stats", "b", 2)[1]
    token = int(run.text.tokens[counted].mode().values)
    group = int(np.searchsorted(occurring(run.text), token))
    half = (torch.arange(len(post)) % 2)[:, None].expand(counted.shape)
    for which in (0, 1):
        values = post[counted & (run.text.tokens == token) & (half == which)].mean(0)
        mean = own["mean"] + own["deviation"] * own["token.mean"][which, group].double()
        np.testing.assert_allclose(mean, values, atol=2e-3 * float(own["deviation"].max()))

    before = {path: path.stat().st_mtime_ns for path in (run.folder / "stats").iterdir()}
    again = open_families(run, (looks("the letter e somewhere", ".*e.*"),))
    assert "the letter e somewhere" in set(again.labels["label"]) and "previous: the letter e somewhere" in set(
        again.labels["label"]
    )
    assert {path: path.stat().st_mtime_ns for path in (run.folder / "stats").iterdir()} == before

    next((run.folder / "stats").glob("grouped-a.*")).unlink()
    with pytest.raises(InputError, match="without grouped moments"):
        open_families(run)
