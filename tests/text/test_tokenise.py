"""Text from documents: no token lost, no word cut, the same bytes after a kill, and one sentence for each fault."""

import io
import json
import random
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHIPPED, TOKENIZER, permuted_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lib.base.errors import InputError
from lib.base.files import file_sha256, locked
from lib.base.params import TextSource
from lib.run import Run
from lib.text import documents, tokenise
from lib.text.blocks import read_text
from lib.text.documents import Part, parts
from lib.text.tokenise import Packer, Vocabulary, build, vocabulary
from lib.text.tokens import tokenizer_difference, tokenizer_sha256
from lib.training.corpus import newline_ids

pytestmark = pytest.mark.usefixtures("without_grouped_moments")

WORDS = ("the", "of", " universal", "neurons", "Schrödinger", "東京", "🙂", "x==y:", "\n\n", "  ", "1,234", "isn't")


@pytest.fixture(scope="module")
def shipped() -> Vocabulary:
    return vocabulary(AutoTokenizer.from_pretrained(SHIPPED / "a"))


def some_documents(number: int, seed: int = 0) -> list[dict]:
    """Records with a text and a nested domain; some texts are empty or null."""
    chance = random.Random(seed)
    texts = [" ".join(chance.choices(WORDS, k=chance.randrange(120))) for _ in range(number)]
    texts[1], texts[3] = "", None
    return [{"text": text, "meta": {"kind": chance.choice("pq")}} for text in texts]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def json_lines(records: list[dict]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def parquet(records: list[dict]) -> bytes:
    with io.BytesIO() as file:
        pq.write_table(pa.Table.from_pylist(records), file, row_group_size=7)
        return file.getvalue()


KINDS = {".jsonl": json_lines, ".jsonl.zst": lambda records: zstd(json_lines(records)), ".parquet": parquet}


def sentence(function, *arguments) -> str:
    """The one sentence with which something is refused."""
    with pytest.raises(InputError) as caught:
        result = function(*arguments)
        list(result)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and ". " not in text, text
    return text


# ---------------------------------------------------------------- the tokeniser


def test_pieces_are_the_bytes_of_byte_level_tokens(shipped):
    text = "The  naïve\n\n\tif x==y: Größe 東京 🙂\r\n"
    ids = shipped.tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(shipped.pieces[token] for token in ids) == text.encode()
    assert shipped.newline_ids == newline_ids(Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")))
    assert shipped.newline_ids == read_text(SHIPPED.parent / "tokens.safetensors").newline_ids and shipped.bos_id == 0
    begins, ends, inside = shipped.boundaries()
    assert begins[ids[1]] and not begins[ids[0]] and ends[shipped.newline_ids[0]]
    assert inside.sum() >= 64 and not (inside & begins).any()  # continuation bytes of UTF-8


def test_a_tokeniser_that_is_not_byte_level_bpe_is_refused():
    tokens = ["<s>", "<0xE6>", "▁the", "re"]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, []))
    assert "not a byte-level BPE (its token 2 is '▁the')" in sentence(
        vocabulary, PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    )


def test_a_special_token_spelt_out_in_a_document_is_plain_text(shipped):
    assert shipped.bos_id not in shipped.tokenizer.encode("a<|endoftext|>b", add_special_tokens=False).ids


def test_the_first_difference_of_two_tokenisers_is_named():
    ours = AutoTokenizer.from_pretrained(SHIPPED / "a")
    described = json.loads(ours.backend_tokenizer.to_str())

    def changed(change, **special):
        copy = json.loads(json.dumps(described))
        change(copy)
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(copy)),
            **({"bos_token": ours.bos_token, "eos_token": ours.eos_token} | special),
        )

    def swap_ids(copy):
        copy["model"]["vocab"] |= {"a": copy["model"]["vocab"]["b"], "b": copy["model"]["vocab"]["a"]}

    def drop_merges(copy):
        copy["model"]["merges"] = copy["model"]["merges"][:-5]

    def add_blank(copy):
        copy["pre_tokenizer"]["add_prefix_space"] = True

    def drop_token(copy):
        copy["model"]["merges"].pop()
        del copy["model"]["vocab"][max(copy["model"]["vocab"], key=copy["model"]["vocab"].get)]

    assert tokenizer_difference(ours, changed(lambda copy: None)) is None
    assert tokenizer_difference(ours, changed(swap_ids)) == "the token 'a' has the id 65 in one and 66 in the other"
    assert (
        tokenizer_difference(ours, changed(drop_merges))
        == f"their merges differ from number {len(described['model']['merges']) - 4} on"
    )
    assert "vocabularies of 8,192 and 8,191 tokens" in tokenizer_difference(ours, changed(drop_token))
    assert "they encode" in tokenizer_difference(ours, changed(add_blank))
    assert "BOS or EOS" in tokenizer_difference(ours, changed(lambda copy: None, bos_token="a"))


# ---------------------------------------------------------------- packing


def naively_packed(stream: list[int], context: int, pieces: tuple[bytes, ...]) -> list[list[int]]:
    """Blocks of one domain's documents, joined by 0 already; a plain reading of the rule."""
    texts = [piece.decode(errors="ignore") for piece in pieces]
    blocks, body = [], context - 1
    while len(stream) > body:
        stops = range(body, max(0, body - tokenise.WORD_SEARCH_TOKENS - 1), -1)

        def at_word(stop, stream=stream):
            before, after = stream[stop - 1], stream[stop]
            return 0 in (before, after) or texts[before][-1:].isspace() or texts[after][:1].isspace()

        between = (stop for stop in stops if not 0x80 <= pieces[stream[stop]][0] < 0xC0)
        stop = next(filter(at_word, stops), None) or next(between, body)
        blocks.append([0, *stream[:stop], *[0] * (body - stop)])
        stream = stream[stop + (stream[stop] == 0) :]
    return blocks + ([[0, *stream, *[0] * (body - len(stream))]] if stream else [])


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(3, 40))
def test_packing_loses_no_token_and_cuts_no_word(shipped, data, context):
    texts = data.draw(
        st.lists(st.tuples(st.sampled_from("pq"), st.lists(st.sampled_from(WORDS), max_size=60)), max_size=8)
    )
    packer, streams, owners = Packer(shipped, context), {}, {}
    for number, (domain, words) in enumerate(texts):
        ids = shipped.tokenizer.encode(data.draw(st.sampled_from(("", " "))).join(words), add_special_tokens=False).ids
        for piece in np.array_split(np.array(ids, np.uint16), 2):  # a document may come in parts
            packer.add(domain, number, piece)
        if ids:
            streams.setdefault(domain, []).extend([0, *ids] if streams.get(domain) else ids)
            owners.setdefault(domain, []).extend([number] * len(ids))
    packer.finish()
    for label, domain in enumerate(packer.domains):
        blocks = [(block.tolist(), owner) for block, of, owner in packer.blocks if of == label]
        assert [block for block, _ in blocks] == naively_packed(streams.get(domain, []), context, shipped.pieces)
        bodies = [[token for token in block if token] for block, _ in blocks]
        assert sum(bodies, []) == [token for token in streams.get(domain, []) if token]
        starts = np.cumsum([0, *map(len, bodies)])[:-1]
        assert [owner for _, owner in blocks] == [owners[domain][start] for start in starts]


# ---------------------------------------------------------------- documents


def texts_of(path, **keys) -> list[Part]:
    return list(parts(TextSource(files=str(path), **keys)))


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    records = some_documents(30)
    for ending, written in KINDS.items():
        path = tmp_path / f"x{ending}"
        path.write_bytes(written(records))
        found = texts_of(path, domain="meta.kind")
        assert [part.text for part in found] == [record["text"] for record in records if record["text"]], ending
        assert {part.number for part in found} == {place for place, record in enumerate(records) if record["text"]}
        assert [part.domain for part in found] == [records[part.number]["meta"]["kind"] for part in found]
        assert list(parts(TextSource(files=str(path), domain="meta.kind"), None, (17, 0))) == [
            part for part in found if part.number >= 17
        ]


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    """JSON may hold half an emoji, which no tokeniser takes."""
    (tmp_path / "text.jsonl").write_text('{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n')
    assert [part.text for part in texts_of(tmp_path / "text.jsonl")] == ["cut \ufffd", "whole \U0001f600"]


def test_folders_alternate_and_name_the_domain(tmp_path):
    for folder, number in (("law", 3), ("news", 2)):
        (tmp_path / folder).mkdir()
        for place in range(number):
            (tmp_path / folder / f"{place}.txt").write_bytes(f"\ufeff{folder} {place}\r\n".encode())
    (tmp_path / "law" / "notes.md").write_text("not read")
    expected = [
        ("law", "law 0\r\n"),
        ("news", "news 0\r\n"),
        ("law", "law 1\r\n"),
        ("news", "news 1\r\n"),
        ("law", "law 2\r\n"),
    ]
    assert [(part.domain, part.text) for part in texts_of(tmp_path)] == expected
    assert [(part.domain, part.text) for part in texts_of(tmp_path / "n*" / "*.txt")] == expected[1::2]


def test_a_long_document_in_parts_has_the_tokens_of_the_whole(tmp_path, shipped, monkeypatch):
    text = "".join(
        f"{'  ' * (line % 3)}line {line} isn't {'' if line % 7 else chr(10)}{chr(13) * (line % 2)}\n"
        for line in range(300)
    )
    (tmp_path / "x.txt").write_bytes(text.encode())
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}))
    monkeypatch.setattr(documents, "PART_CHARACTERS", 100)
    for name in ("x.txt", "x.jsonl"):
        found = texts_of(tmp_path / name)
        assert len(found) > 20 and {part.number for part in found} == {0}
        ids = [token for part in found for token in shipped.tokenizer.encode(part.text, add_special_tokens=False).ids]
        assert ids == shipped.tokenizer.encode(text, add_special_tokens=False).ids
        assert list(parts(TextSource(files=str(tmp_path / name)), None, (0, 5))) == found[5:]


FAULTS = {
    "x.jsonl": {
        b'{"text": "a"}\n{"text": \n': "line 2 is not JSON",
        b"[1]\n": "line 1 is not a JSON object",
        b'{"body": "a"}\n': "line 1 has no field 'text'; its fields are 'body'",
        b'{"text": 5}\n': "field 'text' is int, where text is needed",
        b'{"text": "\xff"}\n': "is not UTF-8 text",
        b'{"text": "a", "n": %s}' % (b"7" * 5000): "line 1 has a number of thousands of digits",
        b'{"text": "a", "n": %s' % (b"[" * 100_000): "nested thousands deep",
        b'{"text": "a", "n": %s' % (b'{"n":' * 100_000): "nested thousands deep",
    },
    "x.jsonl.zst": {zstd(json_lines(some_documents(30)))[:-9]: "is damaged", b"no zstd at all": "is damaged"},
    "x.parquet": {
        parquet(some_documents(30))[:-9]: "is damaged",
        parquet([{"body": "a"}]): "has no field 'text'; its fields are 'body'",
    },
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, name):
    for content, expected in FAULTS[name].items():
        (tmp_path / name).write_bytes(content)
        assert expected in (text := sentence(texts_of, tmp_path / name)) and name in text


def test_missing_files_and_files_of_another_kind_are_one_sentence(tmp_path):
    (tmp_path / "x.md").write_text("x")
    assert "there is no file" in sentence(texts_of, tmp_path / "none")
    assert "no file that ends in .txt" in sentence(texts_of, tmp_path / "none*")
    assert "what is there is not read: " in sentence(texts_of, tmp_path)
    assert "must end in .txt" in sentence(texts_of, tmp_path / "x.md")
    (tmp_path / "x.jsonl").write_bytes(json_lines(some_documents(5)))
    assert "has no field 'meta.name'" in sentence(lambda: texts_of(tmp_path / "x.jsonl", domain="meta.name"))


# ---------------------------------------------------------------- the token file


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def test_kills_at_any_moment_leave_the_same_bytes(tmp_path, shipped, monkeypatch):
    (tmp_path / "x.jsonl").write_bytes(json_lines(some_documents(300)))
    source = TextSource(files=str(tmp_path / "x.jsonl"), domain="meta.kind")
    monkeypatch.setattr(tokenise, "SHARD_TOKENS", 20 * 32)
    monkeypatch.setattr(tokenise, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(documents, "PART_CHARACTERS", 50)
    sizes = {"whole": 10**6, "budget": 700}
    for name, blocks in sizes.items():
        undisturbed = build(
            tmp_path / name, lambda start: parts(source, None, start), shipped, (blocks, 32), "x"
        ).read_bytes()
        folder, after = tmp_path / f"{name}-killed", [0]

        def dying(start, after=after):
            for place, part in enumerate(parts(source, None, start)):
                if place > after[-1]:
                    raise Killed
                yield part

        kills = 0
        while not (folder / "tokens.safetensors").exists():
            after.append(40 + 30 * kills % 110)
            try:
                build(folder, dying, shipped, (blocks, 32), "x")
            except Killed:
                kills += 1
                (folder / "shard-00099.safetensors.writing").write_bytes(b"half")  # what a kill may leave
        assert kills > 2 and (folder / "tokens.safetensors").read_bytes() == undisturbed
        assert [path.name for path in folder.iterdir()] == ["tokens.safetensors"]
    text = read_text(tmp_path / "budget" / "tokens.safetensors")
    assert text.tokens.shape == (700, 32) and set(text.domains) == {"p", "q"}


def test_a_run_tokenises_once_and_again_when_its_files_change(make_run, tmp_path, monkeypatch):
    (tmp_path / "x.jsonl").write_bytes(json_lines(some_documents(300)))
    seeds = {"a": SHIPPED / "a", "b": SHIPPED / "b"}
    text = {"files": str(tmp_path / "x.jsonl"), "domain": "meta.kind"}
    run = make_run(seeds, text=text, context=32, token_budget=100 * 32 + 5)
    assert tokenise.made_token_file(run.params) is None
    assert run.text.tokens.shape == (100, 32) and run.text.tokenizer_sha256 == tokenizer_sha256(SHIPPED / "a")
    first = run.text_path
    assert tokenise.made_token_file(run.params) == first
    with monkeypatch.context() as without:
        without.setattr(tokenise, "shared_tokenizer", None)  # would fail if asked for
        assert Run(run.params).text_path == first
    again = make_run(seeds, run="other", text=text, context=32, token_budget=100 * 32 + 5)
    assert again.text_path == first and not tokenise.local_files_changed(again.params)
    (tmp_path / "x.jsonl").write_bytes(json_lines(some_documents(301, seed=1)))
    assert tokenise.made_token_file(run.params) is None
    assert tokenise.local_files_changed(run.params) and Run(run.params).text_path != first


def two_seeds(folder, **settings) -> dict:
    """Copies of two shipped seeds whose tokeniser_config has these settings too."""
    seeds = {name: shutil.copytree(SHIPPED / name, folder / name, dirs_exist_ok=True) for name in "ab"}
    for path in seeds.values():
        config = path / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return seeds


def test_one_tokenizer_json_with_another_bos_makes_another_text(make_run, tmp_path):
    (tmp_path / "x.txt").write_text("some words of a text " * 40)
    source = {"text": str(tmp_path / "x.txt"), "context": 32, "token_budget": 64}
    base = make_run(two_seeds(tmp_path / "base"), run="base", **source)
    chat = make_run(two_seeds(tmp_path / "chat", bos_token="the"), run="chat", **source)
    bos = chat.tokenizer.bos_token_id
    assert bos != base.text.bos_id == 0
    assert chat.text.bos_id == bos and (chat.text.tokens[:, 0] == bos).all()
    # the same run after its seeds' tokeniser was changed in place
    two_seeds(tmp_path / "base", bos_token="the")
    assert tokenise.made_token_file(base.params) is None
    assert Run(base.params).text_path == chat.text_path


def test_a_token_that_the_configuration_adds_makes_another_text(make_run, tmp_path):
    """[PAD] in the tokeniser but not in the embedding is refused, whether the text is there already or not."""
    (tmp_path / "x.txt").write_text("some words of a text " * 40)
    source = {"text": str(tmp_path / "x.txt"), "context": 32, "token_budget": 64}
    base = make_run(two_seeds(tmp_path / "base"), run="base", **source)
    padded = make_run(two_seeds(tmp_path / "padded", pad_token="[PAD]"), run="padded", **source)
    assert (base.text.vocab_size, padded.text.vocab_size) == (8192, 8193)


def test_seeds_with_other_tokenisers_are_refused(make_run, tmp_path):
    (tmp_path / "x.txt").write_text("text")
    other = permuted_tokenizer(SHIPPED / "a", tmp_path / "other")
    run = make_run({"a": SHIPPED / "a", "b": other}, text=str(tmp_path / "x.txt"))
    assert "the tokenisers of the seeds 'a' and 'b' differ: the token" in sentence(lambda: run.text_path)


def test_documents_without_text_are_one_sentence(make_run, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "x.txt").write_text("")
    run = make_run({"a": SHIPPED / "a", "b": SHIPPED / "b"}, text=str(tmp_path / "corpus"))
    assert sentence(lambda: run.text_path) == "the text's documents are all empty."


def test_too_many_domains_are_one_sentence(shipped):
    packer = Packer(shipped, 8)
    with pytest.raises(InputError, match="more than 256 domains"):
        for number in range(257):
            packer.add(f"http://{number}", number, np.array([5], np.uint16))


# ---------------------------------------------------------------- a dataset on the Hub

DATASET = "monology/pile-uncopyrighted"


@pytest.fixture
def hub(hub):
    """The Hub with a dataset of 60 documents in two files."""
    records = [record | {"text": record["text"] or ""} for record in some_documents(60)]
    files = {"test/a.jsonl.zst": zstd(json_lines(records[:40])), "test/b.jsonl.zst": zstd(json_lines(records[40:]))}
    hub.add("datasets", DATASET, files)
    hub.records = records
    return hub


PILE = TextSource(dataset=DATASET, split="test", domain="meta.kind")


def test_a_dataset_is_streamed_and_asked_for_once(hub, make_run):
    expected = [record["text"] for record in hub.records if record["text"]]
    commit = documents.dataset_commit(PILE)
    assert [part.text for part in parts(PILE, commit)] == expected
    assert [part.number for part in parts(PILE, commit, (43, 0))] == [
        place for place in range(43, 60) if hub.records[place]["text"]
    ]
    seeds = {"a": SHIPPED / "a", "b": SHIPPED / "b"}
    run = make_run(seeds, text=PILE.model_dump(exclude_none=True), context=32, token_budget=640)
    found = file_sha256(run.text_path)
    hub.add("datasets", DATASET, {"test/a.jsonl": b'{"text": "moved on"}\n'})
    hub.heal()
    assert file_sha256(Run(run.params).text_path) == found and hub.requests == []


@pytest.mark.parametrize("fault", ["drop", "slow", "429", "500"])
def test_a_temporary_fault_is_recovered(hub, fault):
    commit = documents.dataset_commit(PILE)
    hub.fail(fault, "storage" if fault in ("drop", "slow") else "a.jsonl.zst", times=2)
    assert [part.text for part in parts(PILE, commit)] == [record["text"] for record in hub.records if record["text"]]


def test_a_permanent_fault_of_the_hub_is_one_sentence(hub, monkeypatch):
    def refused(**changes):
        source = PILE.model_copy(update=changes)
        return sentence(lambda: list(parts(source, documents.dataset_commit(source))))

    assert "'none/such'" in refused(dataset="none/such")
    assert "has no revision 'v9'" in refused(revision="v9")
    assert "Bad split: train; Available splits: ['test']" in refused(split="train") and "'small'" in refused(
        subset="small"
    )
    assert "has no field 'body'" in refused(field="body")
    hub.fail("corrupt", "storage", times=100)
    assert DATASET in refused()
    hub.heal()
    hub.fail("404", "a.jsonl.zst", times=100)
    assert DATASET in refused()
    hub.heal()
    hub.repositories["datasets", DATASET].gated = True
    assert "gated" in refused()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline" in refused()


def test_a_folder_is_locked_for_one_process_at_a_time(tmp_path):
    order = []

    def second():
        with locked(tmp_path / "text"):
            order.append("second")

    with locked(tmp_path / "text"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
