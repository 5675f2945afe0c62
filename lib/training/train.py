"""Trains the seeds and ships them: `python -m lib.training.train --all --tokens 5000000 --export` (docs/training.md).

Worker processes train one seed each for a stage, then take the idle seed with the fewest tokens, so all seeds stay
level. `--export` decays each seed on its own branch and writes the models with their held-out losses. SIGTERM saves and
stops; the same command resumes.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import threading
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from lib.base.errors import InputError, exit_on_input_error
from lib.base.files import file_sha256, locked
from lib.base.machine import cores, device_name
from lib.text.blocks import Text, evenly_spaced, read_text
from lib.training.bigram import Bigram
from lib.training.gpt2 import lean_token_losses
from lib.training.seed_card import seeds_section, write_section
from lib.training.trainer import Decay, Machine, Recipe, SeedRun, shipped_record, shipped_step, stored, stored_step

SEEDS = {name: number for number, name in enumerate("abcde")}  # the number draws a seed's weights and its data order
STAGE_TOKENS = {"cpu": 2**18, "cuda": 2**26}
SHIPPED_MATRICES = torch.float8_e4m3fn  # 5 MB a seed, for a few thousandths of a nat (training.json, rounding_cost)
CHECK_BLOCKS = 16  # held-out blocks on which transformers must reproduce the stated loss


@dataclass(frozen=True)
class Paths:
    """The files that training reads and writes."""

    out: Path = Path("outputs/train")
    train_text: Path = Path("outputs/corpus/train.safetensors")
    held_out_text: Path = Path("data/tokens.safetensors")
    tokenizer: Path = Path("data/tokenizer")
    ship: Path = Path("data/seeds")
    readme: Path = Path("data/README.md")
    start: Path | None = None  # shipped models that seeds without a state start from


@dataclass(frozen=True)
class Task:
    """Train `seed` up to `until_step`, on its decay's branch if there is one, and ship it if asked."""

    seed: str
    until_step: int
    decay: Decay | None = None
    ship: bool = False
    baseline: dict | None = None  # the bigram model's losses


def losses_by_domain(losses: torch.Tensor, text: Text, blocks: torch.Tensor) -> dict:
    """Mean nats per predicted token, overall and by domain. losses: (len(blocks), context − 1)."""
    domain = text.domain[blocks]
    by_domain = {
        name: round(losses[domain == number].mean().item(), 4)
        for number, name in enumerate(text.domains)
        if (domain == number).any()
    }
    return {"loss": round(losses.mean().item(), 4), "loss_by_domain": by_domain}


def bigram_losses(train: Text, held_out: Text, blocks: torch.Tensor) -> dict:
    """Held-out losses of the interpolated bigram model, which is counted on the whole training text."""
    model = Bigram.fitted(train.tokens.numpy(), train.vocab_size)
    losses = -torch.from_numpy(model.probabilities(held_out.tokens[blocks].numpy())).log()
    return losses_by_domain(losses, held_out, blocks)


def check_loss(folder: Path, held_out: Text, blocks: torch.Tensor) -> float:
    """Mean fp32 loss of the shipped model on `blocks`, by transformers itself."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = held_out.tokens[blocks]
    with torch.no_grad():
        losses = [model(part, labels=part).loss * len(part) for part in tokens.split(8)]
    return (sum(losses) / len(tokens)).item()


def decay_folder(folder: Path, decay: Decay) -> Path:
    """The folder of the branch of a run that decays to zero learning rate."""
    return folder / f"decay-{decay.start}"


def branched(folder: Path, decay: Decay) -> Path:
    """`decay_folder`, starting with the state of the run in `folder`."""
    branch = decay_folder(folder, decay)
    if stored_step(branch) == 0 and stored_step(folder) > 0:
        branch.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "state.safetensors", branch / "copied.tmp")
        os.replace(branch / "copied.tmp", branch / "state.safetensors")
    return branch


def ship(branch: SeedRun, name: str, paths: Paths, held_out: Text, n_blocks: int, baseline: dict) -> dict:
    """Writes the model at the end of its decay to paths.ship/name; its record."""
    folder = paths.ship / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    branch.save_model(folder, SHIPPED_MATRICES)
    for file in paths.tokenizer.glob("*.json"):  # compact: blanks would double the file
        compact = json.dumps(json.loads(file.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))
        (folder / file.name).write_text(compact + "\n", encoding="utf-8")
    blocks = evenly_spaced(len(held_out.tokens), n_blocks)
    weights = {key: stored(w, SHIPPED_MATRICES).float() for key, w in branch.weights.items()}

    def on_held_out(weights: dict[str, torch.Tensor], blocks: torch.Tensor) -> torch.Tensor:
        parts = (part.to(branch.machine.device) for part in held_out.tokens[blocks].split(16))
        heads = branch.recipe.shape.n_head
        return torch.cat([lean_token_losses(weights, part, heads, torch.float32).cpu() for part in parts])

    losses = on_held_out(weights, blocks)
    check_blocks = evenly_spaced(len(held_out.tokens), CHECK_BLOCKS)
    exact = on_held_out({key: w.detach() for key, w in branch.weights.items()}, check_blocks).mean().item()
    check = check_loss(folder, held_out, check_blocks)
    record = {
        "seed": name,
        "seed_number": branch.seed,
        "recipe": branch.recipe.record(),
        "constant_steps": branch.decay.start,
        "decay_steps": branch.decay.steps,
        "begun": branch.begun,
        "tokens": branch.step * branch.recipe.step_tokens,
        "epochs": round(branch.step * branch.recipe.batch / len(branch.tokens), 3),
        "matrices": str(SHIPPED_MATRICES).removeprefix("torch."),
        "rounding_cost": round(check - exact, 5),
        "compute": str(branch.machine.dtype).removeprefix("torch."),
        "device": device_name(torch.device(branch.machine.device)),
        "torch": torch.__version__,
        "train_text_sha256": file_sha256(paths.train_text),
        "held_out_sha256": file_sha256(paths.held_out_text),
        "held_out": {"blocks": len(blocks), **losses_by_domain(losses, held_out, blocks), "bigram": baseline},
        "check": {"blocks": check_blocks.tolist(), "loss": check},
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


stop_asked = threading.Event()


def catch_signals() -> None:
    """From now on SIGTERM and SIGINT set `stop_asked` instead of ending the process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_asked.set())


def work(connection: Connection, paths: Paths, recipe: Recipe, machine: Machine, held_out_blocks: int) -> None:
    """A worker process: does the tasks that arrive, answers each with its log's last line, or its record."""
    catch_signals()
    parent = os.getppid()
    kernels = machine.prepare()
    train, held_out = read_text(paths.train_text), read_text(paths.held_out_text)
    tokens = train.tokens.to(machine.device)

    def should_stop() -> bool:
        return stop_asked.is_set() or os.getppid() != parent  # the main process was killed

    while True:
        while not connection.poll(0.5):
            if should_stop():
                return
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        start = paths.start / task.seed if paths.start else None
        folder = branched(paths.out / task.seed, task.decay) if task.decay else paths.out / task.seed
        run = SeedRun(folder, SEEDS[task.seed], tokens, recipe, machine, kernels, task.decay, start)
        run.train(task.until_step, should_stop)
        ready = task.ship and not stop_asked.is_set()
        answer = ship(run, task.seed, paths, held_out, held_out_blocks, task.baseline) if ready else run.last_line()
        if should_stop():
            return
        connection.send((task.seed, run.step, answer))


class Workers:
    """Worker processes with one task each at a time; a worker that dies ends the run."""

    def __init__(self, count: int, *arguments: object):
        context = get_context("spawn")
        self.processes, self.idle, self.busy = [], [], {}
        for _ in range(count):
            ours, theirs = context.Pipe()
            self.processes.append(context.Process(target=work, args=(theirs, *arguments)))
            self.processes[-1].start()
            theirs.close()
            self.idle.append(ours)

    def give(self, task: Task) -> None:
        """Gives a task to an idle worker; there must be one."""
        connection = self.idle.pop(0)
        connection.send(task)
        self.busy[connection] = task.seed

    def answers(self, timeout: float | None = 1.0) -> list[tuple[str, int, dict]]:
        """Answers of finished tasks; InputError when a worker has died."""
        found = []
        for connection in wait(list(self.busy), timeout):
            try:
                found.append(connection.recv())
            except EOFError:
                if stop_asked.is_set():
                    return found
                seed = self.busy[connection]
                raise InputError(f"The worker that trained seed {seed} died; its own message is above.") from None
            del self.busy[connection]
            self.idle.append(connection)
        return found

    def close(self) -> None:
        """Ends the workers, each after it has saved."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()  # SIGTERM: saves first
        for process in self.processes:
            process.join()


def round_robin(
    workers: Workers, steps: dict[str, int], until_step: int, step_tokens: int, stage: int, decay: Decay | None = None
) -> None:
    """Trains every seed, or its decay, to `until_step`: `stage` steps of the idle seed with the fewest steps at a time.

    Updates `steps`, the steps done by seed.
    """
    while not stop_asked.is_set() and (workers.busy or min(steps.values()) < until_step):
        waiting = [s for s in steps if s not in workers.busy.values() and steps[s] < until_step]
        for seed in sorted(waiting, key=lambda s: (steps[s], s))[: len(workers.idle)]:
            workers.give(Task(seed, min(until_step, steps[seed] + stage), decay))
        for seed, step, line in workers.answers():
            steps[seed] = step
            print(
                f"{line.get('time', '')} seed {seed} step {step} {step * step_tokens / 1e6:.2f}M tokens "
                f"loss {line.get('loss')} {line.get('tokens_per_second')} tokens/s",
                flush=True,
            )


def ship_all(workers: Workers, names: list[str], decay: Decay, baseline: dict) -> None:
    """Ships every seed from the end of its decay."""
    waiting = sorted(names)
    while not stop_asked.is_set() and (workers.busy or waiting):
        while waiting and workers.idle:
            seed = waiting.pop(0)
            workers.give(Task(seed, decay.start + decay.steps, decay, ship=True, baseline=baseline))
        for seed, _, record in workers.answers():
            if record:
                tokens, loss = record["tokens"] / 1e6, record["held_out"]["loss"]
                text = f"{tokens:.2f}M tokens, held-out loss {loss}, bigram {baseline['loss']}"
                print(f"seed {seed} shipped: {text}", flush=True)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line; exits with a message for a wrong one."""
    parser = argparse.ArgumentParser(prog="python -m lib.training.train", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="train all five seeds")
    parser.add_argument("--seed", nargs="+", choices=SEEDS, default=[], help="train these seeds")
    tokens = "tokens of the constant phase, each seed (default with --export: as many as the furthest seed has)"
    parser.add_argument("--tokens", type=int, help=tokens)
    parser.add_argument("--export", action="store_true", help="then decay and write the models to --ship")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--workers", type=int, help="processes (default: one a seed, at most one a core; one on a GPU)")
    parser.add_argument("--threads", type=int, help="threads a process (default: cores / processes)")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="blocks a step; part of the recipe")
    parser.add_argument("--held-out-blocks", type=int, default=1000, help="blocks of the stated held-out loss")
    for name, default in asdict(Paths()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, default=default)
    options = parser.parse_args(arguments)
    if not options.all and not options.seed:
        parser.error("give --all or --seed")
    return options


def checked_texts(paths: Paths, recipe: Recipe) -> tuple[Text, Text]:
    """Training and held-out text; InputError if they do not fit the seeds or each other."""
    texts, shape = (read_text(paths.train_text), read_text(paths.held_out_text)), recipe.shape
    for text in texts:
        if (text.vocab_size, text.context) != (shape.vocab_size, shape.context):
            raise InputError(
                f"The seeds need {shape.vocab_size} token ids and blocks of {shape.context} tokens; a text has "
                f"{text.vocab_size} and {text.context}."
            )
    if texts[0].tokenizer_sha256 != texts[1].tokenizer_sha256:
        raise InputError(f"{paths.train_text} and {paths.held_out_text} were made with different tokenisers.")
    return texts


def last_constant_step(options: argparse.Namespace, furthest: int, step_tokens: int) -> int:
    """The step that the constant phase ends with; InputError if the options or the `furthest` seed do not allow it."""
    if options.tokens is None and not (options.export and furthest):
        raise InputError(
            "Give --tokens, the tokens of the constant phase for each seed; only --export of trained seeds can do "
            "without it."
        )
    until_step = furthest if options.tokens is None else math.ceil(options.tokens / step_tokens)
    if options.export and furthest > until_step:
        raise InputError(
            f"A seed is already trained to step {furthest:,} ({furthest * step_tokens:,} tokens), so it cannot be "
            f"shipped as of step {until_step:,}; give at least as many --tokens, none, or another --out."
        )
    return until_step


@exit_on_input_error
def main(arguments: list[str]) -> int:
    """Command line (`--help`): 0 when all is trained, 2 for bad input, 143 when it was asked to stop."""
    options = parsed(arguments)
    catch_signals()
    paths = Paths(**{name: getattr(options, name) for name in asdict(Paths())})
    busy = f"Process {{pid}} is training in {paths.out}: stop it first, or give another --out folder."
    with locked(paths.out, busy):
        return train_and_ship(options, paths, list(SEEDS) if options.all else options.seed)


def train_and_ship(options: argparse.Namespace, paths: Paths, names: list[str]) -> int:
    """Trains these seeds and ships them if asked; 0 or, when it was asked to stop, 143."""
    recipe = Recipe(batch=options.batch)
    machine = Machine.chosen(options.device, options.precision)
    count = options.workers or (1 if machine.device == "cuda" else min(len(names), cores()))
    threads = options.threads or max(1, cores() // count)
    machine = replace(machine, compiled=machine.compiled and not options.eager, threads=threads)
    stage = max(1, STAGE_TOKENS[machine.device] // recipe.step_tokens)
    steps = {
        name: stored_step(paths.out / name) or (shipped_step(shipped_record(paths.start / name)) if paths.start else 0)
        for name in names
    }
    until_step = last_constant_step(options, max(steps.values()), recipe.step_tokens)
    train, held_out = checked_texts(paths, recipe)
    print(
        f"seeds {' '.join(names)} to step {until_step} on {len(train.tokens)} blocks: {count} processes × "
        f"{machine.threads} threads, {machine.device}, {machine.dtype}, pid {os.getpid()} in {paths.out / 'lock'}",
        flush=True,
    )
    workers = Workers(count, paths, recipe, machine, options.held_out_blocks)
    try:
        round_robin(workers, steps, until_step, recipe.step_tokens, stage)
        if options.export and not stop_asked.is_set():
            decay = Decay(until_step, max(1, round(until_step * recipe.decay_share)))
            decayed = {name: stored_step(decay_folder(paths.out / name, decay)) or until_step for name in names}
            round_robin(workers, decayed, until_step + decay.steps, recipe.step_tokens, stage, decay)
        if options.export and not stop_asked.is_set():
            blocks = evenly_spaced(len(held_out.tokens), options.held_out_blocks)
            ship_all(workers, names, decay, bigram_losses(train, held_out, blocks))
        if options.export and not stop_asked.is_set():
            write_section(paths.readme, seeds_section(paths.ship))
    finally:
        workers.close()
    if stop_asked.is_set():
        print("stopped; every seed's state is saved, the same command resumes", flush=True)
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
