"""The seeds' training: schedule, data order, the lean forward pass, resuming after a kill, and the shipped models."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.base.params import ROOT
from lib.text.blocks import evenly_spaced, read_text
from lib.training.bigram import Bigram
from lib.training.gpt2 import Kernels, Shape, lean_token_losses, new_model, training_loss
from lib.training.seed_card import seeds_section
from lib.training.train import check_loss, main
from lib.training.trainer import (
    MICROBATCH_BLOCKS,
    Decay,
    Machine,
    Phase,
    Recipe,
    SeedRun,
    block_order,
    learning_rate,
    shipped_step,
    step_blocks,
    stored_step,
)

SHIPPED = ROOT / "data" / "seeds"
SMALL = Shape(vocab_size=50, context=12, n_layer=2, d_model=16, n_head=2, d_mlp=32)
RECIPE = Recipe(batch=3, warmup_steps=4, shape=SMALL)
EAGER = Machine("cpu", torch.float32, compiled=False, threads=1)


def small_tokens() -> torch.Tensor:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, 50, (20, 12)))
    tokens[:, 0] = 0
    return tokens


def small_run(folder: Path, seed: int = 0, decay: Decay | None = None) -> SeedRun:
    return SeedRun(folder, seed, small_tokens(), RECIPE, EAGER, Kernels(), decay)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they give on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_schedule_warms_up_stays_constant_and_decays_to_zero():
    recipe, decay = Recipe(phases=(Phase(0, 1.0, 0.95),), warmup_steps=4), Decay(start=10, steps=5)
    rates = [learning_rate(recipe, step, decay) for step in range(16)]
    assert rates == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 8 + [0.8, 0.6, 0.4, 0.2, 0.0])
    assert learning_rate(recipe, 10_000) == 1.0


@settings(deadline=None, max_examples=30)
@given(n_blocks=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 4))
def test_each_epoch_reads_each_block_once(n_blocks, batch, seed):
    steps = -(-3 * n_blocks // batch)
    read = np.concatenate([step_blocks(n_blocks, seed, step, batch) for step in range(steps)])[: 3 * n_blocks]
    for epoch in read.reshape(3, n_blocks):
        assert sorted(epoch) == list(range(n_blocks))


def test_seeds_and_epochs_read_in_different_orders():
    orders = [tuple(block_order(100, seed, epoch)) for seed in range(5) for epoch in range(2)]
    assert len(set(orders)) == 10


def test_initialisation_is_that_of_gpt2_and_differs_by_seed():
    first, second = new_model(Shape(), 0), new_model(Shape(), 1)
    weights = dict(first.named_parameters())
    assert weights["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    assert weights["transformer.h.3.mlp.c_proj.weight"].std().item() == pytest.approx(0.02 / 12**0.5, rel=0.01)
    assert not torch.equal(weights["transformer.wte.weight"], second.transformer.wte.weight)
    assert sum(w.numel() for w in weights.values()) == 6_901_760


def test_lean_forward_pass_has_the_losses_and_gradients_of_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules["lib.training.gpt2"].CHUNK_ROWS, "cpu", 7)  # several ragged chunks
    model, tokens = new_model(SMALL, 3), small_tokens()[:5]
    torch.manual_seed(0)
    for w in model.parameters():  # biases and LayerNorm away from 0 and 1, and weights large enough to matter
        w.data += 0.2 * torch.randn_like(w)
    logits = model(tokens).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    weights = dict(model.named_parameters())
    torch.testing.assert_close(
        lean_token_losses(weights, tokens, 2, torch.float32).flatten(), expected, atol=2e-5, rtol=1e-5
    )

    wanted = torch.autograd.grad(expected.mean(), list(weights.values()))
    loss = training_loss(weights, tokens, 2, torch.float32, Kernels())
    found = torch.autograd.grad(loss, list(weights.values()))
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    for name, a, b in zip(weights, found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_training_equals_transformers_with_plain_adamw(tmp_path, monkeypatch):
    monkeypatch.setitem(MICROBATCH_BLOCKS, "cpu", 2)  # a step of 3 blocks in two ragged parts
    run = small_run(tmp_path)
    model = new_model(SMALL, 0)
    vectors = [w for w in model.parameters() if w.dim() == 1]
    matrices = [w for w in model.parameters() if w.dim() > 1]
    plain = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    for step in range(6):
        batch = small_tokens()[step_blocks(20, 0, step, 3)]
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in plain.param_groups:
            group["lr"] = learning_rate(RECIPE, step)
        plain.step()
        plain.zero_grad()
    run.train(6)
    for name, w in model.named_parameters():
        torch.testing.assert_close(run.weights[name], w, atol=1e-5, rtol=1e-4)


KILLED = """
import sys, time, torch
sys.path.insert(0, {root!r})
import lib.training.trainer
torch.set_num_threads(1)
from tests.training.test_train import small_run
lib.training.trainer.SAVE_SECONDS = 0.2
run = small_run(__import__("pathlib").Path({folder!r}))
take = run._step
run._step = lambda: (time.sleep(0.01), take())[1]
run.train(100_000)
"""


def test_a_killed_run_resumes_exactly(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = subprocess.Popen([sys.executable, "-c", KILLED.format(root=str(ROOT), folder=str(killed))], cwd=ROOT)
    log = killed / "log.jsonl"
    deadline = time.monotonic() + 60
    while stored_step(killed) == 0 or not log.exists() or len(log.read_text().splitlines()) < 6:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()

    again = small_run(killed)
    start = again.step
    assert 0 < start < 100_000
    end = start + 50
    again.train(end)
    undisturbed = small_run(whole)
    undisturbed.train(end)
    a, b = load_file(again.state_path), load_file(undisturbed.state_path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == end
    expected = {line["step"]: line["loss"] for line in map(json.loads, (whole / "log.jsonl").read_text().splitlines())}
    # a line right after the restart covers fewer steps, hence another mean
    covered = [line for line in lines if not start < line["step"] <= start + 16]
    assert all(line["loss"] == expected[line["step"]] for line in covered)


def test_checkpoints_load_in_transformers(tmp_path):
    run = small_run(tmp_path)
    run.train(9)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{s}" for s in (1, 2, 4, 8)]
    run.train(16)
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-16")
    assert model.config.activation_function == "gelu_new" and model.lm_head.weight is model.transformer.wte.weight
    for name, w in model.named_parameters():
        assert torch.equal(w, run.weights[name].bfloat16())


def test_shipped_matrices_are_rounded_to_the_nearest_float8(tmp_path):
    run = small_run(tmp_path / "run")
    run.save_model(tmp_path / "model", torch.float8_e4m3fn)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    values = values[values.isfinite()].unique().numpy()
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for name, w in model.named_parameters():
        exact = run.weights[name].detach()
        if w.dim() == 1:
            assert torch.equal(w, exact.bfloat16().float())
        else:
            error = np.abs(
                exact.double().numpy()[..., None]
                - values[np.searchsorted(values, exact.double().numpy())[..., None] + [-1, 0]]
            ).min(-1)
            assert np.allclose(np.abs(exact.double().numpy() - w.detach().double().numpy()), error, rtol=0, atol=1e-12)
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "model").dtype == torch.bfloat16  # what it computes in by default


def test_a_decay_leaves_the_constant_phase_unchanged(tmp_path):
    run = small_run(tmp_path / "a")
    run.train(8)
    before = load_file(run.state_path)
    (tmp_path / "a" / "decay-8").mkdir()
    (tmp_path / "a" / "decay-8" / "state.safetensors").write_bytes(run.state_path.read_bytes())
    branch = small_run(tmp_path / "a" / "decay-8", decay=Decay(8, 4))
    assert branch.step == 8
    branch.train(12)
    assert all(torch.equal(before[name], after) for name, after in load_file(run.state_path).items())


def test_training_continues_from_a_shipped_model(tmp_path):
    """At the end of its decay, with its weights, a new warm-up and the next data; a stop midway changes nothing."""
    run, shipped = small_run(tmp_path / "first"), tmp_path / "shipped"
    run.train(7)
    run.save_model(shipped)
    record = {"recipe": RECIPE.record(), "constant_steps": 5, "decay_steps": 2}
    (shipped / "training.json").write_text(json.dumps(record))

    def started(name: str, recipe: Recipe = RECIPE) -> SeedRun:
        return SeedRun(tmp_path / name, 0, small_tokens(), recipe, EAGER, Kernels(), start=shipped)

    whole = started("whole")
    assert whole.step == whole.begun == shipped_step(record) == 7
    assert all(torch.equal(w, run.weights[name].bfloat16().float()) for name, w in whole.weights.items())
    whole.train(12)
    started("parts").train(9)
    parts = started("parts")
    assert (parts.step, parts.begun) == (9, 7)
    parts.train(12)
    a, b = load_file(whole.state_path), load_file(parts.state_path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    rates = [learning_rate(RECIPE, step, begun=7) / RECIPE.phases[0].peak_lr for step in (7, 8, 10, 11)]
    assert rates == [0.25, 0.5, 1.0, 1.0]
    with pytest.raises(InputError, match="weight_decay"):
        started("other", replace(RECIPE, weight_decay=0.2))
    (shipped / "training.json").unlink()
    with pytest.raises(InputError, match="training.json"):
        started("none")


def test_seeds_cannot_be_shipped_as_of_an_earlier_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lib.training.train.stored_step", lambda folder: 5000)
    monkeypatch.setattr("lib.training.train.catch_signals", lambda: None)
    assert main(["--seed", "a", "--tokens", "100000", "--export", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "already trained to step 5,000 (327,680,000 tokens)" in error and "shipped as of step 2;" in error


def test_another_recipe_is_refused(tmp_path):
    small_run(tmp_path).train(1)
    with pytest.raises(InputError, match="phases"):
        SeedRun(tmp_path, 0, small_tokens(), replace(RECIPE, phases=(Phase(0, 0.5, 0.95),)), EAGER, Kernels())


def test_a_phase_may_be_added_for_future_steps_only(tmp_path):
    small_run(tmp_path).train(3)
    ahead, behind = (replace(RECIPE, phases=(RECIPE.phases[0], Phase(step, 0.5, 0.99))) for step in (3, 2))
    run = SeedRun(tmp_path, 0, small_tokens(), ahead, EAGER, Kernels())
    run.train(4)
    assert {(group["lr"], group["betas"]) for group in run.optimizer.param_groups} == {(0.5, (0.9, 0.99))}
    with pytest.raises(InputError, match="phases"):
        SeedRun(tmp_path, 0, small_tokens(), behind, EAGER, Kernels())


def test_a_decay_starts_from_the_rate_of_its_phase():
    recipe = Recipe(phases=(Phase(0, 1.0, 0.95), Phase(6, 0.5, 0.99), Phase(12, 0.1, 0.99)), warmup_steps=1)
    rates = [learning_rate(recipe, step, Decay(start=8, steps=5)) for step in (5, 6, 8, 9, 12)]
    assert rates == pytest.approx([1.0, 0.5, 0.5, 0.4, 0.1])


def test_bigram_probabilities_are_the_interpolated_counts():
    blocks = np.array([[0, 1, 2, 1], [0, 1, 1, 2], [0, 2, 1, 2]] * 20)
    model = Bigram.fitted(blocks, vocab_size=4, fit_share=0.1)
    every_pair = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    p = model.probabilities(every_pair).reshape(4, 4)
    np.testing.assert_allclose(p[:3].sum(axis=1), 1)
    counted = blocks[:-6]
    pairs = [(a, b) for row in counted.tolist() for a, b in zip(row, row[1:], strict=False)]
    after_one = [b for a, b in pairs if a == 1]
    bucket = model.bucket(np.array([1]))[0]
    two, one, none = model.weights[bucket]
    expected = two * after_one.count(2) / len(after_one) + one * sum(b == 2 for _, b in pairs) / len(pairs) + none / 4
    assert p[1, 2] == pytest.approx(expected)
    assert two + one + none == pytest.approx(1)


def test_bigram_loss_is_the_entropy_rate_of_a_markov_chain():
    """On text from a known Markov chain the model's loss is the chain's entropy rate."""
    random = np.random.default_rng(0)
    chain = random.dirichlet(np.full(8, 0.3), size=8)
    blocks = np.zeros((3000, 32), dtype=np.int64)
    for at in range(1, 32):
        blocks[:, at] = (random.random((3000, 1)) > chain[blocks[:, at - 1]].cumsum(axis=1)).sum(axis=1).clip(max=7)
    held_out, train = blocks[:500], blocks[500:]
    true = -np.log(chain[held_out[:, :-1], held_out[:, 1:]]).mean()
    assert -np.log(Bigram.fitted(train, 8).probabilities(held_out)).mean() == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("name", "abcde")
def test_a_shipped_seed_has_its_stated_loss(name):
    if not SHIPPED.exists():
        pytest.skip("the seeds are not shipped yet")
    record = json.loads((SHIPPED / name / "training.json").read_text())
    held_out = read_text(ROOT / "data" / "tokens.safetensors")
    blocks = evenly_spaced(len(held_out.tokens), len(record["check"]["blocks"]))
    assert blocks.tolist() == record["check"]["blocks"]
    assert check_loss(SHIPPED / name, held_out, blocks) == pytest.approx(record["check"]["loss"], abs=1e-3)


def shipped_records() -> list[dict]:
    if not SHIPPED.exists():
        pytest.skip("the seeds are not shipped yet")
    return [json.loads((SHIPPED / name / "training.json").read_text()) for name in "abcde"]


def test_shipped_seeds_differ_in_the_seed_only():
    records = shipped_records()
    for key in ("recipe", "constant_steps", "decay_steps", "tokens", "train_text_sha256", "held_out_sha256"):
        assert all(record[key] == records[0][key] for record in records)
    assert [record["seed_number"] for record in records] == list(range(5))
    assert records[0]["held_out_sha256"] == file_sha256(ROOT / "data" / "tokens.safetensors")


def test_shipped_losses_are_within_two_percent():
    losses = [record["held_out"]["loss"] for record in shipped_records()]
    assert max(losses) <= 1.02 * min(losses)


def test_shipped_seeds_are_far_below_the_bigram_model():
    for record in shipped_records():
        assert record["held_out"]["bigram"]["loss"] - record["held_out"]["loss"] >= 0.9


def test_the_readme_states_the_shipped_losses():
    shipped_records()
    assert seeds_section(SHIPPED) in (ROOT / "data" / "README.md").read_text()
