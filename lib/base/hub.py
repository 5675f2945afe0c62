"""Models on the Hugging Face Hub: from an id and a revision to a checked folder in the Hub's own cache.

Only the files that a seed needs are downloaded. A model that is complete in the cache is used without any request, so a
second run needs no network, and a Hub seed is a folder like any other.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from lib.base.errors import InputError, first_line, listed, shortened
from lib.base.files import file_sha256
from lib.base.params import Params

RETRY_WAITS = (1, 2, 4)  # seconds before each new attempt after a temporary fault

CONFIG_AND_TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


# ---------------------------------------------------------------- the files of a model


def weight_names(names: Collection[str]) -> list[str]:
    """Names of the weight files: safetensors before PyTorch's, one file before shards; [] if incomplete."""
    for single in WEIGHTS:
        if single in names:
            return [single]
        shard = re.compile(r"{}-\d+-of-(\d+)\.{}".format(*single.split(".")))
        shards = [match for match in map(shard.fullmatch, sorted(names)) if match]
        if f"{single}.index.json" in names and shards and len(shards) == int(shards[0][1]):
            return [match[0] for match in shards]
    return []


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder; [] if there are none."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [folder / name for name in weight_names(names)]


def weights_sha256(folder: Path, sha256: Callable[[Path], str] = file_sha256) -> str | None:
    """SHA-256 of a model folder's weights (of the list of hashes if they are in shards); None without weights."""
    return joint_sha256([sha256(path) for path in weight_files(folder)])


def joint_sha256(hashes: list[str]) -> str | None:
    """One hash for the files of a model's weights: of the list of hashes if there are several."""
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def needed_files(names: Collection[str]) -> set[str]:
    """The files of a repository that a seed needs: config, weights in one format, tokeniser."""
    weights = weight_names(names)
    indices = [f"{single}.index.json" for single in WEIGHTS] if len(weights) > 1 else []
    return {*weights, *(set(names) & {*CONFIG_AND_TOKENIZER, *indices})}


def missing_part(names: Collection[str]) -> str | None:
    """The first part of a seed that these files lack (config, weights or tokeniser), and what is needed; or None."""
    if "config.json" not in names:
        return "config (a file config.json in Hugging Face format is needed)"
    if not weight_names(names):
        return "weights (a file model.safetensors, or pytorch_model.bin, in Hugging Face format is needed)"
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        return "tokeniser (a file tokenizer.json in Hugging Face format is needed)"
    return None


# ---------------------------------------------------------------- cache and download


def snapshot(source: str, revision: str | None = None) -> Path | None:
    """The folder of a model in the Hub's cache, found without a request; None if it is not complete there."""
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
    complete = missing_part(wanted) is None and all((folder / name).is_file() for name in wanted)
    return folder if complete else None


def fetch(name: str, source: str, revision: str | None = None) -> Path:
    """The checked folder of a seed on the Hub: from the cache, or else downloaded.

    Every file is compared with the Hub's hash; a damaged one is downloaded again, once. InputError says what to do if
    the model cannot be had.
    """
    for _ in range(2):
        folder = snapshot(source, revision) or _with_retries(_download, name, source, revision)
        names = needed_files({path.name for path in folder.iterdir()})
        damaged = [folder / name for name in sorted(names) if _is_damaged(folder / name)]
        if not damaged:
            return folder
        for path in damaged:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    raise InputError(
        f"seed '{name}': {damaged[0].name} of the model '{source}' arrived damaged twice (its hash is not the Hub's) "
        "and was deleted; run the same command again, and check the network if that does not help."
    )


def listed_sha256(source: str, revision: str | None = None) -> str | None:
    """`weights_sha256` of a model by the Hub's list of its files, without a download; None without weights.

    InputError if the Hub does not answer.
    """
    from huggingface_hub import HfApi, constants

    try:
        files = {one.path: one for one in HfApi(endpoint=constants.ENDPOINT).list_repo_tree(source, revision=revision)}
    except Exception as error:
        raise InputError(download_failure(error, "model", source, revision)) from error
    stored = [getattr(files[name], "lfs", None) for name in weight_names(files)]
    return joint_sha256([one.sha256 for one in stored]) if all(stored) else None


def fetch_config(name: str, source: str, revision: str | None = None) -> Path:
    """A folder with at least the config of a seed on the Hub; InputError as in `fetch`."""
    return _cached_folder(source, revision) or _with_retries(_download_config, name, source, revision)


def _with_retries(download: Callable[..., Path], name: str, source: str, revision: str | None) -> Path:
    for wait in (*RETRY_WAITS, None):
        try:
            return download(source, revision)
        except InputError as error:
            raise InputError(f"seed '{name}': {error}") from error.__cause__
        except Exception as error:  # of huggingface_hub, its HTTP client or the file system
            if wait is None or not _is_temporary(error):
                raise InputError(f"seed '{name}': {download_failure(error, 'model', source, revision)}") from error
            time.sleep(wait)


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode() and (folder := _cached_folder(source, revision)) is not None:
        # another program cached it, without the list of its files: good enough offline
        if missing_part({path.name for path in folder.iterdir()}) is None:
            return folder
    api = HfApi(endpoint=constants.ENDPOINT)
    resolved = api.resolve_revision(source, revision=revision)
    names = [entry.path for entry in api.list_repo_tree(source, revision=resolved)]
    if missing := missing_part(names):
        raise InputError(f"the model {_quoted(source, revision)} has no {missing}.")
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
    """Whether a cached file differs from its hash: the cache names each file's content by the Hub's hash."""
    content = path.resolve()
    if not path.is_symlink() or not content.is_file():
        return path.is_symlink()
    if re.fullmatch(r"[0-9a-f]{64}", content.name):
        return file_sha256(content) != content.name
    if re.fullmatch(r"[0-9a-f]{40}", content.name):  # small files go by their git hash
        data = content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != content.name
    return False


# ---------------------------------------------------------------- the seeds of a run


def _folder_of(params: Params, name: str, on_hub: Callable[[str, str | None], Path | None]) -> Path | None:
    """A seed's local folder, or what `on_hub(source, revision)` gives for a seed on the Hub.

    InputError for a folder that is not there; of a name `owner/name` too, where a folder `owner` is.
    """
    source, folder = params.seeds[name], params.local_folder(name)
    parent = folder.parent if "/" in source and folder.parent.is_dir() else None
    if params.is_on_hub(name) and parent is None:
        return on_hub(source, params.revision_of(name))
    if not folder.is_dir():
        inside = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent else []
        names = [one for one in inside if not one.startswith(".")]
        there = f"; {parent} has {shortened(names, 10) if names[10:] else listed(names)}" if names else ""
        raise InputError(f"seed '{name}': there is no folder {folder}{there}.")
    return folder


def seed_folder(params: Params, name: str) -> Path | None:
    """A seed's folder, which may be gone since a run used it; None for a Hub seed that is not in the Hub's cache."""
    folder = params.local_folder(name)
    return snapshot(params.seeds[name], params.revision_of(name)) if params.is_on_hub(name) else folder


def seed_source(params: Params, name: str) -> Path:
    """A seed's folder; a Hub seed that is not in the cache is downloaded."""
    return seed_folder(params, name) or fetch_seed(params, name)


def fetch_seed(params: Params, name: str) -> Path:
    """A seed's folder; a Hub seed is checked against the Hub's hashes, and downloaded if needed."""
    return _folder_of(params, name, partial(fetch, name))


def seed_config(params: Params, name: str) -> Path:
    """A folder with at least a seed's config, which is all that a plan needs."""
    return _folder_of(params, name, partial(fetch_config, name))


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


def _is_connection_error(error: BaseException) -> bool:
    """Whether the Hub could not be reached, or the connection broke off."""
    import httpx2  # the client of huggingface_hub

    broken = any(isinstance(cause, httpx2.TransportError) for cause in _causes(error))
    return broken or "Consistency check failed" in str(error)


def _is_temporary(error: BaseException) -> bool:
    """Whether a new attempt may help: after a time-out, a rate limit, a server's fault or a lost connection."""
    import httpx2

    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    # a refused connection or an unknown host means that there is no network, and seconds do not help
    return _is_connection_error(error) and not any(isinstance(cause, httpx2.ConnectError) for cause in _causes(error))


def download_failure(error: BaseException, kind: str, source: str, revision: str | None = None) -> str:
    """One sentence on why a model or dataset (`kind`) cannot be had from the Hub, and what to do.

    `error` is what huggingface_hub raised; the sentence begins with a small letter and ends with a full stop.
    """
    from huggingface_hub import constants, errors

    wanted, cache = f"the {kind} {_quoted(source, revision)}", constants.HF_HUB_CACHE
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{source}"
    causes, status, login = _causes(error), _status(error), "log in with `hf auth login`"
    again = f"while downloading {wanted}; run the same command again later, downloaded files are kept."
    by_type = {
        errors.OfflineModeIsEnabled: f"{wanted} is not complete in the Hub's cache ({cache}) and offline mode is "
        f"on; unset HF_HUB_OFFLINE to download it, or correct the name if a folder is meant (there is no '{source}').",
        errors.GatedRepoError: f"{wanted} is gated; accept its terms at {page}, then {login} or set HF_TOKEN.",
        errors.RevisionNotFoundError: f"the {kind} '{source}' has no revision '{revision}'; its branches and tags are "
        f"listed at {page}/tree/main.",
        errors.RepositoryNotFoundError: f"there is neither a folder '{source}' nor a {kind} of that name on the Hub "
        f"that you may read; check the name, or {login} if it is private.",
        errors.HFValidationError: f"'{source}' is neither a folder nor a name that the Hub allows; it must be "
        "`owner/name`.",
    }
    for cause_type, sentence in by_type.items():
        if any(isinstance(cause, cause_type) for cause in causes):
            return sentence
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in causes):
        return (
            f"no space left on the disk for {wanted} in {cache}; free some or set HF_HOME to a folder on another disk, "
            "and run the same command again."
        )
    by_status = {
        401: f"the Hub refuses the access token for {wanted}; log in again with `hf auth login`, or unset HF_TOKEN.",
        403: f"the Hub forbids access to {wanted}; give the access token permission to read it.",
        429: f"the Hub's rate limit was reached {again}",
    }
    if status is not None and status >= 500:
        return f"the Hub has an internal error (status {status}) {again}"
    if status is not None:
        otherwise = f"the Hub answers {status} for {wanted}; check the name and the revision at {page}."
        return by_status.get(status, otherwise)
    if _is_connection_error(error):
        return (
            f"there is no folder '{source}', and no connection to the Hub ({constants.ENDPOINT}), or it breaks off, "
            f"{again}"
        )
    why = os.strerror(error.errno) if getattr(error, "errno", None) else first_line(error)
    return f"{wanted} cannot be downloaded ({type(error).__name__}: {why.rstrip('.')})."


def _quoted(source: str, revision: str | None) -> str:
    return f"'{source}'" if revision is None else f"'{source}' (revision '{revision}')"
