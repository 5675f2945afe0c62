"""All groupings and labels of a run's text: those of tokens, of topics and, for English prose, of syntax."""

import torch

from lib.labels import labels, syntax, topics
from lib.labels.labels import WORD_PLACES, Grouping, LabelSet
from lib.labels.token_classes import TOKEN_CLASSES, TokenClass
from lib.run import Run
from lib.text.domains import known_domains
from lib.text.tokens import token_strings


def run_groupings(run: Run) -> dict[str, Grouping]:
    """Every grouping of the run's text that has a group."""
    made = labels.groupings(run.text, run.tokenizer)
    for extra in (syntax.run_syntax(run), topics.topics(run.text, run.tokenizer), word_place(run)):
        if extra is not None and extra.groups:
            made[extra.name] = extra
    return made


def word_place(run: Run) -> Grouping:
    """Frequent words by where their tokens stand in them: groups `word|place` (figures 15, 16)."""
    words = labels.unigram_classes(token_strings(run.tokenizer), labels.token_counts(run.text))
    word_of_token = torch.full((run.text.vocab_size,), -1, dtype=torch.int32)
    for index, tokens in enumerate(words.values()):
        word_of_token[tokens] = index
    word, place = word_of_token[run.text.tokens], labels.word_places(run.text, run.tokenizer)
    groups = tuple(f"{one}|{where}" for one in words for where in WORD_PLACES)
    return Grouping("word_place", groups, torch.where(word < 0, -1, word * len(WORD_PLACES) + place).int())


def run_label_sets(
    run: Run, groupings: dict[str, Grouping], classes: tuple[TokenClass, ...] = TOKEN_CLASSES
) -> list[LabelSet]:
    """The labels over a run's groupings; those of the token itself come first. `classes` are the token classes."""
    sets = labels.label_sets(run.text, run.tokenizer, classes, known_domains(run.params.domains))
    for name, labels_of in ((syntax.GROUPING, syntax.syntax_labels), ("topic", topics.topic_labels)):
        if name in groupings:
            sets.append(labels_of(groupings[name].groups))
    return [one for one in sets if len(one.labels) or one.grouping == "token"]
