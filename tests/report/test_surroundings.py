"""What a user's machine has beside the environment changes no figure and stops no step: configuration, other packages
on PYTHONPATH, the locale, Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from lib.base.files import locked
from lib.base.params import ROOT
from lib.report import __main__ as report

DRAWING = """
from pathlib import Path
from lib.display import plots
from lib.display.captions import Caption

figure, axes = plots.canvas()
axes.plot([0, 1], label="größer – ρ")
axes.set_xlabel("layer")
axes.legend()
plots.gallery(Path(params_file).parent / "figures")(figure, Caption("Größer – w_out", "Text ρ.", "a line"), "line")
"""
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so do its children
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run_folder(folder: Path, *cells: str) -> Path:
    """A run's folder, and beside it the notebook 02_test.ipynb of these cells."""
    (folder / "run").mkdir(parents=True)
    shutil.copy(ROOT / "params" / "smoke.yaml", folder / "run" / "params.yaml")
    parameters = new_code_cell("params_file = None", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[parameters, *map(new_code_cell, cells)]), folder / "02_test.ipynb")
    return folder / "run"


def execution(folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    """A process that executes 02_test.ipynb beside the run's folder."""
    command = [sys.executable, "-m", "lib.report", "execute"]
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_"))}
    return subprocess.Popen(
        [*command, str(folder.parent / "02_test.ipynb"), str(folder / "params.yaml")],
        cwd=ROOT,
        env=given | environment,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def drawn(folder: Path, environment: dict[str, str]) -> list[bytes]:
    """The figure's files that the notebook writes in this environment."""
    process = execution(run_folder(folder, DRAWING), environment)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    return files(folder / "run")


def files(run: Path) -> list[bytes]:
    """A run's figure, byte for byte."""
    return [(run / "figures" / f"line.{kind}").read_bytes() for kind in ("png", "svg")]


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory) -> Path:
    """The run of an execution that nothing disturbs."""
    folder = tmp_path_factory.mktemp("plain")
    drawn(folder, {})
    return folder / "run"


@pytest.fixture(scope="module")
def plain(plain_folder) -> list[bytes]:
    return files(plain_folder)


def configured(folder: Path) -> dict[str, str]:
    """A user's configuration of matplotlib, IPython and Python that would change or stop every notebook."""
    profile = folder / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text(
        "c.InteractiveShellApp.exec_lines = ['del params_file', 'raise']\n"
    )
    (profile / "startup" / "00.py").write_text("import os\nos._exit(3)\n")
    (folder / "matplotlibrc").write_text(
        "font.size: 30\ntext.usetex: True\nfigure.facecolor: red\nfont.family: serif\n"
    )
    (folder / "startup.py").write_text("import os\nos._exit(4)\n")
    return {
        "IPYTHONDIR": str(folder / "ipython"),
        "MATPLOTLIBRC": str(folder / "matplotlibrc"),
        "PYTHONSTARTUP": str(folder / "startup.py"),
    }


def shadowed(folder: Path) -> dict[str, str]:
    """Packages of another environment on PYTHONPATH."""
    for package in ("numpy", "matplotlib", "pydantic", "traitlets", "zmq", "IPython", "lib"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise ImportError('of another environment')\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    "surroundings", [configured, shadowed, lambda _: ASCII], ids=["configured", "shadowed", "ascii"]
)
def test_figures_are_the_same_whatever_surrounds_the_environment(plain, tmp_path, surroundings):
    assert drawn(tmp_path / "made", surroundings(tmp_path / "of the user")) == plain


def test_pages_and_lines_do_not_depend_on_the_locale(plain_folder):
    for step in (["lib.report", "render", str(plain_folder)], ["lib.collect.forecast", "params/smoke.yaml"]):
        ended = subprocess.run([sys.executable, "-m", *step], cwd=ROOT, env=os.environ | ASCII, capture_output=True)
        assert ended.returncode == 0, ended.stderr.decode()
    assert "größer" in (plain_folder / "report" / "02_test.html").read_text(encoding="utf-8")
    assert rb"\xd7" in ended.stdout


# ---------------------------------------------------------------- two at once, and half a notebook


def test_a_notebook_that_another_process_executes_is_left_alone(tmp_path, capfd):
    folder = run_folder(tmp_path, "1 + 1")
    arguments = ["execute", str(tmp_path / "02_test.ipynb"), str(folder / "params.yaml")]
    with locked(folder / "unfinished", "busy", "02_test.log"):
        (folder / "unfinished" / "02_test.ipynb").write_text("half")
        assert report.main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: another process ({os.getpid()}) executes 02_test.ipynb") and error.count("\n") == 1
    assert (folder / "unfinished" / "02_test.ipynb").read_text() == "half"
    assert not list((folder / "notebooks").glob("*"))
    assert report.main(arguments) == 0 and not (folder / "unfinished").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lib.base.params.OUTPUTS", tmp_path / "outputs")
    (tmp_path / "outputs").touch()
    assert report.main(["alone", "tiny", "true"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/outputs/cache/locks cannot be written: Not a directory.\n"


def test_half_a_notebook_is_never_moved_into_place(tmp_path, capfd, monkeypatch):
    folder = run_folder(tmp_path, "1 + 1")

    def half(notebook, partial, **_):
        shutil.copy(notebook, partial)

    monkeypatch.setattr("papermill.execute_notebook", half)
    assert report.main(["execute", str(tmp_path / "02_test.ipynb"), str(folder / "params.yaml")]) == 1
    assert "02_test.ipynb stopped after 0 of 2 cells" in capfd.readouterr().err
    assert not list((folder / "notebooks").glob("*")) and (folder / "unfinished" / "02_test.ipynb").exists()


# ---------------------------------------------------------------- Ctrl-C


def interrupted(process: subprocess.Popen, ready: Path) -> str:
    """What a process writes to stderr after Ctrl-C, pressed once the file `ready` is there."""
    deadline = time.monotonic() + 120
    while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode != 0
    return errors


def test_ctrl_c_in_a_notebook_is_one_sentence(tmp_path):
    folder = run_folder(tmp_path, "import time\nopen('ready', 'w').close()\ntime.sleep(100)")
    errors = interrupted(execution(folder, {}), tmp_path / "ready")
    assert errors.strip() == "stopped; the same command goes on from what is saved."
    assert not list((folder / "notebooks").glob("*"))


IMPORTING = """
import runpy, sys

class Ready:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            open(sys.argv[-1], "w").close()
            while True:
                pass

sys.meta_path.insert(0, Ready)
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("entry", ["lib.collect", "lib.collect.forecast", "lib.training.train", "bench"])
def test_ctrl_c_is_one_sentence_wherever_an_entry_is(tmp_path, entry):
    command = [sys.executable, "-c", IMPORTING, entry, str(tmp_path / "ready")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, encoding="utf-8")
    errors = interrupted(process, tmp_path / "ready")
    assert errors.strip() == "stopped; the same command goes on from what is saved."
