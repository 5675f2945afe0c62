"""The explorer notebook's controls: sliders and boxes that show what lib.lab.panels computes from a run.

A panel is a box of widgets with its state inside; nothing is written. Figures are pictures, which a slider can follow.
"""

from collections.abc import Callable
from html import escape
from io import BytesIO

import ipywidgets as widgets
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mistune import html as markdown

from lib.base.errors import InputError
from lib.base.hub import seed_source
from lib.base.tensors import TensorFiles
from lib.chapters.families.tables import seed_statistics
from lib.lab import panels
from lib.labels.labels import occurring
from lib.models.trunk import Trunk, load_model
from lib.run import Run
from lib.text.tokens import token_strings

SHOWN = 15  # neurons that a label's table lists
GROUPINGS = {"the token itself": "token", "the token before": "previous_token", "the token after": "next_token"}
WIDE = widgets.Layout(width="32em")
LABELS = {"description_width": "8em"}


def told(text: str, kind: str = "") -> str:
    """A sentence in Markdown as HTML; `kind` is a CSS class."""
    return f'<div class="{kind}">{markdown(text)}</div>'


def picture(fig: Figure) -> bytes:
    """A figure as PNG, drawn once: savefig would draw it a second time to crop it."""
    with BytesIO() as png:
        FigureCanvasAgg(fig).print_png(png, pil_kwargs={"compress_level": 1})
        return png.getvalue()


def said(output: widgets.HTML, make: Callable[[], str]) -> None:
    """Shows what `make` returns, or the sentence of the InputError that it raises."""
    try:
        output.value = make()
    except InputError as error:
        output.value = told(f"⚠ {error}", "refused")


class ThresholdPanel(widgets.VBox):
    """Sliders of threshold and layer and a choice of reference seed; the figure and the sentence follow."""

    def __init__(self, run: Run):
        self.neurons = dict(tuple(run.table("neurons_all_seeds").groupby("seed", sort=False)))
        self.seed = widgets.Dropdown(
            options=list(self.neurons), value=run.params.reference, description="reference seed", style=LABELS
        )
        self.threshold = widgets.FloatSlider(
            value=run.params.threshold, min=0, max=1, step=0.01, description="threshold", style=LABELS, layout=WIDE
        )
        self.layer = widgets.IntSlider(
            value=0, min=0, max=run.done["layers"] - 1, description="layer", style=LABELS, layout=WIDE
        )
        self.sentence, self.figure = (
            widgets.HTML(),
            widgets.Image(format="png", layout=widgets.Layout(max_width="100%")),
        )
        super().__init__([widgets.HBox([self.seed, self.threshold]), self.layer, self.sentence, self.figure])
        for control in (self.seed, self.threshold, self.layer):
            control.observe(lambda _change: self.show(), "value")
        self.show()

    def show(self) -> None:
        """Draws the figure for the controls as they stand."""
        own, threshold, layer = self.neurons[self.seed.value], self.threshold.value, self.layer.value
        self.sentence.value = told(panels.threshold_sentence(own, self.seed.value, threshold, layer))
        self.figure.value = picture(panels.threshold_figure(own, threshold, layer))


class LabelPanel(widgets.VBox):
    """A box for a label of one's own; the neurons that it explains best, from the run's grouped moments."""

    def __init__(self, run: Run):
        texts = token_strings(run.tokenizer)
        self.run, self.texts = run, [texts[token] if token < len(texts) else "" for token in occurring(run.text)]
        references = run.done["references"]
        self.seed = widgets.Dropdown(options=references, value=run.params.reference, description="seed", style=LABELS)
        self.place = widgets.Dropdown(options=list(GROUPINGS), description="label of", style=LABELS)
        self.typed = widgets.Text(
            value="the a an", description="words or /regex/", continuous_update=False, style=LABELS, layout=WIDE
        )
        self.output = widgets.HTML()
        self.scores = pd.DataFrame()
        super().__init__([widgets.HBox([self.seed, self.place]), self.typed, self.output])
        for control in (self.seed, self.place, self.typed):
            control.observe(lambda _change: self.show(), "value")
        self.show()

    def show(self) -> None:
        """Scores the label in every layer of the chosen seed."""
        said(self.output, self._explained)

    def _explained(self) -> str:
        seed, grouping = self.seed.value, GROUPINGS[self.place.value]
        member = panels.typed_label(self.typed.value, self.texts)
        chance = self.run.table("family_chance").query("seed == @seed").set_index("layer")["chance"]
        parts = []
        for layer, path in enumerate(seed_statistics(self.run, seed).paths):
            file = TensorFiles([path])
            own = {
                f"{grouping}.{name}": file.tensor(f"{grouping}.{name}")
                for name in ("count", "mean", "center", "variance")
            }
            part = panels.label_scores(own, grouping, member)
            parts.append(part.assign(layer=layer, neuron=range(len(part)), chance=chance[layer]))
        self.scores = pd.concat(parts, ignore_index=True)
        number = own[f"{grouping}.count"].sum(0).numpy()
        sentence = panels.explained_sentence(
            self.scores, self.typed.value, int(member.sum()), number[member].sum() / max(1, number.sum())
        )
        best = self.scores.nlargest(SHOWN, "score")[
            ["layer", "neuron", "score", "chosen_score", "difference", "chance"]
        ]
        return told(sentence) + best.to_html(index=False, float_format="{:.3f}".format, border=0)


class TextPanel(widgets.VBox):
    """A box for a text of one's own, which all seeds read; their universal neurons that fire on it."""

    def __init__(self, run: Run, example: str = "On Monday the twelve of them walked to the river, and nobody spoke."):
        self.run, self.trunks = run, {}
        self.neurons = dict(tuple(run.table("neurons_all_seeds").groupby("seed", sort=False)))
        self.threshold = widgets.FloatSlider(
            value=run.params.threshold,
            min=0,
            max=1,
            step=0.01,
            description="threshold",
            continuous_update=False,
            style=LABELS,
            layout=WIDE,
        )
        self.typed = widgets.Textarea(
            value=example,
            description="text",
            rows=3,
            style=LABELS,
            layout=widgets.Layout(width="48em", max_width="100%"),
        )
        self.button = widgets.Button(description="Run the models", button_style="primary")
        self.output = widgets.HTML()
        self.fired: dict[str, pd.DataFrame] = {}
        super().__init__([self.typed, widgets.HBox([self.threshold, self.button]), self.output])
        self.button.on_click(lambda _button: self.show())
        self.threshold.observe(lambda _change: self.show(), "value")
        self.show()

    def show(self) -> None:
        """Runs every seed on the text and lists what fired."""
        said(self.output, self._lit)

    def _trunk(self, seed: str) -> Trunk:
        if seed not in self.trunks:
            self.trunks[seed] = Trunk(load_model(seed_source(self.run.params, seed)))
        return self.trunks[seed]

    def _lit(self) -> str:
        text = self.run.text
        tokens = panels.text_tokens(self.run.tokenizer, self.typed.value, text.bos_id, text.context)
        texts, parts, self.fired = panels.token_texts(self.run.tokenizer, tokens[1:]), [], {}
        for seed, own in self.neurons.items():
            post = panels.activations(self._trunk(seed), tokens)
            self.fired[seed] = panels.fired(post, own, self.threshold.value)
            parts.append(panels.fired_html(seed, self.fired[seed], post, texts))
        total = sum(map(len, self.fired.values()))
        start = f"At threshold {self.threshold.value:g}, {panels.count(total, 'universal neuron')} of {panels.count(len(self.fired), 'seed')} fired on {panels.count(len(texts), 'token')}."
        return told(escape(start)) + "".join(parts)
