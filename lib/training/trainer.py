"""Training one seed: the recipe, its schedule, the order of the data, and a run that survives a kill.

The learning rate warms up, then stays constant; a decay branches off in another folder, so that the constant phase can
continue later. A run's state and step are all that it needs to resume exactly.
"""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from lib.base.errors import InputError
from lib.training.gpt2 import Kernels, Shape, new_model, training_loss

SAVE_SECONDS = 180  # the most work that a kill can lose
LOG_STEPS = 16
MICROBATCH_BLOCKS = {"cpu": 8, "cuda": 256}  # blocks whose gradient is taken at a time, to limit memory


@dataclass(frozen=True)
class Phase:
    """Learning rate and beta2 from step `step` on, until the next phase."""

    step: int
    peak_lr: float
    beta2: float


@dataclass(frozen=True)
class Recipe:
    """All that the seeds share. A resumed run must keep the recipe of the steps that it has done."""

    batch: int = 256  # blocks a step
    phases: tuple[Phase, ...] = (Phase(0, 3e-3, 0.95),)
    warmup_steps: int = 150
    beta1: float = 0.9
    weight_decay: float = 0.1  # matrices only: none on biases and LayerNorm
    clip_norm: float = 1.0
    decay_share: float = 0.2  # decay steps as a share of the steps so far
    shape: Shape = Shape()

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.shape.context

    def phase(self, step: int) -> Phase:
        """The phase of the step after `step` completed ones."""
        return max((phase for phase in self.phases if phase.step <= step), key=lambda phase: phase.step)

    def record(self) -> dict:
        """The recipe as read back from JSON."""
        return json.loads(json.dumps(asdict(self)))


def until(recipe: dict, step: int) -> dict:
    """A recipe's record without the phases that begin after `step` completed steps."""
    return recipe | {"phases": [phase for phase in recipe["phases"] if phase["step"] < max(step, 1)]}


@dataclass(frozen=True)
class Decay:
    """Linear decay to zero over `steps` steps, after `start` steps of the constant phase."""

    start: int
    steps: int


def learning_rate(recipe: Recipe, step: int, decay: Decay | None = None, begun: int = 0) -> float:
    """The rate after `step` completed steps: linear warm-up from step `begun`, constant by phases, then `decay`.

    The decay starts from the rate of the phase that it branches off.
    """
    phase = recipe.phase(min(step, decay.start) if decay else step)
    rate = phase.peak_lr * min(1.0, (step - begun + 1) / recipe.warmup_steps)
    if decay is not None and step >= decay.start:
        rate *= 1 - (step - decay.start) / decay.steps
    return rate


@lru_cache(maxsize=16)
def block_order(n_blocks: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which a seed reads all training blocks in an epoch (0, 1, …): a permutation."""
    return np.random.default_rng((seed, epoch)).permutation(n_blocks)


def step_blocks(n_blocks: int, seed: int, step: int, batch: int) -> np.ndarray:
    """Indices of the blocks that step `step` (0, 1, …) reads; they depend on the step only, so resuming is exact."""
    position = np.arange(step * batch, (step + 1) * batch)
    epoch = position // n_blocks
    orders = {e: block_order(n_blocks, seed, e) for e in np.unique(epoch).tolist()}
    return np.array([orders[e][p % n_blocks] for e, p in zip(epoch.tolist(), position.tolist(), strict=True)])


def is_checkpoint(step: int) -> bool:
    """Whether to keep the model after `step` steps: at powers of two, and from 1,024 on also at 1.5 times these."""
    return step.bit_count() == 1 or (step > 1024 and step.bit_count() == 2 and bool(step & step >> 1))


@dataclass(frozen=True)
class Machine:
    """Where and how to compute."""

    device: str
    dtype: torch.dtype
    compiled: bool
    threads: int

    @classmethod
    def chosen(cls, device: str = "auto", precision: str = "auto", threads: int = 1) -> "Machine":
        """Resolves `auto`: a GPU where there is one, bf16 where the hardware multiplies it, compiled where it can."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            fast_bf16, compiled = torch.cuda.is_bf16_supported(), True
        else:
            fast_bf16 = bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
            compiled = any(shutil.which(name) for name in ("g++", "clang++", os.environ.get("CXX", "g++")))
        bf16 = precision == "bf16" or (precision == "auto" and fast_bf16)
        return cls(device, torch.bfloat16 if bf16 else torch.float32, compiled, threads)

    def prepare(self) -> Kernels:
        """Sets torch's threads and precision for this process; the kernels for training."""
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        torch.set_float32_matmul_precision("high")
        return Kernels.compiled() if self.compiled else Kernels()


def stored(weights: Tensor, matrices: torch.dtype = torch.bfloat16) -> Tensor:
    """A parameter as in a model file: matrices and embeddings in dtype `matrices`, biases and LayerNorm in bf16."""
    return weights.detach().to(matrices if weights.dim() > 1 else torch.bfloat16)


class SeedRun:
    """One seed's training: its weights, optimiser and step, kept in `folder`.

    `seed` draws the initial weights and, unless `order` is given, the order of the blocks.

    state.safetensors  fp32 weights, both Adam moments, step, and `begun`, the step of the shipped weights that it
                       started from (0 for random weights)
    log.jsonl          a line per LOG_STEPS steps
    checkpoint-<step>/ bf16 model at 1, 2, 4, … and from 1,024 on also at 1.5 times these steps
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        tokens: Int[Tensor, "blocks context"],
        recipe: Recipe,
        machine: Machine,
        kernels: Kernels,
        decay: Decay | None = None,
        start: Path | None = None,
        order: int | None = None,
    ):
        self.folder, self.seed, self.tokens, self.recipe = folder, seed, tokens, recipe
        self.order = seed if order is None else order
        self.machine, self.kernels, self.decay = machine, kernels, decay
        self.step, self.begun = 0, 0
        self.model = new_model(recipe.shape, seed).to(machine.device)
        self.weights = dict(self.model.named_parameters())
        matrices = [w for w in self.weights.values() if w.dim() > 1]
        vectors = [w for w in self.weights.values() if w.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(recipe.beta1, recipe.phases[0].beta2),
            eps=1e-8,
            fused=True,
        )
        if self.state_path.exists():
            self.load()
        elif start is not None:
            self._start_from(start)
        self._cut_log()

    @property
    def state_path(self) -> Path:
        """The file of the run's state."""
        return self.folder / "state.safetensors"

    def train(self, until_step: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Trains up to `until_step` steps in total, or until `stop()`; saves now and then and at the end."""
        saved = logged = time.monotonic()
        losses: list[Tensor] = []
        while self.step < until_step and not stop():
            losses.append(self._step())
            if self.step % LOG_STEPS == 0:
                self._log(losses, time.monotonic() - logged)
                losses, logged = [], time.monotonic()
            if is_checkpoint(self.step) and self.decay is None:
                self.save_model(self.folder / f"checkpoint-{self.step}")
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        if losses:
            self._log(losses, time.monotonic() - logged)
        self.save()

    def _step(self) -> Tensor:
        """One optimiser step; returns the batch's mean loss."""
        blocks = torch.from_numpy(step_blocks(len(self.tokens), self.order, self.step, self.recipe.batch))
        batch = self.tokens[blocks.to(self.tokens.device)].to(self.machine.device, torch.int64)
        total = torch.zeros((), device=self.machine.device)
        for part in batch.split(MICROBATCH_BLOCKS[self.machine.device]):
            loss = training_loss(self.weights, part, self.recipe.shape.n_head, self.machine.dtype, self.kernels)
            (loss * (len(part) / len(batch))).backward()
            total += loss.detach() * (len(part) / len(batch))
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.recipe.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, self.decay, self.begun)
            group["betas"] = self.recipe.beta1, self.recipe.phase(self.step).beta2
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total

    def save(self) -> None:
        """Writes the state beside the old one, then swaps them: a kill leaves a complete state."""
        tensors = {f"weights/{name}": w.detach() for name, w in self.weights.items()}
        for name, w in self.weights.items():
            moments = self.optimizer.state.get(w)
            if moments:
                tensors[f"moment1/{name}"], tensors[f"moment2/{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.state_path.with_suffix(f".{os.getpid()}.tmp")
        on_host = {name: t.cpu().contiguous() for name, t in tensors.items()}
        metadata = {"step": str(self.step), "begun": str(self.begun), "recipe": json.dumps(self.recipe.record())}
        save_file(on_host, fresh, metadata)
        os.replace(fresh, self.state_path)

    def load(self) -> None:
        """Resumes the saved state; InputError if another recipe trained it."""
        with safe_open(self.state_path, "pt") as file:
            meta = file.metadata()
        self.step, self.begun = int(meta["step"]), int(meta.get("begun", 0))
        self._refuse_other_recipe(self.state_path, json.loads(meta["recipe"]))
        tensors = load_file(self.state_path, device=self.machine.device)
        for name, w in self.weights.items():
            w.data.copy_(tensors[f"weights/{name}"])
            if f"moment1/{name}" in tensors:
                self.optimizer.state[w] = {
                    "step": torch.tensor(float(self.step - self.begun), device=self.machine.device),
                    "exp_avg": tensors[f"moment1/{name}"],
                    "exp_avg_sq": tensors[f"moment2/{name}"],
                }

    def _start_from(self, folder: Path) -> None:
        """Continues a shipped model after its decay: without moments, with a new warm-up."""
        record = shipped_record(folder)
        self.step = self.begun = shipped_step(record)
        self._refuse_other_recipe(folder, record["recipe"])
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.model.load_state_dict(model.state_dict())

    def _refuse_other_recipe(self, where: Path, recipe: dict) -> None:
        stored, own = (until(record, self.step) for record in (recipe, self.recipe.record()))
        if stored != own:
            changed = [key for key, value in own.items() if stored.get(key) != value]
            raise InputError(
                f"{where} was trained with another recipe ({', '.join(changed)}); "
                "give the same one or another --out folder."
            )

    def save_model(self, folder: Path, matrices: torch.dtype = torch.bfloat16) -> None:
        """Writes the model in Hugging Face format, weights as `stored`, in place of an existing folder."""
        config = copy.deepcopy(self.model.config)
        config.dtype = torch.bfloat16  # in which transformers computes by default
        config.architectures = [type(self.model).__name__]
        fresh = folder.with_name(folder.name + ".tmp")
        config.save_pretrained(fresh)
        weights = {name: stored(w, matrices).cpu().contiguous() for name, w in self.weights.items()}
        save_file(weights, fresh / "model.safetensors", {"format": "pt"})
        (fresh / "model.safetensors").chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def _log(self, losses: list[Tensor], seconds: float) -> None:
        """Logs a line on the last len(losses) steps, which took `seconds`."""
        line = {
            "step": self.step,
            "tokens": self.step * self.recipe.step_tokens,
            "loss": round(torch.stack(losses).mean().item(), 5),
            "lr": learning_rate(self.recipe, self.step - 1, self.decay, self.begun),
            "tokens_per_second": round(len(losses) * self.recipe.step_tokens / seconds),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def last_line(self) -> dict:
        """The log's last line; {} before the first."""
        path = self.folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return json.loads(lines[-1]) if lines else {}

    def _cut_log(self) -> None:
        """Drops the lines of steps that a kill undid; they will be trained and logged again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "log.jsonl"
        if path.exists():
            whole = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("}\n")]
            kept = "".join(line for line in whole if json.loads(line)["step"] <= self.step)
            fresh = path.with_suffix(".tmp")
            fresh.write_text(kept, encoding="utf-8")
            os.replace(fresh, path)


def shipped_record(folder: Path) -> dict:
    """A shipped model's training.json; InputError if there is none."""
    path = folder / "training.json"
    if not path.exists():
        raise InputError(f"{folder} has no training.json, so training cannot start from it.")
    return json.loads(path.read_text(encoding="utf-8"))


def shipped_step(record: dict) -> int:
    """Training steps of a shipped model."""
    return record["constant_steps"] + record["decay_steps"]


def stored_step(folder: Path) -> int:
    """Steps done by the run in `folder`; 0 for none."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])
