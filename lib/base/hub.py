"""Models on the Hugging Face Hub: from an id and a revision to a checked folder in the Hub's own cache.

Only the files that a seed needs are downloaded. A snapshot that is complete in the cache is used without any
request, so that a second run needs no network; a Hub seed is then a folder like any other.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path

from lib.base.errors import InputError
from lib.base.files import file_sha256
from lib.base.params import Params

WAITS = (1, 2, 4)  # seconds before another attempt, after what may pass: 429, a broken server, a lost connection

_SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SHARD = re.compile(r"(model|pytorch_model)-(\d+)-of-(\d+)\.(safetensors|bin)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def weight_names(names: Collection[str]) -> list[str]:
    """The weight files among a folder's names: safetensors before PyTorch's, one file before shards; [] if incomplete."""
    for single in _SINGLE:
        if single in names:
            return [single]
        stem, ending = single.split(".")
        shards = [match for match in map(_SHARD.fullmatch, sorted(names)) if match and match[1] == stem]
        shards = [match for match in shards if match[4] == ending]
        if f"{single}.index.json" in names and shards and len(shards) == int(shards[0][3]):
            return [match[0] for match in shards]
    return []


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder, or [] if there are none."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [folder / name for name in weight_names(names)]


def weights_sha256(folder: Path, sha256: Callable[[Path], str] = file_sha256) -> str | None:
    """SHA-256 of a model folder's weights: of the one file, or of the list of its shards' hashes; None without any."""
    hashes = [sha256(path) for path in weight_files(folder)]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def needed_files(names: Collection[str]) -> set[str]:
    """Of a repository's files those that a seed needs: config, weights in one format, tokeniser."""
    weights = weight_names(names)
    indices = {f"{single}.index.json" for single in _SINGLE} if len(weights) > 1 else set()
    return set(weights) | {name for name in names if name in _SMALL or name in indices}


def what_is_missing(names: Collection[str]) -> str | None:
    """What keeps a folder with these files from being a seed, as a noun with its article, or None."""
    if "config.json" not in names:
        return "config (a file config.json in Hugging Face format is needed)"
    if not weight_names(names):
        return "weights (a file model.safetensors, or pytorch_model.bin, in Hugging Face format is needed)"
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        return "tokeniser (a file tokenizer.json in Hugging Face format is needed)"
    return None


def snapshot(source: str, revision: str | None = None) -> Path | None:
    """The folder of a model that is complete in the Hub's cache, without any request; None if it is not."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    folder = _cached_folder(source, revision)
    if folder is None:
        return None
    try:
        names = [file.path for file in get_cached_repo_tree(source, revision=revision)]
    except (CachedRepoTreeNotFoundError, HFValidationError):
        return None
    wanted = needed_files(names)
    complete = what_is_missing(wanted) is None and all((folder / name).is_file() for name in wanted)
    return folder if complete else None


def fetch(name: str, source: str, revision: str | None = None) -> Path:
    """The checked folder of a seed on the Hub: from the cache, or else downloaded.

    Every file is compared with the hash that the Hub gives for it; one that was damaged on the way is downloaded once
    more. Raises InputError, in one sentence that says what to do, when the model cannot be had.
    """
    for last in (False, True):
        folder = snapshot(source, revision) or _patiently(name, source, revision, _download)
        names = needed_files({path.name for path in folder.iterdir()})
        damaged = [folder / name for name in sorted(names) if _is_damaged(folder / name)]
        if not damaged:
            return folder
        for path in damaged:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        if last:
            raise InputError(
                f"seed '{name}': {damaged[0].name} of the model '{source}' arrived damaged twice (its hash is not the "
                "Hub's) and was deleted; run the same command again, and check the network if that does not help."
            )
    raise AssertionError("unreachable")


def fetch_config(name: str, source: str, revision: str | None = None) -> Path:
    """A folder that holds at least the config of a seed on the Hub; raises InputError as `fetch` does."""
    return _cached_folder(source, revision) or _patiently(name, source, revision, _download_config)


def _patiently(name: str, source: str, revision: str | None, download: Callable[[str, str | None], Path]) -> Path:
    """Downloads, again after a while where the fault may pass."""
    for wait in (*WAITS, None):
        try:
            return download(source, revision)
        except InputError as error:
            raise InputError(f"seed '{name}': {error}") from error.__cause__
        except Exception as error:  # of huggingface_hub, its HTTP client or the file system: each has its sentence
            if wait is None or not _may_pass(error):
                raise InputError(f"seed '{name}': {sentence(error, 'model', source, revision)}") from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode() and (folder := _cached_folder(source, revision)) is not None:
        # cached by other means than ours, without the list of its files: good enough where nothing better can be had
        if what_is_missing({path.name for path in folder.iterdir()}) is None:
            return folder
    api = HfApi(endpoint=constants.ENDPOINT)
    resolved = api.resolve_revision(source, revision=revision)
    names = [entry.path for entry in api.list_repo_tree(source, revision=resolved)]
    missing = what_is_missing(names)
    if missing:
        raise InputError(f"the model {_shown(source, revision)} has no {missing}.")
    folder = api.snapshot_download(source, revision=resolved, allow_patterns=sorted(needed_files(names)))
    return Path(folder)


def _download_config(source: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, constants

    return Path(HfApi(endpoint=constants.ENDPOINT).hf_hub_download(source, "config.json", revision=revision)).parent


def _cached_folder(source: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _is_damaged(path: Path) -> bool:
    """Whether a file of a snapshot differs from its hash: the cache names each content by the Hub's hash of it."""
    content = path.resolve()
    if not path.is_symlink() or not content.is_file():
        return path.is_symlink()
    if re.fullmatch(r"[0-9a-f]{64}", content.name):
        return file_sha256(content) != content.name
    if _COMMIT.fullmatch(content.name):  # small files go by their git hash
        data = content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != content.name
    return False


# ---------------------------------------------------------------- the seeds of a run


def seed_folder(params: Params, name: str) -> Path | None:
    """A seed's folder, that of a Hub seed being in the Hub's cache; None where it has not been downloaded."""
    return (
        snapshot(params.seeds[name], params.revision_of(name)) if params.is_on_hub(name) else params.local_folder(name)
    )


def fetch_seed(params: Params, name: str) -> Path:
    """A seed's folder, in which a Hub seed was checked against the Hub's hashes, downloaded first if need be."""
    if not params.is_on_hub(name):
        return params.local_folder(name)
    return fetch(name, params.seeds[name], params.revision_of(name))


def seed_config(params: Params, name: str) -> Path:
    """A folder that has at least a seed's config, all that a plan needs."""
    if not params.is_on_hub(name):
        return params.local_folder(name)
    return fetch_config(name, params.seeds[name], params.revision_of(name))


def seed_source(params: Params, name: str) -> Path:
    """A seed's folder; a Hub seed that is not in the cache is downloaded."""
    return seed_folder(params, name) or fetch_seed(params, name)


# ---------------------------------------------------------------- what went wrong, in one sentence


def _causes(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (error := error.__cause__) is not None:
        chain.append(error)
    return chain


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of huggingface_hub, or None."""
    codes = (getattr(getattr(cause, "response", None), "status_code", None) for cause in _causes(error))
    return next((code for code in codes if code is not None), None)


def _lost(error: BaseException) -> bool:
    """Whether the Hub could not be reached or the connection broke."""
    import httpx2  # the client of huggingface_hub

    return any(isinstance(cause, httpx2.TransportError) for cause in _causes(error))


def _may_pass(error: BaseException) -> bool:
    import httpx2

    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    # a refused connection or an unknown host is no network, which seconds do not mend
    unreachable = any(isinstance(cause, httpx2.ConnectError) for cause in _causes(error))
    return (_lost(error) and not unreachable) or "Consistency check failed" in str(error)


def sentence(error: BaseException, kind: str, source: str, revision: str | None = None) -> str:
    """One sentence on why a model or dataset (`kind`) cannot be had from the Hub, and what to do.

    `error` is what huggingface_hub raised; the sentence begins with a small letter and ends with a full stop.
    """
    from huggingface_hub import constants, errors

    shown, hub = f"the {kind} {_shown(source, revision)}", constants.ENDPOINT
    page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{source}"
    chain = _causes(error)

    def caused_by(*kinds) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    full = any(getattr(cause, "errno", None) == errno.ENOSPC for cause in chain)
    if caused_by(errors.OfflineModeIsEnabled):
        return (
            f"{shown} is not complete in the Hub's cache ({constants.HF_HUB_CACHE}) and offline mode is on; unset "
            "HF_HUB_OFFLINE to download it."
        )
    if caused_by(errors.GatedRepoError):
        return f"{shown} is gated; accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN."
    if caused_by(errors.RevisionNotFoundError):
        return (
            f"the {kind} '{source}' has no revision '{revision}'; its branches and tags are listed at {page}/tree/main."
        )
    if caused_by(errors.RepositoryNotFoundError):
        return (
            f"there is neither a folder '{source}' nor a {kind} of that name on the Hub that you may read; check the name, "
            "or log in with `hf auth login` if it is private."
        )
    if caused_by(errors.HFValidationError):
        return f"'{source}' is neither a folder nor a name that the Hub allows; it must be `owner/name`."
    if full:
        return (
            f"no space left on the disk for {shown} in {constants.HF_HUB_CACHE}; free some or set HF_HOME to a folder on "
            "another disk, and run the same command again."
        )
    status = _status(error)
    again = "run the same command again later, files that have arrived are kept."
    if status == 401:
        return f"the Hub refuses the access token for {shown}; log in again with `hf auth login`, or unset HF_TOKEN."
    if status == 403:
        return f"the Hub forbids access to {shown}; give the access token permission to read it."
    if status == 429:
        return f"the Hub takes no more requests for now, while downloading {shown}; {again}"
    if status is not None and status >= 500:
        return f"the Hub has a fault of its own (status {status}), while downloading {shown}; {again}"
    if status is not None:
        return f"the Hub answers {status} for {shown}; check the name and the revision at {page}."
    if _lost(error) or "Consistency check failed" in str(error):
        return f"the connection to the Hub ({hub}) cannot be made or breaks off, while downloading {shown}; {again}"
    why = os.strerror(error.errno) if getattr(error, "errno", None) else (str(error).strip().splitlines() or [""])[0]
    return f"{shown} cannot be downloaded ({type(error).__name__}: {why.rstrip('.')})."


def _shown(source: str, revision: str | None) -> str:
    return f"'{source}'" if revision is None else f"'{source}' (revision '{revision}')"
