"""The theme, colours and helpers of all figures, and the function that shows and saves them.

Universal and other neurons have the same two colours everywhere, depth runs along the x axis, dense scatters are
rasterised. Functions draw and return; only `gallery` writes files.
"""

import gc
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
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

# Okabe and Ito's colours, which readers with any colour vision can distinguish
COLOURS = {"universal": "#D55E00", "other": "#56B4E9"}
ALPHA = {"universal": 0.9, "other": 0.5}  # of single dots
CORRELATION, BASELINE, EXCESS, NEUTRAL = "#0072B2", "#E69F00", "#009E73", "#555555"
ROLE_COLOURS = {"prediction": "#0072B2", "suppression": "#CC79A7", "partition": "#E69F00", "none": "#888888"}
DASHED = {"color": NEUTRAL, "linestyle": "--", "linewidth": 1}  # a line at a bound
SEED_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
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

SYMBOL = re.compile(r"(?<![$\w])([wWv])_(out|in|U|O|BOS)\b")  # drawn with a subscript


def gallery(folder: Path) -> Callable[[Figure, Caption, str], None]:
    """A function `show(fig, caption, name)` that titles, saves and displays a figure and displays its caption.

    It writes `name.png`, `name.svg` and `name.pdf` to `folder`. The displayed image carries the caption's `alt` for
    screen readers and `name`, which becomes its anchor on the page.
    """

    @_uncollected()
    def show(fig: Figure, caption: Caption, name: str) -> None:
        title, text, alt = caption
        for words in fig.findobj(Text):
            words.set_text(_typeset(words.get_text()))
        for axis in fig.findobj(Axis):  # drawing writes the labels of ticks again
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if isinstance(axis.get_major_locator(), FixedLocator) and any(map(SYMBOL.search, labels)):
                axis.set_ticklabels([_typeset(label) for label in labels])
        fig.suptitle(_typeset(title, "mathbf"), x=0.01, ha="left", fontsize="large", fontweight="bold")
        folder.mkdir(parents=True, exist_ok=True)
        area = _laid_out(fig)
        png = _as_png(fig, alt, area)
        (folder / f"{name}.png").write_bytes(png)
        fig.savefig(folder / f"{name}.pdf", bbox_inches=area, metadata={"CreationDate": None})
        about = {"Date": None, "Title": title, "Description": alt}
        fig.savefig(folder / f"{name}.svg", bbox_inches=area, metadata=about)
        width = int.from_bytes(png[16:20], "big")  # pixels, from the PNG's header
        shown = round(width * 100 / matplotlib.rcParams["savefig.dpi"])
        display(Image(data=png, format="png", alt=alt, width=shown, metadata={"name": name}))
        display(Markdown(text))

    return show


@contextmanager
def _uncollected():
    """Holds garbage collection back: a figure's many small objects would start it often, a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _typeset(text: str, face: str = "mathit") -> str:
    """The text with its symbols in TeX: w_out as w with the subscript out."""
    return SYMBOL.sub(rf"$\\{face}{{\1}}_{{\\mathrm{{\2}}}}$", text)


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


def _as_png(fig: Figure, alt: str, area: Bbox) -> bytes:
    """The figure's `area` as PNG, with `alt` as its Description."""
    about = PngInfo()
    about.add_itxt("Description", alt)
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


def seed_colours(seeds: Iterable[str]) -> dict[str, str]:
    """A colour for each seed, in order."""
    return {seed: SEED_COLOURS[index % len(SEED_COLOURS)] for index, seed in enumerate(seeds)}


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
