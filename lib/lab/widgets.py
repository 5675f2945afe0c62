"""The explorer notebook's controls: sliders and boxes that show what lib.lab.panels computes from a run.

A panel holds its own state and writes no file. Figures are PNGs, fast enough to follow a slider.
"""

from collections.abc import Callable
from html import escape
from io import BytesIO

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mistune import html as markdown

from lib.base.errors import InputError
from lib.base.hub import seed_source
from lib.base.tensors import TensorFiles
from lib.chapters.families.scoring import UNEXPLAINED
from lib.chapters.families.statistics import known_labels, seed_statistics
from lib.display.captions import count
from lib.lab import own_text, panels
from lib.labels.labels import TOKENS_KEPT, occurring, token_counts, token_labels, token_rows
from lib.models.trunk import Trunk, load_model
from lib.run import Run, with_universal
from lib.text.tokens import token_strings, token_text

ROWS_SHOWN = 15  # of a label's best neurons
ONLY_ITSELF = "A typed label is of the token itself. For the token before or after, only the report's labels have sums."
WIDE = widgets.Layout(width="32em")
LABELS = {"description_width": "8em"}


def sentence_html(text: str, kind: str = "") -> str:
    """A sentence in Markdown as HTML; `kind` is a CSS class."""
    return f'<div class="{kind}">{markdown(text)}</div>'


def picture(fig: Figure) -> bytes:
    """A figure as PNG, drawn once; savefig would draw it twice."""
    with BytesIO() as png:
        FigureCanvasAgg(fig).print_png(png, pil_kwargs={"compress_level": 1})
        return png.getvalue()


def show_or_refuse(output: widgets.HTML, make: Callable[[], str]) -> None:
    """Shows what `make` returns, or the sentence of the InputError that it raises."""
    try:
        output.value = make()
    except InputError as error:
        output.value = sentence_html(f"⚠ {error}", "refused")


def threshold_slider(run: Run, **options) -> widgets.FloatSlider:
    """A slider from 0 to 1 that starts at the run's threshold."""
    shape = dict(min=0, max=1, step=0.01, description="threshold", style=LABELS, layout=WIDE)
    return widgets.FloatSlider(value=run.params.threshold, **shape, **options)


def neurons_by_seed(run: Run) -> dict[str, pd.DataFrame]:
    """Each reference seed's rows of neurons_all_seeds."""
    return dict(tuple(run.table("neurons_all_seeds").groupby("seed", sort=False)))


class Panel(widgets.VBox):
    """A box of widgets that shows its result again when a control changes."""

    def __init__(self, rows: list[widgets.Widget], controls: list[widgets.Widget]):
        super().__init__(rows)
        for control in controls:
            control.observe(lambda _change: self.show(), "value")
        self.show()


class ThresholdPanel(Panel):
    """Sliders of threshold and layer and a choice of reference seed; figure and sentence follow."""

    def __init__(self, run: Run):
        self.neurons, last = neurons_by_seed(run), max(layers for layers, _ in run.done["shapes"].values()) - 1
        seeds, reference = list(self.neurons), run.params.reference
        self.seed = widgets.Dropdown(options=seeds, value=reference, description="reference seed", style=LABELS)
        self.threshold = threshold_slider(run)
        self.layer = widgets.IntSlider(value=0, min=0, max=last, description="layer", style=LABELS, layout=WIDE)
        self.sentence = widgets.HTML()
        self.figure = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        controls = [self.seed, self.threshold, self.layer]
        super().__init__([widgets.HBox(controls[:2]), self.layer, self.sentence, self.figure], controls)

    def show(self) -> None:
        """Draws the figure for the controls' values."""
        threshold = self.threshold.value
        own = with_universal(self.neurons[self.seed.value], threshold)
        layer = min(self.layer.value, int(own["layer"].max()))  # a seed may have fewer layers than another
        self.sentence.value = sentence_html(panels.threshold_sentence(own, self.seed.value, threshold, layer))
        self.figure.value = picture(panels.threshold_figure(own, threshold, layer))


class LabelPanel(Panel):
    """A box for a typed label; the neurons that it explains best, from the run's grouped moments."""

    def __init__(self, run: Run):
        texts = token_strings(run.tokenizer)
        self.run, self.texts = run, [texts[token] if token < len(texts) else "" for token in occurring(run.labelled)]
        self.rows, self.labels = token_rows(run.labelled), known_labels(run, [])
        references, reference = run.done["references"], run.params.reference
        self.seed = widgets.Dropdown(options=references, value=reference, description="seed", style=LABELS)
        typed = dict(value="the a an", description="words or /regex/", continuous_update=False)
        self.typed = widgets.Text(**typed, style=LABELS, layout=WIDE)
        self.output = widgets.HTML()
        self.scores = pd.DataFrame()
        note, controls = widgets.HTML(sentence_html(ONLY_ITSELF)), [self.seed, self.typed]
        super().__init__([*controls, note, self.output], controls)

    def show(self) -> None:
        """Scores the label in every layer of the chosen seed."""
        show_or_refuse(self.output, self._explained)

    def _explained(self) -> str:
        seed, carried = self.seed.value, panels.typed_label(self.typed.value, self.texts)
        kept = carried & (self.rows < TOKENS_KEPT)
        member = np.zeros(self.rows.max() + 1, dtype=bool)
        member[self.rows[kept]] = True
        chance = self.run.table("family_chance").query("seed == @seed").set_index("layer")["chance"]
        parts = []
        for layer, path in enumerate(seed_statistics(self.run, seed, self.labels).paths):
            file = TensorFiles([path])
            own = {name: file.tensor(name) for name in panels.SINGLE}
            part = panels.label_scores(own, member)
            parts.append(part.assign(layer=layer, neuron=range(len(part)), chance=chance[layer]))
        self.scores = pd.concat(parts, ignore_index=True)
        number = own["token.count"].sum(0).numpy()
        share, rare = number[member].sum() / max(1, number.sum()), int((carried & ~kept).sum())
        sentence = panels.explained_sentence(self.scores, self.typed.value, int(kept.sum()), share, rare)
        columns = ["layer", "neuron", "score", "chosen_score", "difference", "chance"]
        best = self.scores.nlargest(ROWS_SHOWN, "score")[columns]
        return sentence_html(sentence) + best.to_html(index=False, float_format="{:.3f}".format, border=0)


class TextPanel(Panel):
    """A box for a typed text, which all seeds read: their universal neurons that fire on it, grouped by set of matches,
    and the labels that hold at each token."""

    def __init__(self, run: Run, example: str = "On Monday the twelve of them walked to the river, and nobody spoke."):
        self.run, self.trunks, self.neurons = run, {}, neurons_by_seed(run)
        self.vocabulary = token_labels(run.tokenizer, token_counts(run.labelled), run.text.vocab_size)
        families = run.table("families")
        self.named = families.loc[families["family"] != UNEXPLAINED, [*own_text.NEURON, "label", "score"]]
        self.threshold = threshold_slider(run, continuous_update=False)
        box = widgets.Layout(width="48em", max_width="100%")
        self.typed = widgets.Textarea(value=example, description="text", rows=3, style=LABELS, layout=box)
        self.button = widgets.Button(description="Run the models", button_style="primary")
        self.button.on_click(lambda _button: self.show())
        self.output = widgets.HTML()
        self.fired: dict[str, pd.DataFrame] = {}
        rows = [self.typed, widgets.HBox([self.threshold, self.button]), self.output]
        super().__init__(rows, [self.threshold])

    def show(self) -> None:
        """Runs every seed on the text and lists what fired."""
        show_or_refuse(self.output, self._fired)

    def _trunk(self, seed: str) -> Trunk:
        if seed not in self.trunks:
            self.trunks[seed] = Trunk(load_model(seed_source(self.run.params, seed)))
        return self.trunks[seed]

    def _fired(self) -> str:
        text, threshold = self.run.text, self.threshold.value
        tokens = own_text.text_tokens(self.run.tokenizer, self.typed.value, text.bos_id, text.context)
        texts = [token_text(self.run.tokenizer, token) for token in tokens[1:]]
        posts = {seed: own_text.activations(self._trunk(seed), tokens) for seed in self.neurons}
        self.fired = {
            seed: own_text.fired(posts[seed], with_universal(own, threshold)) for seed, own in self.neurons.items()
        }
        sets = own_text.matched_sets(self.fired, self.run.table("matches_all_seeds"))
        holding = own_text.labels_holding(self.vocabulary, text.context, tokens)
        total, seeds = count(len(sets), "universal neuron"), count(len(self.fired), "seed")
        start = f"At threshold {threshold:g}, {total} of {seeds} fired on {count(len(texts), 'token')}."
        address = own_text.neuron_address(self.run.params.folder / "report")
        found = own_text.sets_html(sets.merge(self.named, "left", own_text.NEURON), posts, texts, holding, address)
        return sentence_html(escape(start)) + found + own_text.labels_html(texts, holding, self.named["label"])
