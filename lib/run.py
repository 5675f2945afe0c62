"""A run's folder outputs/<run>: its parameters, text, statistics and tables."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from safetensors.numpy import load_file as load_arrays
from torch import Tensor

from lib.base.hub import seed_source
from lib.base.params import Params
from lib.text.blocks import Text, label_blocks, read_text

RANKED = "excess_rank_"  # and a number k: columns with the excess in the compared seed where it is k-th largest


def with_universal(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The table with the column `is_universal`, excess above `threshold`; unchanged if it has no `excess_corr`.

    Where it has the excess in each compared seed, also `k_of_m`: in how many of them it is above. A missing excess is
    not universal.
    """
    if "excess_corr" not in table:
        return table
    made, ranked = {"is_universal": table["excess_corr"] > threshold}, [one for one in table if one.startswith(RANKED)]
    if ranked:
        made["k_of_m"] = (table[ranked] > threshold).sum(axis=1)
    return table.assign(**made)


class Run:
    """One run, as the notebooks read it."""

    def __init__(self, params: Params):
        self.params = params
        self.folder = params.folder

    @cached_property
    def text_path(self) -> Path:
        """The run's token file, made first if the text is documents."""
        from lib.text.tokenise import token_file  # not needed where no text is read

        return token_file(self.params)

    @cached_property
    def text(self) -> Text:
        """The run's text, cut to its context and token budget."""
        return read_text(self.text_path).cut(self.params.context).take(self.params.token_budget)

    @cached_property
    def label_blocks(self) -> Int[Tensor, "some"]:
        """The numbers of the blocks on which labels are known: of `label_tokens` tokens, spread over the text."""
        return label_blocks(len(self.text.tokens), self.params.label_tokens // self.params.context)

    @cached_property
    def labelled(self) -> Text:
        """The text of `label_blocks`, which labels, their sums and their scores are of."""
        return self.text if len(self.label_blocks) == len(self.text.tokens) else self.text.chosen(self.label_blocks)

    @cached_property
    def tokenizer(self):
        """The tokeniser that all seeds share."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(seed_source(self.params, self.params.reference), trust_remote_code=False)

    @cached_property
    def done(self) -> dict:
        """The pass's record: tokens, device, precision, times, hashes."""
        return json.loads((self.folder / "stats" / "done.json").read_text(encoding="utf-8"))

    def recorded(self, name: str) -> dict | None:
        """A small JSON file of the run's folder, or None if it is not there."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def stats(self, name: str) -> dict[str, np.ndarray]:
        """All seeds' arrays of one kind of accumulator, from the passes' files stats/<name>-<pass>.safetensors."""
        arrays = {}
        for path in sorted((self.folder / "stats").glob(f"{name}-*.safetensors")):
            arrays |= load_arrays(path)
        return arrays

    def has(self, name: str) -> bool:
        """Whether the run has the table."""
        return (self.folder / "tables" / f"{name}.parquet").exists()

    def table(self, name: str) -> pd.DataFrame:
        """The table tables/<name>.parquet, with `is_universal` if it has `excess_corr`."""
        return with_universal(pd.read_parquet(self.folder / "tables" / f"{name}.parquet"), self.params.threshold)

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """One row per neuron of the reference seed (columns: docs/method.md §4)."""
        return self._of_reference("neurons_all_seeds")

    @cached_property
    def matches(self) -> pd.DataFrame:
        """One row per neuron of the reference seed and compared seed."""
        return self._of_reference("matches_all_seeds")

    def _of_reference(self, name: str) -> pd.DataFrame:
        table = self.table(name)
        return table[table["seed"] == self.params.reference].drop(columns="seed").reset_index(drop=True)
