"""Small seeds that share initial weights, text or its order: `python -m lib.training.designed` (`make designed`).

The shipped seeds differ in initialisation and in the order of the text at once. These eight models of one small shape
take the two apart: three initialisations; one text in two orders, and another text. Each is kept at the end of its
constant learning rate and after its decay, in outputs/designed, with a tokeniser and a held-out text of the same small
vocabulary. A stopped command resumes. docs/method.md §3 says what they are for.
"""

import argparse
import copy
import json
import os
import shutil
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import locked, write_json
from lib.base.machine import cores
from lib.text.blocks import Text, read_text, write_text
from lib.training.gpt2 import Shape
from lib.training.trainer import Decay, Machine, Recipe, SeedRun, stored_step

VOCABULARY = 4096
TOKENS = 10_000_000  # of the constant phase
RECIPE = Recipe(
    batch=32, warmup_steps=100, shape=Shape(vocab_size=VOCABULARY, n_layer=4, d_model=128, n_head=4, d_mlp=512)
)
OUT = Path("outputs/designed")
CONSTANT, DECAYED = "constant", "decayed"  # a model's folders: before the decay of the learning rate, and after it


@dataclass(frozen=True)
class Design:
    """One model: the number that draws its initial weights, its part of the text, the number that orders the text."""

    init: int
    part: int
    order: int

    @property
    def name(self) -> str:
        """The seed's name in tables."""
        return f"init{self.init}-text{self.part}-order{self.order}"


DESIGNS = (
    *(Design(init, 0, order) for init in (0, 1, 2) for order in (0, 1)),
    *(Design(init, 1, 0) for init in (0, 1)),
)


def smaller_tokenizer(tokenizer: dict, vocabulary: int) -> dict:
    """A byte-pair tokeniser (the content of tokenizer.json) without its last merges, so that it has fewer tokens."""
    made = copy.deepcopy(tokenizer)
    model, merges = made["model"], tokenizer["model"]["merges"]
    model["merges"] = merges[: len(merges) - (len(model["vocab"]) - vocabulary)]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < vocabulary}
    return made


def split_tokens(tokenizer: dict, vocabulary: int) -> list[list[int]]:
    """For each token of a byte-pair tokeniser the tokens of `smaller_tokenizer` that it consists of.

    Tokens are numbered in the order of their merges, so those that stay keep their numbers.
    """
    numbers, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    first = len(numbers) - len(merges)
    parts = [[number] for number in range(first)]
    for number, (left, right) in enumerate(merges, first):
        if numbers[left + right] != number:
            raise InputError("The tokeniser does not number its tokens in the order of their merges.")
        whole = parts[numbers[left]] + parts[numbers[right]]
        parts.append([number] if number < vocabulary else whole)
    return parts


def in_fewer_tokens(text: Text, tokenizer: dict, vocabulary: int, sha256: str) -> Text:
    """The same blocks in the tokens of `smaller_tokenizer`; what then goes beyond a block's length is left out."""
    parts = split_tokens(tokenizer, vocabulary)
    width = max(map(len, parts))
    table = torch.tensor([part + [-1] * (width - len(part)) for part in parts])
    blocks = torch.empty_like(text.tokens)
    for start in range(0, len(blocks), 1024):
        split = table[text.tokens[start : start + 1024]].flatten(1)
        order = (split < 0).long().argsort(dim=1, stable=True)[:, : text.context]
        blocks[start : start + 1024] = split.gather(1, order)
    newlines = tuple(number for number in text.newline_ids if number < vocabulary)
    return replace(text, tokens=blocks, vocab_size=vocabulary, tokenizer_sha256=sha256, newline_ids=newlines)


def part_of(blocks: Int[Tensor, "blocks context"], part: int, steps: int) -> Int[Tensor, "some context"]:
    """The part of the text that a model reads once in `steps` steps; parts have no block in common."""
    number = steps * RECIPE.batch
    return blocks[part * number : (part + 1) * number]


def train_one(design: Design, text: Path, out: Path, steps: int, machine: Machine) -> None:
    """Trains one model to the end of its constant phase and of its decay, and writes both as models."""
    folder, kernels = out / "train" / design.name, machine.prepare()
    tokens = part_of(read_text(text).tokens, design.part, steps)
    decay = Decay(steps, round(steps * RECIPE.decay_share))
    if stored_step(folder) <= steps:
        run = SeedRun(folder, design.init, tokens, RECIPE, machine, kernels, order=design.order)
        run.train(steps)
        _write(run, out, CONSTANT, design)
    run = SeedRun(folder, design.init, tokens, RECIPE, machine, kernels, decay, order=design.order)
    run.train(decay.start + decay.steps)
    _write(run, out, DECAYED, design)


def _write(run: SeedRun, out: Path, stage: str, design: Design) -> None:
    run.save_model(out / stage / design.name)
    shutil.copytree(out / "tokenizer", out / stage / design.name, dirs_exist_ok=True)


def prepare(paths: dict[str, Path], out: Path) -> dict[str, Path]:
    """Writes the tokeniser and both texts in the small vocabulary, unless they are there; their paths."""
    folder = out / "tokenizer"
    made = {name: out / f"{name}.safetensors" for name in ("train", "held_out")}
    if all(path.exists() for path in made.values()):
        return made
    own = json.loads((paths["tokenizer"] / "tokenizer.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(smaller_tokenizer(own, VOCABULARY), ensure_ascii=False, separators=(",", ":")) + "\n"
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    config = (paths["tokenizer"] / "tokenizer_config.json").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    for name, path in made.items():
        text = in_fewer_tokens(read_text(paths[name]), own, VOCABULARY, sha256(content.encode()).hexdigest())
        write_text(path.with_suffix(".tmp"), text)
        os.replace(path.with_suffix(".tmp"), path)
    return made


def watch(futures: list[Future], out: Path, steps: int) -> None:
    """Shows how far the models are, until all are done or one fails."""
    with tqdm(total=len(futures) * steps, desc="designed seeds", unit="step", file=sys.stderr) as bar:
        while not all(future.done() for future in futures):
            time.sleep(2)
            bar.update(sum(min(steps, stored_step(out / "train" / one.name)) for one in DESIGNS) - bar.n)
            for future in futures:
                if future.done():
                    future.result()


@exit_on_input_error
def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.training.designed", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the constant phase of each model")
    parser.add_argument("--workers", type=int, default=None, help="models at once (default: one a core)")
    parser.add_argument("--train", type=Path, default=Path("outputs/corpus/train.safetensors"))
    parser.add_argument("--held-out", type=Path, default=Path("data/tokens.safetensors"))
    parser.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    steps = max(1, given.tokens // RECIPE.step_tokens)
    with locked(given.out, f"Process {{pid}} is training in {given.out}: stop it first, or give another --out folder."):
        texts = prepare({"tokenizer": given.tokenizer, "train": given.train, "held_out": given.held_out}, given.out)
        parts = 1 + max(design.part for design in DESIGNS)
        most = len(read_text(texts["train"]).tokens) // parts // RECIPE.batch * RECIPE.step_tokens
        if not RECIPE.step_tokens <= given.tokens <= most:
            allowed = f"from {RECIPE.step_tokens} (one step) to {most} (half of the text)"
            raise InputError(f"--tokens is {given.tokens}; it must be {allowed}.")
        machine = Machine.chosen("cpu")
        pool = ProcessPoolExecutor(given.workers or cores(), mp_context=get_context("spawn"))
        with pool:
            futures = [pool.submit(train_one, design, texts["train"], given.out, steps, machine) for design in DESIGNS]
            watch(futures, given.out, steps + round(steps * RECIPE.decay_share))
    recipe = {"recipe": RECIPE.record(), "steps": steps, "tokens": steps * RECIPE.step_tokens}
    write_json(given.out / "designed.json", recipe)
    print(f"Eight models are in {given.out / CONSTANT} and {given.out / DECAYED}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
