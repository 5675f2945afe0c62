"""Which moments of training a run's seeds can be had at: folders beside local seeds, or revisions on the Hub.

A point is usable where every seed of the run has it. The trainer of the shipped seeds leaves checkpoints in
outputs/train/<seed>/checkpoint-<step>; other local seeds may hold them as <seed>/checkpoint-<step>, as the Hugging Face
trainer does; Hub seeds as revisions `checkpoint-<step>` or `step<k>`.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.base import params as parameters
from lib.base.errors import InputError
from lib.base.hub import download_failure, missing_part, seed_folder
from lib.base.params import Params

MOST = 13  # points of one run, log-spaced; all powers of two up to 4,096
_STEP = re.compile(r"(?:checkpoint-|step)(\d+)")
# Tokens of one training step: batch times context as published with the models (Pythia: arXiv 2304.01373; the CRFM
# seeds: 512 sequences of 1,024 tokens)
STEP_TOKENS = {"EleutherAI/pythia-": 1024 * 2048, "stanford-crfm/": 512 * 1024}
TOKENISER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


@dataclass(frozen=True)
class Point:
    """One moment of training: its name, its step and training tokens (NaN if unknown), and where each seed lies."""

    label: str
    step: float
    tokens: float
    sources: dict[str, str]  # seed → folder or Hub id
    revisions: dict[str, str]  # seed → revision, of Hub seeds


def step_of(name: str) -> int | None:
    """The step in `checkpoint-<step>` or `step<k>`; None for any other name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def log_spaced(steps: Iterable[int], most: int = MOST) -> list[int]:
    """At most `most` of the steps from 1 on, as evenly spaced on a log axis as they can be, first and last included."""
    ordered = np.array(sorted({step for step in steps if step > 0}))
    if len(ordered) <= most:
        return ordered.tolist()
    targets = np.linspace(np.log(ordered[0]), np.log(ordered[-1]), most)
    nearest = np.abs(np.log(ordered)[None] - targets[:, None]).argmin(1)
    return ordered[np.unique(nearest)].tolist()


def points(params: Params, steps: list[int] | None = None, beside: int = 0) -> list[Point]:
    """The points of a run in the order of training, the run's own seeds last unless their step says otherwise.

    `steps` asks for these (none of the checkpoints if empty); otherwise they are log-spaced. `beside` is the number of
    points whose tables exist already. Raises InputError, in one sentence, where there are no checkpoints, not those asked
    for, or fewer than two points in all.
    """
    names = sorted(params.seeds)
    on_hub = [params.is_on_hub(name) for name in names]
    if all(on_hub):
        found, own = _hub_points(params), None
    elif not any(on_hub):
        found, own = _local_points(params), _own_point(params)
    else:
        raise InputError(
            "checkpoints can be compared where all seeds are local folders or all are on the Hub, not some of each."
        )
    missing = sorted(set(steps or ()) - set(found))
    if missing or not (found or beside):
        what = f"checkpoints of step {', '.join(map(str, missing))}" if found else "checkpoints"
        places = (
            "revisions `checkpoint-<step>` or `step<k>` on the Hub"
            if all(on_hub)
            else (
                "folders outputs/train/<seed>/checkpoint-<step>, which `make seeds` leaves, or <seed folder>/checkpoint-<step>"
            )
        )
        has = f"; there are {', '.join(map(str, sorted(found)))}" if found else ""
        raise InputError(
            f"no {what} that all of the seeds {', '.join(names)} have: they are looked for as {places}{has}."
        )
    chosen = [found[step] for step in (log_spaced(found) if steps is None else sorted(set(steps)))]
    chosen += [own] if own else []
    if not chosen:
        raise InputError(
            "models on the Hub have no point of their own beside their checkpoints; name some with STEPS, or leave it out."
        )
    if len(chosen) + beside < 2:
        raise InputError(
            f"there is one checkpoint only, of step {chosen[0].step}; what changes while training needs two or more."
        )
    # a stable sort: seeds that do not tell their tokens stay last
    return sorted(chosen, key=lambda point: point.step if np.isfinite(point.step) else np.inf)


def _local_points(params: Params) -> dict[int, Point]:
    shipped, found = parameters.ROOT / "data" / "seeds", {}
    for name in sorted(params.seeds):
        folder = seed_folder(params, name)
        place = parameters.OUTPUTS / "train" / folder.name if folder.parent.resolve() == shipped.resolve() else folder
        paths = place.glob("checkpoint-*") if place.is_dir() else ()
        found[name] = {
            step_of(path.name): path
            for path in paths
            if step_of(path.name) is not None and (path / "config.json").is_file()
        }
    shared = set.intersection(*(set(of_seed) for of_seed in found.values()))
    per_step = _step_tokens(params)
    return {
        step: Point(f"checkpoint-{step}", step, step * per_step, {name: str(found[name][step]) for name in found}, {})
        for step in shared
    }


def _own_point(params: Params) -> Point:
    record = _training_record(params)
    step = record["constant_steps"] + record["decay_steps"] if record else float("nan")
    sources = {name: str(seed_folder(params, name)) for name in sorted(params.seeds)}
    return Point("final", step, record["tokens"] if record else float("nan"), sources, {})


def _training_record(params: Params) -> dict | None:
    """What the trainer wrote beside the reference seed, or None."""
    path = seed_folder(params, params.reference) / "training.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    return record if {"constant_steps", "decay_steps", "tokens"} <= record.keys() else None


def _step_tokens(params: Params) -> float:
    record = _training_record(params)
    return record["tokens"] / (record["constant_steps"] + record["decay_steps"]) if record else float("nan")


def _hub_points(params: Params) -> dict[int, Point]:
    found = {name: _revisions(params.seeds[name]) for name in sorted(params.seeds)}
    shared = set.intersection(*(set(of_seed) for of_seed in found.values()))
    known = [
        tokens
        for prefix, tokens in STEP_TOKENS.items()
        if all(source.startswith(prefix) for source in params.seeds.values())
    ]
    per_step = known[0] if known else float("nan")
    return {
        step: Point(
            f"checkpoint-{step}", step, step * per_step, dict(params.seeds), {name: found[name][step] for name in found}
        )
        for step in shared
    }


def _revisions(source: str) -> dict[int, str]:
    """The branches and tags of a Hub model that name a step."""
    from huggingface_hub import HfApi, constants

    try:
        refs = HfApi(endpoint=constants.ENDPOINT).list_repo_refs(source)
    except Exception as error:
        raise InputError(download_failure(error, "model", source)) from error
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return {step_of(name): name for name in names if step_of(name) is not None}


def lacks_tokeniser(source: str) -> bool:
    """Whether a local checkpoint would be a seed folder if it had its tokeniser, which trainers leave out."""
    return "tokeniser" in (missing_part({path.name for path in Path(source).iterdir()}) or "")


def link_seed(checkpoint: Path, own: Path, into: Path) -> None:
    """A seed folder of links: the checkpoint's files and the tokeniser of the seed's own folder."""
    into.mkdir(parents=True, exist_ok=True)
    lent = [own / name for name in TOKENISER_FILES if (own / name).is_file()]
    for path in [*checkpoint.iterdir(), *lent]:
        link = into / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
