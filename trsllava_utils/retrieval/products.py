"""Fast products of two sides: a block of queries at a time, scored against all items.

Most numbers made on the way are scores of single texts, needed only for their maximum. They are
made a tile of items at a time, small enough to be reduced inside the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_matrix

from trsllava_utils.cluster import in_threads
from trsllava_utils.retrieval.formulas import TIE_TOLERANCE, bm25_weights
from trsllava_utils.retrieval.side import Side

BLOCK = 512  # queries scored at a time, at most
TILE = 1 << 21  # scores of texts held at a time: about the size of a processor's cache
FEW = 256  # below this number of queries: one thread, and tiles as long as for this number
MATRIX = 1 << 27  # scores of items held at a time: 512 MB
_LEFT_OUT = -2.0  # below any cosine

Score = Callable[[slice], np.ndarray]  # a block of queries -> (n_in_block, n_items) float32


def blocks(n: int, n_items: int = 0) -> list[slice]:
    """Slices that cover ``range(n)``, ``BLOCK`` long, or shorter where that many queries would have
    more than ``MATRIX`` scores with ``n_items``."""
    step = min(BLOCK, max(1, MATRIX // max(n_items, 1)))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def cosine(queries: Side, items: Side) -> Score:
    """Cosine of unit vectors, reduced to groups on both sides."""

    def score(block: slice) -> np.ndarray:
        side = queries.take(block)
        vectors = _float32(side.vectors)
        return side.reduce(_by_tiles(items, len(vectors), lambda tile, _: _cosines(vectors, tile)))

    return score


def _cosines(queries: np.ndarray, tile: Side) -> np.ndarray:
    """Cosines of ``queries (n, dim)`` to the groups of a tile: ``(n, n_groups)``."""
    vectors, each = _float32(tile.vectors), len(tile.groups) // tile.n
    if not np.array_equal(tile.groups, np.repeat(np.arange(tile.n), each)):
        return tile.reduce(vectors @ queries.T).T
    # All groups have as many texts: multiply the nth texts of all groups, and keep the maximum.
    best = queries @ vectors[::each].T
    for nth in range(1, each):
        np.maximum(best, queries @ vectors[nth::each].T, out=best)
    return best


def _float32(vectors: np.ndarray) -> np.ndarray:
    """Vectors as float32, and aligned: numpy multiplies the unaligned arrays that Dask delivers in
    another way, with other last digits."""
    if vectors.dtype == np.float32:
        return np.require(vectors, requirements="A")
    import torch  # ten times as fast at this as numpy

    return torch.from_numpy(vectors).float().numpy()


def clip_cosine(queries: Side, items: Side) -> Score:
    """Zero-shot CLIP (Radford et al., ICML 2021): cosine of image and text."""
    return lambda block: _float32(queries.clip_vectors[block]) @ _float32(items.clip_vectors).T


def bm25_sides(items: Side, k1: float, b: float) -> tuple[Side, Callable[[Side], Side]]:
    """The items with BM25 weights in ``terms``, and a function that gives queries word counts."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
    weights = bm25_weights(vectorizer.fit_transform(items.texts).tocsr(), k1, b)

    def counted(queries: Side) -> Side:
        return replace(queries, terms=vectorizer.transform(queries.texts).tocsr())

    return replace(items, terms=weights), counted


def lexical(queries: Side, items: Side) -> Score:
    """BM25 of sides with ``terms`` (see :func:`bm25_sides`), reduced to groups on both sides."""

    def score(block: slice) -> np.ndarray:
        side = queries.take(block)
        counts: csr_matrix = side.terms.T.tocsc()

        def scored(tile: Side, _: int) -> np.ndarray:
            return tile.reduce((tile.terms @ counts).toarray()).T

        return side.reduce(_by_tiles(items, counts.shape[1], scored))

    return score


def leave_one_out(queries: Side, items: Side) -> Score:
    """``reference``: a reference caption is the query, and every image is described by all its own
    without the query itself. Query n is text n of the items."""

    def score(block: slice) -> np.ndarray:
        vectors = np.ascontiguousarray(queries.vectors[block].T)

        def scored(tile: Side, first: int) -> np.ndarray:
            cosines = _float32(tile.vectors) @ vectors
            own = np.arange(max(block.start, first), min(block.stop, first + len(cosines)))
            cosines[own - first, own - block.start] = _LEFT_OUT
            return tile.reduce(cosines).T

        return _by_tiles(items, vectors.shape[1], scored)

    return score


def _by_tiles(items: Side, n: int, scored: Callable[[Side, int], np.ndarray]) -> np.ndarray:
    """Scores ``(n, n_items) float32`` of n query texts.

    Args:
        scored: scores one tile: some of the items, and the index of their first text ->
            ``(n, n_items_in_tile)``.
    """
    out = np.empty((n, items.n), np.float32)
    texts_each = max(1, round(len(items.groups) / max(items.n, 1)))
    step = max(1, TILE // (max(n, FEW) * texts_each))

    def fill(start: int) -> None:
        tile = slice(start, min(start + step, items.n))
        first = int(np.searchsorted(items.groups, start))
        out[:, tile] = scored(items.take(tile), first)

    starts = range(0, items.n, step)
    if n < FEW:
        for start in starts:
            fill(start)
    else:
        in_threads(fill, starts)  # one thread reduces while another multiplies
    return out


def count_ahead(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """``(2, n_queries) int64``: items ahead of ``best (n_queries,)`` by more than a tie, and items
    tied with it."""
    counts = np.empty((2, len(scores)), np.int64)
    for q, row in enumerate(scores):  # a row stays in the processor's cache
        above = row - best[q]
        greater = np.count_nonzero(above > TIE_TOLERANCE)
        counts[:, q] = greater, np.count_nonzero(above >= -TIE_TOLERANCE) - greater
    return counts


def top_items(scores: np.ndarray, k: int) -> np.ndarray:
    """``(n_queries, k)`` indices of the highest scores, best first; equal scores in the order of
    the items."""
    n = scores.shape[1]
    k = min(k, n)
    sets = max(4 * k, min(512, n // 4), 1)  # the more, the nearer the floor is to the k-th best
    if n < 2 * sets:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    out = np.empty((len(scores), k), np.int64)
    for q, row in enumerate(scores):
        # k sets of items hold a score this high, so the k best items lie at or above it
        highest = row[: n - n % sets].reshape(-1, sets).max(axis=0)
        floor = np.partition(highest, -k)[-k]
        candidates = np.flatnonzero(row >= floor)
        out[q] = candidates[np.argsort(-row[candidates], kind="stable")[:k]]
    return out
