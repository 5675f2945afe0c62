"""README and docs: links and commands exist, numbers are the example's, figures of claims are drawn."""

import json
import re

import pandas as pd
import pytest

from lib.base.params import ROOT
from lib.display.claims import VERDICTS, statements
from lib.report.ledger import CLAIMS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
README = PAGES[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", text):
        link = target[0] or target[1]
        assert link.startswith("http") or (page.parent / link).exists(), link
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`|&& )make ([a-z]+)", text, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for module in set(re.findall(r"-m (lib(?:\.\w+)+)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_readme_stays_short():
    assert len(README.encode()) <= 9000


def test_readme_counts_the_examples_verdicts():
    ledger = pd.read_parquet(ROOT / "outputs" / "example" / "tables" / "ledger.parquet")
    holds, fails, unknown = (int((ledger["verdict"] == verdict).sum()) for verdict in VERDICTS)
    assert f"Of {len(ledger)} claims tested, {holds} hold here, {fails} do not, and on {unknown}" in README


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_the_figure_of_a_claim_is_shown_in_its_notebook(claim):
    notebook = json.loads((ROOT / "notebooks" / f"{claim.chapter}.ipynb").read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert f'"{statements()[claim.name].figure}"' in code
