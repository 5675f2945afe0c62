"""Sets of neurons ablated together, against a plain model with hooks in fp64, planted neurons and plain sums."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lib.chapters.interventions import captions_sets, figures, neuron_sets
from lib.chapters.interventions.engine import Fix, run
from lib.chapters.interventions.neuron_sets import RANDOM, TOLERANCE, UNIVERSAL, NeuronSet
from lib.models.processed import processed
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
    zeros = torch.zeros(3, WIDTH)
    table = pd.concat([neuron_sets.ablations(model, (tokens, counted), sets, held) for held in (means, zeros)])
    measured, target = counted.numpy()[:, :-1], tokens.numpy()[:, 1:, None]
    before = log_predictions(plain, tokens)[0][:, :-1]
    assert table[["layer", "neurons", "blocks"]].to_numpy().tolist() == [[0, 3, 7], [1, 1, 7], [2, 21, 7]] * 2
    cases = [(one, held[one.layer]) for held in (means, zeros) for one in sets]
    for row, (one, values) in zip(table.itertuples(), cases, strict=True):
        after, added = log_predictions(plain, tokens, one, values)
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
            assert getattr(row, name) == pytest.approx(mean, abs=1e-5), (one, name)
            assert getattr(row, f"{name}_error") == pytest.approx(
                np.sqrt(np.var(by_block, ddof=1) * 7) / measured.sum(), abs=1e-5
            )


def test_rounding_changes_of_logits_to_bf16_does_not_bias_the_means(model, tokens, monkeypatch):
    many = tokens.repeat(40, 1)
    many[:, 1:] = torch.randint(1, VOCABULARY, many[:, 1:].shape, generator=torch.Generator().manual_seed(2))
    sets = [NeuronSet(layer, UNIVERSAL, 0, (neuron,)) for layer in range(3) for neuron in (3, 17, 20)]
    exact = neuron_sets.ablations(model, (many, many > 0), sets, torch.zeros(3, WIDTH))
    monkeypatch.setattr(neuron_sets, "product_dtype", lambda unembedding: torch.bfloat16)
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


# ---------------------------------------------------------------- sets


def test_the_power_of_a_neuron_is_what_its_own_ablation_adds(model, tokens):
    counted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    means = torch.rand(3, WIDTH, generator=torch.Generator().manual_seed(4))
    powers = neuron_sets.single_powers(model, (tokens, counted), means)
    sets = [NeuronSet(layer, UNIVERSAL, 0, (neuron,)) for layer in range(3) for neuron in (0, 17, 39)]
    found = neuron_sets.ablations(model, (tokens, counted), sets, means)
    expected = [powers[one.layer, one.neurons[0]] for one in sets]
    np.testing.assert_allclose(found["residual_power"], expected, rtol=1e-3, atol=1e-6)


def neurons_table(layers: int = LAYERS, width: int = NEURONS, **changes) -> pd.DataFrame:
    """Neurons of one seed with heavy-tailed power, of which none is universal."""
    index = pd.MultiIndex.from_product([range(layers), range(width)], names=["layer", "neuron"]).to_frame(index=False)
    random = np.random.default_rng(0)
    table = index.assign(
        dead=False,
        excess_corr=random.uniform(0, 0.4, len(index)),
        power=random.lognormal(0, 1.4, len(index)),
        position_information=random.uniform(0, 0.01, len(index)),
        family="unexplained",
    )
    return table.assign(**changes)


def made_universal(table: pd.DataFrame, layer: int, neurons: list[int], **changes) -> pd.DataFrame:
    """The table with universal neurons, and other columns of theirs changed."""
    own = (table["layer"] == layer) & table["neuron"].isin(neurons)
    for name, value in ({"excess_corr": 0.9} | changes).items():
        table.loc[own, name] = value
    return table


def sums_of(table: pd.DataFrame, one: NeuronSet) -> tuple[float, float]:
    """A set's power and its position information, by a loop."""
    rows = {(row["layer"], row["neuron"]): row for row in table.to_dict("records")}
    own = [rows[one.layer, neuron] for neuron in one.neurons]
    return (sum(row["power"] for row in own), sum(row["position_information"] for row in own))


def drawn_of(sets: list[NeuronSet], layer: int) -> list[NeuronSet]:
    return [one for one in sets if one.layer == layer and one.group == RANDOM]


def test_random_sets_have_the_power_of_loud_universal_neurons():
    """Five universal neurons are loud, as are a few others: chance alone would hardly ever draw these."""
    table = made_universal(neurons_table(2, 300), 1, [3, 50, 51, 120, 299], power=36.0)
    loud = (table["layer"] == 1) & table["neuron"].isin(range(200, 216))
    table.loc[loud, "power"] = 31.0
    sets = neuron_sets.neuron_sets(with_universal(table, 0.5), 0)
    (own,) = [one for one in sets if one.group == UNIVERSAL]
    drawn = drawn_of(sets, 1)
    assert own.neurons == (3, 50, 51, 120, 299) and own.power == pytest.approx(5 * 36)
    assert len(drawn) == len({one.neurons for one in drawn}) == 10 and [one.draw for one in drawn] == list(range(10))
    for one in drawn:
        power, information = sums_of(table, one)
        assert (one.power, one.information) == (pytest.approx(power), pytest.approx(information))
        assert power == pytest.approx(own.power, rel=TOLERANCE)
        assert len(set(one.neurons)) == 5 and not set(one.neurons) & set(own.neurons)
    rest = table[(table["layer"] == 1) & ~table["neuron"].isin(own.neurons)]
    random = np.random.default_rng(1)
    unmatched = [rest["power"].sample(5, random_state=random).sum() for _ in range(200)]
    assert np.quantile(unmatched, 0.95) < own.power / 2


def test_random_sets_of_the_first_layer_know_the_position_as_well():
    table = neurons_table(2, 300)
    position = table["neuron"].isin(range(100, 120))
    table.loc[position, "position_information"] = 0.5
    for layer in (0, 1):
        table = made_universal(table, layer, [1, 2, 3, 4], position_information=0.5)
    table = made_universal(table, 0, [4, 5], position_information=0.0)
    table = made_universal(table, 1, [4, 5], position_information=0.0)
    sets = neuron_sets.neuron_sets(with_universal(table, 0.5), 0)
    for one in drawn_of(sets, 0):
        power, information = sums_of(table, one)
        assert information == pytest.approx(1.5, rel=TOLERANCE)
        own = next(other for other in sets if other.layer == 0 and other.group == UNIVERSAL)
        assert power == pytest.approx(own.power, rel=TOLERANCE)
    in_later = [sums_of(table, one)[1] for one in drawn_of(sets, 1)]
    assert np.median(in_later) < 1  # there the position is nobody's business
    unknown = neuron_sets.neuron_sets(with_universal(table.assign(position_information=np.nan), 0.5), 0)
    assert len(drawn_of(unknown, 0)) == 10 and np.isnan(drawn_of(unknown, 0)[0].information)


def test_a_set_that_no_other_neurons_can_match_is_not_compared_and_the_caption_says_so():
    table = neurons_table(1, 60, power=1.0)
    table.loc[10:13, "power"] = 9.0
    table = made_universal(table, 0, [0, 1, 2], power=100.0)
    sets = neuron_sets.neuron_sets(with_universal(table, 0.5), 0)
    drawn = drawn_of(sets, 0)
    assert 1 <= len(drawn) <= 4 and all(set(one.neurons) < set(range(10, 14)) for one in drawn)
    rows = pd.DataFrame([one._asdict() for one in sets]).assign(
        neurons=3, seed="a", kind="mean", tokens=9, blocks=3, loss_change=0.1, loss_change_error=0.01, kl=0.1
    )
    rows = rows.assign(residual_power=1.0)
    assert neuron_sets.comparisons(rows).empty
    both = pd.concat([rows, rows.assign(layer=2, power=1.0)])
    compared = neuron_sets.comparisons(both)
    assert compared["layer"].tolist() == [2]
    text = captions_sets.importance(compared, both, "a").text
    assert "Left out, since no other neurons match their power: layer 0." in text


def test_sets_are_of_live_neurons_and_the_seed_of_random_numbers_decides():
    table = made_universal(neurons_table(), 1, list(range(7)))
    table.loc[(table["layer"] == 1) & table["neuron"].isin([2, 50, 51]), "dead"] = True
    sets, again, other = (neuron_sets.neuron_sets(with_universal(table, 0.5), seed) for seed in (0, 0, 1))
    assert [one.neurons for one in sets if one.group == UNIVERSAL] == [(0, 1, 3, 4, 5, 6)]
    assert {one.layer for one in sets} == {1} and sets == again != other
    assert not any({2, 50, 51} & set(one.neurons) for one in sets)
    assert len(drawn_of(neuron_sets.neuron_sets(with_universal(table, 0.5), 0, draws=4), 1)) == 4


@pytest.mark.parametrize("threshold", [-1, 2], ids=["all universal", "none universal"])
def test_sets_without_members_or_without_enough_others_are_left_out(threshold):
    assert neuron_sets.neuron_sets(with_universal(neurons_table(), threshold), 0) == []


# ---------------------------------------------------------------- effects of sets


@pytest.fixture(scope="module")
def predicted_text():
    """A model with one loud position neuron in layer 0, and text that it predicts, so that a disturbance costs loss."""
    loud = torch.randn(64, generator=torch.Generator().manual_seed(9))
    planted = with_w_out(small(), 0, 7, 3 * (loud - loud.mean()))
    tokens = torch.randint(1, WORDS, (12, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 0
    for position in range(CONTEXT - 1):
        trace = run(planted, tokens)
        tokens[:, position + 1] = (planted.normalise(trace.final[:, position]) @ planted.unembedding).argmax(-1)
    return planted, (tokens, tokens > 0)


def test_the_first_layers_effect_is_attributed_to_its_planted_position_neuron(predicted_text):
    planted, text = predicted_text
    held = torch.full((LAYERS, NEURONS), 0.1)
    table = neurons_table(power=neuron_sets.single_powers(planted, text, held).flatten().numpy())
    table = made_universal(table, 0, [7], family="position")
    table = made_universal(made_universal(table, 0, [8, 9], family="unigram"), 1, [3], family="unigram")
    sets = neuron_sets.neuron_sets(with_universal(table, 0.5), 0)
    assert {(one.layer, one.group, one.neurons) for one in sets if one.group != RANDOM} == {
        (0, UNIVERSAL, (7, 8, 9)),
        (0, "position", (7,)),
        (0, "unigram", (8, 9)),
        (1, UNIVERSAL, (3,)),
    }
    found = neuron_sets.ablations(planted, text, sets, held).assign(seed="a", kind="mean")
    parts = neuron_sets.family_parts(found).set_index("family")
    assert parts.index.tolist() == ["position", "unigram"]
    assert parts.loc["position", "share"] > 0.8 > 0.4 > abs(parts.loc["unigram", "share"])
    for family, neurons in (("position", [7]), ("unigram", [8, 9])):
        fixes = [Fix(0, neuron, 0.1) for neuron in neurons]
        losses = []
        for trace in (run(planted, text[0]), run(planted, text[0], fixes)):
            logits = planted.normalise(trace.final) @ planted.unembedding
            log_p = logits.double().log_softmax(-1)[:, :-1].gather(2, text[0][:, 1:, None])[..., 0]
            losses.append(-log_p[text[1][:, :-1]].mean())
        assert parts.loc[family, "loss_change"] == pytest.approx(float(losses[1] - losses[0]), abs=1e-4)
    unclear = neuron_sets.family_parts(found.assign(loss_change_error=1e3))
    assert unclear["share"].isna().all()  # no ratio of an effect that may be 0


def test_a_planted_neuron_that_matters_ranks_first_and_its_layer_leads(predicted_text):
    planted, text = predicted_text
    table = made_universal(neurons_table(power=1.0, position_information=0.0), 0, [7])
    table = made_universal(made_universal(table, 1, [7]), 2, [7])
    sets = neuron_sets.neuron_sets(with_universal(table, 0.5), 0)
    found = neuron_sets.ablations(planted, text, sets, torch.full((LAYERS, NEURONS), 0.1))
    for outcome in neuron_sets.OUTCOMES:
        best = found.loc[found[outcome].idxmax()]
        assert (best["layer"], best["group"]) == (0, UNIVERSAL)
    compared = neuron_sets.comparisons(found.assign(seed="a", kind="mean"))
    first = compared.set_index("layer").loc[0]
    assert first[["neurons", "draws", "kl_below", "loss_change_below"]].tolist() == [1, 10, 10, 10]
    assert neuron_sets.first_layer_lead(compared)["a"] > 0


def test_shares_and_leads_by_seed_are_what_plain_counts_give():
    random, rows = np.random.default_rng(3), []
    for seed, layers in (("a", (0, 1, 4)), ("b", (0, 2)), ("c", (1, 2)), ("d", (0,))):
        for layer in layers:
            for draw in range(6):
                rows.append((seed, layer, RANDOM, draw, random.choice([0.1, 0.2, 0.3])))
            rows.append((seed, layer, UNIVERSAL, 0, random.choice([0.1, 0.2, 0.3])))
    table = pd.DataFrame(rows, columns=["seed", "layer", "group", "draw", "loss_change"]).assign(
        kind="mean", neurons=4, power=1.0, tokens=9, blocks=3, loss_change_error=0.01, kl=0.1, residual_power=1.0
    )
    compared = neuron_sets.comparisons(table)
    below, excess = {}, {}
    for seed, layer in {(row[0], row[1]) for row in rows}:
        own = next(row[4] for row in rows if row[:3] == (seed, layer, UNIVERSAL))
        others = [row[4] for row in rows if row[:3] == (seed, layer, RANDOM)]
        below.setdefault(seed, []).extend([1.0 if other < own else 0.5 if other == own else 0.0 for other in others])
        excess[seed, layer] = own - np.mean(others)
    shares, leads = neuron_sets.shares_below(compared), neuron_sets.first_layer_lead(compared)
    assert shares.to_dict() == pytest.approx({seed: np.mean(values) for seed, values in below.items()})
    assert leads.to_dict() == pytest.approx(
        {"a": excess["a", 0] - max(excess["a", 1], excess["a", 4]), "b": excess["b", 0] - excess["b", 2]}
    )
    assert neuron_sets.first_layer_lead(compared[compared["layer"] == 0]).empty


def test_comparisons_equal_a_calculation_by_hand():
    shared = dict(seed="a", kind="mean", layer=2, neurons=4, tokens=9, blocks=3, residual_power=2.0, kl=1.0)
    rows = [
        dict(group=RANDOM, draw=draw, loss_change=value, power=power, loss_change_error=0.03, **shared)
        for draw, (value, power) in enumerate(((0.1, 9.0), (0.2, 10.0), (0.3, 10.5)))
    ]
    rows += [dict(group=UNIVERSAL, draw=0, loss_change=0.25, power=10.0, loss_change_error=0.04, **shared)]
    rows += [dict(rows[0], seed="b", loss_change=9.0)]  # of another seed
    (found,) = neuron_sets.comparisons(pd.DataFrame(rows)).to_dict("records")
    assert (found["seed"], found["draws"], found["loss_change_below"], found["kl_below"], found["kl_level"]) == (
        "a",
        3,
        2,
        0,
        3,
    )
    assert found["loss_change_random"] == pytest.approx(0.2) and found["loss_change_spread"] == pytest.approx(0.1)
    assert (found["power_low"], found["power_high"]) == (0.9, 1.05)
    assert found["loss_change_excess"] == pytest.approx(0.05)
    assert found["loss_change_excess_error"] == pytest.approx((0.04**2 + 0.03**2 + 0.1**2 / 3) ** 0.5)


def test_one_block_of_text_has_effects_but_no_errors(model, tokens):
    sets = [NeuronSet(layer, group, 0, tuple(range(5)), 1.0) for layer in (0, 1) for group in (UNIVERSAL, RANDOM)]
    table = neuron_sets.ablations(model, (tokens[:1], tokens[:1] > 0), sets, torch.zeros(3, WIDTH))
    table = table.assign(seed="a", kind="mean")
    assert table["loss_change"].notna().all() and table["loss_change_error"].isna().all()
    finding = captions_sets.importance(neuron_sets.comparisons(table), table, "a")
    assert "In seed a the first layer's set costs" in finding.text and "nan" not in finding.text


def test_caption_states_ranks_power_blocks_and_families():
    rows = []
    for seed, first in (("a", 0.9), ("b", 0.05)):
        for layer, own in enumerate((first, 0.2, 0.05)):
            rows += [(seed, layer, RANDOM, draw, loss, 0.97) for draw, loss in enumerate(np.linspace(0, 0.1, 10))]
            rows.append((seed, layer, UNIVERSAL, 0, own, 1.0))
        rows += [(seed, 0, "position", 0, 0.8 * first, 0.6), (seed, 0, "unigram", 0, 0.1 * first, 0.4)]
    table = pd.DataFrame(rows, columns=["seed", "layer", "group", "draw", "loss_change", "power"]).assign(
        neurons=4, kl=0.1, residual_power=1.0, loss_change_error=0.01, tokens=12_000, kind="mean"
    )
    table["blocks"] = table["seed"].map({"a": 48, "b": 16})
    compared = neuron_sets.comparisons(table)
    finding = captions_sets.importance(compared, table, "a")
    cost = "Universal neurons do not clearly cost more loss than random sets of equal power"
    assert finding.title == f"{cost}: 75 % of these cost less (0 % to 100 %)"
    for words in (
        "Over 2 seeds, **75 %** of the random sets cost less loss than the universal neurons (0 % to 100 %); a half is",
        "In seed a, on 12,000 tokens of 48 blocks, **25 of 30** do (other seeds: 16 blocks).",
        "Their power is 0.97 to 0.97 times that",
        "In seed a the first layer's set costs **+0.9000** nats, beyond its random sets +0.8500 ±",
        "Its 4 neurons of family “position” alone cost **+0.7200**, more than those of any other family.",
        "Over 2 seeds the first layer's sets cost **+0.4250** nats beyond random ones (",
    ):
        assert words in finding.text, finding.text
    shown = figures.importance_table(compared[compared["seed"] == "a"])
    assert shown["Δloss [nats], random"].tolist() == ["0.0500"] * 3 and shown["below in Δloss"].tolist() == [10, 10, 5]
