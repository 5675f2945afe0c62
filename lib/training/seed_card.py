"""The "Seeds" part of data/README.md, written from the records that ship with the seeds."""

from __future__ import annotations

import json
from pathlib import Path

from lib.base.files import file_sha256

HEADING = "## Seeds\n"

HOW = """
`seeds/a … e` are five GPT-2 models in Hugging Face format, safetensors with the tokeniser beside them. They share
everything but the seed number, which draws their initialisation and the order of their data.

- **Architecture**: {n_layer} layers, d_model {d_model}, {n_head} heads, d_mlp {d_mlp} ({neurons:,} neurons a seed), context {context},
  vocabulary {vocab_size:,}, tied embeddings, `gelu_new`, no dropout; {parameters:,} parameters. Initialisation as GPT-2's.
- **Optimiser**: AdamW, beta1 {beta1}, weight decay {weight_decay} on matrices and embeddings, none on biases and LayerNorm; gradients
  clipped to norm {clip_norm}; {batch} blocks = {step_tokens:,} tokens a step.
- **Schedule**: linear warm-up over {warmup_steps} steps, then constant: {phases}; from step {constant_steps:,} a linear decay to zero
  over {decay_steps:,} steps.{begun} The decay is a branch: `outputs/train/<seed>/state.safetensors` stays in the constant phase, so
  that training can go on from there; without it `python -m lib.training.train --all --start data/seeds --tokens 300000000 --export` goes on from the shipped models, up to that many tokens and a decay of a fifth as many.
- **Data order**: epoch e of seed number s reads all training blocks once, in the order of
  `numpy.random.default_rng((s, e)).permutation(blocks)`; the shipped seeds have read {tokens:,} tokens each, {epochs:.2f} epochs.
- **Precision**: weights, optimiser, residual stream and loss in fp32, matrix products in {compute}, on {device}, torch {torch}.
- **Rounding**: matrices and embeddings ship as {matrices}, biases and LayerNorm as bfloat16, so that the repository stays small; that
  changed the held-out loss by at most {rounding_cost:.4f} nats. Nothing computes in eight bits: transformers reads them as any other dtype.
- A block's last position predicts nothing, so its position embedding was trained by nothing but weight decay.

`make seeds` trains and ships them again; it can be killed at any moment and goes on where it was.

### Held-out loss

Mean nats per predicted token on {blocks:,} blocks spread evenly over `tokens.safetensors`, of the shipped weights computed
in fp32. *Bigram* is a Jelinek–Mercer interpolation of bigram, unigram and uniform model, counted on the whole training
text (of which a seed has read {epochs:.2f} times as much), its weights fitted on the last 2 % of that text, on the same held-out tokens.
`seeds/<seed>/training.json` holds these numbers and the loss on {check_blocks} blocks that the tests find again.

"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def seeds_section(folder: Path) -> str:
    """The section, from folder/<seed>/training.json; markdown, with its heading."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/training.json"))]
    first = records[0]
    recipe, shape, held_out = first["recipe"], first["recipe"]["shape"], first["held_out"]
    losses = [record["held_out"]["loss"] for record in records]
    bigram = held_out["bigram"]
    parameters = shape["vocab_size"] * shape["d_model"] + shape["context"] * shape["d_model"] + 2 * shape["d_model"]
    parameters += shape["n_layer"] * (
        4 * shape["d_model"] ** 2 + 2 * shape["d_model"] * shape["d_mlp"] + 9 * shape["d_model"] + shape["d_mlp"]
    )
    phases = "; ".join(
        f"from step {phase['step']:,} learning rate {phase['peak_lr']} and beta2 {phase['beta2']}"
        for phase in recipe["phases"]
        if phase["step"] < first["constant_steps"]
    )
    begun = first.get("begun", 0)
    again = (
        f" At step {begun:,} it began again from models shipped before, whose own decay had ended there, with another warm-up."
        if begun
        else ""
    )
    text = HOW.format(
        begun=again,
        **{**shape, **{k: v for k, v in recipe.items() if k not in ("shape", "phases")}},
        phases=phases,
        neurons=shape["n_layer"] * shape["d_mlp"],
        parameters=parameters,
        step_tokens=recipe["batch"] * shape["context"],
        blocks=held_out["blocks"],
        matrices=first["matrices"],
        rounding_cost=max(abs(record["rounding_cost"]) for record in records),
        check_blocks=len(first["check"]["blocks"]),
        **{k: first[k] for k in ("constant_steps", "decay_steps", "tokens", "epochs", "compute", "device", "torch")},
    )
    names = [record["seed"] for record in records]
    by_domain = [
        [domain, *(f"{record['held_out']['loss_by_domain'][domain]:.3f}" for record in records), f"{loss:.3f}"]
        for domain, loss in bigram["loss_by_domain"].items()
    ]
    overall = ["**all**", *(f"**{loss:.3f}**" for loss in losses), f"**{bigram['loss']:.3f}**"]
    text += table(["domain", *(f"seed {name}" for name in names), "bigram"], [*by_domain, overall])
    gap = bigram["loss"] - max(losses)
    text += (
        f"\nThe largest and the smallest of the losses differ by {100 * (max(losses) / min(losses) - 1):.2f} %; "
        f"the worst seed is {abs(gap):.3f} nats {'below' if gap > 0 else 'above'} the bigram model.\n\n"
    )
    text += table(
        ["file", "SHA-256"],
        [
            [f"`seeds/{name}/model.safetensors`", f"`{file_sha256(folder / name / 'model.safetensors')}`"]
            for name in names
        ],
    )
    return HEADING + text


def write_section(readme: Path, section: str) -> None:
    """Puts `section` at the end of `readme`, in place of an older one."""
    before = readme.read_text().split("\n" + HEADING)[0].rstrip("\n") if readme.exists() else ""
    readme.write_text(f"{before}\n\n{section}" if before else section)
