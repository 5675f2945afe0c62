"""Sets of neurons ablated together, against a plain model with hooks in fp64, a planted neuron and enumerated ranks."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lib.chapters.interventions import captions, figures, neuron_sets
from lib.chapters.interventions.engine import Fix, run
from lib.chapters.interventions.neuron_sets import MOST, RANDOM, UNIVERSAL, NeuronSet
from lib.display.claims import UNKNOWN, Evidence
from lib.models.processed import processed
from lib.report import ledger
from lib.run import with_universal
from tests.chapters.interventions.test_tables import CONTEXT, LAYERS, NEURONS, small, with_w_out
from tests.chapters.interventions.test_tables import VOCABULARY as WORDS

VOCABULARY, WIDTH = 97, 40


@pytest.fixture(scope="module")
def plain() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=3,
            n_embd=16,
            n_head=2,
            n_positions=24,
            n_inner=WIDTH,
            vocab_size=VOCABULARY,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    for parameter in model.parameters():  # no weight stays at its neutral start value
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def model(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    plain.save_pretrained(folder)
    return processed(folder)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    tokens = torch.randint(1, VOCABULARY, (7, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    return tokens


@torch.no_grad()
def log_predictions(plain, tokens, one: NeuronSet | None = None, values=None) -> tuple[np.ndarray, np.ndarray]:
    """log p of the plain model in fp64 with a set held, and the change of the (centred) residual stream."""
    double, added = GPT2LMHeadModel(plain.config).eval().double(), []
    double.load_state_dict(plain.state_dict())

    def hold(module, read, activation):
        held = activation.clone()
        held[..., list(one.neurons)] = torch.as_tensor(values).double()[list(one.neurons)]
        added.append((held - activation) @ double.transformer.h[one.layer].mlp.c_proj.weight)
        return held

    if one:
        double.transformer.h[one.layer].mlp.act.register_forward_hook(hold)
    logits = double(tokens).logits.numpy()
    logits = logits - logits.max(-1, keepdims=True)
    change = added[0] - added[0].mean(-1, keepdim=True) if added else torch.zeros(1)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), change.numpy()


def test_ablations_equal_the_plain_model_with_hooks_in_fp64(plain, model, tokens):
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    means = torch.rand(3, WIDTH, generator=torch.Generator().manual_seed(4))
    sets = [
        NeuronSet(layer, UNIVERSAL, 0, neurons)
        for layer, neurons in enumerate([(3, 17, 20), (5,), tuple(range(9, 30))])
    ]
    table = neuron_sets.ablations(model, (tokens, counted), sets, means)
    measured, target = counted.numpy()[:, :-1], tokens.numpy()[:, 1:, None]
    before = log_predictions(plain, tokens)[0][:, :-1]
    assert table[["layer", "kind", "neurons"]].to_numpy().tolist() == [
        [layer, kind, n] for layer, n in enumerate((3, 1, 21)) for kind in ("mean", "zero")
    ]
    for row, (one, values) in zip(table.itertuples(), product(sets, (None, torch.zeros(WIDTH))), strict=True):
        after, added = log_predictions(plain, tokens, one, means[one.layer] if values is None else values)
        after = after[:, :-1]
        expected = {
            "loss_change": (np.take_along_axis(before, target, -1) - np.take_along_axis(after, target, -1))[..., 0],
            "kl": (np.exp(before) * (before - after)).sum(-1),
            "residual_power": (added[:, :-1] ** 2).sum(-1),
        }
        assert row.tokens == measured.sum() and expected["kl"][measured].mean() > 1e-3  # a hundred times the tolerance
        for name, values_of in expected.items():
            mean = values_of[measured].mean()
            by_block = [(values_of[block] - mean)[measured[block]].sum() for block in range(7)]
            assert getattr(row, name) == pytest.approx(mean, abs=1e-5), (one, row.kind, name)
            assert getattr(row, f"{name}_error") == pytest.approx(
                np.sqrt(np.var(by_block, ddof=1) * 7) / measured.sum(), abs=1e-5
            )


def test_rounding_changes_of_logits_to_bf16_does_not_bias_the_means(model, tokens, monkeypatch):
    many = tokens.repeat(40, 1)
    many[:, 1:] = torch.randint(1, VOCABULARY, many[:, 1:].shape, generator=torch.Generator().manual_seed(2))
    sets = [NeuronSet(layer, UNIVERSAL, 0, (neuron,)) for layer in range(3) for neuron in (3, 17, 20)]
    exact = neuron_sets.ablations(model, (many, many > 0), sets, torch.zeros(3, WIDTH))
    monkeypatch.setattr(neuron_sets, "product_dtype", lambda vocabulary, dtype: torch.bfloat16)
    rounded = neuron_sets.ablations(model, (many, many > 0), sets, torch.zeros(3, WIDTH))
    assert (rounded["kl"] != exact["kl"]).all()
    for outcome in ("loss_change", "kl"):
        np.testing.assert_allclose(
            rounded[outcome], exact[outcome], rtol=4e-3, atol=2e-5
        )  # ten times less than rounding the logits would do


def test_a_set_adds_to_the_residual_stream_what_its_neurons_add_one_by_one(model, tokens):
    unchanged = run(model, tokens)
    for layer in range(3):
        fixes = [Fix(layer, neuron, 0.1 * neuron - 1) for neuron in (30, 4, 19)]
        together = run(model, tokens, fixes, unchanged).before[layer + 1] - unchanged.before[layer + 1]
        single = sum(
            run(model, tokens, [fix], unchanged).before[layer + 1] - unchanged.before[layer + 1] for fix in fixes
        )
        torch.testing.assert_close(together, single, rtol=0, atol=1e-5)
        assert together.abs().max() > 0.1


def neurons_table(**changes) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([range(LAYERS), range(NEURONS)], names=["layer", "neuron"]).to_frame(index=False)
    table = index.assign(
        dead=False, excess_corr=np.random.default_rng(0).uniform(0, 0.4, len(index)), activation_mean=0.1
    )
    return table.assign(**changes)


def test_sets_hold_universal_top_and_random_live_neurons():
    neurons = neurons_table()
    neurons.loc[(neurons["layer"] == 1) & (neurons["neuron"] < 7), "excess_corr"] = np.linspace(0.6, 0.9, 7)
    neurons.loc[(neurons["layer"] == 1) & neurons["neuron"].isin([2, 50, 51]), "dead"] = True
    sets = neuron_sets.neuron_sets(with_universal(neurons, 0.5), 0)
    chosen = {(one.layer, one.group): one.neurons for one in sets if one.group != RANDOM}
    assert chosen.pop((1, UNIVERSAL)) == (0, 1, 3, 4, 5, 6) and set(chosen) == {
        (layer, MOST) for layer in range(LAYERS)
    }
    for layer in range(LAYERS):
        live = neurons[(neurons["layer"] == layer) & ~neurons["dead"]]
        assert chosen[layer, MOST] == tuple(sorted(live.sort_values("excess_corr")["neuron"].iloc[-3:]))
    drawn = [one for one in sets if one.group == RANDOM]
    assert sorted((one.layer, len(one.neurons), one.draw) for one in drawn) == sorted(
        (layer, size, draw) for layer, size in ((0, 3), (1, 3), (1, 6), (2, 3)) for draw in range(10)
    )
    for one in drawn:
        not_drawn = set(chosen[one.layer, MOST]) | ({*range(7), 50, 51} if one.layer == 1 else set())
        assert len(set(one.neurons)) == len(one.neurons) and not not_drawn & set(one.neurons)
    assert len({one.neurons for one in drawn}) == 40
    again, other = (neuron_sets.neuron_sets(with_universal(neurons, 0.5), random_seed) for random_seed in (0, 1))
    assert again == sets != other


@pytest.mark.parametrize(
    "threshold, groups", [(-1, set()), (2, {MOST, RANDOM})], ids=["all universal", "none universal"]
)
def test_sets_without_members_or_without_enough_others_are_left_out(threshold, groups):
    assert {one.group for one in neuron_sets.neuron_sets(with_universal(neurons_table(), threshold), 0)} == groups


def test_a_planted_neuron_that_matters_ranks_first_and_its_layer_too():
    loud = torch.randn(64, generator=torch.Generator().manual_seed(9))
    planted = with_w_out(small(), 1, 7, 3 * (loud - loud.mean()))
    neurons = neurons_table()
    neurons.loc[neurons["neuron"] == 7, "excess_corr"] = 0.9  # one universal neuron in each layer
    tokens = torch.randint(1, WORDS, (12, CONTEXT), generator=torch.Generator().manual_seed(1))
    # text that the model predicts: its own likeliest tokens, so that a disturbance costs loss
    tokens[:, 0] = 0
    for position in range(CONTEXT - 1):
        trace = run(planted, tokens)
        tokens[:, position + 1] = (planted.normalise(trace.final[:, position]) @ planted.unembedding).argmax(-1)
    sets = neuron_sets.neuron_sets(with_universal(neurons, 0.5), 0)
    table = neuron_sets.ablations(planted, (tokens, tokens > 0), sets, torch.full((LAYERS, NEURONS), 0.1))
    for outcome in neuron_sets.OUTCOMES:
        best = table.loc[table[outcome].idxmax()]
        assert best["layer"] == 1 and best["group"] in (UNIVERSAL, MOST)
    compared = neuron_sets.comparisons(table).set_index(["kind", "group", "layer"]).sort_index()
    for kind in ("mean", "zero"):
        assert compared.loc[(kind, UNIVERSAL, 1), ["neurons", "draws", "kl_below", "loss_change_below"]].tolist() == [
            1,
            10,
            10,
            10,
        ]
    first = neuron_sets.first_layer(compared.loc[("mean", UNIVERSAL)].reset_index())
    assert first.other == 1 and first.difference + first.half < 0


# ---------------------------------------------------------------- ranks


def row(layer: int, below: int, level: int = 0, draws: int = 10, excess: float = 0.0, error: float = 0.1) -> dict:
    return {
        "layer": layer,
        "draws": draws,
        "kl_below": below,
        "kl_level": level,
        "loss_change_excess": excess,
        "loss_change_excess_error": error,
    }


@pytest.mark.parametrize(
    "below, level", [((10, 10, 10), 0), ((0, 1, 0), 0), ((5, 8, 9), 1), ((3, 6, 5), 0), ((0, 0, 0), 10)]
)
def test_the_rank_test_equals_an_enumeration(below, level):
    found = neuron_sets.ranking(pd.DataFrame([row(layer, number, level) for layer, number in enumerate(below)]), "kl")
    sums = np.array([sum(ranks) for ranks in product(range(11), repeat=3)])
    high, low = (sums >= sum(below)).mean(), (sums <= sum(below) + 3 * level).mean()
    assert found.p_value == pytest.approx(min(1, 2 * min(high, low)))
    assert (found.below, found.draws, found.share) == (sum(below) + 1.5 * level, 30, (sum(below) + 1.5 * level) / 30)


def test_one_layer_alone_is_never_significant_and_two_may_be():
    assert neuron_sets.ranking(pd.DataFrame([row(0, 10)]), "kl").p_value == pytest.approx(2 / 11)
    assert neuron_sets.ranking(pd.DataFrame([row(0, 10), row(1, 10)]), "kl").p_value == pytest.approx(2 / 121)


def test_comparisons_equal_a_calculation_by_hand():
    shared = dict(layer=2, kind="mean", tokens=9, loss_change_error=0.03, residual_power=2.0)
    rows = [
        dict(group=RANDOM, draw=draw, neurons=4, loss_change=value, kl=1.0, **shared)
        for draw, value in enumerate((0.1, 0.2, 0.3))
    ]
    rows += [dict(group=RANDOM, draw=0, neurons=2, loss_change=9.0, kl=9.0, **shared)]  # of another size
    rows += [
        dict(
            group=UNIVERSAL,
            draw=0,
            neurons=4,
            loss_change=0.25,
            kl=1.0,
            **(shared | {"loss_change_error": 0.04, "residual_power": 4.0}),
        )
    ]
    (found,) = neuron_sets.comparisons(pd.DataFrame(rows)).to_dict("records")
    assert (found["group"], found["draws"], found["loss_change_below"], found["kl_below"], found["kl_level"]) == (
        UNIVERSAL,
        3,
        2,
        0,
        3,
    )
    assert found["loss_change_random"] == pytest.approx(0.2) and found["loss_change_spread"] == pytest.approx(0.1)
    assert (found["kl_per_power"], found["kl_per_power_random"], found["kl_per_power_below"]) == (0.25, 0.5, 0)
    assert found["loss_change_excess"] == pytest.approx(0.05)
    assert found["loss_change_excess_error"] == pytest.approx((0.04**2 + 0.03**2 + 0.1**2 / 3) ** 0.5)


def test_first_layer_is_compared_with_the_largest_other():
    found = neuron_sets.first_layer(
        pd.DataFrame([row(0, 0, excess=1.0), row(1, 0, excess=0.2), row(4, 0, excess=0.6, error=0.2)])
    )
    assert (found.other, found.excess, found.other_excess) == (4, 1.0, 0.6)
    assert found.difference == pytest.approx(0.4)
    assert found.half == pytest.approx(
        2.2414 * 0.05**0.5, rel=1e-4
    )  # of a standard normal 98.75 % lie below 2.2414: two others to choose from
    assert (
        neuron_sets.first_layer(pd.DataFrame([row(1, 0), row(2, 0)])) is None
        and neuron_sets.first_layer(pd.DataFrame([row(0, 0)])) is None
    )


def test_one_block_of_text_has_effects_but_no_errors(model, tokens):
    sets = [NeuronSet(layer, group, 0, tuple(range(5))) for layer in (0, 1) for group in (UNIVERSAL, RANDOM)]
    table = neuron_sets.ablations(model, (tokens[:1], tokens[:1] > 0), sets, torch.zeros(3, WIDTH))
    assert table["loss_change"].notna().all() and table["loss_change_error"].isna().all()
    finding = captions.importance(neuron_sets.comparisons(table))
    assert "The first layer's excess" in finding.text and "nan" not in finding.text
    measured = ledger.ledger(Evidence({"ablations": table}, "a", 0.5)).set_index("name").loc["ablation_first_layer"]
    assert (measured["verdict"], measured["here"]) == (UNKNOWN, "one block of text gives no standard error")


@pytest.mark.parametrize(
    "first, title, where",
    [
        (
            0.9,
            "costs more loss than 30 of 30 random sets do",
            "is +0.8500 nats; its difference from the largest of the others (layer 1) is +0.7000 ± 0.0561",
        ),
        (
            0.19,
            "costs more loss than 30 of 30 random sets do",
            "is +0.1400 nats; its difference from the largest of the others (layer 1) is −0.0100 ± 0.0561",
        ),
        (
            -0.9,
            "does not clearly differ from random ones: above 20 of 30 random sets",
            "is −0.9500 nats; its difference from the largest of the others (layer 1) is −1.1000 ± 0.0561",
        ),
    ],
)
def test_caption_states_ranks_and_first_layer(first, title, where):
    random = (
        pd.DataFrame({"draw": range(10), "loss_change": np.linspace(0, 0.1, 10)})
        .assign(group=RANDOM)
        .merge(pd.DataFrame({"layer": range(3)}), how="cross")
    )
    chosen = pd.DataFrame({"draw": 0, "loss_change": [first, 0.2, 0.1999], "group": UNIVERSAL, "layer": range(3)})
    table = (
        pd.concat([random, chosen])
        .assign(neurons=4, kl=0.1, residual_power=1.0, loss_change_error=0.01)
        .merge(pd.DataFrame({"kind": ["mean", "zero"]}), how="cross")
    )
    compared = neuron_sets.comparisons(table)
    finding = captions.importance(compared)
    assert finding.title == f"Ablating universal neurons {title}" and finding.title in finding.alt
    assert where in finding.text and "**Not compared:** the top 5 % by excess" in finding.text
    assert "more KL per unit of power than **15 of 30** random sets (p = 1)" in finding.text
    shown = figures.importance_table(compared)
    assert shown["Δloss [nats], random"].tolist() == ["0.0500"] * 3 and shown["of 10 below in Δloss"].iloc[1] == 10
