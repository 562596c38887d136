"""The two sides of a retrieval: texts with their vectors, grouped into queries or items.

A *group* is one query or one item. An image has several texts, so its group has several rows; a
reference caption is a group of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix

from trsllava_utils.retrieval.formulas import centre, mean_vectors


@dataclass(frozen=True)
class Side:
    """The texts of one side. Of the texts of a group the best counts."""

    texts: np.ndarray  # (n_texts,) str
    groups: np.ndarray  # (n_texts,) int from 0, ascending: the group of each text
    vectors: np.ndarray  # (n_texts, dim) float32 unit rows (or float16, for the cosine)
    clip_vectors: np.ndarray | None = None  # (n_groups, dim) float32 unit rows
    terms: csr_matrix | None = None  # (n_texts, n_words) float32 sparse, for the lexical rule
    mean: np.ndarray | None = None  # (dim,) mean vector of the texts' writer, for centred

    @property
    def n(self) -> int:
        """Number of groups."""
        return int(self.groups[-1]) + 1 if len(self.groups) else 0

    def take(self, block: slice) -> Side:
        """The groups of a block, counted from 0 again."""
        first, last = np.searchsorted(self.groups, (block.start, block.stop))
        return Side(
            self.texts[first:last],
            self.groups[first:last] - block.start,
            self.vectors[first:last],
            None if self.clip_vectors is None else self.clip_vectors[block],
            None if self.terms is None else self.terms[first:last],
            self.mean,
        )

    def centred(self) -> Side:
        """The side with its mean taken out of its vectors."""
        return replace(self, vectors=centre(self.vectors, self.mean), mean=None)

    def merged(self, unit: bool) -> Side:
        """Each group as one text, its texts one after the other, at the mean of their vectors; see
        :func:`trsllava_utils.retrieval.formulas.mean_vectors`."""
        if self.n == len(self.texts):
            return self
        vectors = mean_vectors(self.vectors, self.groups, unit)
        each = np.split(self.texts, run_starts(self.groups)[1:])
        texts = np.array(["\n".join(several) for several in each], dtype=object)
        return replace(self, texts=texts, groups=np.arange(self.n), vectors=vectors)

    def reduce(self, scores: np.ndarray) -> np.ndarray:
        """Scores of texts ``(n_texts, n)`` to scores of groups ``(n_groups, n)``: the maximum, by
        whole rows, which is ten times as fast as ``np.maximum.reduceat``."""
        starts = run_starts(self.groups)
        if len(starts) == len(self.groups):
            return scores
        sizes = np.diff(starts, append=len(scores))
        if (sizes == sizes[0]).all():
            return scores.reshape(len(starts), sizes[0], -1).max(axis=1)
        out = scores[starts]
        for nth in range(1, sizes.max()):
            more = sizes > nth
            out[more] = np.maximum(out[more], scores[starts[more] + nth])
        return out


def run_starts(groups: np.ndarray) -> np.ndarray:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.diff(groups, prepend=-1))


def one_each(
    texts: np.ndarray,
    vectors: np.ndarray,
    clip_vectors: np.ndarray | None = None,
    mean: np.ndarray | None = None,
) -> Side:
    """A side in which every text is a group of its own."""
    return Side(np.asarray(texts), np.arange(len(texts)), vectors, clip_vectors, mean=mean)
