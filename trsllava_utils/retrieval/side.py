"""The two sides of a retrieval: texts with their vectors, grouped into queries or items.

A *group* is one query or one item. An image has several texts, so its group has several rows; a
reference caption is a group of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from trsllava_utils.captioning.records import FIELDS
from trsllava_utils.retrieval.formulas import centre
from trsllava_utils.retrieval.methods import Method


@dataclass(frozen=True)
class Side:
    """The texts of one side. Within a part of a group the best text counts; parts are weighed."""

    texts: np.ndarray  # (n_texts,) str
    groups: np.ndarray  # (n_texts,) int from 0, ascending: the group of each text
    parts: np.ndarray  # (n_texts,) int from 0, ascending: the part of each text
    weights: np.ndarray  # (n_parts,) float32: share of a part in its group; they sum to 1
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
        parts = self.parts[first:last]
        return Side(
            self.texts[first:last],
            self.groups[first:last] - block.start,
            parts - parts[0],
            self.weights[parts[0] : parts[-1] + 1],
            self.vectors[first:last],
            None if self.clip_vectors is None else self.clip_vectors[block],
            None if self.terms is None else self.terms[first:last],
            self.mean,
        )

    def centred(self) -> Side:
        """The side with its mean taken out of its vectors."""
        return replace(self, vectors=centre(self.vectors, self.mean), mean=None)

    def reduce(self, scores: np.ndarray) -> np.ndarray:
        """Scores of texts ``(n_texts, n)`` to scores of groups ``(n_groups, n)``: the maximum in a
        part, then the weighted sum of the parts."""
        starts = run_starts(self.parts)
        if len(starts) < len(self.parts):
            scores = _fold(np.maximum, scores, starts)
        of_parts = run_starts(self.groups[starts])
        if len(of_parts) < len(starts):
            scores = _fold(np.add, scores * self.weights[:, None], of_parts)
        return scores


def run_starts(groups: np.ndarray) -> np.ndarray:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.diff(groups, prepend=-1))


def _fold(combine: np.ufunc, scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """``combine.reduceat(scores, starts, axis=0)`` by whole rows, which is ten times as fast."""
    sizes = np.diff(starts, append=len(scores))
    if (sizes == sizes[0]).all():
        return combine.reduce(scores.reshape(len(starts), sizes[0], -1), axis=1)
    out = scores[starts]
    for nth in range(1, sizes.max()):
        more = sizes > nth
        out[more] = combine(out[more], scores[starts[more] + nth])
    return out


def one_each(
    texts: np.ndarray,
    vectors: np.ndarray,
    clip_vectors: np.ndarray | None = None,
    mean: np.ndarray | None = None,
) -> Side:
    """A side in which every text is a group of its own."""
    each = np.arange(len(texts))
    weights = np.ones(len(texts), np.float32)
    return Side(np.asarray(texts), each, each, weights, vectors, clip_vectors, mean=mean)


def by_image(
    rows: pd.DataFrame,
    vectors: np.ndarray,
    groups: np.ndarray,
    method: Method,
    clip_vectors: np.ndarray | None = None,
) -> Side:
    r"""A side of images, each with all its texts, reduced as the method says.

    ``max``: :math:`s(q, i) = \max_t q^\top x_{i,t}` over the texts t of image i. ``mean``: their
    mean. ``fields``: ``max``, with one_sentence, feature and caption as texts of their own; with
    weights :math:`\sum_f w_f \max_v q^\top x_{i,v,f} / \sum_f w_f` over the fields that the image
    has.

    Args:
        rows: text corpus of the images; vectors: ``(n, dim) float32`` unit rows.
        groups: ``(n,)`` int, ascending: the image of each row.
        clip_vectors: ``(n_images, dim) float32`` unit rows, or None.
    """
    parts, weights = groups, np.ones(groups[-1] + 1)
    if "mean" in method.steps:
        parts, weights = np.arange(len(rows)), np.ones(len(rows))
    elif any(method.steps.get("fields", {}).values()):
        field = rows["field"].map(FIELDS.index).to_numpy()
        order = np.lexsort((field, groups))
        rows, vectors, groups, field = rows.iloc[order], vectors[order], groups[order], field[order]
        parts = np.cumsum(np.diff(groups * len(FIELDS) + field, prepend=field[0]) != 0)
        weights = np.array([method.steps["fields"][f] for f in FIELDS])[field[run_starts(parts)]]
        # where all fields of an image have weight 0 (one plain caption), they count alike
        weights = np.maximum(weights, 1e-9)
    of_parts = run_starts(groups[run_starts(parts)])
    total = np.add.reduceat(weights, of_parts)
    shares = (weights / np.repeat(total, np.diff([*of_parts, len(weights)]))).astype(np.float32)
    return Side(rows["text"].to_numpy(), groups, parts, shares, vectors, clip_vectors)
