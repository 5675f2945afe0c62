"""Makes the example report that the repository holds from a finished run: `make example`.

It keeps the pages, one executed notebook for readers who see no HTML, the small tables, the figures that README.md
shows, and screenshots of the front page and of a neuron's page. The rest would weigh on every clone.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from PIL import Image

from lib.base.browser import WINDOW, headless
from lib.base.errors import InputError, exit_on_input_error
from lib.base.params import OUTPUTS, ROOT, read_params
from lib.display.plots import in_few_colours
from lib.report.archive import contents
from lib.run import Run

EXAMPLE = OUTPUTS / "example"
PARTS = {"figures", "notebooks", "params.yaml", "provenance.json", "report", "screenshots", "tables"}
NOTEBOOK = "03_universality.ipynb"  # the chapter that answers the report's question
LARGEST_TABLE = 40_000  # bytes
REDUCED = (
    '<p style="color: var(--soft); font-size: .9rem">This is a reduced example. It leaves out the large tables, the '
    "Parquet copies of the tables on pages, most figure files, and the data of the neuron explorer. "
    "<code>make report</code> writes all of them.</p>"
)


def chosen(folder: Path, shown: set[str]) -> list[Path]:
    """The files of a finished run to keep, relative to its folder; `shown` are the names of the figures to keep."""

    def wanted(path: Path) -> bool:
        if path.parts[0] == "figures":
            return path.name in shown
        if path.parts[0] == "tables":
            return path.suffix == ".parquet" and (folder / path).stat().st_size <= LARGEST_TABLE
        if path.parts[:2] == ("report", "data"):
            return path.suffix == ".csv"
        return path.parts[:2] != ("report", "neurons") or path.name == "explorer.js"

    files = [*contents(folder), *folder.glob(f"notebooks/{NOTEBOOK}")]
    return sorted(filter(wanted, (path.relative_to(folder) for path in files)))


def refuse_other_folder(into: Path, run: Path) -> None:
    """Raises InputError unless `into` is new, empty or an earlier example, and not the run itself."""
    if into.resolve().is_relative_to(run.resolve()):
        raise InputError(f"the example must not lie in the run {run} that it is made from; name another RUN or INTO.")
    if into.exists() and not into.is_dir():
        raise InputError(f"{into} is a file, but an example report needs a folder; name another with INTO.")
    inside = {path.name for path in into.iterdir()} if into.exists() else set()
    if inside and ("screenshots" not in inside or inside - PARTS):
        other = min(inside - PARTS, default="no screenshots")
        raise InputError(
            f"{into} is not an example report (it has {other}) and stays as it is; name another with INTO."
        )


def screenshots(folder: Path, neuron: str, into: Path) -> None:
    """front_page.png and neuron_page.png of the report in `folder`; `neuron` is a page's address, such as `a/3/17`."""
    with headless("the screenshots of the example") as browser:
        into.mkdir(parents=True, exist_ok=True)
        for name, page in (("front_page", "index.html"), ("neuron_page", f"neurons.html#{neuron}")):
            tab = browser.new_page(viewport=WINDOW)
            tab.goto(f"{(folder / 'report').resolve().as_uri()}/{page}")
            tab.wait_for_timeout(1500)  # the explorer loads its data late
            tab.screenshot(path=into / f"{name}.png")
            in_few_colours(Image.open(into / f"{name}.png")).save(into / f"{name}.png", optimize=True)


def say_what_is_missing(page: Path) -> None:
    """Adds REDUCED to a page, and removes its SVG copies and its links to files that the example lacks."""

    def there(found: re.Match) -> bool:
        return (page.parent / found[1]).exists()

    table = re.compile(r'<a href="(\.\./(?:tables|notebooks)/[^"]+)">([^<]+)</a>')
    saved = re.compile(r'<a [^>]*href="((?:\.\./figures|data)/[^"]+)"[^>]*>(?:PNG|Parquet)</a>\s*')
    text = table.sub(lambda found: found[0] if there(found) else found[2], page.read_text(encoding="utf-8"))
    text = saved.sub(lambda found: found[0] if there(found) else "", text)
    text = re.sub(r'<a [^>]*data-gzip="[^"]*"[^>]*>SVG</a>\s*', "", text)
    page.write_text(text.replace("</h1>", f"</h1>\n{REDUCED}", 1), encoding="utf-8")


def write_example(folder: Path, into: Path) -> None:
    """Writes the example of a finished run; an earlier one in `into` is replaced when the new one is complete."""
    refuse_other_folder(into, folder)
    shown = set(re.findall(r"outputs/example/figures/([\w.]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    files = chosen(folder, shown)
    run = Run(read_params(folder / "params.yaml"))
    run.folder = folder
    best = run.neurons.nlargest(1, "excess_corr").iloc[0]
    unfinished = into.with_name(f"{into.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for path in files:
        (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, unfinished / path)
    for page in (unfinished / "report").glob("*.html"):
        say_what_is_missing(page)
    neuron = f"{run.params.reference}/{best['layer']:.0f}/{best['neuron']:.0f}"
    screenshots(folder, neuron, unfinished / "screenshots")
    shutil.rmtree(into, ignore_errors=True)
    unfinished.rename(into)


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m lib.report.example", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="outputs/<run>, finished")
    parser.add_argument("--into", type=Path, default=EXAMPLE, help="a new folder, or an earlier example")
    given = parser.parse_args(arguments)
    write_example(given.folder, given.into)
    print(f"Example: {given.into.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
