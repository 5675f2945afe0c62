"""What is known of the domains of a text, by their names: the language, and whether it is running English text (METHOD §5).

Syntax is labelled in English prose only, and labels of context speak of languages and of source code. A domain that is not
named here is read like any other, but has neither; to give a text of your own these labels, add a line for each of its domains.
"""

from typing import NamedTuple

CODE, SEVERAL = "code", "several"
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pt": "Portuguese"}


class Domain(NamedTuple):
    """`language`: its two letters, or CODE for source code, or SEVERAL; `prose`: running English text, which spaCy reads."""

    language: str
    prose: bool = False


# English that is not prose: lists, chat, and text in which code or formulas interrupt the sentences
PROSE, ENGLISH = Domain("en", prose=True), Domain("en")

DOMAINS: dict[str, Domain] = {
    # the text that ships with the repository; verse and play count as prose
    "c code": Domain(CODE),
    "changelogs": ENGLISH,
    "drama and verse": PROSE,
    "encyclopedia": PROSE,
    "factbook": ENGLISH,
    "fiction": PROSE,
    "law (fr)": Domain("fr"),
    "python code": Domain(CODE),
    "scripture (de)": Domain("de"),
    "scripture (en)": PROSE,
    "scripture (es)": Domain("es"),
    "scripture (fr)": Domain("fr"),
    "scripture (it)": Domain("it"),
    "speeches": PROSE,
    "technical docs": PROSE,
    # the Pile's sets (meta.pile_set_name)
    "ArXiv": ENGLISH,  # LaTeX: formulas and commands within the sentences
    "BookCorpus2": PROSE,
    "Books3": PROSE,
    "DM Mathematics": ENGLISH,  # sums and their results
    "Enron Emails": PROSE,
    "EuroParl": Domain(SEVERAL),  # the debates in some twenty languages, one of them English
    "FreeLaw": PROSE,
    "Github": Domain(CODE),
    "Gutenberg (PG-19)": PROSE,
    "HackerNews": PROSE,
    "NIH ExPorter": PROSE,
    "OpenSubtitles": PROSE,  # spoken lines, as in plays
    "OpenWebText2": PROSE,
    "PhilPapers": PROSE,
    "Pile-CC": PROSE,
    "PubMed Abstracts": PROSE,
    "PubMed Central": PROSE,
    "StackExchange": ENGLISH,  # much of it is code
    "USPTO Backgrounds": PROSE,
    "Ubuntu IRC": ENGLISH,  # chat among nicknames
    "Wikipedia (en)": PROSE,
    "YoutubeSubtitles": Domain(SEVERAL),  # the captions of a video in every language that it has
}

ENGLISH_PROSE = tuple(name for name, domain in DOMAINS.items() if domain.prose)
