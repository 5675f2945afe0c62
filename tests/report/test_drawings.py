"""A figure in a page: its caption, and drawings whose greys follow the page."""

import re

import pytest
from bs4 import BeautifulSoup

from lib.display import plots
from lib.display.captions import Caption
from lib.report import drawings

CAPTION = Caption("Lines <rise>", "By **one**.", 'A line, "up".')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of a figure with a line in grey and one in a hue."""
    monkeypatch.setattr(plots, "display", lambda _: None)
    fig, axes = plots.canvas()
    axes.plot([0, 0.0015], color=plots.NEUTRAL, label="a <b>")
    axes.scatter([0], [0], color=plots.CORRELATION, rasterized=True)
    axes.legend()
    plots.gallery(tmp_path)(fig, CAPTION, "line")
    return tmp_path


def page(folder):
    html = (
        '<div><div data-figure="line"><img alt="A line, &quot;up&quot;." src="data:image/png;base64,AAAA"></div>'
        '<div data-caption="line"><p><strong>Figure 3.1: Lines.</strong> By one.</p></div></div>'
    )
    soup = BeautifulSoup(html, "html.parser")
    drawings.add_figures(soup, folder)
    return str(soup)


def test_a_figure_has_both_drawings_its_caption_and_its_files(folder):
    html = page(folder)
    soup = BeautifulSoup(html, "html.parser")
    figure = soup.select_one("figure.picture#line")
    assert [one["class"] for one in figure.select(".drawing > svg")] == [["wide"], ["narrow"]]
    assert {one["aria-label"] for one in figure.select("svg")} == {CAPTION.alt} and figure.find("img") is None
    assert figure.figcaption.get_text() == "Figure 3.1: Lines. By one." and "data-caption" not in html
    assert [link.get_text() for link in figure.select(".tools a")] == ["SVG", "PNG"]
    assert all(link["data-gzip"] for link in figure.select(".tools a"))


def test_the_greys_of_a_drawing_follow_the_page_and_its_hues_stay(folder):
    html = page(folder)
    assert "light-dark(#555555,#" in html and "fill: var(--ground)" in html
    assert not re.search(r"(?:fill|stroke): #([0-9a-f]{2})\1\1\b", html)
    dark = [drawings.on_any_page(drawings._GREY.search(grey))[-7:-1] for grey in ("#000000", "#808080", "#fefefe")]
    assert dark[0] == "e3e7ea" and dark[2] == "15191c" and dark == sorted(dark, reverse=True)
    heat = drawings._GREY.search(f"fill: {plots.ON_LIGHT}; fill: {plots.ON_DARK}")
    assert heat is None


def test_ids_are_unique_and_lead_somewhere(folder):
    html = page(folder)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', html)) <= set(ids)


def test_numbers_in_words_keep_their_digits(folder):
    assert ">0.0014<" in page(folder) and not re.search(r'\bd="[^"]*\d\.\d{3}', page(folder))


def test_a_large_or_active_svg_is_shown_as_png(folder, monkeypatch):
    svg = folder / "line.svg"
    whole = svg.read_text()
    for added in ("<script>1</script>", '<a href="https://x.org">y</a>', '<g onload="1"/>'):
        svg.write_text(whole.replace("</svg>", f"{added}</svg>"))
        assert drawings.drawings(folder / "line.png", "x") == ""
    svg.write_text(whole)
    assert drawings.drawings(folder / "line.png", "x")
    monkeypatch.setattr(drawings, "MOST", 100)
    soup = BeautifulSoup(page(folder), "html.parser")
    assert soup.select_one("figure .drawing > img") and not soup.find("svg")
    links = {link.get_text(): link.get("data-gzip") for link in soup.select(".tools a")}
    assert links["SVG"] and links["PNG"] is None  # the page shows it


def test_the_front_page_shows_the_drawing_with_its_title(folder):
    shown = drawings.embedded_picture(folder / "line.png")
    assert shown["title"] == CAPTION.title and shown["markup"].startswith("<svg")
    assert [file["kind"] for file in shown["files"]] == ["SVG", "PNG"]
