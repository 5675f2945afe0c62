"""A run's parameters: from a YAML file and overrides to one checked and frozen object.

Every mistake ends in one InputError sentence that names the key, its value and what is allowed. Relative paths in a
parameter file start at the repository's root, wherever the file is.
"""

import difflib
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lib.base.errors import InputError, first_line, listed
from lib.base.files import write_if_changed

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = ROOT / "outputs"
DEFAULT = "tiny"  # the parameters of a run that has no file
CACHE = "cache"  # the folder in outputs/ that all runs share, hence not a run's name

# Keys that the pass over the text depends on; everything else is algebra on its statistics.
STATISTICS_KEYS = (
    *("seeds", "revision", "text", "domains", "context", "token_budget", "random_seed"),
    *("precision", "products", "sketch_rows", "compare"),
)

# A text of up to so many tokens for each row of a sketch is short: exact products multiply at most twice as many rows
# as the sketch, which does it twice and once more with half of them.
SHORT = 4

_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
_KIND_OF_TEXT = "^(prose|english|code|several|[a-z]{2})$"
_CHECKED = ConfigDict(frozen=True, extra="forbid", strict=True)


def _optional(description: str, pattern: str | None = None) -> Any:
    return Field(None, min_length=1, pattern=pattern, description=description)


class TextSource(BaseModel):
    """Documents that the run tokenises itself: a dataset on the Hub, or local files."""

    model_config = _CHECKED

    dataset: str | None = _optional("the id of a dataset on the Hub, `owner/name`", f"^{_HUB_ID}$")
    files: str | None = _optional("the path of a .txt, .jsonl, .json or .parquet file, a folder or a glob of them")
    subset: str | None = _optional("the name of one of the dataset's subsets")
    split: str | None = _optional("the name of one of the dataset's splits")
    data_files: str | None = _optional(
        "the path or glob of the split's files, if the dataset does not declare its splits"
    )
    revision: str | None = _optional("a branch, tag or commit of the dataset, in quotes")
    field: str = Field("text", min_length=1, description="the name of the field that holds a document's text")
    domain: str | None = _optional("the name of the field that holds a document's domain, such as `meta.source`")

    @model_validator(mode="after")
    def _keys_agree(self) -> "TextSource":
        if (self.dataset is None) == (self.files is None):
            raise InputError("text must have one of the keys dataset and files")
        if self.dataset is not None and self.split is None:
            raise InputError("key 'text.split' is missing; it must be the name of one of the dataset's splits")
        for name in ("subset", "split", "data_files", "revision"):
            if self.files is not None and (value := getattr(self, name)) is not None:
                raise InputError(f"text.{name} is {value!r}, but is allowed with text.dataset only")
        return self

    @property
    def path(self) -> Path | None:
        """The files' path or glob, from the repository's root on; None for a dataset."""
        return None if self.files is None else _from_root(self.files)

    @property
    def title(self) -> str:
        """The source in a few words."""
        if self.dataset is None:
            return str(self.files)
        return " ".join([self.dataset, *([self.subset] if self.subset else []), f"split {self.split}"])


class Params(BaseModel):
    """One run's parameters, params/<run>.yaml. A field's description says which values are allowed."""

    model_config = _CHECKED

    run: str = Field(description="a folder name of letters, digits, '.', '_' and '-', other than 'cache'")
    seeds: dict[str, str] = Field(
        description="two or more different models, each as `name: Hub id or local folder`, "
        "with names of letters, digits, '_' and '-'"
    )
    revision: str | dict[str, str] | None = Field(
        None,
        description="a branch, tag or commit on the Hub, in quotes, "
        "or one for each of some seeds as `name: revision`, with names of `seeds`",
    )
    reference: str = Field(description="the name of one of the seeds")
    text: str | TextSource = Field(
        description="the path of a token file or of .txt, .jsonl, .json or .parquet files, or a mapping with the "
        "keys dataset and split, or files (docs/models-and-text.md)"
    )
    domains: dict[str, Annotated[str, Field(pattern=_KIND_OF_TEXT)]] | None = Field(
        None,
        description="the kind of some of the text's domains, each as `name: kind`, where a kind is prose, english, "
        "code, several or the two letters of a language, in quotes",
    )
    context: int = Field(ge=3, description="a whole number of tokens, 3 or more")
    token_budget: int = Field(description="a whole number of tokens, at least one context")
    label_tokens: int = Field(10_000_000, description="a whole number of tokens, at least two contexts")
    random_seed: int = Field(0, ge=0, lt=2**31, description="a whole number from 0 to 2147483647")
    rotations: int = Field(5, ge=1, le=1000, description="a whole number from 1 to 1000")
    threshold: float = Field(0.5, ge=0, le=1, description="a number from 0 to 1")
    precision: Literal["auto", "fp64", "fp32", "bf16"] = Field(
        "auto",
        description="one of auto, fp64, fp32 and bf16 (int8 is no longer needed; "
        "`make clean` deletes statistics that were made with it)",
    )
    products: Literal["auto", "sketch", "exact"] = Field("auto", description="one of auto, sketch and exact")
    sketch_rows: int = Field(16384, ge=64, le=2**20, description="a whole number from 64 to 1048576")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="one of auto, cpu and cuda")
    compare: Literal["all", "reference"] = Field("all", description="one of all and reference")
    same_function: Literal["reference", "all"] = Field("reference", description="one of reference and all")
    memory_gb: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        "auto", description="auto or a number of gigabytes above 0"
    )

    @field_validator("run")
    @classmethod
    def _is_folder_name(cls, run: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run) or run == CACHE:
            raise ValueError
        return run

    @field_validator("text", mode="before")
    @classmethod
    def _is_text_source(cls, text: Any) -> Any:
        if not isinstance(text, dict):
            if text == "":
                raise ValueError
            return text
        return _checked(TextSource, text, "text.")

    @field_validator("seeds")
    @classmethod
    def _are_different_models(cls, seeds: dict[str, str]) -> dict[str, str]:
        named = all(re.fullmatch(r"[A-Za-z0-9_-]+", name) and source.strip() for name, source in seeds.items())
        if len(seeds) < 2 or not named:
            raise ValueError
        return seeds

    @field_validator("revision")
    @classmethod
    def _is_not_empty(cls, revision: str | dict[str, str] | None) -> str | dict[str, str] | None:
        values = revision.values() if isinstance(revision, dict) else [revision]
        if revision is not None and not (values and all(value.strip() for value in values)):
            raise ValueError
        return revision

    @model_validator(mode="after")
    def _keys_agree(self) -> "Params":
        if self.reference not in self.seeds:
            names = f"the name of one of the seeds ({listed(self.seeds)})"
            raise InputError(f"reference is {self.reference!r}, but must be {names}")
        if isinstance(self.revision, dict) and not set(self.revision) <= set(self.seeds):
            self._refuse("revision")
        if len({(source, self.revision_of(name)) for name, source in self.seeds.items()}) < len(self.seeds):
            self._refuse("seeds")
        if self.token_budget < self.context:
            least = f"one context of {self.context} tokens"
            raise InputError(f"token_budget is {self.token_budget}, but must be at least {least}")
        if self.label_tokens < 2 * self.context:
            raise InputError(
                f"label_tokens is {self.label_tokens}, but must be at least two contexts of {self.context}"
            )
        return self

    def _refuse(self, key: str) -> None:
        raise InputError(f"{key} is {quoted(getattr(self, key))}, but must be {Params.model_fields[key].description}")

    @property
    def folder(self) -> Path:
        """outputs/<run>, where everything that the run writes lies."""
        return OUTPUTS / self.run

    @property
    def text_path(self) -> Path | None:
        """The local token file, or None where the run tokenises its text itself (`text_source`)."""
        return _from_root(self.text) if self.text_source is None else None

    @property
    def text_source(self) -> TextSource | None:
        """The documents to tokenise, or None where the text is a token file."""
        if isinstance(self.text, TextSource):
            return self.text
        return None if self.text.endswith(".safetensors") else TextSource(files=self.text)

    @property
    def text_title(self) -> str:
        """The text in a few words."""
        return self.text_source.title if self.text_source else str(self.text)

    @property
    def products_used(self) -> str:
        """sketch or exact; `auto` is exact where a sketch would save nothing."""
        if self.products != "auto":
            return self.products
        return "exact" if self.token_budget <= SHORT * self.sketch_rows else "sketch"

    def revision_of(self, name: str) -> str | None:
        """The revision of a seed on the Hub; None is its main branch."""
        return self.revision.get(name) if isinstance(self.revision, dict) else self.revision

    def local_folder(self, name: str) -> Path:
        """The folder that a seed's source names, from the repository's root on."""
        return _from_root(self.seeds[name])

    def is_on_hub(self, name: str) -> bool:
        """Whether a seed is a Hub id: it looks like one and there is no such folder."""
        return bool(re.fullmatch(_HUB_ID, self.seeds[name])) and not self.local_folder(name).is_dir()

    @property
    def statistics_key(self) -> dict[str, Any]:
        """The parameters that the statistics of the pass depend on; a run's statistics belong to one such key."""
        key = {name: value for name, value in self.model_dump().items() if name in STATISTICS_KEYS}
        key |= {"reference": self.reference} if self.compare == "reference" else {}
        return key | ({"label_tokens": self.label_tokens} if self.label_tokens < self.token_budget else {})


def parameter_file(given: str | Path, run: str | None) -> Path:
    """The parameter file that is given or, where none is (an empty path), the run's own, or else the default's.

    The last is said on stderr. InputError where the run's name looks like a slip of one that has a file: the default
    models must not run instead of those that were meant.
    """
    if str(given) not in ("", "."):
        return Path(given)
    folder, own = Path("params"), f"{run}.yaml"
    if (folder / own).is_file():
        return folder / own
    default = folder / f"{DEFAULT}.yaml"
    meant = _meant(str(run), [path.stem for path in sorted(folder.glob("*.yaml"))])
    if meant:
        raise InputError(
            f"RUN is {run!r}, but there is no {folder / own}; give RUN={meant}, or a parameter file for this name, "
            f"such as PARAMS={folder / meant}.yaml or PARAMS={default} (the default)."
        )
    print(f"note: there is no {folder / own}, so {run} has the parameters of {default}.", file=sys.stderr)
    return default


def _meant(run: str, names: list[str]) -> str | None:
    """The name that a run's name is close to, or begins or completes; not the default's with an ending (tiny-2)."""
    alike = {name: difflib.SequenceMatcher(None, run.lower(), name.lower()).ratio() for name in names}
    best = max(names, key=lambda name: (run.startswith(name), name.startswith(run), alike[name]), default="")
    if best == DEFAULT and run.startswith(DEFAULT):
        return None
    begun = min(len(best), len(run)) >= 3 and (run.startswith(best) or best.startswith(run))
    return best if begun or alike.get(best, 0) >= 0.7 else None


def read_params(path: str | Path, **overrides: Any) -> Params:
    """The parameters in a YAML file, with `overrides` that are not None instead of the file's values.

    An empty path is the file of the run that `overrides` names (`parameter_file`). InputError for a file that cannot be
    read and for every key or value that is not allowed.
    """
    path = parameter_file(path, overrides.get("run"))
    values = _read_mapping(Path(path)) | {name: value for name, value in overrides.items() if value is not None}
    try:
        return _checked(Params, values)
    except InputError as error:
        raise InputError(f"{path}: {error}.") from None


def write_params(params: Params, path: Path) -> None:
    """Writes parameters as YAML, unless the file holds them already."""
    write_if_changed(path, _as_yaml(params.model_dump(exclude_none=True)))


def write_statistics_key(params: Params, path: Path) -> None:
    """Writes the parameters that the pass depends on as YAML, unless the file holds them already."""
    write_if_changed(path, _as_yaml(params.statistics_key))


def _from_root(path: str) -> Path:
    return ROOT / Path(path).expanduser()


def _as_yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; plain YAML would keep the last one."""

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
        json.dumps(values, default=str, skipkeys=True)  # refuses what contains itself
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
    except (ValueError, RecursionError) as error:  # a date that no calendar has, a number or a nesting without end
        raise InputError(f"{path}: a value cannot be read ({first_line(error)}).") from None
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: a parameter file holds lines `key: value`, with the keys {listed(Params.model_fields)}."
        )
    return values


def _checked(model: type[BaseModel], values: dict[Any, Any], prefix: str = "") -> Any:
    """The model of these values; InputError, without a full stop, on the first mistake. `prefix` goes before keys."""
    unnamed = next((key for key in values if not isinstance(key, str)), None)
    if unnamed is not None:
        raise InputError(_unknown_key(model, unnamed, values[unnamed], prefix))
    try:
        return model(**values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")  # unknown keys first
    key = first["loc"][0]
    if first["type"] == "extra_forbidden":
        raise InputError(_unknown_key(model, key, values[key], prefix))
    allowed = model.model_fields[key].description
    if first["type"] == "missing":
        raise InputError(f"key '{prefix}{key}' is missing; it must be {allowed}")
    raise InputError(f"{prefix}{key} is {quoted(values[key])}, but must be {allowed}")


def _unknown_key(model: type[BaseModel], key: Any, value: Any, prefix: str) -> str:
    close = difflib.get_close_matches(str(key), model.model_fields, n=1)
    meant = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown key '{prefix}{key}' with value {quoted(value)}{meant}; allowed are {listed(model.model_fields)}"


def quoted(value: Any) -> str:
    """A value as in YAML, at most 120 characters of it, for a sentence."""
    if isinstance(value, dict):  # JSON allows no dates as keys
        value = {key if isinstance(key, str | int | float | None) else str(key): item for key, item in value.items()}
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "…"
