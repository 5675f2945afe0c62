"""The theme, colours and helpers of all figures, and the function that shows and saves them.

A colour means one thing on all pages: universal and other neurons, what is measured and its chance level, roles.
Seeds are shapes in grey. Depth runs along the x axis, dense scatters are rasterised. Functions draw and return; only
`gallery` writes files.
"""

import gc
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from lib.display.captions import Caption
from lib.display.stacking import stack

# Okabe and Ito's colours, which readers with any colour vision can distinguish. Greys turn around on a dark page.
COLOURS = {"universal": "#D55E00", "other": "#56B4E9"}
ALPHA = {"universal": 0.9, "other": 0.5}  # of single dots
CORRELATION, BASELINE, EXCESS = "#0072B2", "#E69F00", "#009E73"  # what is measured; its chance level; the difference
LABEL = "#5C7FE0"  # what has the label, or any label
NEUTRAL, PALE = "#555555", "#a3a3a3"
ROLE_COLOURS = {"prediction": "#7D5BBE", "suppression": "#CC79A7", "partition": "#9A7B2D", "none": "#888888"}
DASHED = {"color": NEUTRAL, "linestyle": "--", "linewidth": 1}  # a line at a bound
SEED_COLOURS = ("#222222", "#8c8c8c", "#4d4d4d", "#a3a3a3", "#636363")
SEED_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
ON_LIGHT, ON_DARK = "#26262a", "#fefefa"  # numbers on a heat map: hardly grey, so that no page turns them around
MARKERS = {"pythia": "s", "small": "o", "medium": "^"}
WIDE, NARROW, HEIGHT = 9.0, 5.5, 3.6  # inches
# Palettes of a PNG, the smallest first: lines and text need few colours, the scale of a heat map many.
PALETTES = ((32, Picture.Quantize.MAXCOVERAGE), (64, Picture.Quantize.MAXCOVERAGE), (128, Picture.Quantize.MEDIANCUT))
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.6g} %".replace("-", "−"))
PLAIN = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))  # for a short log axis, instead of powers of ten

matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
sns.set_theme(
    context="notebook",
    style="whitegrid",
    font="DejaVu Sans",  # comes with matplotlib; seaborn's first choice is not on every machine
    font_scale=0.9,
    rc={
        "figure.dpi": 100,
        "savefig.dpi": 130,
        "pdf.fonttype": 42,  # text stays text in the PDF and in the SVG
        "svg.fonttype": "none",
        "svg.hashsalt": "figure",  # the same figure gives the same file
        "axes.titlesize": "medium",
        "grid.color": "#e6e6e6",
    },
)

FONTS = "'DejaVu Sans', Verdana, sans-serif"  # of text in an SVG
SYMBOL = re.compile(r"(?<![$\w])([wWv])_(out|in|U|O|BOS)\b")  # drawn with a subscript


def gallery(folder: Path, chapter: int | None = None) -> Callable[[Figure, Caption, str], None]:
    """A function `show(fig, caption, name)` that saves and displays a figure, and displays its caption with a number.

    It writes `name.png`, `name.svg` and `name.pdf` to `folder`, without title, and `name_narrow.svg` with the panels
    below one another for phones. Figures are numbered in the order shown, within the `chapter`. The displayed image
    carries the caption's `alt` for screen readers; image and caption carry `name`, which is the anchor on the page.
    """
    numbers: dict[str, int] = {}  # by name, so that a cell that runs again keeps its number

    @_uncollected()
    def show(fig: Figure, caption: Caption, name: str) -> None:
        title, text, alt = caption
        number = numbers.setdefault(name, len(numbers) + 1)
        for words in fig.findobj(Text):
            words.set_text(_typeset(words.get_text()))
        for axis in fig.findobj(Axis):  # drawing writes the labels of ticks again
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if isinstance(axis.get_major_locator(), FixedLocator) and any(map(SYMBOL.search, labels)):
                axis.set_ticklabels([_typeset(label) for label in labels])
        folder.mkdir(parents=True, exist_ok=True)
        area = _laid_out(fig)
        png = _as_png(fig, caption, area)
        (folder / f"{name}.png").write_bytes(png)
        about = {"CreationDate": None, "Title": title, "Subject": alt}
        fig.savefig(folder / f"{name}.pdf", bbox_inches=area, metadata=about)
        _write_svg(fig, folder / f"{name}.svg", caption, area)
        stack(fig)
        _write_svg(fig, folder / f"{name}_narrow.svg", caption, _laid_out(fig))
        width = int.from_bytes(png[16:20], "big")  # pixels, from the PNG's header
        shown = round(width * 100 / matplotlib.rcParams["savefig.dpi"])
        display(Image(data=png, format="png", alt=alt, width=shown, metadata={"name": name}))
        place = f"{number}" if chapter is None else f"{chapter}.{number}"
        display(Markdown(f"**Figure {place}: {as_markdown(title)}.** {text}", metadata={"name": name}))

    return show


def as_markdown(text: str) -> str:
    """Plain text as Markdown that shows the same."""
    return re.sub(r"([\\`*_$\[\]~|])", r"\\\1", text).replace("<", "&lt;")


@contextmanager
def _uncollected():
    """Holds garbage collection back: a figure's many small objects would start it often, a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _typeset(text: str) -> str:
    """The text with its symbols in TeX: w_out as w with the subscript out."""
    return SYMBOL.sub(r"$\\mathit{\1}_{\\mathrm{\2}}$", text)


def in_few_colours(picture: Picture.Image) -> Picture.Image:
    """The picture in the smallest of PALETTES that keeps its colours, which makes a PNG a third as large.

    A palette keeps them if no more than one pixel in a thousand is off by more than 12 of 255 in any channel.
    """
    whole = picture.convert("RGB")
    for colours, method in PALETTES:
        reduced = whole.quantize(colours, method, dither=Picture.Dither.NONE)
        off = np.abs(np.asarray(whole, dtype=np.int16) - np.asarray(reduced.convert("RGB"), dtype=np.int16)).max(-1)
        if (off > 12).mean() <= 1e-3:
            break
    return reduced


def _laid_out(fig: Figure) -> Bbox:
    """Lays a figure out as for a PNG, for good; returns the area in inches that holds all it shows.

    A save would lay it out again, and draw it once more to find that area: six drawings for three files.
    """
    fig.set_dpi(matplotlib.rcParams["savefig.dpi"])
    fig.draw_without_rendering()
    fig.set_layout_engine(None)
    return fig.get_tightbbox().padded(matplotlib.rcParams["savefig.pad_inches"])


def _write_svg(fig: Figure, path: Path, caption: Caption, area: Bbox) -> None:
    """The figure's `area` as SVG whose text has a font as wide where DejaVu Sans is missing."""
    about = {"Date": None, "Title": caption.title, "Description": caption.alt}
    with StringIO() as drawn:
        fig.savefig(drawn, format="svg", bbox_inches=area, metadata=about)
        path.write_text(drawn.getvalue().replace("'DejaVu Sans'", FONTS), encoding="utf-8")


def _as_png(fig: Figure, caption: Caption, area: Bbox) -> bytes:
    """The figure's `area` as PNG, with the caption's title and `alt` as its Title and Description."""
    about = PngInfo()
    about.add_itxt("Title", caption.title)
    about.add_itxt("Description", caption.alt)
    with BytesIO() as drawn, BytesIO() as packed:
        fig.savefig(drawn, format="png", bbox_inches=area)
        picture = Picture.open(drawn)
        in_few_colours(picture).save(packed, "png", optimize=True, pnginfo=about, dpi=picture.info["dpi"])
        return packed.getvalue()


def canvas(rows: int = 1, columns: int = 1, size: tuple[float, float] = (WIDE, HEIGHT), **options):
    """(figure, axes) unknown to pyplot, so that a notebook shows the figure once and frees it."""
    fig = Figure(figsize=size, layout="constrained")
    return fig, fig.subplots(rows, columns, **options)


def groups(neurons: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, dict, float]]:
    """Rows, colour and label, opacity of other neurons, then of universal ones, which are drawn on top."""
    for name, flag in (("other", False), ("universal", True)):
        group = neurons[neurons["is_universal"] == flag]
        yield group, {"color": COLOURS[name], "label": f"{name} ({len(group):,})"}, ALPHA[name]


def scatter(axes: Axes, neurons: pd.DataFrame, x: str, y: str, **legend) -> None:
    """One dot a neuron, universal ones in their colour."""
    for group, look, alpha in groups(neurons):
        axes.scatter(group[x], group[y], s=5, alpha=alpha, rasterized=True, linewidths=0, **look)
    axes.legend(markerscale=3, **legend)


def boxes(axes: Axes, data: pd.DataFrame, x: str, y: str, **options) -> None:
    """Boxes of the quartiles with whiskers at the 5th and 95th percentile, without outliers."""
    options |= {"saturation": 1, "linewidth": 0.8, "width": 0.6, "gap": 0.1 if "hue" in options else 0}
    sns.boxplot(data, x=x, y=y, ax=axes, whis=(5, 95), showfliers=False, **options)


def seed_looks(seeds: Iterable[str]) -> dict[str, dict[str, str]]:
    """Marker and shade of grey of each seed, in order; hues have other meanings."""
    greys, markers = len(SEED_COLOURS), len(SEED_MARKERS)
    return {
        seed: {"color": SEED_COLOURS[index % greys], "marker": SEED_MARKERS[index % markers]}
        for index, seed in enumerate(seeds)
    }


def heatmap(axes: Axes, table: pd.DataFrame, **options) -> None:
    """A heat map whose numbers can be read on its colours, whatever the page."""
    sns.heatmap(table, ax=axes, **options)
    for number in axes.texts:
        number.set_color(ON_DARK if number.get_color() == "w" else ON_LIGHT)


def whole_numbers(axes: Axes) -> None:
    """Ticks of the y axis at whole numbers only."""
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def note(axes: Axes, text: str) -> None:
    """Says inside an empty panel why it is empty."""
    box = {"facecolor": "white", "edgecolor": "none"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=NEUTRAL, bbox=box)


def legend_below(fig: Figure, columns: int = 2, **options) -> None:
    """One legend for all panels below them, each label once."""
    panels = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in fig.axes]
    found = {label: handle for panel in panels for handle, label in panel}
    if found:
        fig.legend(found.values(), found, loc="outside lower center", ncols=columns, frameon=False, **options)


def legend_right(axes: Axes, **options) -> None:
    """A legend beside the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, **options)


def layer_axis(axes: Axes, layers: int) -> None:
    """Labels an x axis that is depth, with a tick at every layer, or at every second one beyond 12 layers."""
    axes.set_xlabel("layer")
    axes.set_xticks(range(0, layers, 1 if layers <= 12 else 2))


def folded(label: str) -> str:
    """A label on two lines, broken at the space nearest to its middle, but not inside brackets."""
    blanks = [index for index, letter in enumerate(label) if letter == " " and "(" not in label[:index]]
    if not blanks:
        return label
    middle = min(blanks, key=lambda index: abs(index - len(label) / 2))
    return label[:middle] + "\n" + label[middle + 1 :]
