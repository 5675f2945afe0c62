"""The report in headless Chromium: pages load without errors or requests, everything is reachable, controls work.

Skipped on a machine without Chromium. REPORT=outputs/<run>/report tests that report's pages too.
"""

import io
import json
import os
import shutil
from base64 import b64encode
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import needs_browser
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.base.params import ROOT
from lib.base.tensors import write_table
from lib.chapters.universality import captions, figures, in_short, properties
from lib.display import plots
from lib.display.captions import Caption
from lib.display.html import gallery_html, neuron_table_html
from lib.report import ledger, notebook_pages, pages, render
from lib.run import with_universal
from tests.report.made_tables import make_tables

pytestmark = needs_browser
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SMALLEST = "(s => Math.min(...[...s.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize))))"
FIGURES = ("figure_02a_11_distributions", "universal_share_by_layer")


def shown(data: dict, source: str = "show()", **metadata):
    return new_code_cell(source, outputs=[new_output("display_data", data, metadata=metadata)])


def drawing(name: str) -> str:
    return f"document.querySelector('#{name} svg.narrow')"


def drawn(folder: Path, fig, name: str, finding: Caption, monkeypatch):
    """A cell with a figure as the gallery shows and saves it."""
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(plots, "display", found.append)
        plots.gallery(folder)(fig, finding, name)
    png, metadata = found[0]._repr_png_()
    words, named = found[1]._repr_markdown_()
    cell = shown({"image/png": png if isinstance(png, str) else b64encode(png).decode()}, **{"image/png": metadata})
    said = new_output("display_data", {"text/markdown": words}, metadata={"text/markdown": named})
    cell.outputs.append(said)
    return cell


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run with tables of every chapter and pages of two."""
    from types import SimpleNamespace

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lib.display.html import Examples

    folder = tmp_path_factory.mktemp("browser") / "smoke"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "stats").mkdir()
    shutil.copy(ROOT / "params" / "smoke.yaml", folder / "params.yaml")
    (folder / "stats" / "done.json").write_text(
        json.dumps({"tokens_counted": 19681, "seed_hashes": {"a": "0" * 64}, "layers": 6, "neurons": 60})
    )
    tables = make_tables(1, universal=True)
    for name, table in tables.items():
        write_table(folder / "tables" / f"{name}.parquet", table)
    everyone = with_universal(tables["neurons_all_seeds"], 0.5)
    write_table(folder / "tables" / "references.parquet", properties.reference_shares(everyone))
    own = everyone[everyone["seed"] == "a"].reset_index(drop=True)
    of_a = tables["matches_all_seeds"].query("seed == 'a'")
    tests, shares = properties.property_tests(own), properties.layer_shares(everyone)
    with pytest.MonkeyPatch.context() as patch:
        pictures = [
            drawn(folder / "figures", figures.excess(own, 0.5), FIGURES[0], captions.excess(own, 0.5), patch),
            drawn(
                folder / "figures",
                figures.share_by_layer(shares, "a"),
                FIGURES[1],
                captions.share_by_layer(shares, "a"),
                patch,
            ),
        ]
    wide = r"$$\sum_i \frac{a_i}{b_i} = " + " + ".join(rf"\frac{{x_{{{n}}}}}{{y_{{{n}}}}}" for n in range(24)) + "$$"
    cells = [
        new_markdown_cell("# 3 Universality\n\n**Question.** Which neurons do all seeds learn?"),
        new_code_cell("import os  # a comment\nprint('text', 1.5)\nfor x in []: pass"),
        new_markdown_cell(f"## How many?\n\nWith $\\varrho_i$, see [the next](04_families.ipynb#words):\n\n{wide}"),
        pictures[0],
        new_markdown_cell("## Where?"),
        pictures[1],
        new_markdown_cell("## Which properties?"),
        shown({"text/html": captions.property_table(tests, {}).to_html(index=False, border=0)}),
        shown({"text/html": in_short.universality(own, properties.match_layer_percent(of_a), tests).data}),
    ]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    bytewise.decoder = decoders.ByteLevel()
    text = SimpleNamespace(
        tokens=torch.arange(97, 147).remainder(26).add(64)[None], domain=torch.tensor([0]), domains=("prose",)
    )
    best = own.nlargest(20, "excess_corr")
    arrays = {
        "a.value": np.full((6, 60, 2), 2.0, np.float32),
        "a.block": np.zeros((6, 60, 2), np.int32),
        "a.position": np.full((6, 60, 2), 20, np.int16),
        "a.window": np.tile(np.linspace(0, 2, 21, dtype=np.float16), (6, 60, 2, 1)),
    }
    views = Examples(arrays, "a", text, PreTrainedTokenizerFast(tokenizer_object=bytewise))
    browse = [
        new_markdown_cell("# 4 Families\n\n**Question.** What do neurons respond to?\n\n## Words"),
        shown({"text/html": neuron_table_html(views, best, ["excess_corr", "skew"])}),
        new_markdown_cell("## Contexts"),
        shown({"text/html": gallery_html(views, best.head(2))}),
    ]
    for name, own_cells in (("03_universality", cells), ("04_families", browse)):
        nbformat.write(new_notebook(cells=own_cells), folder / "notebooks" / f"{name}.ipynb")
    render.render(folder)
    return folder


def pages_under_test(folder: Path) -> list[Path]:
    more = os.environ.get("REPORT")
    return sorted((folder / "report").glob("*.html")) + (sorted(Path(more).glob("*.html")) if more else [])


@pytest.fixture
def open_page(browser):
    """open_page(file, size, scheme): the page, and what went wrong or was asked for while it loaded and afterwards."""
    contexts = []

    def open_page(file: Path, size: dict = WIDE, scheme: str = "light"):
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page, wrong, asked = context.new_page(), [], []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "requestfailed",
            lambda request: None if request.url.startswith("blob:") else wrong.append(f"failed: {request.url[:100]}"),
        )
        page.on(
            "request",
            lambda request: asked.append(request.url) if not request.url.startswith(("data:", "blob:")) else None,
        )
        page.goto(file.resolve().as_uri())
        return page, wrong, asked

    yield open_page
    for context in contexts:
        context.close()


def test_pages_load_without_error_request_or_broken_link(folder, open_page):
    ids = {}
    for file in pages_under_test(folder):
        page, wrong, asked = open_page(file)
        own = file.resolve().as_uri()
        allowed = (
            own if file.name != "neurons.html" else own.rsplit("/", 1)[0]
        )  # the explorer loads its neurons from beside it
        assert wrong == [] and all(url.startswith(allowed) for url in asked), file.name
        for link in page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"):
            parts = urlsplit(link)
            if parts.scheme != "file":
                assert parts.scheme in ("https", "data"), link
                continue
            target = Path(unquote(parts.path))
            assert target.is_file(), f"{file.name} links to {link}"
            if parts.fragment and target.suffix == ".html" and target.name != "neurons.html":
                if target not in ids:
                    ids[target] = {
                        element["id"]
                        for element in BeautifulSoup(target.read_text(encoding="utf-8"), "html.parser").find_all(
                            id=True
                        )
                    }
                assert unquote(parts.fragment) in ids[target], f"{file.name} links to {link}"
        missing = page.eval_on_selector_all(
            "main img",
            "images => images.filter(image => !image.alt.trim() || !image.complete || !image.naturalWidth).length",
        )
        assert missing == 0, file.name


@pytest.mark.parametrize("size, scheme", [(WIDE, "light"), (WIDE, "dark"), (NARROW, "light")])
def test_accessibility_and_width(folder, open_page, size, scheme):
    axe_package = pytest.importorskip(
        "axe_playwright_python", reason="the package axe-playwright-python is not installed"
    )
    axe = (Path(axe_package.__file__).parent / "axe.min.js").read_text()
    for file in pages_under_test(folder):
        page, wrong, _ = open_page(file, size, scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"{file.name} is wider than the screen"
        )
        page.eval_on_selector_all("details.source", "folds => folds.slice(0, 3).forEach(fold => fold.open = true)")
        page.wait_for_timeout(50)  # until page.js has marked what scrolls inside the opened folds
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        bad = [
            (rule["id"], [node["html"][:120] for node in rule["nodes"][:3]])
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]
        assert bad == [] and wrong == [], file.name


def test_theme_follows_the_system_and_the_button_and_is_kept(folder, open_page):
    index = folder / "report" / "index.html"
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(index, WIDE, scheme)[0] for scheme in ("light", "dark"))
    white, black = light.evaluate(ground), dark.evaluate(ground)
    assert white == "rgb(255, 255, 255)" and black != white
    light.click("button.theme")
    assert light.evaluate(ground) == black
    light.goto((folder / "report" / "03_universality.html").resolve().as_uri())
    assert light.evaluate(ground) == black and light.inner_text("button.theme") == "Light"
    light.emulate_media(media="print")
    assert not light.is_visible("nav.chapters") and not light.is_visible("nav.sections") and light.is_visible("main h1")


def test_the_ledger_shows_rows_of_a_verdict_and_leads_to_their_figures(folder, open_page):
    page, wrong, _ = open_page(folder / "report" / "ledger.html")
    table = pd.read_parquet(folder / "tables" / "ledger.parquet")
    rows, number = "table.ledger tbody tr", table["verdict"].value_counts()
    claims = [text.replace("\u00a0", " ") for text in page.locator("table.ledger th .claim").all_inner_texts()]
    assert sorted(claims) == sorted(table["claim"]) and page.locator(f"{rows}:visible").count() == len(table)
    page.click(f".counts button:has-text('{number['holds']} holds')")
    assert page.locator(f"{rows}:visible").count() == number["holds"] and page.url.endswith("ledger.html#holds")
    assert (
        page.locator("section.claims h2:visible").count()
        == page.locator("section.claims:has(tbody tr:visible)").count()
    )
    page.reload()
    assert set(page.locator(f"{rows} td.verdict:visible").all_inner_texts()) == {"holds"}
    assert page.get_attribute(".counts [aria-pressed=true]", "data-verdict") == "holds"
    page.click(".counts button >> nth=0")
    page.fill(".filter input", "universal KURTOSIS")
    texts = [text.lower() for text in page.locator(rows).all_text_contents()]
    found = sum("universal" in text and "kurtosis" in text for text in texts)
    assert page.locator(f"{rows}:visible").count() == found < len(table)
    assert page.inner_text(".filter output") == f"{found} of {len(table)} rows"
    page.fill(".filter input", "")
    page.click("#claim-universal_share summary")
    assert "1 to 5\xa0%" in page.inner_text("#claim-universal_share dl")
    page.click("#claim-universal_share a.figure")
    assert page.url.endswith(f"03_universality.html#{FIGURES[0]}")
    assert page.locator(f"figure#{FIGURES[0]}").bounding_box()["y"] < WIDE["height"] and wrong == []


def test_a_chip_leads_to_its_row(folder, open_page):
    page, _, _ = open_page(folder / "report" / "index.html")
    assert page.locator(".in-short li").count() == 7 and page.locator("a.chip").count() == 8
    verdict = page.inner_text("a.chip >> nth=7").split("\n")[0]
    page.click("a.chip >> nth=7")
    assert page.url.endswith("ledger.html#claim-depth") and page.inner_text("#claim-depth .verdict") == verdict.strip()
    top = page.locator("#claim-depth").bounding_box()["y"]
    assert 0 < top < WIDE["height"]


def test_search_finds_what_is_on_other_pages(folder, open_page):
    page, wrong, asked = open_page(folder / "report" / "index.html", NARROW)
    page.keyboard.press("/")
    page.fill("dialog.search input", "Kurtosis pre-activation")
    first = page.locator("dialog.search .found a >> nth=0")
    assert "kurtosis" in first.inner_text() and page.inner_text("dialog.search .said").endswith(" found")
    page.fill("dialog.search input", "xyzzy")
    assert page.inner_text("dialog.search .said").startswith("Nothing found") and first.count() == 0
    page.fill("dialog.search input", "which propertie")
    page.keyboard.press("Enter")
    page.wait_for_url("**/03_universality.html#which-properties")
    assert page.locator("#which-properties").bounding_box()["y"] < NARROW["height"] and wrong == []
    assert all(url.endswith(".html") or "#" in url for url in asked)


def test_the_menu_of_a_narrow_screen_leads_to_every_page(folder, open_page):
    page, _, _ = open_page(folder / "report" / "index.html", NARROW)
    assert not page.is_visible("#pages a >> nth=0")
    page.click("button.menu")
    assert page.locator("#pages a:visible").count() == page.locator("#pages a").count() >= 5
    page.click("#pages a:text-is('Glossary')")
    assert page.inner_text("h1") == "Glossary"


def test_terms_have_notes_and_code_can_be_shown_and_copied(folder, open_page):
    page, wrong, _ = open_page(folder / "report" / "03_universality.html")
    page.focus("a.term >> nth=0")
    note, term = page.locator("#note"), page.locator("a.term >> nth=0")
    assert note.is_visible() and note.inner_text() == term.get_attribute("data-note")
    assert note.bounding_box()["y"] >= term.bounding_box()["y"]
    page.keyboard.press("Escape")
    assert not note.is_visible()
    assert not page.is_visible("details.source pre >> nth=0")
    page.click(".sources button")
    assert page.locator("details.source pre:visible").count() == page.locator("details.source").count()
    page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
    page.click("details.source .copy >> nth=0")
    assert (
        "import os" in page.evaluate("window.copied") and page.inner_text(".copy >> nth=0") == "Copied" and wrong == []
    )


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_what_is_wider_than_the_page_says_so_and_scrolls(folder, open_page, size):
    page, _, _ = open_page(folder / "report" / "03_universality.html", size)
    width = (
        "box => [box.scrollWidth > box.clientWidth + 1, box.nextElementSibling?.className === 'sideways', box.tabIndex]"
    )
    found = [page.eval_on_selector(f"{kind} >> nth=0", width) for kind in (".equation", ".scroll")]
    assert all(wide == said == (index == 0) for wide, said, index in found) and found[0][0]
    page.eval_on_selector(".equation", "box => box.scrollLeft = 1e6")
    box, end = page.locator(".equation").bounding_box(), page.locator(".equation math > :last-child").bounding_box()
    assert end["x"] + end["width"] <= box["x"] + box["width"] + 1


def test_without_scripts_chapters_and_ledger_can_be_read(folder, browser):
    context = browser.new_context(java_script_enabled=False, viewport=NARROW)
    page = context.new_page()
    page.goto((folder / "report" / "ledger.html").resolve().as_uri())
    assert page.locator("table.ledger tbody tr:visible").count() == len(ledger.CLAIMS)
    assert "holds" in page.inner_text(".counts") and page.locator(".counts button").count() == 0
    page.click("button.menu")
    page.click("#pages a >> nth=0")
    assert page.is_visible(f"figure#{FIGURES[0]} svg.narrow") and page.is_visible(".in-short")
    context.close()


def test_figures_enlarge_and_save_and_contents_follow(folder, open_page):
    page, wrong, asked = open_page(folder / "report" / "03_universality.html")
    page.click(f"#{FIGURES[1]} svg.wide")
    shown = page.get_attribute(f"#{FIGURES[1]} svg.wide", "aria-label")
    assert page.is_visible("dialog.enlarged") and page.get_attribute("dialog.enlarged svg", "aria-label") == shown
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog.enlarged")
    page.click(f"#{FIGURES[0]} .tools button")
    page.click("dialog.enlarged .close")
    assert not page.is_visible("dialog.enlarged")
    for kind in ("SVG", "PNG"):
        with page.expect_download() as saved:
            page.click(f"#{FIGURES[0]} .tools a:text-is('{kind}')")
        assert saved.value.suggested_filename == f"{FIGURES[0]}.{kind.lower()}"
        assert saved.value.path().read_bytes() == (folder / "figures" / f"{FIGURES[0]}.{kind.lower()}").read_bytes()
    page.evaluate("document.getElementById('which-properties').scrollIntoView()")
    page.wait_for_timeout(100)
    assert page.inner_text("nav.sections [aria-current]") == "Which properties?"
    assert wrong == [] and len([url for url in asked if url.endswith(".html")]) == 1


def test_panels_stack_on_a_phone_with_text_that_can_be_read(folder, open_page):
    page, wrong, _ = open_page(folder / "report" / "03_universality.html", NARROW)
    for name in FIGURES:
        assert page.is_visible(f"#{name} svg.narrow") and not page.is_visible(f"#{name} svg.wide")
        scale = page.evaluate(f"(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)({drawing(name)})")
        assert scale * float(page.evaluate(f"{SMALLEST}({drawing(name)})")) >= 9
        assert page.inner_text(f"#{name} figcaption").startswith("Figure")
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"] and wrong == []


def test_the_ink_of_a_figure_follows_the_page(folder, open_page):
    page, _, _ = open_page(folder / "report" / "03_universality.html")
    ink = f"getComputedStyle(document.querySelector('#{FIGURES[0]} svg.wide text')).fill"
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    light = page.evaluate(ink)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert (light, page.evaluate(ink)) == ("rgb(38, 38, 38)", "rgb(196, 200, 203)")


def test_tables_save_what_they_show(folder, open_page):
    page, _, _ = open_page(folder / "report" / "03_universality.html")
    shown_rows = [row.split("\t") for row in page.inner_text("main .scroll table").strip().split("\n") if row.strip()]
    read = {}
    for kind, reader in {"CSV": pd.read_csv, "Parquet": pd.read_parquet}.items():
        with page.expect_download() as saved:
            page.click(f"main .scroll ~ .tools a:text-is('{kind}')")
        read[kind] = reader(io.BytesIO(saved.value.path().read_bytes()))
    pd.testing.assert_frame_equal(read["CSV"], read["Parquet"], check_dtype=False)
    assert list(read["CSV"]["property"]) == [row[0].strip() for row in shown_rows[-len(read["CSV"]) :]]
    assert read["Parquet"]["median percentile"].dtype.kind in "if"
    browse = pd.read_parquet(folder / "report" / "data" / "04_families-1.parquet")
    best = (
        pd.read_parquet(folder / "tables" / "neurons_all_seeds.parquet")
        .query("seed == 'a'")
        .nlargest(20, "excess_corr")
    )
    assert list(browse["neuron"]) == list(best["neuron"]) and np.allclose(
        browse["excess_corr"], best["excess_corr"], atol=5e-4
    )


def test_a_table_s_numbers_are_read_with_thousands_and_repeated_heads():
    head, row = "<tr><th></th><th>n</th><th>n</th></tr>", "<tr><th>x</th><td>1,234</td><td>1,2</td></tr>"
    soup = BeautifulSoup(f"<table><thead>{head}</thead>{row}</table>", "html.parser")
    table = pages.read_table(soup.table)
    assert table.to_dict("records") == [{"row": "x", "n": 1234, "n 3": "1,2"}]


def test_neurons_link_to_their_pages_in_tables_and_headings():
    head, row = "<tr><th>role</th><th>layer</th><th>neuron</th></tr>", "<tr><th>x</th><td>2</td><td>1,017</td></tr>"
    table = f"<table><thead>{head}</thead>{row}</table>"
    browse = (
        "<div role=table><div role=row><span role=columnheader>layer</span><span role=columnheader>neuron</span></div>"
        "<div role=row><span role=cell>0</span><span role=cell>5</span></div>"
        "<div role=row><div role=cell>its example</div></div></div>"
    )
    other = table.replace("role", "seed")  # of whichever seed
    soup = BeautifulSoup(
        f"{table}{browse}{other}<h4>layer 3 neuron 17: word x, score 0.5</h4><h4>words</h4>", "html.parser"
    )
    before = [pages.read_table(element) for element in soup.select("table, [role=table]")]
    notebook_pages.link_neurons(soup, "neurons.html#b/")
    assert [(link["href"], link.text) for link in soup.find_all("a")] == [
        ("neurons.html#b/2/1017", "1,017"),
        ("neurons.html#b/0/5", "5"),
        ("neurons.html#b/3/17", "layer 3 neuron 17: word x, score 0.5"),
    ]
    for was, element in zip(before, soup.select("table, [role=table]"), strict=True):
        pd.testing.assert_frame_equal(pages.read_table(element), was)
