"""One's own text on a neuron's page: what its script computes against the tokeniser and the model themselves."""

import json

import numpy as np
import pytest
import torch
from conftest import TOKENIZER, needs_browser
from transformers import GPT2Config, GPTNeoXConfig, PreTrainedTokenizerFast

from lib.base.hub import seed_source
from lib.base.params import ROOT
from lib.models.trunk import Trunk, load_model
from lib.report import own_text
from lib.report.pages import TEMPLATES
from lib.text.blocks import read_text
from lib.text.tokenise import vocabulary

SHIPPED = GPT2Config.from_pretrained(ROOT / "data" / "seeds" / "a")
TEXT = 'The children (who were tired) said: "We can\'t find 3 of the 12 keys."\n\n\tdef f(x): return x[0]  # 東京 🙂'


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(TOKENIZER)


def lines() -> list[str]:
    """Some thousand texts: of the shipped text, which has several languages and code; of other scripts; of blanks."""
    text = read_text(ROOT / "data" / "tokens.safetensors")
    blocks = text.tokens[:: max(1, len(text.tokens) // 200), 1:]
    found = [line for block in tokenizer().batch_decode(blocks) for line in block.splitlines(keepends=True)]
    others = (
        "Ελληνικά кириллица עברית العربية हिन्दी ไทย 日本語 한국어 ქართული ⅷ½²٣ ﬁ Ǆ ªº ñ n\u0303 🙂👩‍👩‍👧🇩🇪 ‘’“”… \ud83d"
    ).split(" ")
    blanks = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u0085", "\u3000", "\ufeff", "\u200b", "\u180e", "\x1c", "\x00"]
    pieces = [*others, *blanks, "'s", "'LL", "n't", "<|endoftext|>", "123", "_", "the", "a", "!?", "é"]
    random = np.random.default_rng(0)
    mixed = ["".join(random.choice(pieces, random.integers(1, 12))) for _ in range(2_000)]
    return [line.encode("utf-8", "replace").decode() for line in [*found, *mixed, "", "\x00 a\x00", "a" * 300]]


@needs_browser
def test_the_script_gives_every_text_the_ids_of_the_tokeniser(browser):
    known, texts = vocabulary(tokenizer()), lines()
    assert len(texts) > 4_000
    expected = [encoding.ids for encoding in known.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    merges = own_text.merge_arrays(json.loads((TOKENIZER / "tokenizer.json").read_text())["model"])
    arrays = {name: {"shape": values.shape, "values": values.ravel().tolist()} for name, values in merges.items()}
    page = browser.new_page()
    page.add_script_tag(path=TEMPLATES / "own_text_model.js")
    found = page.evaluate(
        "([arrays, texts]) => { const model = ownTextModel({...arrays, wte: {shape: [0, 1]}}, {}); "
        "return texts.map(text => model.encode(text)); }",
        [arrays, texts],
    )
    page.close()
    wrong = [text for text, own, ids in zip(texts, found, expected, strict=True) if own != ids]
    assert wrong == []


def activations(run, text: str) -> tuple[list[int], np.ndarray]:
    """The reference seed's ids and activations (layers, tokens, neurons), in fp32 with unrounded weights."""
    ids, found = [run.text.bos_id, *vocabulary(run.tokenizer).tokenizer.encode(text).ids], []
    trunk = Trunk(load_model(seed_source(run.params, run.params.reference)))
    trunk.run(torch.tensor([ids]), lambda _layer, _pre, post: found.append(post[0].numpy().copy()))
    return ids, np.stack(found)


@needs_browser
def test_the_page_shades_one_s_own_text_by_what_the_model_computes(complete, browser):
    ids, expected = activations(complete, TEXT)
    largest = complete.stats("examples")["a.value"][..., 0]
    counted = ~np.isin(ids, [complete.text.bos_id, *complete.text.newline_ids])
    faults, page = [], browser.new_page()
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((complete.folder / "report" / "neurons.html").as_uri() + "#a/1/17")
    page.wait_for_selector('#card[data-complete="a/1/17"]')
    assert page.locator('script[src="neurons/weights.js"]').count() == 0  # read when the reader enters the box
    page.fill("#own-text-box", TEXT)
    page.wait_for_selector(".own-tokens")
    for layer, neuron in ((1, 17), (0, 5)):
        page.evaluate(f"() => {{ location.hash = 'a/{layer}/{neuron}'; }}")
        page.wait_for_selector(f'#card[data-shown="a/{layer}/{neuron}"]')
        said = page.eval_on_selector_all(".own-tokens span", "all => all.map(one => one.dataset.activation)")
        own = expected[layer, 1:, neuron]
        assert [one == "not counted" for one in said] == (~counted[1:]).tolist()
        values = [float(one.split()[-1].replace("−", "-")) for one in said if one != "not counted"]
        np.testing.assert_allclose(values, own[counted[1:]], atol=0.02 * np.abs(expected).max())
        assert page.locator(".own-tokens .peak").count() == 1
    shares = np.where(counted[:, None], expected, -np.inf).max(1) / largest
    first = page.eval_on_selector_all(
        ".own-lists section:last-child li",
        "all => all.map(one => [one.querySelector('a').textContent, parseFloat(one.lastChild.textContent)])",
    )
    assert [share for _, share in first] == sorted((share for _, share in first), reverse=True)
    for name, share in first:
        layer, neuron = map(int, name.split("/")[1:])
        assert share == pytest.approx(100 * shares[layer, neuron], abs=4)
    assert first[0][1] == pytest.approx(100 * shares.max(), abs=4)

    page.evaluate("() => { location.hash = 'b/0/5'; }")
    page.wait_for_selector('#card[data-shown="b/0/5"]')
    assert "Only seed a is in this page" in page.inner_text("#own-text") and not page.locator(".own-tokens").count()
    page.evaluate("() => { explorer.run.own_text = null; location.hash = 'a/0/6'; }")
    page.wait_for_selector('#card[data-shown="a/0/6"]')
    assert page.is_hidden("#own-text") and faults == []
    page.close()


def test_only_a_small_model_of_gpt2_s_kind_with_its_tokeniser_runs_in_the_page():
    plain = json.loads((TOKENIZER / "tokenizer.json").read_text())
    assert own_text.can_run(SHIPPED, plain, 256)
    assert not own_text.can_run(GPT2Config(), plain, 1024)  # GPT-2 small
    assert not own_text.can_run(GPTNeoXConfig(), plain, 256)
    for change in ({"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True}):
        assert not own_text.can_run(GPT2Config(**(SHIPPED.to_dict() | change)), plain, 256)
    for change in ({"normalizer": {"type": "NFC"}}, {"pre_tokenizer": {"type": "Whitespace"}}, {"pre_tokenizer": None}):
        assert not own_text.can_run(SHIPPED, plain | change, 256)


def test_the_file_stays_below_what_the_size_rule_counts(complete, monkeypatch):
    config = GPT2Config.from_pretrained(seed_source(complete.params, "a"))
    weights = own_text.own_text(complete)
    whole = sum(values.nbytes for values in weights.arrays.values() if values.dtype == np.int8)
    last = config.n_embd * weights.arrays["largest"].shape[1]  # of the projection that is left out
    assert whole == own_text.largest_file(config, 256) - last
    monkeypatch.setattr(own_text, "MAX_BYTES", own_text.largest_file(config, 256) - 1)
    assert own_text.own_text(complete) is None


def test_eight_bits_are_right_to_half_a_step_of_each_row():
    matrix = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32) * 10.0 ** np.arange(-2, 3)[:, None]
    matrix[3] = 0
    steps, scale = own_text.eight_bits(matrix)
    assert steps.dtype == np.int8 and np.abs(steps).max(1).tolist() == [127, 127, 127, 0, 127]
    assert (np.abs(steps * scale[:, None] - matrix) <= 0.501 * scale[:, None]).all()
