"""An interpolated bigram model (Jelinek–Mercer), the baseline that a seed's held-out loss is read against."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

CONTEXT_BUCKETS = np.array([1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000])  # by count of the first token


def token_pairs(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(previous, next) of every predicted token: (blocks, context) → two arrays of blocks · (context − 1)."""
    return blocks[:, :-1].ravel().astype(np.int64), blocks[:, 1:].ravel().astype(np.int64)


@dataclass(frozen=True)
class Bigram:
    """p(w | v) = λ₂ c(v, w)/c(v) + λ₁ c(w)/N + λ₀/V, with λ chosen by the size of c(v)."""

    pair_counts: csr_array  # (vocab, vocab)
    context_counts: np.ndarray  # (vocab)
    unigram: np.ndarray  # (vocab), sums to 1
    weights: np.ndarray  # (buckets, 3): λ₂, λ₁, λ₀

    @classmethod
    def fitted(cls, blocks: np.ndarray, vocab_size: int, fit_share: float = 0.02) -> "Bigram":
        """Counts on the first blocks, λ by maximum likelihood (EM) on the last `fit_share` of them.

        blocks: (blocks, context) token ids, all of the training text.
        """
        n_fit = max(1, round(len(blocks) * fit_share))
        previous, following = token_pairs(blocks[:-n_fit])
        ones = np.ones(len(previous), dtype=np.int64)
        pair_counts = csr_array((ones, (previous, following)), shape=(vocab_size, vocab_size))
        pair_counts.sum_duplicates()
        context_counts = np.bincount(previous, minlength=vocab_size)
        unigram = np.bincount(following, minlength=vocab_size) / len(following)
        unfitted = cls(pair_counts, context_counts, unigram, np.full((len(CONTEXT_BUCKETS) + 1, 3), 1 / 3))
        return cls(pair_counts, context_counts, unigram, unfitted._fitted_weights(blocks[-n_fit:]))

    def probabilities(self, blocks: np.ndarray) -> np.ndarray:
        """p(token | previous token) of every predicted token, shape (blocks, context − 1)."""
        previous, following = token_pairs(blocks)
        parts = self._component_probabilities(previous, following)
        return (parts * self.weights[self.bucket(previous)]).sum(axis=1).reshape(len(blocks), -1)

    def bucket(self, previous: np.ndarray) -> np.ndarray:
        """Row of `weights` for each first token."""
        return np.searchsorted(CONTEXT_BUCKETS, self.context_counts[previous], side="right")

    def _component_probabilities(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """The three models' probabilities, (pairs, 3)."""
        seen = np.asarray(self.pair_counts[previous, following]).ravel()
        bigram = seen / np.maximum(self.context_counts[previous], 1)
        uniform = np.full(len(previous), 1 / len(self.unigram))
        return np.stack([bigram, self.unigram[following], uniform], axis=1)

    def _fitted_weights(self, blocks: np.ndarray, rounds: int = 50) -> np.ndarray:
        previous, following = token_pairs(blocks)
        parts, bucket = self._component_probabilities(previous, following), self.bucket(previous)
        weights = self.weights.copy()
        for _ in range(rounds):
            share = parts * weights[bucket]
            share /= share.sum(axis=1, keepdims=True)  # responsibility of each component for each pair
            for index in range(len(weights)):
                inside = bucket == index
                if inside.any():
                    weights[index] = share[inside].mean(axis=0)
        return weights
