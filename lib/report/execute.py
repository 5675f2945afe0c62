"""One notebook, executed by papermill in a kernel of this environment."""

import contextlib
import errno
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from lib.base import params as parameters
from lib.base.errors import InputError, without_pointers
from lib.base.files import locked, read_json
from lib.base.progress import Progress
from lib.cache import REPORTS

# The user's IPython configuration is not read, and no package outside this environment comes before its own. What
# tornado logs while a kernel is stopped, in the middle of a message or not, would break into our sentence.
KERNEL = """
import logging, sys
logging.getLogger("tornado").setLevel(logging.CRITICAL)
sys.path.insert(0, {root!r})
import lib
from ipykernel.kernelapp import IPKernelApp
IPKernelApp.load_config_file = lambda *_, **__: None
IPKernelApp.launch_instance()
"""


class NotebookError(Exception):
    """A notebook stopped; the message says where, and where its partial copy lies."""


def execute(notebook: Path, params_file: Path) -> Path:
    """Runs a notebook in its own folder; the executed copy lies in outputs/<run>/notebooks.

    Raises InputError where the notebook did, and NotebookError for any other failing cell or a dead kernel. Then
    outputs/<run>/unfinished has the partial notebook and the traceback.
    """
    skip_web_address_parsers()
    if not params_file.is_file():
        raise InputError(f"the parameter file {params_file} does not exist; `python -m lib.report resolve` writes it.")
    executed = params_file.parent / "notebooks" / notebook.name
    partial = params_file.parent / "unfinished" / notebook.name
    log = partial.with_suffix(".log")  # keeps the folder while another chapter ends
    executed.parent.mkdir(parents=True, exist_ok=True)
    busy = (
        f"another process ({{pid}}) executes {notebook.name} for {params_file.parent}; wait until it ends, or stop it."
    )
    started, begun = time.monotonic(), Progress(params_file.parent, "chapters")
    with locked(partial.parent, busy, log.name):
        _run(notebook, partial, params_file)
        os.replace(partial, executed)
        log.unlink()
    with contextlib.suppress(OSError):  # another chapter's files are there
        partial.parent.rmdir()
    print(f"{notebook.name}: done in {time.monotonic() - started:.0f} s{_whole(executed, begun)}", file=sys.stderr)
    return executed


def _run(notebook: Path, partial: Path, params_file: Path) -> None:
    """Runs all cells of a notebook into its partial copy, or raises what stopped them."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    log = partial.with_suffix(".log")
    for name in ("papermill", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # our sentence says the same
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as ipython:
            papermill.execute_notebook(
                notebook,
                partial,
                parameters={"params_file": _from_root(params_file)},
                kernel_name="python3",
                language="python",
                cwd=notebook.parent,
                progress_bar={"desc": f"{notebook.stem:24}"} if sys.stderr.isatty() else False,
                kernel_manager_class=_kernel_manager(ipython),
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
            f"the kernel of {notebook.name} died{_where(partial)}, probably for lack of memory "
            f"(partial notebook: {partial}); {_one_line(error)}"
        ) from None
    cells = _code_cells(partial)
    ran = sum(cell["execution_count"] is not None for cell in cells)
    if ran < len(cells):  # whatever ended it without an error
        log.unlink()
        raise NotebookError(f"{notebook.name} stopped after {ran} of {len(cells)} cells (partial notebook: {partial})")


def _from_root(path: Path) -> str:
    """A path as notebooks name it wherever they lie: from the repository's root on, or whole if it is elsewhere."""
    path = path.resolve()
    inside = path.is_relative_to(parameters.ROOT)
    return str(path.relative_to(parameters.ROOT) if inside else path)


def _whole(executed: Path, begun: Progress) -> str:
    """How far the whole report is, with the chapters that were executed since the first of them began."""
    chapters = {path.name for path in (parameters.ROOT / "notebooks").glob("*.ipynb")}
    made = {path.name for path in executed.parent.glob("*.ipynb") if path.stat().st_mtime >= begun.began}
    text = begun.text(len(chapters & made) / max(1, len(chapters)))
    return f"; {text}" if text else ""


def skip_web_address_parsers() -> None:
    """Makes jsonschema, which checks notebooks, import in a third of the time: without its parsers of web addresses."""
    sys.modules.setdefault("rfc3987_syntax", None)


def _kernel_manager(ipython: str) -> type:
    """Kernels that always run this environment's Python, not a kernel installed on the machine.

    IPython keeps its profile and history in the folder `ipython`.
    """
    import zmq
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    code = KERNEL.format(root=str(parameters.ROOT))

    class OwnKernelManager(AsyncKernelManager):
        def __init__(self, **options):
            super().__init__(**options)
            self.transport_encryption = "auto" if zmq.has("curve") else "disabled"

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                # the kernel's log repeats the notebook, and may break into our sentence
                argv=[sys.executable, "-c", code, "-f", "{connection_file}", "--log-level=CRITICAL"],
                env={REPORTS: "1", "IPYTHONDIR": ipython, "PYTHONSTARTUP": "", "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
                metadata={"supported_encryption": ["curve"]},
                display_name="Python 3",
                language="python",
            )

    return OwnKernelManager


def _refuse_full_disk(name: str, message: str) -> None:
    if name == "OSError" and f"[Errno {errno.ENOSPC}]" in message:
        raise InputError(f"no space left on the disk ({_one_line(message)}); free some and run the same command again.")


def _code_cells(partial: Path) -> list[dict]:
    """The code cells of a partial notebook that hold code."""
    return [cell for cell in read_json(partial).get("cells", []) if cell["cell_type"] == "code" and cell["source"]]


def _where(partial: Path) -> str:
    """' in cell [n]' for the last code cell of a partial notebook that began."""
    status = [cell["metadata"].get("papermill", {}).get("status", "pending") for cell in _code_cells(partial)]
    begun = sum(one != "pending" for one in status)
    return f" in cell [{begun}]" if begun else ""


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _one_line(text: object) -> str:
    return " ".join(without_pointers(_without_colours(str(text))).split())
