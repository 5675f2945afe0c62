"""A Hugging Face Hub on 127.0.0.1 for tests: enough of its HTTP protocol for huggingface_hub and datasets as pinned.

    with LocalHub() as hub:
        hub.add("models", "owner/name", {"config.json": b"{}", "model.safetensors": Path("…")}, revision="step100")
        hub.fail("drop", "model.safetensors")       # the next request for such a path
        # HF_ENDPOINT=hub.url, HF_HUB_CACHE=a temporary folder
        hub.requests                                # [(method, path, status), …]

As on the real Hub, small files are served by /resolve/ itself with their git hash as ETag, and large ones (by their
ending) are redirected to another origin, with SHA-256 and size in the X-Linked-* headers of the redirect.
"""

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet", ".zst", ".gz", ".jsonl")  # stored as LFS
FAULTS = ("drop", "corrupt", "slow", "401", "403", "404", "429", "500")
SLOW_SECONDS = 0.05  # between the pieces of a slow answer, of which there are about twenty


@dataclass
class StoredFile:
    """One file of a repository, read from disk only when it is asked for."""

    source: Path | bytes
    large: bool

    def __post_init__(self):
        content = self.content()
        self.size = len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass
class Repository:
    """The files of each commit, and the commit of each branch or tag."""

    gated: bool = False
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)


class LocalHub:
    """Repositories, faults and a log of requests, served from two ports (the Hub and its storage) while in `with`."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str, int]] = []
        self._faults: list[list] = []  # [fault, part of the path, times left]
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> "LocalHub":
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(
        self, kind: str, name: str, files: Path | dict[str, Path | bytes], revision: str = "main", gated: bool = False
    ) -> str:
        """Puts a folder, or files by path, under a revision of a repository ('models' or 'datasets'); its commit."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path for path in sorted(files.rglob("*")) if path.is_file()}
        stored = {path: StoredFile(source, path.endswith(LARGE)) for path, source in files.items()}
        digests = [name, revision] + [f"{path} {file.sha256}" for path, file in sorted(stored.items())]
        commit = hashlib.sha1("\n".join(digests).encode()).hexdigest()
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.gated = gated
        repository.commits[commit] = stored
        repository.revisions[revision] = commit
        repository.revisions.setdefault("main", commit)
        return commit

    def fail(self, fault: str, path: str, times: int = 1) -> None:
        """The next `times` requests whose path contains `path` and that the fault concerns meet it.

        'drop' closes the connection in the middle of the content, 'corrupt' changes one byte of it, 'slow' sends it
        piece by piece (large files only); the numbers are statuses: '401' a refused access token, '403' no permission,
        '404' no such file, '429' too many requests, '500' a broken server.
        """
        assert fault in FAULTS, fault
        self._faults.append([fault, path, times])

    def heal(self) -> None:
        """Forgets every fault and the log of requests."""
        self._faults.clear()
        self.requests.clear()

    def take_fault(self, path: str, has_content: bool) -> str | None:
        """The fault that a request meets; those of the content need an answer that has some."""
        with self._lock:
            for entry in self._faults:
                fault, part, left = entry
                if left and part in path and (has_content or fault.isdigit()):
                    entry[2] -= 1
                    return fault
        return None


class _Refused(Exception):
    """An answer without content: status, the Hub's error code and its message."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


REFUSALS = {
    "401": _Refused(401, "", "Invalid credentials in Authorization header"),
    "403": _Refused(403, "", "you do not have permission"),
    "404": _Refused(404, "EntryNotFound", "Entry not found"),
    "429": _Refused(429, "", "Too many requests"),
    "500": _Refused(500, "", "Internal error"),
}


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.fault = self.hub.take_fault(url.path, has_content=self.command != "HEAD" and parts[0] == "storage")
        try:
            if self.fault in REFUSALS:
                raise REFUSALS[self.fault]
            if parts[0] == "storage":
                self._storage(parts)
            elif parts[0] == "api":
                self._api(parts[1], parts[2:], parse_qs(url.query), body)
            else:
                self._resolve(*((parts[0], parts[1:]) if parts[0] == "datasets" else ("models", parts)))
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    # ------------------------------------------------------------ what is asked for

    def _repository(self, kind: str, parts: list[str], word: str) -> tuple[str, Repository, list[str]]:
        """(name, repository, what follows `word`) of a path [owner/]name/word/…"""
        at = parts.index(word) if word in parts else len(parts)
        name = "/".join(parts[:at])
        if (kind, name) not in self.hub.repositories:
            raise _Refused(401, "RepoNotFound", "Invalid username or password.")  # as the Hub tells strangers
        return name, self.hub.repositories[kind, name], parts[at + 1 :]

    @staticmethod
    def _commit(repository: Repository, revision: str) -> str:
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, kind: str, parts: list[str], query: dict, body: bytes) -> None:
        if kind not in ("models", "datasets"):
            raise _Refused(404)
        word = next((part for part in ("tree", "paths-info", "revision", "refs") if part in parts[1:]), "revision")
        name, repository, rest = self._repository(kind, parts, word)
        if word == "refs":
            branches = [
                {"name": revision, "ref": f"refs/heads/{revision}", "targetCommit": commit}
                for revision, commit in repository.revisions.items()
            ]
            return self._json({"branches": branches, "tags": [], "converts": []})
        commit = self._commit(repository, rest[0] if rest else "main")
        files = repository.commits[commit]
        if word == "revision":
            content = {
                "id": name,
                "sha": commit,
                "private": False,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2024-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in files],
            }
            return self._json(content)
        if word == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._json(_tree(files, "/".join(rest[1:]), recursive))
        asked = parse_qs(body.decode()).get("paths", []) if b"paths=" in body else json.loads(body)["paths"]
        everything = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
        return self._json([everything[path] for path in (path.strip("/") for path in asked) if path in everything])

    def _resolve(self, kind: str, parts: list[str]) -> None:
        _, repository, rest = self._repository(kind, parts, "resolve")
        if len(rest) < 2:
            raise _Refused(404)
        if repository.gated:
            raise _Refused(401, "GatedRepo", "Access to this model is restricted. Please log in.")
        commit = self._commit(repository, rest[0])
        file = repository.commits[commit].get("/".join(rest[1:]))
        headers = {"X-Repo-Commit": commit}
        if file is None:
            self._send(404, b"Entry not found", headers | {"X-Error-Code": "EntryNotFound"})
        elif file.large:
            location = f"{self.hub.storage_url}/storage/{kind}/{quote('/'.join(parts), safe='')}/{file.sha256}"
            linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"', "Location": location}
            self._send(302, b"", headers | linked)
        else:
            self._content(file, headers)

    def _storage(self, parts: list[str]) -> None:
        kind, sha256 = parts[1], parts[3]
        for (of_kind, _), repository in self.hub.repositories.items():
            for files in repository.commits.values() if of_kind == kind else ():
                for file in files.values():
                    if file.sha256 == sha256:
                        return self._content(file, {})
        raise _Refused(404)

    # ------------------------------------------------------------ what is answered

    def _json(self, content) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _content(self, file: StoredFile, headers: dict[str, str]) -> None:
        """A file, or the part of it that a Range header asks for."""
        content = file.content()
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            return self._send(200, content, headers)
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, file.size - int(last))
        stop = int(last) + 1 if first and last else file.size
        if start >= file.size:
            return self._send(416, b"", {"Content-Range": f"bytes */{file.size}"})
        stop = min(stop, file.size)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return self._send(206, content[start:stop], headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "corrupt" and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if self.fault == "drop":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
        elif self.fault == "slow":
            for start in range(0, len(content), len(content) // 20 + 1):
                self.wfile.write(content[start : start + len(content) // 20 + 1])
                self.wfile.flush()
                time.sleep(SLOW_SECONDS)
        else:
            self.wfile.write(content)


def _tree(files: dict[str, StoredFile], under: str, recursive: bool) -> list[dict]:
    """The Hub's listing of a folder: its files and folders, or everything below it."""
    prefix = f"{under}/" if under else ""
    inside = {path: file for path, file in files.items() if path.startswith(prefix)}
    if not inside:
        raise REFUSALS["404"]
    entries = {}
    for path, file in inside.items():
        steps = path.removeprefix(prefix).split("/")
        for depth in range(1, len(steps)):
            folder = prefix + "/".join(steps[:depth])
            if recursive or depth == 1:
                entries[folder] = {
                    "type": "directory",
                    "oid": hashlib.sha1(folder.encode()).hexdigest(),
                    "size": 0,
                    "path": folder,
                }
        if recursive or len(steps) == 1:
            entries[path] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
            if file.large:
                entries[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return list(entries.values())
