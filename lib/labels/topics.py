"""Topics: truncated SVD of TF-IDF over the text's documents, each document in its strongest topic (METHOD §5).

The singular vectors are turned by varimax, so that a document lies along few of them; a topic is named by the terms
that set its documents apart, and is constant over a document.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.labels.labels import Grouping, LabelSet, label_set
from lib.text.blocks import Text
from lib.text.tokens import token_bytes

COMPONENTS = 63
LEAST_DOCUMENTS = 3  # a topic with fewer is given up, its documents go to their next strongest
MOST_COMMON = 0.08  # terms in a larger share of documents are left out: every language's function words
TERMS = 4  # in a topic's name
FEWEST = 20  # documents below which there are no topics
RANDOM_SEED = 0


def token_documents(text: Text) -> Int[Tensor, "blocks context"]:
    """The document of each token, numbered as `text.documents`; without document names every stretch between BOS is one."""
    ends = (text.tokens == text.bos_id).long()
    if not text.documents:
        return (ends.flatten().cumsum(0) - 1).view(text.tokens.shape)
    ends[:, 0] = 0
    return (text.document[:, None] + ends.cumsum(1)).clamp(max=len(text.documents) - 1)


def document_strings(text: Text, tokenizer) -> dict[int, str]:
    """Each document's text as far as the blocks hold it, blocks in the order of the file; bytes that are no character dropped."""
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
    """The rotation that makes the variance of the squared entries of each column of loadings @ rotation large (Kaiser 1958)."""
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
    """The grouping `topic`: the strongest topic of each token's document, −1 for documents with no usable term.

    Without groups if the text has fewer than 20 documents. Deterministic: the SVD starts from a fixed seed, and each
    axis points where its largest coordinates are.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = token_documents(text)
    strings = document_strings(text, tokenizer)
    none = Grouping("topic", (), torch.full(text.tokens.shape, -1, dtype=torch.int32))
    if len(strings) < FEWEST:
        return none
    vectors = TfidfVectorizer(token_pattern=r"[^\W\d_]{3,}", min_df=2, max_df=MOST_COMMON, sublinear_tf=True)
    try:
        weights = vectors.fit_transform(strings.values())
    except ValueError:  # sklearn's way to say that no term is left
        return none
    if min(weights.shape) < FEWEST:
        return none
    svd = TruncatedSVD(min(COMPONENTS, min(weights.shape) - 1), random_state=RANDOM_SEED)
    coordinates = svd.fit_transform(weights)
    turned = coordinates @ varimax(coordinates)
    turned *= np.sign((turned**3).sum(0))
    chosen = _frequent_strongest(turned)
    kept = np.unique(chosen)
    names = _names(weights, np.searchsorted(kept, chosen), vectors.get_feature_names_out())
    topic_of_document = np.full(max(strings) + 1, -1)
    usable = weights.getnnz(axis=1) > 0
    topic_of_document[list(strings)] = np.where(usable, np.searchsorted(kept, chosen), -1)
    return Grouping("topic", names, torch.from_numpy(topic_of_document).int()[documents])


def _frequent_strongest(strength: Float[np.ndarray, "documents topics"]) -> Int[np.ndarray, "documents"]:
    """Per document the strongest topic, after giving up, rarest first, topics that too few documents choose."""
    strength = strength.copy()
    while True:
        chosen = strength.argmax(1)
        counts = np.bincount(chosen, minlength=strength.shape[1])
        rare = (counts > 0) & (counts < LEAST_DOCUMENTS)
        if not rare.any() or (counts > 0).sum() == 1:
            return chosen
        strength[:, np.where(rare, counts, counts.max() + 1).argmin()] = -np.inf


def _names(weights, topic: Int[np.ndarray, "documents"], vocabulary: np.ndarray) -> tuple[str, ...]:
    """The terms whose mean TF-IDF in the topic's documents exceeds that in all others most."""
    names = []
    for one in range(topic.max() + 1):
        inside = np.asarray(weights[topic == one].mean(0)).ravel()
        outside = np.asarray(weights[topic != one].mean(0)).ravel() if (topic != one).any() else 0
        names.append(" ".join(vocabulary[np.argsort(outside - inside, kind="stable")[:TERMS]]))
    return tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))


def topic_labels(groups: tuple[str, ...]) -> LabelSet:
    """One label per topic."""
    member = np.eye(len(groups), dtype=bool)
    return label_set(
        "topic", [(f"topic: {name}", "topic", "topic", row) for name, row in zip(groups, member, strict=True)]
    )
