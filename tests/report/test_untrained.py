"""Untrained models: the seeds' configs with transformers' own initialisation, and what is kept of their ledger."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_seed, small_model
from transformers import AutoModelForCausalLM

from lib.base.errors import InputError
from lib.base.params import read_params
from lib.base.tensors import write_table
from lib.report import front, untrained
from lib.report.ledger_page import ledger_page
from tests.report.made_tables import make_tables


def test_models_have_the_seeds_configs_and_the_initialisation_of_their_architecture(make_run, seed_folders, tmp_path):
    params = make_run(seed_folders).params
    folders = untrained.make_models(params, tmp_path / "one")
    assert set(folders) == set(params.seeds)
    models = {name: AutoModelForCausalLM.from_pretrained(folder) for name, folder in folders.items()}
    weights = [{name: value.clone() for name, value in model.state_dict().items()} for model in models.values()]
    for name, model in models.items():
        seed = AutoModelForCausalLM.from_pretrained(seed_folders[name])
        differ = {"_name_or_path", "dtype"}
        one, other = ({k: v for k, v in m.config.to_dict().items() if k not in differ} for m in (model, seed))
        assert one == other and model.lm_head.weight is model.transformer.wte.weight  # tied as configured
        config, block = model.config, model.transformer.h[1]
        # GPT-2: normal of deviation initializer_range, residual projections divided by √(2 layers), no bias
        assert model.transformer.wte.weight.std().item() == pytest.approx(config.initializer_range, rel=0.05)
        residual = config.initializer_range / (2 * config.n_layer) ** 0.5
        assert block.mlp.c_proj.weight.std().item() == pytest.approx(residual, rel=0.1)
        assert not block.mlp.c_fc.bias.any() and (block.ln_1.weight == 1).all()
    name = "transformer.h.0.mlp.c_fc.weight"
    assert all(not torch.equal(weights[0][name], other[name]) for other in weights[1:])
    again = untrained.make_models(params, tmp_path / "two")  # the same ones, so that a stopped run goes on
    for seed, folder in again.items():
        own = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert all(torch.equal(value, own[key]) for key, value in models[seed].state_dict().items())


def test_the_prepared_run_is_small_and_of_the_same_text(make_run, seed_folders, monkeypatch):
    params = make_run(seed_folders, rotations=6).params
    made = read_params(untrained.prepare(params, 4 * 256))
    assert made.run == "untrained-test" and made.token_budget == 4 * 256 and made.rotations == 2
    assert (made.text, made.context, made.reference, made.threshold) == (
        params.text,
        params.context,
        params.reference,
        params.threshold,
    )
    assert read_params(untrained.prepare(params)).token_budget == params.token_budget  # not more than the run has


def test_a_shape_names_its_table_and_mixed_shapes_have_none(make_run, seed_folders, tmp_path):
    params = make_run(seed_folders).params
    assert untrained.shape_of(params) == "gpt2-2x48-32-8192"
    assert untrained.table_path(params).name == "gpt2-2x48-32-8192.parquet"
    wider = make_run({"a": seed_folders["a"], "b": save_seed(small_model(1, neurons=64), tmp_path / "wider")}).params
    assert untrained.shape_of(wider) is None and untrained.untrained_rows(wider) is None
    with pytest.raises(InputError, match="different shapes"):
        untrained.prepare(wider)
    gone = params.model_copy(update={"seeds": {"a": "none", "b": "neither"}})
    assert untrained.shape_of(gone) is None


def test_the_kept_ledger_is_a_column_of_the_run_s(make_run, seed_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.base.params.ROOT", tmp_path / "repository")
    run = make_run({name: str(folder) for name, folder in seed_folders.items()})
    for name, table in make_tables(4, universal=True, planted=True).items():
        write_table(run.folder / "tables" / f"{name}.parquet", table)
    before = front.claims_of(run)
    assert not before.untrained and (before.table["untrained"] == "").all()
    assert ledger_page(before, [], {})["untrained"] is False

    other = read_params(untrained.prepare(run.params)).folder
    made = before.table.assign(verdict=np.where(before.table["name"] == "excess", "holds", "cannot tell"))
    write_table(other / "tables" / "ledger.parquet", made)
    (other / "params.yaml").write_text((other / "run.yaml").read_text())
    kept = pd.read_parquet(untrained.keep(run.params))
    assert kept["shape"].unique() == ["gpt2-2x48-32-8192"] and kept["tokens"].unique() == [20 * 256]

    after = front.claims_of(run)
    marked = after.table.set_index("name")["mark"].str.contains("untrained models do too")
    assert after.untrained and marked[marked].index.tolist() == ["excess"]
    rows = {row["name"]: row for group in ledger_page(after, [], {})["groups"] for row in group["rows"]}
    facts = dict(rows["excess"]["facts"])
    assert facts["untrained models"].endswith(": holds") and facts["bound"].startswith("above 0: ")
    assert facts["by seed"].endswith("4 of 4 on the claimed side") and "corrected p = " in facts["mean against bound"]
    assert dict(rows["depth"]["facts"])["size not comparable"] == "the shares are shown in colours only"
    assert rows["depth"]["size"] == "" and rows["gap"]["href"] is None
