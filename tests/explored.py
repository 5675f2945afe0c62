"""A run with every chapter's tables, made once for the tests of the explorer and of its notebook."""

from pathlib import Path

import pytest
from conftest import TEXT, permuted, save_seed, small_model

from lib.base.params import Params, write_params
from lib.chapters.circuits.tables import role_table
from lib.chapters.families.tables import open_families
from lib.chapters.interventions import inputs
from lib.chapters.interventions import tables as intervention_tables
from lib.chapters.interventions.neurons import neurons_with_families
from lib.chapters.universality.tables import tabulate
from lib.collect import passes
from lib.labels.groupings import run_groupings
from lib.report import render
from lib.run import Run


def made_run(folder: Path, seeds: dict[str, Path], patch, groupings=lambda run: {}, **changes) -> Run:
    """A run through all its passes and first tables, with its outputs below `folder`."""
    patch.setattr("lib.base.params.OUTPUTS", folder)
    patch.setattr("lib.collect.preflight.run_groupings", groupings)
    values = dict(
        run="test",
        seeds={name: str(path) for name, path in seeds.items()},
        reference=sorted(seeds)[0],
        text=str(TEXT),
        context=256,
        token_budget=16 * 256,
        random_seed=0,
        rotations=2,
        threshold=0.5,
        precision="fp64",
        device="cpu",
    )
    run = Run(Params(**(values | changes)))
    passes.collect(run)
    tabulate(run)
    write_params(run.params, run.folder / "params.yaml")
    return run


def everything(root: Path) -> Run:
    """Three small seeds through all chapters' tables and the report: b is a with permuted neurons, c differs."""
    model = small_model(0)
    models = {"a": model, "b": permuted(model, 1)[0], "c": small_model(1)}
    seeds = {name: save_seed(one, root / name) for name, one in models.items()}
    with pytest.MonkeyPatch.context() as patch:
        run = made_run(root / "outputs", seeds, patch, run_groupings)
        open_families(run)
        weights = intervention_tables.weight_table(run)
        own = weights[weights["seed"] == "a"]
        grouped = intervention_tables.groups(run, own)
        ablated = intervention_tables.mean_ablations(run, grouped)
        intervention_tables.fixed_activations(run, grouped)
        intervention_tables.query_paths(run, own)
        intervention_tables.ablations(run, neurons_with_families(run))
        intervention_tables.write_circuits(run, role_table(run), weights, inputs.effect_columns(ablated))
        render.render(run.folder)
    return run
