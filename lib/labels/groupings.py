"""All groupings and labels of a run's text: those of tokens, of topics and, for English prose, of syntax.

Groupings are made once and written, so that passes, processes, chapters and pages number topics and signatures alike.
"""

import json
import time
from typing import Any

import torch

from lib.base.errors import InputError
from lib.base.tensors import read_metadata, read_tensors, write_tensors
from lib.cache import as_recorded, code_of, content_sha256
from lib.labels import labels, syntax, topics
from lib.labels.labels import WORD_PLACES, Grouping, LabelSet
from lib.labels.token_classes import TOKEN_CLASSES, TokenClass
from lib.run import Run
from lib.text.domains import known_domains
from lib.text.tokens import token_strings

FILE = "stats/groupings.safetensors"  # a tensor of ids for each grouping; what they were made from, groups' names


def run_groupings(run: Run) -> dict[str, Grouping]:
    """Every grouping of the run's labelled text that has a group: those written before or, after a change of labels or
    of the code that makes them, made again and written."""
    found = written_groupings(run)
    if found is None:
        found = made_groupings(run)
        tensors = {name: one.ids.to(_narrowest(len(one.groups))) for name, one in found.items()}
        groups = {name: one.groups for name, one in found.items()}
        metadata = {"made_from": json.dumps(_made_from(run)), "groups": json.dumps(groups)}
        write_tensors(run.folder / FILE, tensors, metadata)
    return found


def written_groupings(run: Run, seconds: float = 0) -> dict[str, Grouping] | None:
    """The groupings that are written, None where there are none or they were made from something else.

    With `seconds` another process has written them, perhaps on another machine whose files appear late; InputError if
    they do not appear within that time.
    """
    until = time.monotonic() + seconds
    while not _are_fresh(run):
        if not seconds:
            return None
        if time.monotonic() > until:
            raise InputError(
                f"the labels that the first process has written to {run.folder / FILE} did not appear within "
                f"{seconds:.0f} s; run the same command again, with a folder that all processes share."
            )
        time.sleep(1)
    groups, ids = json.loads(read_metadata(run.folder / FILE)["groups"]), read_tensors(run.folder / FILE)
    return {name: Grouping(name, tuple(groups[name]), ids[name].int()) for name in groups}


def _are_fresh(run: Run) -> bool:
    return json.loads(read_metadata(run.folder / FILE).get("made_from", "{}")) == as_recorded(_made_from(run))


def _made_from(run: Run) -> dict[str, Any]:
    shipped = run.text_path.with_name(syntax.FILE)
    return {
        "text": content_sha256(run.text_path),
        "blocks": [len(run.text.tokens), len(run.label_blocks), run.text.context],
        "domains": run.params.domains,
        "syntax": content_sha256(shipped) if shipped.is_file() else None,
        "code": code_of(__name__),
    }


def _narrowest(groups: int) -> torch.dtype:
    return torch.int16 if groups < 2**15 else torch.int32


def made_groupings(run: Run) -> dict[str, Grouping]:
    """Every grouping of the run's labelled text that has a group, made now."""
    made = labels.groupings(run.labelled, run.tokenizer)
    for extra in (syntax.run_syntax(run), topics.topics(run.labelled, run.tokenizer), word_place(run)):
        if extra is not None and extra.groups:
            made[extra.name] = extra
    return made


def word_place(run: Run) -> Grouping:
    """Frequent words by where their tokens stand in them: groups `word|place` (figures 15, 16)."""
    words = labels.unigram_classes(token_strings(run.tokenizer), labels.token_counts(run.labelled))
    word_of_token = torch.full((run.labelled.vocab_size,), -1, dtype=torch.int32)
    for index, tokens in enumerate(words.values()):
        word_of_token[tokens] = index
    word, place = word_of_token[run.labelled.tokens], labels.word_places(run.labelled, run.tokenizer)
    groups = tuple(f"{one}|{where}" for one in words for where in WORD_PLACES)
    return Grouping("word_place", groups, torch.where(word < 0, -1, word * len(WORD_PLACES) + place).int())


def run_label_sets(
    run: Run, groupings: dict[str, Grouping], classes: tuple[TokenClass, ...] = TOKEN_CLASSES
) -> list[LabelSet]:
    """The labels over a run's groupings; those of the token itself come first. `classes` are the token classes."""
    sets = labels.label_sets(run.labelled, run.tokenizer, classes, known_domains(run.params.domains))
    for name, labels_of in ((syntax.GROUPING, syntax.syntax_labels), ("topic", topics.topic_labels)):
        if name in groupings:
            sets.append(labels_of(groupings[name].groups))
    return [one for one in sets if len(one.labels) or one.grouping == "token"]
