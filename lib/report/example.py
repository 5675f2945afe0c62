"""Makes the example report that the repository holds from a finished run: `make example`, or `python -m lib.report.example outputs/<run>`.

Readers get the pages, one executed notebook to read where pages of HTML are not shown, the small tables, the figures that README.md
shows, and screenshots of the front page and of a neuron's page; the rest, which every run writes, would weigh on every clone.
"""

import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from lib.base.errors import InputError, exit_on_input_error
from lib.base.params import OUTPUTS, ROOT, read_params
from lib.display.plots import in_few_colours
from lib.report.archive import contents
from lib.run import Run

HOME = OUTPUTS / "example"
NOTEBOOK = (
    "03_universality.ipynb"  # the chapter that answers the report's question; the others hold what their pages show
)
LARGEST_TABLE = 20_000  # bytes
WINDOW = {"width": 1280, "height": 1120}
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Path of the Chromium on this machine, or the one that CHROMIUM names; None if there is none."""
    return os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@contextmanager
def headless(purpose: str):
    """A headless Chromium, driven by Playwright; InputError naming the purpose if there is none on this machine."""
    from playwright.sync_api import sync_playwright  # tests without it import this module too

    if chromium() is None:
        raise InputError(
            f"{purpose} need Chromium, and there is none on this machine; install it or name one with CHROMIUM=/path."
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        yield browser
        browser.close()


def chosen(folder: Path, shown: set[str]) -> list[Path]:
    """The files of a finished run that are kept, relative to its folder; `shown` are the names of the figures wanted."""
    kept = [path.relative_to(folder) for path in contents(folder)] + [
        path.relative_to(folder) for path in folder.glob(f"notebooks/{NOTEBOOK}")
    ]

    def wanted(path: Path) -> bool:
        if path.parts[0] == "figures":
            return path.name in shown
        if path.parts[0] == "tables":
            return path.suffix == ".parquet" and (folder / path).stat().st_size <= LARGEST_TABLE
        if path.parts[:2] == ("report", "data"):
            return path.suffix == ".csv"
        return path.parts[:2] != ("report", "neurons") or path.name == "explorer.js"

    return sorted(filter(wanted, kept))


def screenshots(folder: Path, neuron: str, into: Path) -> None:
    """front_page.png and neuron_page.png; `neuron` is the end of its page's address, `a/3/17`. By Playwright, in Debian's Chromium."""
    with headless("the screenshots of the example") as browser:
        into.mkdir(parents=True, exist_ok=True)
        for name, page in (("front_page", "index.html"), ("neuron_page", f"neurons.html#{neuron}")):
            tab = browser.new_page(viewport=WINDOW)
            tab.goto(f"{(folder / 'report').resolve().as_uri()}/{page}")
            tab.wait_for_timeout(1500)  # the explorer's data load when they are asked for
            tab.screenshot(path=into / f"{name}.png")
            in_few_colours(Image.open(into / f"{name}.png")).save(into / f"{name}.png", optimize=True)


REDUCED = '<p style="color: var(--soft); font-size: .9rem">This is the example that the repository keeps: its large tables, tables of pages as Parquet, most figures as files, all as SVG, and the data of the neuron explorer are left out. <code>make report</code> writes all of them.</p>'


def say_what_is_missing(page: Path) -> None:
    """Tells a page's readers that the example is reduced, and takes away the figures' SVG that it holds and its links to tables and figures that are not there."""

    def link(found: re.Match) -> str:
        return found[0] if (page.parent / found[1]).exists() else found[2]

    text = re.sub(r'<a href="(\.\./tables/[^"]+)">([^<]+)</a>', link, page.read_text())
    saved = re.compile(r'<a [^>]*href="((?:\.\./figures|data)/[^"]+)"[^>]*>(?:PNG|Parquet)</a>\s*')
    text = saved.sub(lambda found: found[0] if (page.parent / found[1]).exists() else "", text)
    text = re.sub(r'<a [^>]*data-gzip="[^"]*"[^>]*>SVG</a>\s*', "", text)
    page.write_text(text.replace("</h1>", f"</h1>\n{REDUCED}", 1))


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line: the folder of a run."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m lib.report.example outputs/<run>", file=sys.stderr)
        return 2
    folder = Path(given[0])
    shown = set(re.findall(r"outputs/example/figures/([\w.]+)", (ROOT / "README.md").read_text()))
    files = chosen(folder, shown)
    run = Run(read_params(folder / "params.yaml"))
    best = run.neurons.nlargest(1, "excess_corr").iloc[0]
    if folder.resolve() == HOME.resolve():
        raise InputError(f"the example is a reduced copy of another run, and would replace {folder}; name another RUN.")
    shutil.rmtree(HOME, ignore_errors=True)
    for path in files:
        (HOME / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, HOME / path)
    for page in (HOME / "report").glob("*.html"):
        say_what_is_missing(page)
    screenshots(folder, f"{run.params.reference}/{best['layer']:.0f}/{best['neuron']:.0f}", HOME / "screenshots")
    print(f"Example: {HOME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
