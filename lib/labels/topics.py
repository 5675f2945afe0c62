"""Topics: truncated SVD of TF-IDF over the text's documents, each document in its strongest topic (docs/method.md §5).

Varimax rotates the singular vectors, so that a document lies along few of them. A topic is named by the terms that set
its documents apart.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.labels.labels import Grouping, LabelSet, label_set
from lib.text.blocks import Text
from lib.text.tokens import token_bytes

COMPONENTS = 63
MIN_TOPIC_DOCUMENTS = 3  # the documents of a smaller topic go to their next strongest
MAX_TERM_SHARE = 0.08  # of documents; more common terms are every language's function words
NAME_TERMS = 4
MIN_TEXT_DOCUMENTS = 20  # below, there are no topics
RANDOM_SEED = 0


def token_documents(text: Text) -> Int[Tensor, "blocks context"]:
    """The document of each token, an index into `text.documents`; without names, each stretch between BOS is one."""
    ends = (text.tokens == text.bos_id).long()
    if not text.documents:
        return (ends.flatten().cumsum(0) - 1).view(text.tokens.shape)
    ends[:, 0] = 0
    return (text.document[:, None] + ends.cumsum(1)).clamp(max=len(text.documents) - 1)


def document_strings(text: Text, tokenizer) -> dict[int, str]:
    """Each document's text as far as the blocks hold it, in their order, without bytes that are no character."""
    pieces = np.array(token_bytes(tokenizer) + [b""] * (text.vocab_size - len(tokenizer)), dtype=object)
    documents = token_documents(text).flatten().numpy()
    order = np.argsort(documents, kind="stable")
    numbers, starts = np.unique(documents[order], return_index=True)
    tokens = pieces[text.tokens.flatten().numpy()[order]]
    return {
        int(number): b"".join(part).decode("utf-8", "ignore")
        for number, part in zip(numbers, np.split(tokens, starts[1:]), strict=True)
    }


def varimax(loadings: Float[np.ndarray, "rows columns"], steps: int = 200) -> Float[np.ndarray, "columns columns"]:
    """The rotation that maximises the variance of the squared entries in each column of the result (Kaiser 1958)."""
    rows, columns = loadings.shape
    rotation, before = np.eye(columns), 0.0
    for _ in range(steps):
        turned = loadings @ rotation
        left, size, right = np.linalg.svd(loadings.T @ (turned**3 - turned * (turned**2).mean(0)))
        rotation = left @ right
        if size.sum() < before * (1 + 1e-6):
            break
        before = size.sum()
    return rotation


def topics(text: Text, tokenizer) -> Grouping:
    """The grouping `topic`: the strongest topic of each token's document, −1 for documents without a usable term.

    No groups for a text of few documents. Deterministic: the SVD starts from a fixed seed, and each axis points where
    its largest coordinates are.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = token_documents(text)
    strings = document_strings(text, tokenizer)
    none = Grouping("topic", (), torch.full(text.tokens.shape, -1, dtype=torch.int32))
    if len(strings) < MIN_TEXT_DOCUMENTS:
        return none
    vectors = TfidfVectorizer(token_pattern=r"[^\W\d_]{3,}", min_df=2, max_df=MAX_TERM_SHARE, sublinear_tf=True)
    try:
        weights = vectors.fit_transform(strings.values())
    except ValueError:  # no term is left
        return none
    if min(weights.shape) < MIN_TEXT_DOCUMENTS:
        return none
    svd = TruncatedSVD(min(COMPONENTS, min(weights.shape) - 1), random_state=RANDOM_SEED)
    coordinates = svd.fit_transform(weights)
    turned = coordinates @ varimax(coordinates)
    turned *= np.sign((turned**3).sum(0))
    _, topic = np.unique(_frequent_strongest(turned), return_inverse=True)
    names = _names(weights, topic, vectors.get_feature_names_out())
    topic_of_document = np.full(max(strings) + 1, -1)
    topic_of_document[list(strings)] = np.where(weights.getnnz(axis=1) > 0, topic, -1)
    return Grouping("topic", names, torch.from_numpy(topic_of_document).int()[documents])


def _frequent_strongest(strength: Float[np.ndarray, "documents topics"]) -> Int[np.ndarray, "documents"]:
    """Per document the strongest topic, after dropping topics that too few documents choose, rarest first."""
    strength = strength.copy()
    while True:
        chosen = strength.argmax(1)
        counts = np.bincount(chosen, minlength=strength.shape[1])
        rare = (counts > 0) & (counts < MIN_TOPIC_DOCUMENTS)
        if not rare.any() or (counts > 0).sum() == 1:
            return chosen
        strength[:, np.where(rare, counts, counts.max() + 1).argmin()] = -np.inf


def _names(weights, topic: Int[np.ndarray, "documents"], vocabulary: np.ndarray) -> tuple[str, ...]:
    """Per topic the terms whose mean TF-IDF in its documents exceeds that in all others most."""
    names = []
    for one in range(topic.max() + 1):
        inside = np.asarray(weights[topic == one].mean(0)).ravel()
        outside = np.asarray(weights[topic != one].mean(0)).ravel() if (topic != one).any() else 0
        names.append(" ".join(vocabulary[np.argsort(outside - inside, kind="stable")[:NAME_TERMS]]))
    return tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))


def topic_labels(groups: tuple[str, ...]) -> LabelSet:
    """One label per topic."""
    members = np.eye(len(groups), dtype=bool)
    rows = [(f"topic: {name}", "topic", "topic", member) for name, member in zip(groups, members, strict=True)]
    return label_set("topic", rows)
