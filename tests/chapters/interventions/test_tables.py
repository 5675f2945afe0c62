"""Entropy, token-frequency and attention neurons planted into a small model are found first and act as defined."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from lib.chapters.interventions import (
    candidates,
    captions,
    captions_sets,
    figures,
    heads,
    inputs,
    neuron_sets,
    single_neurons,
)
from lib.chapters.interventions.engine import PathAblation, run
from lib.chapters.interventions.single_neurons import FIXED_FREQUENCY, FROZEN_SCALE, TOTAL
from lib.display.captions import signed
from lib.models.processed import Block, Processed
from lib.run import with_universal

LAYERS, HEADS, D_MODEL, D_HEAD, NEURONS, VOCABULARY, CONTEXT = 3, 2, 64, 32, 60, 300, 16


def centred(generator: torch.Generator, *shape: int) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=generator)
    return drawn - drawn.mean(-1, keepdim=True)


def small(vocabulary: int = VOCABULARY) -> Processed:
    """Random processed weights whose unembedding reads almost nothing along one direction."""
    g = torch.Generator().manual_seed(0)
    blocks = tuple(
        Block(
            qkv=centred(g, 3, HEADS, D_HEAD, D_MODEL).permute(3, 0, 1, 2) / 8,
            qkv_bias=0.1 * torch.randn(3, HEADS, D_HEAD, generator=g),
            out=centred(g, HEADS, D_HEAD, D_MODEL) / 16,
            out_bias=torch.zeros(D_MODEL),
            w_in=centred(g, NEURONS, D_MODEL).T / 8,
            b_in=0.1 * torch.randn(NEURONS, generator=g),
            w_out=centred(g, NEURONS, D_MODEL) / 16,
            b_out=torch.zeros(D_MODEL),
            attention_scale=D_HEAD**-0.5,
            value_bias=torch.zeros(HEADS, D_HEAD),
        )
        for _ in range(LAYERS)
    )
    unembedding = centred(g, vocabulary, D_MODEL).T / 4
    unembedding = unembedding - unembedding.mean(1, keepdim=True)
    unread = normalize(centred(g, D_MODEL), dim=0)
    unembedding = unembedding - 0.999 * unread[:, None] * (unread @ unembedding)
    return Processed(
        embedding=centred(g, vocabulary, D_MODEL),
        positions=0.3 * centred(g, CONTEXT, D_MODEL),
        blocks=blocks,
        unembedding=unembedding,
        unembedding_bias=torch.zeros(vocabulary),
        eps=1e-5,
        activation=torch.nn.functional.gelu,
    )


def with_w_out(model: Processed, layer: int, neuron: int, w_out: torch.Tensor, **changes) -> Processed:
    """The model with one neuron's writing weights, and other tensors of its block, replaced."""
    writes = model.blocks[layer].w_out.clone()
    writes[neuron] = w_out
    blocks = list(model.blocks)
    blocks[layer] = replace(blocks[layer], w_out=writes, **changes)
    return replace(model, blocks=tuple(blocks))


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def text():
    tokens = torch.randint(1, VOCABULARY, (12, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens, tokens > 0


COUNTS = (1e4 / torch.arange(1, VOCABULARY + 1)).long()


def unread_direction(model: Processed) -> torch.Tensor:
    """The bottom left singular vector of W_U, all-ones left out, by NumPy in fp64."""
    vectors, values, _ = np.linalg.svd(model.unembedding.double().numpy())
    ones = np.abs(vectors.sum(0)) / D_MODEL**0.5
    return torch.from_numpy(vectors[:, [i for i in range(D_MODEL) if ones[i] < 0.5][-1]]).float()


def test_weight_columns_against_fp64(model):
    w_out, unembedding = model.w_out.double().numpy(), model.unembedding.double().numpy()
    table = candidates.weight_columns(model, single_neurons.readout(model, COUNTS))
    unit = w_out / np.linalg.norm(w_out, axis=1, keepdims=True)
    cosine = unit @ (unembedding / np.linalg.norm(unembedding, axis=0))
    direction = unread_direction(model).double().numpy()
    frequency = np.log(COUNTS.double().numpy() + 1)
    frequency -= frequency.mean()
    logits = w_out @ unembedding
    opposite = unit @ unit.T
    partner = opposite.argmin(1)
    expected = {
        "w_out_norm": np.linalg.norm(w_out, axis=1),
        "vocab_var": cosine.var(1),
        "null_share": np.abs(unit @ direction),
        "partner_cos": opposite.min(1),
        "partner_layer": partner // NEURONS,
        "partner_neuron": partner % NEURONS,
        "frequency_share": logits @ frequency / np.linalg.norm(logits, axis=1) / np.linalg.norm(frequency),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    assert table["entropy_score"].isna().tolist() == (table["layer"] == 0).tolist()
    late = table["layer"] > 0
    written = np.abs(w_out @ direction)[late]
    np.testing.assert_allclose(table.loc[late, "entropy_score"], written, rtol=1e-4, atol=1e-5)
    norm = np.linalg.norm(w_out, axis=1)
    draws = np.random.default_rng(0).normal(size=(200_000, D_MODEL - 1))  # ρ of random directions, k = 1
    bound = np.quantile(np.abs(draws[:, 0]) / np.linalg.norm(draws, axis=1), 0.999)
    assert candidates.null_space(model.unembedding).chance_bound == pytest.approx(bound, rel=0.02)
    rule = late & (norm >= np.quantile(norm[late], 0.5)) & (table["null_share"] > bound)
    assert table["entropy"].tolist() == rule.tolist()


def test_a_candidate_writes_much_and_into_the_null_space(model):
    """Of five planted neurons only the one that does both, in the last layers, is a candidate."""
    unread, read = unread_direction(model), normalize(model.unembedding[:, 5], dim=0)
    planted = model
    for layer, neuron, w_out in (
        (LAYERS - 1, 7, 1.5 * unread),
        (LAYERS - 1, 8, 1.5 * read),  # loud alone
        (LAYERS - 1, 9, 0.2 * unread),  # into the null space alone
        (LAYERS - 1, 10, 0.2 * read),
        (0, 7, 1.5 * unread),
    ):
        planted = with_w_out(planted, layer, neuron, w_out)
    table = candidates.weight_columns(planted, single_neurons.readout(planted, COUNTS))
    best = candidates.entropy_candidates(table)
    assert best.iloc[0][["layer", "neuron"]].tolist() == [LAYERS - 1, 7] and best["null_share"].iloc[0] > 0.999
    assert not {(LAYERS - 1, 8), (LAYERS - 1, 9), (LAYERS - 1, 10), (0, 7)} & set(inputs.at_values(best, []))
    flags = table.set_index(["layer", "neuron"])["entropy"]
    planted_at = [(LAYERS - 1, neuron) for neuron in (7, 8, 9, 10)] + [(0, 7)]
    assert flags.loc[planted_at].tolist() == [True, False, False, False, False]
    assert candidates.null_space(planted.unembedding).depth < 0.01
    nobody = table.assign(entropy=False)
    assert candidates.entropy_candidates(nobody).empty
    assert set(candidates.groups(nobody)["group"]) == {"frequency", "frequency control"}


def test_controls_are_the_nearest_in_norm_of_the_same_layer():
    norms = [3.0, 2.0, 1.0, 2.9, 3.2, 3.05, 2.1, 1.9, 1.1, 0.2, 3.0, 2.0, 1.0]
    table = pd.DataFrame({"layer": [5] * 10 + [4] * 3, "neuron": range(13), "w_out_norm": norms})
    table = table.assign(entropy_score=1.0, entropy=table["neuron"].isin([0, 1, 3]))
    chosen = table[table["neuron"].isin([0, 1, 2])]
    found = candidates.controls(table, chosen, chosen, number=2)
    assert found["neuron"].tolist() == [5, 6, 8, 4, 7, 9]  # neuron 3 satisfies the rule itself; 10 to 12 lie elsewhere
    without = candidates.controls(table, chosen, table[table["neuron"].isin([0, 1, 2, 5])], number=1)
    assert without["neuron"].tolist() == [4, 6, 8]
    few = candidates.controls(table.head(5), chosen, chosen, number=3)
    assert few["neuron"].tolist() == [4]  # none is drawn twice


@pytest.mark.parametrize("sign", [1, -1])
def test_a_large_neuron_that_writes_into_the_null_space_moves_entropy_through_the_scale(model, text, sign):
    unread = unread_direction(model)
    # the stream leans along the direction: writing along it lengthens the stream, writing against it shortens it
    planted = with_w_out(model, LAYERS - 1, 7, sign * 1.5 * unread, b_out=12 * unread)
    reading = single_neurons.readout(planted, COUNTS)
    table = candidates.weight_columns(planted, reading)
    chosen = candidates.entropy_candidates(table).head(1)
    grouped = pd.concat(
        [chosen.assign(group="entropy"), candidates.controls(table, chosen, chosen, 20).assign(group="control")]
    )[["layer", "neuron", "group"]]
    assert len(grouped) == 21 and (grouped["layer"] == LAYERS - 1).all()
    fixed = inputs.at_values(grouped, [0.0, 4.0])
    found = single_neurons.effects(planted, reading, text, fixed, (TOTAL, FROZEN_SCALE)).table()
    own = found[(found["layer"] == LAYERS - 1) & (found["neuron"] == 7) & (found["value"] == 4)].set_index("variant")
    assert np.sign(own.loc[TOTAL, "scale_change"]) == sign and np.sign(own.loc[TOTAL, "entropy_change"]) == sign
    assert abs(own.loc[TOTAL, "entropy_change"]) > 0.05
    assert abs(own.loc[FROZEN_SCALE, "entropy_change"]) < 0.02 * abs(own.loc[TOTAL, "entropy_change"])
    table = found.merge(grouped, on=["layer", "neuron"]).assign(tokens=180, seed="a")
    swept = table[table["variant"] == TOTAL]
    controls = swept[(swept["group"] == "control") & (swept["value"] == 4)]["entropy_change"].median()
    change = signed(own.loc[TOTAL, "entropy_change"], 3)
    finding = captions.fixed_activation(swept, "a")
    assert finding.title == "For reciprocal rank and entropy the seeds cannot tell"  # one seed is none to decide by
    assert f"**{change}** for 1 candidate and **{signed(controls, 3)}** for 20 controls" in finding.text
    through = single_neurons.removed(table[table["value"] == 4], "entropy", FROZEN_SCALE, ("entropy", "control"))
    assert through.candidates > 0.98 and through.delta > 0.7 and through.neurons[0] == 1


def test_shares_are_taken_of_clear_effects_only():
    """A total effect within two standard errors of 0 has no share: −66 % of nothing is noise."""
    rows = [  # group, neuron, total, error, frozen
        ("entropy", 0, 0.10, 0.01, 0.02),
        ("entropy", 1, -0.10, 0.01, -0.04),
        ("entropy", 2, 0.001, 0.01, 0.0266),
        ("control", 3, 0.05, 0.01, 0.04),
        ("control", 4, 0.001, 0.002, -0.05),
        ("other", 5, 0.05, 0.01, 0.05),
    ]
    total = pd.DataFrame(rows, columns=["group", "neuron", "entropy_change", "entropy_error", "left"]).assign(layer=5)
    table = pd.concat([total.assign(variant=TOTAL), total.assign(entropy_change=total["left"], variant=FROZEN_SCALE)])
    found = single_neurons.removed(table, "entropy", FROZEN_SCALE, ("entropy", "control"))
    assert found.candidates == pytest.approx((0.8 + 0.6) / 2) and found.controls == pytest.approx(0.2)
    assert found.neurons == (2, 1) and found.delta == 1
    nobody = single_neurons.removed(table.assign(entropy_error=1.0), "entropy", FROZEN_SCALE, ("entropy", "control"))
    assert nobody.neurons == (0, 0) and np.isnan(nobody.delta)


def test_flipping_a_neuron_flips_its_effects_value_by_value(model, text):
    reading = single_neurons.readout(model, COUNTS)
    flipped = with_w_out(model, LAYERS - 1, 7, -model.blocks[-1].w_out[7])
    values = [-3.0, 0.5, 3.0]
    one = single_neurons.effects(model, reading, text, {(LAYERS - 1, 7): values})
    other = single_neurons.effects(flipped, reading, text, {(LAYERS - 1, 7): [-value for value in values]})
    torch.testing.assert_close(one.changed, other.changed, rtol=1e-5, atol=1e-4)


def test_a_neuron_along_the_frequency_direction_is_first_and_acts_along_it(model, text):
    reading = single_neurons.readout(model, COUNTS)
    write = torch.linalg.pinv(model.unembedding.T, rtol=0.05) @ reading.frequency  # nothing into the unread direction
    planted = with_w_out(model, LAYERS - 1, 9, 3 * (write - write.mean()) / write.norm())
    reading = single_neurons.readout(planted, COUNTS)
    best = candidates.frequency_candidates(candidates.weight_columns(planted, reading)).iloc[0]
    assert (best["layer"], best["neuron"]) == (LAYERS - 1, 9)
    found = (
        single_neurons.effects(planted, reading, text, {(LAYERS - 1, 9): [2.0]}, (TOTAL, FIXED_FREQUENCY))
        .table()
        .set_index("variant")
    )
    assert found.loc[TOTAL, "kl_unigram_change"] < -0.1  # towards the unigram distribution
    assert abs(found.loc[FIXED_FREQUENCY, "kl_unigram_change"]) < abs(found.loc[TOTAL, "kl_unigram_change"])


@pytest.mark.parametrize("sign, role", [(1, "deactivation"), (-1, "activation")])
def test_a_neuron_along_a_later_heads_bos_key_is_first_and_switches_it(model, text, sign, role):
    alone = run(model, torch.tensor([[0]]))
    block = model.blocks[2]
    key = model.normalise(alone.before[2][0, 0]) @ block.qkv[:, 1, 1] + block.qkv_bias[1, 1]
    direction = block.qkv[:, 0, 1] @ key
    planted = with_w_out(model, 0, 5, sign * 4 * normalize(direction, dim=0))
    columns = inputs.weight_columns(planted, single_neurons.readout(planted, COUNTS), bos_id=0)
    assert columns.loc[columns["layer"] == LAYERS - 1, "attention_score"].isna().all()
    # planting moves the key a little: the neuron also writes at BOS
    pairs = heads.top_pairs(columns)
    first = pairs[pairs["role"] == role].iloc[0]
    assert tuple(first[["layer", "neuron", "attention_head_layer", "attention_head"]]) == (0, 5, 2, 1)
    flipped = heads.score_columns(-planted.w_out, heads.score_directions(planted, 0))
    np.testing.assert_allclose(flipped["attention_score"], -columns["attention_score"], rtol=1e-5)
    rows = heads.query_path_ablations(planted, *text, [PathAblation(0, 5, 2, 1)]).assign(role=role, attention_score=1.0)
    assert len(rows) == 12 * CONTEXT // 2
    summary = heads.ablation_summary(rows)
    assert summary["bos_change_corr"].iloc[0] * -sign > 0.5
    assert captions.query_paths(rows.assign(bos=0.5)).title.startswith("1 of 1 testable pair moves")
    untested = captions.query_paths(rows.assign(bos=0.01))
    assert untested.title == "No pair can be tested: the heads give BOS less than 10 % of their attention"
    assert "Not tested" in untested.text and "L0.5 → L2H1" in untested.text


def test_random_vectors_score_as_their_standard_deviation_says(model):
    chance = inputs.random_scores(model, 0, 0)
    raw = heads.attention_scores(torch.eye(D_MODEL).repeat(3, 1), heads.score_directions(model, 0))
    assert raw.shape == (3 * D_MODEL, LAYERS, HEADS) and raw[:D_MODEL, 1:].isfinite().all() and raw[-1].isnan().all()
    # the larger in size of four independent standard normal scores for layer 0's vectors, of two for layer 1's
    assert chance.groupby("layer")["attention_deviations"].apply(lambda own: own.abs().mean()).round(1).iloc[
        0
    ] == pytest.approx(1.5, abs=0.21)


def with_matched_effects(ablated: pd.DataFrame) -> pd.DataFrame:
    """Every ablated neuron matched with itself in a seed b (and, uncorrelated, in a seed c)."""
    own = ablated.drop_duplicates(["layer", "neuron"])[["seed", "layer", "neuron"]].assign(seed="a")
    own = own.assign(match_layer=own["layer"], match_neuron=own["neuron"])
    matches = pd.concat([own.assign(model="b", corr=0.9), own.assign(model="c", corr=-0.1)])
    table = inputs.with_matches(ablated, matches, "a")
    return table.assign(entropy_change=table["reference_change"], entropy_error=0.0)


def test_a_neuron_that_is_its_own_match_has_the_same_effect(model, text):
    reading = single_neurons.readout(model, COUNTS)
    chosen = pd.DataFrame(
        {"layer": [2, 2, 1, 1], "neuron": [0, 1, 2, 3], "group": ["entropy", "entropy", "entropy", "control"]}
    )
    ablated = (
        single_neurons.effects(model, reading, text, inputs.at_values(chosen, [0.5]))
        .table()
        .merge(chosen, on=["layer", "neuron"])
    )
    ablated = ablated.assign(seed="a")
    table = with_matched_effects(pd.concat([ablated, ablated.assign(seed="b")]))  # only the reference's are compared
    assert len(table) == 4 and set(table["seed"]) == {"b"}
    finding = captions.matched_ablation(table)
    few = "3 candidates are too few to compare: the sign of the effect agrees in"
    assert finding.title == f"{few} 100 % of pairs (controls 100 %)"
    assert "3 pairs of 3 candidates agree in sign in **100 %**, rank correlation **+1.00**" in finding.text
    opposite = captions.matched_ablation(table.assign(entropy_change=-table["reference_change"]))
    assert "agrees in 0 % of pairs" in opposite.title and "−1.00" in opposite.text


def test_caption_of_fixed_activations_has_the_reference_and_the_range_over_seeds():
    rows = [
        {"seed": seed, "group": group, "neuron": neuron, "entropy_change": change, "reciprocal_rank_change": rank}
        for seed, changes in {"a": (0.4, 0.1), "b": (0.2, 0.1), "c": (0.1, 0.3)}.items()
        for group, change, rank, start in zip(("entropy", "control"), changes, (-0.001, 0.002), (0, 10), strict=True)
        for neuron in range(start, start + 3)
    ]
    table = pd.DataFrame(rows).assign(layer=5, variant=TOTAL, value=6.0, tokens=1234)
    caption = captions.fixed_activation(table, "a")
    ranks = "Held at 6, candidates move reciprocal rank less than controls"
    assert caption.title == f"{ranks}; for entropy the seeds cannot tell"
    assert "on 1,234 tokens, the median change of entropy in nats is **+0.400** for 3 candidates" in caption.text
    assert "over 3 seeds: **+0.067** nats of entropy (−0.558 to +0.692) and **−0.0010** in the size" in caption.text
    alone = captions.fixed_activation(table[(table["seed"] != "a") | (table["group"] == "control")], "a")
    assert alone.title == "For reciprocal rank and entropy the seeds cannot tell"
    assert alone.text.startswith("Seed a has no candidate.") and "over 2 seeds" in alone.text
    raised = table.assign(entropy_change=np.where(table["group"] == "entropy", 0.3, 0.1))
    assert captions.fixed_activation(raised, "a").title == f"{ranks} and raise entropy more than controls"


def test_the_size_of_token_frequency_effects_is_said_beside_that_of_controls():
    rows = [("frequency", 0.0007), ("frequency", -0.0002), ("frequency control", -0.0010), ("control", 0.5)]
    table = pd.DataFrame(rows, columns=["group", "kl_unigram_change"]).assign(seed="a", variant=TOTAL)
    text = captions.frequency_size(table, "a")
    assert "by construction" in text and "by **0.00045** nats, the median control by **0.00100**" in text
    assert "The largest change is 0.0007 among 2 candidates and 0.0010 among 1 control." in text
    assert captions.frequency_size(table[table["group"] == "frequency"], "a") == ""


def every_panel(model, text, planted: bool):
    """Every figure and finding of a real run on the small model, or of tables without a single row."""
    reading = single_neurons.readout(model, COUNTS)
    model = with_w_out(model, LAYERS - 1, 7, 1.5 * unread_direction(model))
    weights = inputs.weight_columns(model, reading, 0)
    grouped, chosen = candidates.groups(weights), candidates.entropy_candidates(weights)
    swept = single_neurons.effects(model, reading, text, inputs.at_values(grouped, [0.0, 6.0])).table()
    swept = swept.merge(grouped, on=["layer", "neuron"]).assign(tokens=180, seed="a")
    means = weights[["layer", "neuron"]].assign(activation_mean=0.1)
    ablated = single_neurons.effects(model, reading, text, inputs.at_mean(grouped, means), inputs.VARIANTS).table()
    ablated = ablated.merge(grouped, on=["layer", "neuron"]).assign(tokens=180, seed="a")
    first = ablated[ablated["group"] == "entropy"].iloc[0]
    twice = pd.concat([ablated, ablated[ablated["group"] == "entropy"].assign(group="frequency")])
    wide = inputs.effect_columns(twice).set_index(["seed", "layer", "neuron"])
    assert len(wide) == grouped[["layer", "neuron"]].drop_duplicates().shape[0]
    assert wide.loc[("a", first["layer"], first["neuron"]), "ablation_group"] == "entropy+frequency"
    frozen = ablated.query("variant == @FROZEN_SCALE").drop_duplicates(inputs.KEY).set_index(inputs.KEY)["loss_change"]
    pd.testing.assert_series_equal(wide["mean_ablation_loss_frozen_scale"], frozen.loc[wide.index], check_names=False)
    pairs = heads.top_pairs(weights)
    paths = [
        PathAblation(*map(int, pair))
        for pair in pairs[["layer", "neuron", "attention_head_layer", "attention_head"]].to_numpy()
    ]
    rows = heads.query_path_ablations(model, *text, paths).merge(
        pairs[["layer", "neuron", "attention_score", "role"]], on=["layer", "neuron"]
    )
    matched = with_matched_effects(ablated)
    neurons = means.assign(
        dead=False,
        excess_corr=np.where(means["neuron"] < 1 + means["layer"], 0.9, 0.1),
        power=weights["w_out_norm"] ** 2,
        position_information=0.1,
        family=np.where(means["neuron"] % 2, "position", "unigram"),
    )
    neurons.loc[(means["layer"] == 0) & (means["neuron"] == 3), "excess_corr"] = 0.9  # of another family
    sets = neuron_sets.neuron_sets(with_universal(neurons, 0.5), 0)
    held = torch.full((LAYERS, NEURONS), 0.1)
    sets = neuron_sets.ablations(model, text, sets, held).assign(kind="mean", seed="a")
    sets = pd.concat([sets, sets.assign(kind="zero"), sets.assign(seed="b")])
    norms = heads.value_norms(model, text[0]).assign(seed="a")
    if not planted:
        chosen, swept, ablated, rows, matched, sets = (
            table.head(0) for table in (chosen, swept, ablated, rows, matched, sets)
        )
        weights = weights.assign(
            entropy=False, entropy_score=np.nan, attention_score=np.nan, attention_deviations=np.nan
        )
    chance, space = inputs.random_scores(model, 0, 0), candidates.null_space(model.unembedding)
    compared = neuron_sets.comparisons(sets)
    selected = figures.entropy_selection(weights, chosen, space.chance_bound)
    return (
        (selected, captions.entropy_selection(weights, chosen, space)),
        (figures.fixed_activation(swept), captions.fixed_activation(swept, "a")),
        (figures.mean_ablation(ablated), captions.mean_ablation(ablated, "a")),
        (figures.matched_ablation(matched), captions.matched_ablation(matched)),
        (figures.attention_scores(weights, chance), captions.attention_scores(weights, chance)),
        (figures.value_norms(norms), captions.value_norms(norms, "a")),
        (figures.query_paths(rows), captions.query_paths(rows)),
        (figures.importance(sets, compared, "a"), captions_sets.importance(compared, sets, "a")),
    )


@pytest.mark.parametrize("planted", [True, False], ids=["real tables", "empty tables"])
def test_every_figure_and_caption_with_and_without_rows(model, text, planted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fig, finding in every_panel(model, text, planted):
            fig.draw_without_rendering()
            assert any(axes.get_xlabel() for axes in fig.axes) and any(axes.get_ylabel() for axes in fig.axes)
            for words in finding:
                assert words and "nan" not in words.replace("**", " ").split(), finding
            assert len(finding.title) <= 130 and not finding.title.endswith("."), finding.title
            assert finding.text.endswith((".", "**")) and finding.alt.endswith("."), finding


def test_a_model_without_a_pair_has_no_path_to_cut(model, text):
    rows = heads.query_path_ablations(model, *text, [])
    merged = rows.merge(pd.DataFrame({"layer": [0], "neuron": [1], "role": ["activation"]}), on=["layer", "neuron"])
    assert rows.empty and "bos_change" in merged and heads.ablation_summary(merged).empty


def test_heads_compare_in_deviations_not_by_the_length_of_their_keys():
    """A neuron wholly along a head's short key, and a little along another's long key, belongs to the first."""
    long, short = torch.zeros(2, 16)
    long[0], short[1] = 20.0, 0.5
    directions = torch.stack([torch.stack([long, short])] * 2)  # both heads of two layers
    w_out = torch.zeros(2, 16)
    w_out[0, :2] = torch.tensor([0.3, 1.0])
    w_out[1, 0] = 1.0
    row = heads.score_columns(w_out, directions).iloc[0]
    unit = w_out[0] / w_out[0].norm()
    assert (row["attention_head_layer"], row["attention_head"]) == (1, 1) and float(unit @ long) > float(unit @ short)
    assert row["attention_score"] == pytest.approx(float(unit @ short)) and row[
        "attention_deviations"
    ] == pytest.approx(float(unit[1]) * 15**0.5)


def test_error_of_a_correlation_leaves_out_one_block_at_a_time():
    generator = np.random.default_rng(0)
    block = np.repeat(range(7), [3, 9, 4, 8, 5, 6, 7])
    x = generator.normal(size=len(block)) + block
    rows = pd.DataFrame(
        {
            "activation": x,
            "bos_change": 0.5 * x + generator.normal(size=len(block)),
            "norm_change": 1.0,
            "bos": 0.5,
            "norm": 1.0,
            "block": block,
            "layer": 0,
            "neuron": 1,
            "head_layer": 1,
            "head": 0,
            "role": "deactivation",
        }
    )
    summary = heads.ablation_summary(rows).iloc[0]
    left = [
        np.arctanh(np.corrcoef(rows["activation"][block != one], rows["bos_change"][block != one])[0, 1])
        for one in range(7)
    ]
    assert summary["bos_change_corr_error"] == pytest.approx(np.sqrt(6 / 7 * ((left - np.mean(left)) ** 2).sum()))
    assert np.isnan(summary["norm_change_corr_error"])
    alone = heads.ablation_summary(rows.assign(block=0)).iloc[0]
    assert np.isnan(alone["bos_change_corr_error"]) and np.isfinite(alone["bos_change_corr"])


def test_a_batch_follows_the_memory_and_changes_no_number(model, text):
    blocks = text[0].repeat(3, 1), text[1].repeat(3, 1)
    of_block = model.block_memory(CONTEXT)
    assert [model.within(memory, CONTEXT).batch for memory in (0, 2.5 * of_block, 1e12)] == [1, 2, 4]
    counts = torch.bincount(blocks[0].flatten(), minlength=VOCABULARY)
    sets = [neuron_sets.NeuronSet(1, "universal", 0, (2, 5))]
    found = []
    for batch in (1, 4):
        own = replace(model, batch=batch)
        reading = single_neurons.readout(own, counts)
        effects = single_neurons.effects(own, reading, blocks, {(0, 1): [1.0], (LAYERS - 1, 4): [1.0]}).table()
        ablated = neuron_sets.ablations(own, blocks, sets, torch.zeros(LAYERS, NEURONS))
        paths = heads.query_path_ablations(own, *blocks, [PathAblation(0, 1, 1, 0), PathAblation(1, 3, 2, 1)])
        found.append([effects, ablated, paths, heads.value_norms(own, blocks[0])])
    for one, other in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-3, atol=1e-5)
