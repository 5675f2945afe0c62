"""An executed notebook runs again wherever it lies in the repository, and touches no file of the finished run."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from conftest import needs_browser
from nbclient import NotebookClient

from lib.base.files import file_sha256
from lib.base.params import ROOT
from tests.lab.test_lab import RUN_ALL, jupyterlab, opened_notebook

CHANGES = {"reference": '"b"', "threshold": "0.1"}


def hashes(folder: Path) -> dict[Path, str]:
    """SHA-256 of every file."""
    return {path: file_sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def elsewhere(monkeypatch):
    """A folder somewhere in the repository; nothing but the notebook finds `lib` there."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (ROOT / "outputs").mkdir(exist_ok=True)
    with TemporaryDirectory(dir=ROOT / "outputs", prefix="test-") as folder:
        yield Path(folder)


def executed_copy(chapter: str, run, into: Path, **changes: str) -> Path:
    """A copy of a chapter's notebook as an execution leaves it: the run's file is in a cell of its own."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    for name, value in changes.items():
        notebook.cells[place].source = changed(notebook.cells[place].source, name, value)
    injected = nbformat.v4.new_code_cell(f"params_file = {str(run.folder / 'params.yaml')!r}")
    notebook.cells.insert(place + 1, injected)
    opens = notebook.cells[place + 2]
    outputs = f"from lib.base import params\nparams.OUTPUTS = Path({str(run.folder.parent)!r})\n"
    opens.source = opens.source.replace("run = open_run", f"{outputs}run = open_run")
    nbformat.write(notebook, into / f"{chapter}.ipynb")
    return into / f"{chapter}.ipynb"


def changed(source: str, name: str, value: str) -> str:
    """A parameters cell with another value, as one types it."""
    assert re.search(rf"^{name} = None", source, re.MULTILINE)
    return re.sub(rf"^{name} = None", f"{name} = {value}", source, flags=re.MULTILINE)


def test_a_copy_with_another_threshold_and_reference_leaves_the_run_as_it_is(complete, elsewhere):
    before = hashes(complete.folder)
    copy = nbformat.read(executed_copy("03_universality", complete, elsewhere, **CHANGES), as_version=4)
    client = NotebookClient(copy, timeout=300, kernel_name="python3", resources={"metadata": {"path": elsewhere}})
    cells = [cell for cell in client.execute().cells if cell.cell_type == "code"]
    said = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    shown = sum(output.output_type == "display_data" for cell in cells for output in cell.outputs)
    assert "reference seed b" in said and "rotation" not in said and shown > 20
    assert hashes(complete.folder) == before


@needs_browser
def test_jupyterlab_runs_a_copy_again_with_another_threshold_and_reference(complete, elsewhere, tmp_path, browser):
    before = hashes(complete.folder)
    executed_copy("02_correlation", complete, elsewhere)
    with jupyterlab(ROOT, f"outputs/{elsewhere.name}/02_correlation.ipynb", tmp_path) as address:
        page = opened_notebook(browser, address)
        page.evaluate(
            """async changes => {
                await jupyterapp.restored;
                await jupyterapp.shell.currentWidget.context.ready;
                const cell = jupyterapp.shell.currentWidget.content.model.cells.get(1).sharedModel;
                const change = (source, [name, value]) => source.replace(`${name} = None`, `${name} = ${value}`);
                cell.setSource(Object.entries(changes).reduce(change, cell.getSource()));
            }""",
            CHANGES,
        )
        page.evaluate(RUN_ALL)
        page.wait_for_function("document.querySelectorAll('.jp-OutputArea-output img').length >= 3")
        said = "outputs => outputs.map(one => JSON.stringify(one.toJSON())).join()"  # also of cells out of view
        cells = "[...jupyterapp.shell.currentWidget.content.model.cells].filter(cell => cell.type === 'code')"
        list_of = "cell => Array.from({length: cell.outputs.length}, (_, at) => cell.outputs.get(at))"
        assert "reference seed b" in page.evaluate(f"({said})({cells}.flatMap({list_of}))")
        assert not page.locator("[data-mime-type='application/vnd.jupyter.error']").count()
        page.close()
    assert hashes(complete.folder) == before
