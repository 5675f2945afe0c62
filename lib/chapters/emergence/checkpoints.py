"""Finds the training checkpoints that all seeds of a run have: local folders or revisions on the Hub.

`make seeds` leaves those of the shipped seeds in outputs/train/<seed>/checkpoint-<step>. Other local seeds hold them as
<seed folder>/checkpoint-<step>, as the Hugging Face trainer does; on the Hub they are revisions `checkpoint-<step>` or
`step<k>`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.base import params as parameters
from lib.base.errors import InputError, listed
from lib.base.files import read_json
from lib.base.hub import download_failure, listed_sha256, missing_part, seed_folder, snapshot, weights_sha256
from lib.base.params import Params
from lib.cache import content_sha256

MAX_POINTS = 13  # of one run, log-spaced; all powers of two up to 4,096
_STEP = re.compile(r"(?:checkpoint-|step)(\d+)")
# Tokens of one training step: batch × context. Pythia: arXiv 2304.01373; CRFM: 512 sequences of 1,024 tokens
STEP_TOKENS = {"EleutherAI/pythia-": 1024 * 2048, "stanford-crfm/": 512 * 1024}
TOKENISER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


@dataclass(frozen=True)
class Point:
    """One checkpoint: its step and training tokens (None if unknown), and where each seed is."""

    label: str
    step: int | None
    tokens: int | None
    sources: dict[str, str]  # seed → folder or Hub id
    revisions: dict[str, str]  # seed → revision, of Hub seeds


def step_of(name: str) -> int | None:
    """The step in `checkpoint-<step>` or `step<k>`; None for any other name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def log_spaced(steps: Iterable[int], most: int = MAX_POINTS) -> list[int]:
    """At most `most` of the steps from 1 on, evenly spaced on a log axis, the first and the last included."""
    ordered = np.array(sorted({step for step in steps if step > 0}))
    if len(ordered) <= most:
        return ordered.tolist()
    targets = np.linspace(np.log(ordered[0]), np.log(ordered[-1]), most)
    nearest = np.abs(np.log(ordered)[None] - targets[:, None]).argmin(1)
    return ordered[np.unique(nearest)].tolist()


def points(params: Params, steps: list[int] | None = None, beside: int = 0) -> list[Point]:
    """A run's points in the order of training; the run's own seeds are last unless their step says otherwise.

    `steps` chooses checkpoints (an empty list: none); by default they are log-spaced. `beside` is the number of points
    that have tables already. Raises InputError for missing checkpoints and for fewer than two points in all.
    """
    names = sorted(params.seeds)
    on_hub = [params.is_on_hub(name) for name in names]
    if any(on_hub) and not all(on_hub):
        raise InputError("checkpoints need seeds that are all local folders or all on the Hub, not some of each.")
    found, own = (_hub_points(params), None) if all(on_hub) else (_local_points(params), _own_point(params))
    missing = sorted(set(steps or ()) - set(found))
    if missing or not (found or beside):
        what = f"checkpoints of step {', '.join(map(str, missing))}" if found else "checkpoints"
        local = "outputs/train/<seed>/checkpoint-<step>, which `make seeds` leaves, or <seed folder>/checkpoint-<step>"
        places = "revisions `checkpoint-<step>` or `step<k>` on the Hub" if all(on_hub) else f"folders {local}"
        has = f"; there are {', '.join(map(str, sorted(found)))}" if found else ""
        raise InputError(f"no {what} that all of the seeds {', '.join(names)} have as {places}{has}.")
    chosen = [found[step] for step in (log_spaced(found) if steps is None else sorted(set(steps)))]
    chosen += [own] if own else []
    if not chosen:
        raise InputError(
            "Hub models have no point of their own, only checkpoints; name some with STEPS or leave it out."
        )
    if len(chosen) + beside < 2:
        raise InputError(f"there is only one checkpoint, of step {chosen[0].step}; this chapter needs two or more.")
    # the sort is stable: seeds whose step is unknown stay last
    return sorted(chosen, key=lambda point: np.inf if point.step is None else point.step)


def weights_of_points(chosen: list[Point]) -> dict[str, dict[str, str | None]]:
    """The hash of each seed's weights by checkpoint; of those on the Hub as the Hub lists it, without a download."""
    found = {}
    for point in chosen:
        found[point.label] = {
            name: _weights_of(source, point.revisions.get(name)) for name, source in point.sources.items()
        }
    return found


def _weights_of(source: str, revision: str | None) -> str | None:
    if revision is None:
        return weights_sha256(Path(source), content_sha256)
    folder = snapshot(source, revision)
    return weights_sha256(folder, content_sha256) if folder else listed_sha256(source, revision)


def equal_points(hashes: dict[str, dict[str, str | None]]) -> list[tuple[str, list[str]]]:
    """(seed, checkpoints) for each group of checkpoints at which a seed has the same hash; `hashes`: see above."""
    groups: dict[tuple[str, str], list[str]] = {}
    for label, seeds in hashes.items():
        for seed, sha256 in seeds.items():
            if sha256:
                groups.setdefault((seed, sha256), []).append(label)
    return sorted((seed, labels) for (seed, _), labels in groups.items() if len(labels) > 1)


def equal_words(groups: list[tuple[str, list[str]]]) -> str:
    """`equal_points` in words: seed a at checkpoint-1 and checkpoint-2."""
    return "; ".join(f"seed {seed} at {listed(labels)}" for seed, labels in groups)


def is_shipped(folder: Path | None) -> bool:
    """Whether a seed's folder is one of those that ship with the repository."""
    return folder is not None and folder.resolve().parent == (parameters.ROOT / "data" / "seeds").resolve()


def _local_points(params: Params) -> dict[int, Point]:
    found = {}
    for name in sorted(params.seeds):
        folder = seed_folder(params, name)
        place = parameters.OUTPUTS / "train" / folder.name if is_shipped(folder) else folder
        steps = {
            step_of(path.name): str(path) for path in place.glob("checkpoint-*") if (path / "config.json").is_file()
        }
        found[name] = {step: path for step, path in steps.items() if step is not None}
    record = _training_record(params)
    return _shared_points(found, record["tokens"] / _last_step(record) if record else None)


def _hub_points(params: Params) -> dict[int, Point]:
    found = {name: _revisions(source) for name, source in params.seeds.items()}
    named = [prefix for prefix in STEP_TOKENS if all(source.startswith(prefix) for source in params.seeds.values())]
    return _shared_points(found, STEP_TOKENS[named[0]] if named else None, dict(params.seeds))


def _shared_points(
    found: dict[str, dict[int, str]], step_tokens: float | None, on_hub: dict[str, str] | None = None
) -> dict[int, Point]:
    """The points that every seed has, by step; `found`: seed → step → folder, or revision of the models `on_hub`."""
    shared = {}
    for step in set.intersection(*map(set, found.values())):
        tokens = None if step_tokens is None else round(step * step_tokens)
        places = {name: found[name][step] for name in sorted(found)}
        sources, revisions = (on_hub, places) if on_hub else (places, {})
        shared[step] = Point(f"checkpoint-{step}", step, tokens, sources, revisions)
    return shared


def _own_point(params: Params) -> Point:
    record = _training_record(params)
    sources = {name: str(seed_folder(params, name)) for name in sorted(params.seeds)}
    return Point("final", _last_step(record) if record else None, record.get("tokens"), sources, {})


def _training_record(params: Params) -> dict:
    """What the trainer wrote beside the reference seed, or nothing."""
    record = read_json(seed_folder(params, params.reference) / "training.json")
    return record if {"constant_steps", "decay_steps", "tokens"} <= record.keys() else {}


def constant_rate_steps(params: Params) -> list[int] | None:
    """First and last step at a constant learning rate, from the trainer's record; None where the record has no such."""
    record = _training_record(params)
    if not {"recipe", "begun"} <= record.keys():
        return None
    warm = record["begun"] + record["recipe"]["warmup_steps"]
    return [max(warm, record["recipe"]["phases"][-1]["step"]), record["constant_steps"]]


def _last_step(record: dict) -> int:
    return record["constant_steps"] + record["decay_steps"]


def _revisions(source: str) -> dict[int, str]:
    """Step → branch or tag of a Hub model that names it."""
    from huggingface_hub import HfApi, constants

    try:
        refs = HfApi(endpoint=constants.ENDPOINT).list_repo_refs(source)
    except Exception as error:
        raise InputError(download_failure(error, "model", source)) from error
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return {step_of(name): name for name in names if step_of(name) is not None}


def lacks_tokeniser(source: str | Path) -> bool:
    """Whether a local checkpoint lacks only the tokeniser, which trainers leave out."""
    return "tokeniser" in (missing_part({path.name for path in Path(source).iterdir()}) or "")


def link_seed(checkpoint: Path, own: Path, into: Path) -> None:
    """Makes a seed folder of links: the checkpoint's files and the tokeniser of the seed's own folder."""
    into.mkdir(parents=True, exist_ok=True)
    lent = [own / name for name in TOKENISER_FILES if (own / name).is_file()]
    for path in [*checkpoint.iterdir(), *lent]:
        link = into / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
