"""The figure of designed seeds: its caption and table say what made-up pairs say."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from lib.chapters.universality import designed, figures_designed
from lib.training.designed import DESIGNS


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    """All eight models both ways; a share of 10 % with shared initial weights and 1 % without, ± 0.1 % by stage."""
    rows = []
    for stage, more in zip(designed.STAGES, (-0.001, 0.001), strict=True):
        for a, b in permutations([one.name for one in DESIGNS], 2):
            relation = designed.relation(a, b)
            share = (0.10 if relation.startswith("same") else 0.01) + more
            rows.append(dict(stage=stage, seed=a, model=b, relation=relation, neurons=2048, share=share))
    table = pd.DataFrame(rows)
    same = table["relation"].str.startswith("same")
    table["same_index"] = np.where(same, 0.9, 0.001)
    return table.assign(adjusted_share=table["share"], mean_excess=0.2, mean_adjusted=0.3, same_index_universal=1.0)


def test_caption_gives_both_shares_of_the_decayed_models_with_intervals(pairs):
    caption = figures_designed.caption(pairs)
    assert caption.title == "10.10 % of neurons recur with shared initial weights, 1.10 % without"
    assert "**10.10 %**" in caption.text and "(10.10 % to 10.10 %, 95 % over pairs)" in caption.text
    assert "in 90 % of the neurons with shared initial weights, in 0.10 % without" in caption.text
    figures_designed.designed(pairs).draw_without_rendering()


def test_table_has_a_row_a_relation_with_its_number_of_pairs(pairs):
    table = figures_designed.table(pairs)
    assert table["the two models share"].tolist() == list(designed.RELATIONS)
    assert table["pairs"].sum() == 28 and table["excess above 0.5"].iloc[0] == "10.10 % ± 0 %"
