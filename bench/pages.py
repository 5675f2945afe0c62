"""How soon a reader sees a finished report: `python -m bench.pages outputs/<run>` prints a line a page and its size.

Every page is opened several times, from disk and in a fresh profile of headless Chromium. A line has the median and the
slowest time to the first paint, and to the complete page (a neuron with its contexts).
"""

import statistics
import sys
import time
from pathlib import Path

from lib.base.browser import WINDOW, headless
from lib.base.errors import InputError, exit_on_input_error
from lib.base.params import read_params

ROUNDS = 5
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def views(browser, address: str) -> tuple[float, float]:
    """Seconds to the first paint and to everything being there; each time a new profile, so that nothing is cached."""
    with browser.new_context(viewport=WINDOW) as context:
        page = context.new_page()
        started = time.perf_counter()
        page.goto(address)
        if "#" in address:
            page.wait_for_selector(f'#card[data-complete="{address.split("#")[1]}"]')
        complete = time.perf_counter() - started
        # the pages' own policy forbids Playwright to wait for an expression
        while (painted := page.evaluate(PAINTED)) is None:
            page.wait_for_timeout(10)
        return painted / 1000, complete


@exit_on_input_error
def main(arguments: list[str] | None = None) -> int:
    """Command line: the folder of a run with a finished report."""
    given = sys.argv[1:] if arguments is None else arguments
    folder = Path(given[0] if given else "outputs/tiny") / "report"
    if not (folder / "index.html").is_file():
        raise InputError(f"there is no finished report in {folder}; `make report` makes one.")
    reference = read_params(folder.parent / "params.yaml").reference
    pages = [
        *sorted(path.name for path in folder.glob("*.html") if path.name != "neurons.html"),
        f"neurons.html#{reference}/0/0",
    ]
    with headless("times of pages") as browser:
        found = {page: [] for page in pages}
        for _ in range(ROUNDS):
            for page, times in found.items():
                times.append(views(browser, f"{folder.resolve().as_uri()}/{page}"))
    for page, times in found.items():
        painted, complete = ([*column] for column in zip(*times, strict=True))
        print(
            f"{page}: first paint {statistics.median(painted):.2f} s (slowest {max(painted):.2f}), "
            f"complete {statistics.median(complete):.2f} s (slowest {max(complete):.2f})"
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"report: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
