"""What a run reads, found and checked once before anything slow starts, then handed down to passes and forecast."""

import sys
from functools import cached_property
from pathlib import Path

from lib.base.errors import shortened
from lib.base.hub import fetch_seed, seed_folder, seed_source
from lib.cache import input_hashes, refuse_other_statistics, refuse_same_weights
from lib.collect.grouped_tables import grouped_tables
from lib.collect.planner import Shape, seed_shapes
from lib.kernels.grouped import Layout, Table, layout_of
from lib.labels.groupings import run_groupings, run_label_sets
from lib.labels.labels import Grouping, LabelSet
from lib.models.trunk import check_context, check_files, check_seed, check_weights, no_interventions
from lib.run import Run
from lib.text.blocks import Text
from lib.text.tokenise import check_text


class Preflight:
    """A run's inputs. Each is found once, when first asked for; InputError says what is wrong with it."""

    def __init__(self, run: Run, grouped: bool = True):
        self.run, self.params, self.grouped = run, run.params, grouped
        self.complete = (run.folder / "stats" / "done.json").exists()

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Each seed's folder. Weights are checked before a pass reads them; afterwards their hash vouches for them."""
        if self.complete:
            return {name: seed_source(self.params, name) for name in self.params.seeds}
        folders = {name: fetch_seed(self.params, name) for name in sorted(self.params.seeds)}
        refuse_same_weights(self.params)
        for name, folder in folders.items():
            if self.params.is_on_hub(name):
                check_files(name, folder)
            check_weights(name, folder)
        return folders

    @cached_property
    def hashes(self) -> dict[str, str]:
        """`input_hashes` of the run."""
        return input_hashes(self.params, self.run.text_path)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every seed. What configs and the headers of weights show is checked with it, in seconds."""
        shapes = seed_shapes(self.params)
        for name, shape in shapes.items() if not self.complete else ():
            check_context(name, shape.positions, self.params.context)
            if folder := seed_folder(self.params, name):  # None for one on the Hub that is not downloaded yet
                check_files(name, folder)
        return shapes

    @cached_property
    def notes(self) -> list[str]:
        """What the report will leave out, in a sentence each."""
        reason = no_interventions(self.params)
        return [reason] if reason else []

    @property
    def text(self) -> Text:
        """The run's text, cut to its context and token budget."""
        return self.run.text

    @cached_property
    def groupings(self) -> dict[str, Grouping]:
        """The groupings of the labelled text's tokens that grouped moments are summed by."""
        return run_groupings(self.run) if self.grouped else {}

    @cached_property
    def label_sets(self) -> list[LabelSet]:
        """The labels over the groupings."""
        return run_label_sets(self.run, self.groupings) if self.groupings else []

    @cached_property
    def tables(self) -> dict[str, Table]:
        """What grouped moments sum."""
        return grouped_tables(self.groupings, self.label_sets, self.run.labelled)

    @property
    def layout(self) -> Layout:
        """Names and sizes of the tables, as the planner needs them."""
        return layout_of(self.tables)

    def check(self) -> None:
        """Refuses statistics of other parameters or files, and seeds and a text that cannot be used together."""
        refuse_other_statistics(self.params, None)
        if not self.complete:
            check_text(self.params)
            _ = self.shapes  # reads every config, before any weight is read or downloaded
            for note in self.notes:
                print(f"note: {note}", file=sys.stderr)
        folders = self.folders  # before the text is made
        refuse_other_statistics(self.params, self.run.text_path)
        if others := sorted(set(self.params.domains or {}) - set(self.text.domains)):
            known = shortened(self.text.domains)
            print(f"note: domains names {shortened(others)}, but the text's are {known}.", file=sys.stderr)
        for name, folder in folders.items() if not self.complete else ():
            check_seed(name, folder, self.text, self.params.context)
