"""A run's parameters: from a YAML file, and what overrides it, to one checked and frozen object.

Every way to get them wrong ends in one InputError sentence that names the key, its value and what is allowed.
Relative paths in a parameter file start at the repository's root, wherever the file lies.
"""

import difflib
import errno
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lib.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS = ROOT / "outputs"

# What the pass over the text depends on; everything else is algebra on its statistics.
STATISTICS_KEYS = ("seeds", "revision", "text", "context", "token_budget", "random_seed", "precision", "compare")

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEED = re.compile(r"[A-Za-z0-9_-]+")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Params(BaseModel):
    """One run's parameters (DESIGN, params/<run>.yaml). A field's description is what its value may be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: str = Field(description="a folder name of letters, digits, '.', '_' and '-'")
    seeds: dict[str, str] = Field(
        description="two or more different models, each as `name: Hub id or local folder`, "
        "with names of letters, digits, '_' and '-'"
    )
    revision: str | None = Field(None, min_length=1, description="a branch, tag or commit on the Hub, in quotes")
    reference: str = Field(description="the name of one of the seeds")
    text: str = Field(min_length=1, description="the path of a local token file")
    context: int = Field(ge=2, description="a whole number of tokens, 2 or more")
    token_budget: int = Field(description="a whole number of tokens, at least one context")
    random_seed: int = Field(0, ge=0, lt=2**31, description="a whole number from 0 to 2147483647")
    rotations: int = Field(5, ge=1, le=1000, description="a whole number from 1 to 1000")
    threshold: float = Field(0.5, ge=0, le=1, description="a number from 0 to 1")
    precision: Literal["auto", "fp64", "fp32", "bf16", "int8"] = Field(
        "auto", description="one of auto, fp64, fp32, bf16 and int8"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="one of auto, cpu and cuda")
    compare: Literal["all", "reference"] = Field("all", description="one of all and reference")
    memory_gb: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        "auto", description="auto or a number of gigabytes above 0"
    )

    @field_validator("run")
    @classmethod
    def _is_folder_name(cls, run: str) -> str:
        if not _RUN.fullmatch(run):
            raise ValueError
        return run

    @field_validator("seeds")
    @classmethod
    def _are_different_models(cls, seeds: dict[str, str]) -> dict[str, str]:
        named = all(_SEED.fullmatch(name) and source.strip() for name, source in seeds.items())
        if len(seeds) < 2 or len(set(seeds.values())) < len(seeds) or not named:
            raise ValueError
        return seeds

    @model_validator(mode="after")
    def _agree(self) -> "Params":
        if self.reference not in self.seeds:
            raise InputError(
                f"reference is {self.reference!r}, but must be the name of one of the seeds ({_listed(self.seeds)})"
            )
        if self.token_budget < self.context:
            raise InputError(
                f"token_budget is {self.token_budget}, but must be at least one context of {self.context} tokens"
            )
        return self

    @property
    def folder(self) -> Path:
        """outputs/<run>, where everything that the run writes lies."""
        return OUTPUTS / self.run

    @property
    def text_path(self) -> Path:
        """The local token file."""
        return _from_root(self.text)

    def seed_folder(self, name: str) -> Path | None:
        """A seed's local folder, or None if it comes from the Hub."""
        source = self.seeds[name]
        folder = _from_root(source)
        return None if _HUB_ID.fullmatch(source) and not folder.is_dir() else folder

    def seed_source(self, name: str) -> str:
        """A seed's local folder or Hub id, as transformers take it."""
        folder = self.seed_folder(name)
        return self.seeds[name] if folder is None else str(folder)

    @property
    def statistics_key(self) -> dict[str, Any]:
        """The parameters that the statistics of the pass depend on; a run's statistics belong to one such key."""
        key = {name: getattr(self, name) for name in STATISTICS_KEYS}
        return key | ({"reference": self.reference} if self.compare == "reference" else {})

    def refuse_other_statistics(self) -> None:
        """Raises InputError if this run's folder holds statistics made with other parameters, key by key."""
        record = self.folder / "stats" / "key.json"
        if not record.exists():
            return
        made_with = json.loads(record.read_text())
        differences = [
            f"{name} = {_shown(made_with.get(name))} (now {_shown(value)})"
            for name, value in self.statistics_key.items()
            if made_with.get(name) != value
        ]
        if differences:
            raise InputError(
                f"outputs/{self.run} was made with {_listed(differences)}; choose another name with RUN=…, "
                f"or delete it with `make clean RUN={self.run}`."
            )


def read_params(path: str | Path, **overrides: Any) -> Params:
    """The parameters in a YAML file, with `overrides` that are not None instead of the file's values.

    Raises InputError, in one sentence, for a file that cannot be read and for any key or value not allowed.
    """
    values = _read_mapping(Path(path)) | {name: value for name, value in overrides.items() if value is not None}
    try:
        return Params(**values)
    except ValidationError as error:
        raise InputError(f"{path}: {_sentence(error, values)}.") from None
    except InputError as error:
        raise InputError(f"{path}: {error}.") from None


def write_params(params: Params, path: Path) -> None:
    """Writes parameters as YAML, without touching a file that already says the same."""
    write_if_changed(path, _as_yaml(params.model_dump(exclude_none=True)))


def write_statistics_key(params: Params, path: Path) -> None:
    """Writes the part of the parameters that the pass depends on, without touching a file that says the same."""
    write_if_changed(path, _as_yaml(params.statistics_key))


def write_if_changed(path: Path, content: str) -> None:
    """Writes a text file atomically unless it has this content already, so that its time tells a change to make."""
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        why = "no space left on the disk" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise InputError(f"{path} cannot be written: {why}.") from error


def _from_root(path: str) -> Path:
    return ROOT / Path(path).expanduser()


def _as_yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise InputError(f"line {key_node.start_mark.line + 1}: key '{key}' is given twice")
            seen.add(str(key))
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise InputError(f"the parameter file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the parameter file {path} cannot be read: {why}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "a character that is not allowed"
        raise InputError(f"{path}{where}: not valid YAML ({problem}).") from None
    except InputError as error:
        raise InputError(f"{path}, {error}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a parameter file holds lines `key: value`, with the keys {_listed(Params.model_fields)}.")
    unnamed = next((key for key in values if not isinstance(key, str)), None)
    if unnamed is not None:
        raise InputError(f"{path}: {_unknown(unnamed, values[unnamed])}.")
    return values


def _sentence(error: ValidationError, values: dict[str, Any]) -> str:
    """The first thing that is wrong, unknown keys before others, without its full stop."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = first["loc"][0]
    if first["type"] == "extra_forbidden":
        return _unknown(key, values[key])
    allowed = Params.model_fields[key].description
    if first["type"] == "missing":
        return f"key '{key}' is missing; it must be {allowed}"
    return f"{key} is {_shown(values[key])}, but must be {allowed}"


def _unknown(key: Any, value: Any) -> str:
    close = difflib.get_close_matches(str(key), Params.model_fields, n=1)
    meant = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown key '{key}' with value {_shown(value)}{meant}; allowed are {_listed(Params.model_fields)}"


def _shown(value: Any) -> str:
    """A value as its YAML, short enough for a sentence."""
    shown = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return shown if len(shown) <= 120 else shown[:117] + "…"


def _listed(names) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
