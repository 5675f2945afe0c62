"""Figures of made-up tables: drawn without a warning in every case, labelled, and with the numbers given to them."""

import warnings

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image as Picture
from PIL import ImageDraw

from lib.chapters.universality import figures, properties
from lib.chapters.universality import figures_activations as activations
from lib.chapters.universality.measures import neuron_measures
from lib.display import plots
from lib.display.captions import Caption
from lib.display.claims import Decision
from lib.models.weights import READING_COLUMNS
from lib.run import with_universal

LAYERS, WIDTH = 4, 20


def made_up() -> pd.DataFrame:
    """80 neurons over 4 layers with every column; excess from −0.1 to 0.95, the first neuron is dead."""
    generator = np.random.default_rng(0)
    total = LAYERS * WIDTH
    table = pd.DataFrame({"layer": np.repeat(range(LAYERS), WIDTH), "neuron": np.tile(range(WIDTH), LAYERS)})
    for column in properties.PROPERTIES:
        table[column] = generator.normal(1, 0.2, total)
    for column in ("sparsity", "in_out_sim", "max_cos_in", "max_cos_out"):
        table[column] = generator.uniform(0, 0.9, total)
    table["excess_corr"] = generator.permutation(np.linspace(-0.1, 0.95, total))
    apart = np.array([[-0.05], [0.0], [0.05]])  # three compared seeds
    table = table.assign(**neuron_measures(table["excess_corr"].to_numpy() + 0.1 + apart, np.full((3, total), 0.1)))
    table["dead"] = False
    table.loc[0, ["excess_corr", "mean_corr", "dead"]] = [-0.1, 0.0, True]
    table.loc[0, ["skew", "kurt", "vocab_skew", "vocab_kurt"]] = np.nan
    return table


def losses_table() -> pd.DataFrame:
    rows = [
        (seed, domain, 2.0 + i + j / 10) for i, domain in enumerate(["all", "x", "y"]) for j, seed in enumerate("ab")
    ]
    return pd.DataFrame(rows, columns=["seed", "domain", "loss"]).assign(tokens=100)


def matches_table() -> pd.DataFrame:
    layer = np.repeat(range(LAYERS), WIDTH)
    return pd.DataFrame({"layer": layer, "match_layer": (layer + np.arange(len(layer)) % 2) % LAYERS, "corr": 0.5})


def convergence_table(neurons: pd.DataFrame) -> pd.DataFrame:
    own = neurons[["layer", "neuron", "mean_corr", "excess_corr", "is_universal"]].assign(baseline=0.1)
    return pd.concat([own.assign(seed=seed, tokens=tokens) for seed in "ab" for tokens in (1000, 2000)])


OVER_SEEDS = Decision(
    value=0.25, low=-0.01, high=0.51, error=0.02, p_value=0.06, agree=2, against=0, seeds=2, firm=True
)


def intervals_table() -> pd.DataFrame:
    return pd.DataFrame({"seed": ["a", "b"], "share": [0.3, 0.2], "low": [0.1, 0.1], "high": [0.29, 0.4]})


def compared_table() -> pd.DataFrame:
    shares = [(seed, number, 0.02 / number) for seed in "ab" for number in (1, 2, 3)]
    return pd.DataFrame(shares, columns=["seed", "compared", "share"]).assign(subsets=3)


def every_figure(neurons: pd.DataFrame, threshold: float) -> dict[str, Figure]:
    neurons = with_universal(neurons, threshold)
    everyone = pd.concat([neurons.assign(seed=seed) for seed in "ab"])
    draws = neurons.assign(baseline=neurons["mean_baseline"], draw=0)[["draw", "layer", "neuron", "baseline"]]
    two = pd.concat([draws, draws.assign(draw=1, baseline=draws["baseline"] + draws["neuron"] / 1000)])
    summary = properties.convergence_summary(convergence_table(neurons))
    histogram = {
        "a.counts": np.tile(np.arange(8), (LAYERS, WIDTH, 1)),
        "a.low": np.full((LAYERS, WIDTH), -2.0),
        "a.high": np.full((LAYERS, WIDTH), 2.0),
    }
    text = pd.DataFrame({"domain": ["x", "y"], "blocks": 1, "tokens": [10, 20], "counted": [5, 20]})
    return {
        "losses": activations.losses(losses_table()),
        "composition": activations.composition(text),
        "histograms": activations.activation_histograms(histogram, "a", neurons.head(5)),
        "by layer": activations.correlation_by_layer(neurons),
        "one draw": activations.draws(
            properties.draw_summary(draws, neurons, threshold), properties.draw_spread(draws)
        ),
        "two draws": activations.draws(properties.draw_summary(two, neurons, threshold), properties.draw_spread(two)),
        "convergence": activations.convergence(summary, "a", len(neurons)),
        "distributions": figures.excess(neurons, threshold),
        "gap": figures.seed_agreement(neurons),
        "agreement": figures.layer_agreement(properties.match_layer_percent(matches_table())),
        "references": figures.share_by_reference(properties.reference_shares(everyone)),
        "references with intervals": figures.share_by_reference(
            properties.reference_shares(everyone), intervals_table(), OVER_SEEDS
        ),
        "compared": figures.share_by_compared(compared_table()),
        "compared, none": figures.share_by_compared(compared_table().assign(share=0.0)),
        "curve": figures.share_by_threshold(everyone, threshold),
        "ceiling": figures.ceiling(neurons, threshold),
        "agreeing": figures.agreeing(neurons, 3),
        "layers": figures.share_by_layer(properties.layer_shares(everyone), "a"),
        "percentiles": figures.property_percentiles(neurons),
        "frequency": figures.frequency_and_cosine(neurons, properties.frequency_cosine_by_layer(everyone), "a"),
        "redundancy": figures.redundancy(neurons),
    }


@pytest.mark.parametrize("threshold", [-1, 0.5, 0.93, 2], ids=["all", "some", "few", "none"])
@pytest.mark.parametrize("left_out", [[], READING_COLUMNS], ids=["", "gated"])
def test_every_figure_draws_without_a_warning_and_labels_its_axes(threshold, left_out):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="vert: bool was deprecated")  # seaborn 0.13 calling matplotlib 3.11
        drawn = every_figure(made_up().assign(**dict.fromkeys(left_out, np.nan)), threshold)
        for name, fig in drawn.items():
            fig.draw_without_rendering()
            panels = [axes for axes in fig.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]
            assert panels, name
            assert any(axes.get_ylabel() for axes in panels), name
            ticks = [label.get_text() for axes in panels for label in axes.get_xticklabels()]
            assert any(axes.get_xlabel() for axes in panels) or all(ticks), name


def test_bars_are_as_high_as_the_shares():
    neurons = made_up()
    everyone = pd.concat([neurons.assign(seed="a"), neurons.assign(seed="b", excess_corr=0.0)])
    everyone = with_universal(everyone, 0.5)
    shares = properties.reference_shares(everyone)
    bars = figures.share_by_reference(shares).axes[0].patches
    assert [bar.get_height() for bar in bars] == [(neurons["excess_corr"] > 0.5).mean(), 0]
    by_layer = properties.layer_shares(everyone)
    bars = figures.share_by_layer(by_layer, "a").axes[0].patches
    assert [bar.get_height() for bar in bars] == by_layer.query("seed == 'a'")["share"].tolist()


def test_the_excess_histogram_separates_universal_neurons_at_the_threshold():
    neurons = with_universal(made_up(), 0.5)
    labels = figures.excess(neurons, 0.5).axes[1].get_legend().get_texts()
    number = int((neurons["excess_corr"] > 0.5).sum())
    assert [label.get_text() for label in labels] == [f"other ({80 - number})", f"universal ({number})"]


def test_histogram_bins_lie_between_low_and_high():
    fig = every_figure(made_up(), 0.5)["histograms"]
    values, edges, _ = fig.axes[0].patches[0].get_data()
    assert values.tolist() == list(range(8)) and edges[0] == -2 and edges[-1] == 2


def test_the_gallery_saves_and_displays_with_the_description(tmp_path, monkeypatch):
    displayed = []
    monkeypatch.setattr(plots, "display", displayed.append)
    fig, axes = plots.canvas()
    axes.plot([1, 2])
    caption = Caption("A line_a *goes* up", "It does.", "Line through two points.")
    show = plots.gallery(tmp_path / "figures", chapter=3)
    show(fig, caption, "line")
    files = ["line.pdf", "line.png", "line.svg", "line_narrow.svg"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == files
    data, described = displayed[0]._repr_mimebundle_()
    assert described["image/png"]["alt"] == "Line through two points."
    pixels = matplotlib.image.imread(tmp_path / "figures" / "line.png").shape[1]
    assert described["image/png"]["width"] == pytest.approx(pixels / 1.3, abs=1)
    assert fig.get_suptitle() == "" and "A line_a" not in "".join(text.get_text() for text in fig.findobj(Text))
    said, named = displayed[1]._repr_markdown_()
    assert said == r"**Figure 3.1: A line\_a \*goes\* up.** It does." and named == {"name": "line"}
    show(plots.canvas()[0], caption, "other")
    show(plots.canvas()[0], caption, "line")  # the cell runs again
    assert [one.data.partition(":")[0] for one in displayed[1::2]] == [f"**Figure 3.{place}" for place in (1, 2, 1)]


def test_pictures_keep_their_colours_in_a_small_palette():
    def off(picture: Picture.Image) -> tuple[int, int]:
        """Largest difference in any channel, and how many colours are left."""
        reduced = plots.in_few_colours(picture)
        kept = reduced.convert("RGB")
        return int(np.abs(np.asarray(picture, dtype=int) - np.asarray(kept, dtype=int)).max()), len(kept.getcolors())

    lines = Picture.new("RGB", (300, 200), "white")
    for number, colour in enumerate(plots.SEED_COLOURS):  # one thin line each, a small part of the picture
        ImageDraw.Draw(lines).line([(10, 20 * number + 10), (30, 20 * number + 10)], colour)
    assert off(lines) == (0, len(plots.SEED_COLOURS) + 1)
    steps = np.linspace(0, 255, 256, dtype=np.uint8)
    channels = np.broadcast_arrays(steps, steps[:, None], steps[::-1])
    scale = Picture.fromarray(np.stack(channels, -1))  # as many colours as pixels
    assert off(scale)[1] == 128


def test_labels_break_outside_brackets():
    assert plots.folded("skew of pre-activation") == "skew of\npre-activation"
    assert plots.folded("cos(w_in, w_out)") == "cos(w_in, w_out)"
    assert plots.folded("mean of cos(w_out, W_U)") == "mean of\ncos(w_out, W_U)"
