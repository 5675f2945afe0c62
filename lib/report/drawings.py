"""A saved figure as part of a page: an SVG whose greys follow the page, or a PNG where the SVG is large.

An SVG from a run's folder becomes two drawings, one for wide screens and one with its panels below one another. Each
has ids of its own, no styles and no metadata; style.css gives fonts and the colour of what is black.
"""

import gzip
import re
from base64 import b64encode
from pathlib import Path

from bs4 import BeautifulSoup
from bs4.element import NavigableString
from markupsafe import Markup, escape
from PIL import Image

FIGURE_FILES = ("svg", "png")  # formats that a page can save
MOST = 300_000  # bytes of an SVG in a page
VARIANTS = {"wide": "", "narrow": "_narrow"}  # class of the drawing, and what its file's name ends with
PIXELS = 100 / 72  # of the page for a point of a figure
INK, GROUND = (0xE3, 0xE7, 0xEA), (0x14, 0x18, 0x1B)  # of a dark page, as in style.css
ACTIVE = re.compile(r"<script|<foreignObject|\son\w+=|href=\"(?!#|data:image/)", re.IGNORECASE)
_DROPPED = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<title>.*?</title>"
    r"|<defs>\s*<style.*?</style>\s*</defs>|<g id=\"patch_1\">.*?</g>",
    re.DOTALL,
)
_GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
_LONG = re.compile(r"(?<=[\s\"(,])(-?\d+\.\d{2})\d+")
_SHAPES = re.compile(r"(?<=\s)(?:d|x|y|width|height)=\"[^\"]*\"")
_FONT = re.compile(r"font-family: 'DejaVu Sans'[^;\"]*;? ?")
_TURN = re.compile(r" transform=\"rotate\(-?0 [^\"]*\"")


class Drawing(NavigableString):
    """Markup that goes into a page as it is; searches and replacements of text see nothing of it."""

    markup: str

    def __new__(cls, markup: str):
        """An empty text that is written as `markup`."""
        made = super().__new__(cls, "")
        made.markup = markup
        return made

    def output_ready(self, formatter="minimal") -> str:  # noqa: ARG002, the signature of BeautifulSoup
        """The markup."""
        return self.markup


def on_any_page(grey: re.Match) -> str:
    """A grey as itself on a light page, and as far between ink and ground on a dark one."""
    if grey[1] == "ff":
        return "var(--ground)"
    share = 1 - int(grey[1], 16) / 255
    dark = "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(GROUND, INK, strict=True))
    return f"light-dark({grey[0]},#{dark})"


def drawing(svg: str, alt: str, name: str, variant: str) -> str:
    """An SVG file's text as a drawing in a page, in the page's colours."""
    text = _DROPPED.sub("", svg).strip()
    width, height = (float(re.search(rf'<svg[^>]*\s{side}="([\d.]+)pt"', text)[1]) for side in ("width", "height"))
    box = re.search(r'viewBox="([^"]*)"', text)[1]
    text = re.sub(r"<svg[^>]*>", "", text, count=1).removesuffix("</svg>")
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    prefix = f"{name}-{variant}-"
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
    text = _SHAPES.sub(lambda shape: _LONG.sub(r"\1", shape[0]), text)
    text = _TURN.sub("", _FONT.sub("", text))
    text = re.sub(r'style="[^"]*"', lambda style: _GREY.sub(on_any_page, style[0]), text)
    text = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text))
    return (
        f'<svg class="{variant}" role="img" aria-label="{escape(alt)}" viewBox="{escape(box)}" '
        f'width="{PIXELS * width:.0f}" height="{PIXELS * height:.0f}">{text}</svg>'
    )


def drawings(path: Path, alt: str) -> str:
    """The drawings of the figure whose PNG is at `path`; empty where it has no SVG that is small and at rest."""
    made = []
    for variant, ending in VARIANTS.items():
        file = path.with_name(f"{path.stem}{ending}.svg")
        if not file.exists() or file.stat().st_size > MOST:
            break
        svg = file.read_text(encoding="utf-8")
        if ACTIVE.search(_DROPPED.sub("", svg)):
            break
        made.append(drawing(svg, alt, path.stem, variant))
    return "".join(made)


def figure_file(path: Path, shown: bool = False) -> dict[str, str]:
    """Attributes of a link that saves a figure's file: the page holds it, compressed, unless it is `shown` there.

    A browser would open an SVG instead of saving it.
    """
    link = {"href": f"../figures/{path.name}", "download": path.name}
    if not shown:
        link["data-gzip"] = b64encode(gzip.compress(path.read_bytes(), mtime=0)).decode()
    return link


def figure_files(path: Path, drawn: bool) -> dict[str, dict[str, str]]:
    """Links to the files of the figure whose PNG is at `path`, by kind; `drawn` if the page shows no PNG."""
    files = {kind: path.with_suffix(f".{kind}") for kind in FIGURE_FILES}
    return {
        kind.upper(): figure_file(file, kind == "png" and not drawn) for kind, file in files.items() if file.exists()
    }


def add_figures(soup: BeautifulSoup, folder: Path) -> None:
    """Makes every picture a figure with its name as anchor, its drawings, its caption and links to its files.

    The files lie in `folder`. A caption is the Markdown output that carries the figure's name.
    """
    captions = {frame["data-caption"]: frame.extract() for frame in soup.find_all(attrs={"data-caption": True})}
    for number, image in enumerate(soup.find_all("img"), 1):
        frame = image.find_parent(attrs={"data-figure": True})
        name = frame["data-figure"] if frame else ""
        made = drawings(folder / f"{name}.png", image["alt"]) if name else ""
        figure = image.wrap(soup.new_tag("figure", attrs={"class": "picture", "id": name or f"figure-{number}"}))
        box = image.wrap(soup.new_tag("div", attrs={"class": "drawing scroll"}))
        if made:
            image.replace_with(Drawing(made))
        if name in captions:
            caption = soup.new_tag("figcaption")
            caption.extend(list(captions[name].contents))
            figure.append(caption)
        tools = soup.new_tag("p", attrs={"class": "tools"})
        for kind, link in (figure_files(folder / f"{name}.png", bool(made)) if name else {}).items():
            tools.append(soup.new_tag("a", attrs=link | {"aria-label": f"{kind} of this figure"}, string=kind))
        figure.append(tools)
        box.attrs.pop("tabindex", None)
        if frame:
            del frame["data-figure"]


def embedded_picture(path: Path) -> dict:
    """A PNG's figure as the front page shows it: its title, markup (drawings, or the PNG) and files."""
    with Image.open(path) as picture:
        about, width = picture.info, round(picture.width * 100 / 130)
    alt = about.get("Description") or path.stem.replace("_", " ")
    made = drawings(path, alt)
    source = "" if made else "data:image/png;base64," + b64encode(path.read_bytes()).decode()
    image = made or f'<img src="{source}" alt="{escape(alt)}" width="{width}">'
    files = [{"kind": kind, "link": link} for kind, link in figure_files(path, bool(made)).items()]
    return {"title": about.get("Title", ""), "markup": Markup(image), "files": files, "name": path.stem}
