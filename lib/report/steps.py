"""The steps of a report that the Makefile chains: resolve the parameters, execute a notebook, render the pages.

`python -m lib.report resolve|execute|render …`; what goes wrong is told in one sentence on stderr.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from lib.base import params as parameters
from lib.base.errors import InputError, told
from lib.base.files import file_sha256, read_json, write_if_changed
from lib.base.hub import weight_files, weights_sha256
from lib.base.params import Params, read_params, write_params, write_statistics_key

EXPLORER = "neurons.html"  # the page of single neurons, linked where there is one


class NotebookError(Exception):
    """A notebook did not run to its end; the message says where it stopped and where what it wrote so far lies."""


# ---------------------------------------------------------------- resolve


def resolve(parameter_file: Path, run: str, seed: str | None = None, tokens: str | None = None) -> Params:
    """Writes outputs/<run>/params.yaml and statistics.yaml, each only if it changes.

    Raises InputError if the parameters cannot be used, or if the folder holds statistics of other parameters,
    seeds or text.
    """
    budget = int(tokens) if tokens and re.fullmatch(r"\d+", tokens) else tokens
    params = read_params(parameter_file, run=run, reference=seed, token_budget=budget)
    _refuse_missing_device(params)
    params.refuse_other_statistics()
    _refuse_other_inputs(params)
    write_statistics_key(params, params.folder / "statistics.yaml")
    write_params(params, params.folder / "params.yaml")
    _forget_other_tables(params)
    return params


def _refuse_missing_device(params: Params) -> None:
    if params.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("device is 'cuda', but torch finds no CUDA device; on this machine auto and cpu are allowed.")


def _refuse_other_inputs(params: Params) -> None:
    """Statistics are stale if a seed or the text has other contents than the pass read; only newer files are hashed."""
    record = params.folder / "stats" / "done.json"
    done = read_json(record)
    _refuse_other_documents(params, bool(done))
    own = params.text_path
    inputs = [([own], done.get("text_hash"), lambda: file_sha256(own))] if own else []
    for name, expected in done.get("seed_hashes", {}).items():
        folder = params.seed_folder(name)
        if folder is not None:
            inputs.append((weight_files(folder), expected, lambda folder=folder: weights_sha256(folder)))
    for files, expected, sha256 in inputs:
        present = [path for path in files if path.is_file()] if expected else []
        newer = [path for path in present if path.stat().st_mtime > record.stat().st_mtime]
        if newer and sha256() != expected:
            raise InputError(
                f"{newer[0]} has changed since outputs/{params.run} was made from it; choose another name with RUN=…, "
                f"or delete it with `make clean RUN={params.run}`."
            )


def _refuse_other_documents(params: Params, used: bool) -> None:
    """Local documents must be there, and what statistics were made from must not have changed since."""
    if params.text_source is None or params.text_source.dataset is not None:
        return
    from lib.text.tokenise import local_files_changed  # imports what no run of a token file needs

    if local_files_changed(params) and used:
        raise InputError(
            f"files of the text {params.text_title} have changed since outputs/{params.run} was made from them; choose "
            f"another name with RUN=…, or delete it with `make clean RUN={params.run}`."
        )


def _forget_other_tables(params: Params) -> None:
    """A live notebook may have left tables of another threshold; without their record make writes them again."""
    record = params.folder / "tables" / "done.json"
    if any(getattr(params, key, value) != value for key, value in read_json(record).items()):
        record.unlink()


# ---------------------------------------------------------------- execute


def execute(notebook: Path, params_file: Path) -> Path:
    """Runs a notebook with papermill in its own folder; its executed copy lies in outputs/<run>/notebooks.

    Raises InputError where the notebook did, and NotebookError for any other failing cell or a dead kernel; then
    the partial notebook and the traceback are in outputs/<run>/unfinished.
    """
    _leave_out_web_addresses()
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if not params_file.is_file():
        raise InputError(f"the parameter file {params_file} does not exist; `python -m lib.report resolve` writes it.")
    executed = params_file.parent / "notebooks" / notebook.name
    partial = params_file.parent / "unfinished" / notebook.name
    log = partial.with_suffix(".log")
    for folder in (executed.parent, partial.parent):
        folder.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")  # so that no other chapter, ending now, takes the folder for empty
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would say is in the sentence that we raise
    started = time.monotonic()
    try:
        papermill.execute_notebook(
            notebook,
            partial,
            parameters={"params_file": os.path.relpath(params_file, notebook.parent)},
            kernel_name="python3",
            language="python",
            cwd=notebook.parent,
            progress_bar={"desc": f"{notebook.stem:24}"} if sys.stderr.isatty() else False,
            kernel_manager_class=_kernel_manager(),
        )
    except PapermillExecutionError as error:
        log.write_text(_without_colours("\n".join(error.traceback)) + "\n", encoding="utf-8")
        _refuse_full_disk(error.ename, error.evalue)
        if error.ename == "InputError":
            raise InputError(error.evalue) from None
        message = f"{error.ename}: {_one_line(error.evalue)}" if error.evalue else error.ename
        raise NotebookError(
            f"{notebook.name} stopped in cell [{error.exec_count}] with {message} "
            f"(partial notebook: {partial}, traceback: {log})"
        ) from None
    except (DeadKernelError, RuntimeError) as error:
        log.unlink()
        raise NotebookError(
            f"the kernel of {notebook.name} died{_where(partial)}, most likely killed for want of memory "
            f"(partial notebook: {partial}); {_one_line(error)}"
        ) from None
    os.replace(partial, executed)
    log.unlink()
    with contextlib.suppress(OSError):  # another chapter's lies there
        partial.parent.rmdir()
    print(f"{notebook.name}: done in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return executed


def _leave_out_web_addresses() -> None:
    """Has jsonschema, which notebooks are checked with, do without its 38 parsers of web addresses: it is imported thrice as fast."""
    sys.modules.setdefault("rfc3987_syntax", None)


def _kernel_manager() -> type:
    """Kernels that are always this environment's Python, whatever kernels are installed on the machine."""
    import zmq
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    search = os.pathsep.join([str(parameters.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

    class OwnKernelManager(AsyncKernelManager):
        def __init__(self, **options):
            super().__init__(**options)
            self.transport_encryption = "auto" if zmq.has("curve") else "disabled"

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                # its log has nothing that the notebook does not show, and may break into our sentence
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"],
                # threads that wait for work while another chapter computes would keep it from its core
                env={"PYTHONPATH": search, "OMP_WAIT_POLICY": "passive", "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
                metadata={"supported_encryption": ["curve"]},
                display_name="Python 3",
                language="python",
            )

    return OwnKernelManager


def _refuse_full_disk(name: str, message: str) -> None:
    if name == "OSError" and f"[Errno {errno.ENOSPC}]" in message:
        raise InputError(f"no space left on the disk ({_one_line(message)}); free some and run the same command again.")


def _where(partial: Path) -> str:
    """' in cell [n]' for the last code cell that was begun in a partial notebook, if one was."""
    cells = [cell for cell in read_json(partial).get("cells", []) if cell["cell_type"] == "code" and cell["source"]]
    begun = sum(cell["metadata"].get("papermill", {}).get("status", "pending") != "pending" for cell in cells)
    return f" in cell [{begun}]" if begun else ""


# ---------------------------------------------------------------- render


def render(folder: Path) -> Path:
    """Writes outputs/<run>/report and provenance.json from the run's notebooks, tables and figures."""
    _leave_out_web_addresses()
    from lib.report import front, pages
    from lib.report.explorer import can_explore
    from lib.report.explorer_files import write_explorer
    from lib.run import Run, write_table, write_tables_shown

    params = read_params(folder / "params.yaml")
    report = folder / "report"
    run = Run(params)
    run.folder = folder  # which need not be where a run of this name writes
    explorable = can_explore(run)
    neurons = f"{EXPLORER}#{params.reference}/" if explorable else None
    chapters = [pages.read_chapter(notebook, neurons) for notebook in sorted((folder / "notebooks").glob("*.ipynb"))]
    provenance = provenance_of(params, folder, {chapter.title: chapter.wall_seconds for chapter in chapters})
    extras = [{"name": EXPLORER, "title": "Neurons"}] if explorable else []
    shared = {"chapters": chapters, "provenance": provenance, "extras": extras}
    claims = front.claims_of(params, folder)
    if claims is not None:
        write_table(folder / "tables" / "ledger.parquet", claims.table)
    content = front.front_page(params, folder, provenance) | front.claims_page(claims, chapters)
    own = {"index.html": pages.page("front.html.j2", current="index.html", **shared, **content)}
    benchmarks = front.benchmarks_page()
    if benchmarks["machines"]:
        own["benchmarks.html"] = pages.page("benchmarks.html.j2", current="benchmarks.html", **benchmarks, **shared)
    written, shown = {}, {name: table for chapter in chapters for name, table in chapter.tables.items()}
    for name, html in own.items():
        written[name], tables = pages.finished(html, Path(name).stem)
        shown |= tables
    if claims is not None:
        shown["ledger"] = claims.table
    neighbours = [*chapters, None]
    for index, chapter in enumerate(chapters):
        written[chapter.name] = pages.page(
            "chapter.html.j2",
            current=chapter.name,
            chapter=chapter,
            sections=chapter.sections,
            previous=chapters[index - 1] if index else {"name": "index.html", "title": "Overview"},
            next=neighbours[index + 1],
            **shared,
        )
    if explorable:
        written[EXPLORER] = write_explorer(run, report, **shared)
    for stale in set(report.glob("*.html")) - {report / name for name in written}:
        stale.unlink()
    write_tables_shown(report / "data", shown)
    write_if_changed(folder / "provenance.json", json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
    for name in sorted(written, key=lambda name: name == "index.html"):  # the front page last: make looks at its time
        (report / name).unlink(missing_ok=True)
        write_if_changed(report / name, written[name])
    return report / "index.html"


def _seed_provenance(params: Params, name: str) -> dict[str, str | None]:
    """Where a seed comes from; of the Hub also the revision that was asked for and the commit that it stood for."""
    source = {"source": params.seeds[name]}
    if not params.is_on_hub(name):
        return source
    folder = params.seed_folder(name)
    return source | {"revision": params.revision_of(name) or "main", "commit": folder.name if folder else None}


def provenance_of(params: Params, folder: Path, notebooks: dict[str, float | None]) -> dict:
    """Where a report comes from: code, versions, seeds, text, device and times, as far as they are known."""
    done = read_json(folder / "stats" / "done.json")
    hashes = done.get("seed_hashes", {})
    commit = _git("rev-parse", "HEAD")
    return {
        "run": params.run,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "parameters": params.model_dump(mode="json", exclude_none=True),
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain", "--", ".", ":!outputs")) if commit else None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _package_versions(),
        "seeds": {name: _seed_provenance(params, name) | {"sha256": hashes.get(name)} for name in params.seeds},
        "text": {
            "source": params.text_title,
            "commit": read_json(folder / "text.json").get("commit"),
            "sha256": done.get("text_hash"),
            "tokens_counted": done.get("tokens_counted"),
        },
        "pass": {
            key: done.get(key)
            for key in ("blocks", "device", "device_name", "precision", "wall_seconds", "peak_memory_bytes")
        },
        "notebooks": notebooks,
    }


def _package_versions() -> dict[str, str]:
    """Versions of the packages pinned in requirements.txt, as installed."""
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==", (parameters.ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return {name: metadata.version(name) for name in pins}


def _git(*arguments: str) -> str | None:
    """What git answers about this repository, or None if it is not a git checkout."""
    if not (parameters.ROOT / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", parameters.ROOT, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _one_line(text: object) -> str:
    return " ".join(_without_colours(str(text)).split())


# ---------------------------------------------------------------- command line


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.report", description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("resolve", help="check the parameters and write outputs/<run>/params.yaml")
    step.add_argument("--params", type=Path, required=True)
    step.add_argument("--run", required=True)
    step.add_argument("--seed")
    step.add_argument("--tokens")
    step = steps.add_parser("execute", help="run one notebook into outputs/<run>/notebooks")
    step.add_argument("notebook", type=Path)
    step.add_argument("params_file", type=Path)
    step = steps.add_parser("render", help="write outputs/<run>/report from the executed notebooks")
    step.add_argument("folder", type=Path)
    return parser


@told
def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 on success, 2 for bad input, 1 for a notebook that fails."""
    given = _arguments().parse_args(arguments)
    try:
        if given.step == "resolve":
            resolve(given.params, given.run, given.seed, given.tokens)
        elif given.step == "execute":
            execute(given.notebook, given.params_file)
        else:
            render(given.folder)
    except NotebookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("error: no space left on the disk; free some and run the same command again.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
