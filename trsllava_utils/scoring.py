r"""Scoring: two sides of texts go in, a score for each query and item comes out.

The rule of the paper is here in two functions: :func:`cosine` multiplies unit vectors, and
:meth:`Side.best` takes the maximum over the texts of an image,

.. math:: s(q, i) = \max_v \mathbf q^\top \mathbf x_{i,v}.

:class:`Scorer` puts the other steps of a method before and behind it. Queries are scored a block at
a time, against a tile of items at a time: most numbers made on the way are scores of single texts,
needed only for their maximum, and a tile is small enough to be reduced in the processor's cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from trsllava_utils.formulas import (
    bm25_weights,
    centre,
    csls_penalty,
    inverted_softmax_penalty,
    mean_vectors,
    reciprocal_rank_fusion,
    weighted_sum,
)
from trsllava_utils.methods import Method, steps

VERSION = 3  # of the rules: raised when a formula changes, so that old rankings are not used
BLOCK = 512  # queries scored at a time, at most
TILE = 1 << 21  # scores of texts held at a time: about the size of a processor's cache
FEW = 256  # below this number of queries: one thread, and tiles as long as for this number
MATRIX = 1 << 27  # scores of items held at a time: 512 MB
_LEFT_OUT = -2.0  # below any cosine

Score = Callable[[slice], np.ndarray]  # a block of queries -> (n_in_block, n_items) float32


@dataclass(frozen=True)
class Side:
    """The texts of one side, queries or items, in *groups*: an image has several texts, a reference
    caption is a group of one."""

    texts: np.ndarray  # (n_texts,) str
    groups: np.ndarray  # (n_texts,) int from 0, ascending: the group of each text
    vectors: np.ndarray  # (n_texts, dim) float32 unit rows (or float16, for the cosine)
    second: np.ndarray | None = None  # (n_groups, dim) float32 unit rows of a plug-in's space
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
            None if self.second is None else self.second[block],
            None if self.terms is None else self.terms[first:last],
            self.mean,
        )

    def centred(self) -> Side:
        """The side with its mean taken out of its vectors."""
        return replace(self, vectors=centre(self.vectors, self.mean), mean=None)

    def merged(self, unit: bool) -> Side:
        """Each group as one text, its texts one after the other, at the mean of their vectors; see
        :func:`trsllava_utils.formulas.mean_vectors`."""
        if self.n == len(self.texts):
            return self
        vectors = mean_vectors(self.vectors, self.groups, unit)
        each = np.split(self.texts, run_starts(self.groups)[1:])
        texts = np.array(["\n".join(several) for several in each], dtype=object)
        return replace(self, texts=texts, groups=np.arange(self.n), vectors=vectors)

    def best(self, scores: np.ndarray) -> np.ndarray:
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
    second: np.ndarray | None = None,
    mean: np.ndarray | None = None,
) -> Side:
    """A side in which every text is a group of its own."""
    return Side(np.asarray(texts), np.arange(len(texts)), vectors, second, mean=mean)


# — products of two sides —


def cosine(queries: Side, items: Side) -> Score:
    """The cosine of unit vectors; of the texts of a group, on either side, the best counts."""

    def score(block: slice) -> np.ndarray:
        asking = queries.take(block)
        vectors = as_float32(asking.vectors)
        scores = _by_tiles(items, len(vectors), lambda tile, _: _cosines(vectors, tile))
        return asking.best(scores)

    return score


def _cosines(queries: np.ndarray, tile: Side) -> np.ndarray:
    """Cosines of ``queries (n, dim)`` to the groups of a tile: ``(n, n_groups)``."""
    vectors, each = as_float32(tile.vectors), len(tile.groups) // tile.n
    if not np.array_equal(tile.groups, np.repeat(np.arange(tile.n), each)):
        return tile.best(vectors @ queries.T).T
    # All groups have as many texts: multiply the nth texts of all groups, and keep the maximum.
    best = queries @ vectors[::each].T
    for nth in range(1, each):
        np.maximum(best, queries @ vectors[nth::each].T, out=best)
    return best


def as_float32(vectors: np.ndarray) -> np.ndarray:
    """Vectors as float32, and aligned: numpy multiplies the unaligned arrays that Dask delivers in
    another way, with other last digits."""
    if vectors.dtype == np.float32:
        return np.require(vectors, requirements="A")
    import torch  # ten times as fast at this as numpy

    return torch.from_numpy(vectors).float().numpy()


def bm25_sides(items: Side, k1: float, b: float) -> tuple[Side, Callable[[Side], Side]]:
    """The items with BM25 weights in ``terms``, and a function that gives queries word counts."""
    words = sorted({word for text in items.texts for word in _words(text)})
    number = {word: n for n, word in enumerate(words)}

    def counts(texts: np.ndarray) -> csr_matrix:
        rows, columns = [], []
        for row, text in enumerate(texts):
            known = [number[word] for word in _words(text) if word in number]
            rows += [row] * len(known)
            columns += known
        ones = np.ones(len(rows), np.float32)
        return csr_matrix((ones, (rows, columns)), (len(texts), len(words)))

    weights = bm25_weights(counts(items.texts), k1, b)
    return replace(items, terms=weights), lambda side: replace(side, terms=counts(side.texts))


def _words(text: str) -> list[str]:
    return re.findall(r"\b\w+\b", text.lower())


def lexical(queries: Side, items: Side) -> Score:
    """BM25 of sides with ``terms`` (see :func:`bm25_sides`); the best of a group counts."""

    def score(block: slice) -> np.ndarray:
        asking = queries.take(block)
        counts: csr_matrix = asking.terms.T.tocsc()

        def scored(tile: Side, _: int) -> np.ndarray:
            return tile.best((tile.terms @ counts).toarray()).T

        return asking.best(_by_tiles(items, counts.shape[1], scored))

    return score


def leave_one_out(queries: Side, items: Side) -> Score:
    """``reference``: a reference caption is the query, and every image is described by all its own
    without the query itself. Query n is text n of the items."""

    def score(block: slice) -> np.ndarray:
        vectors = np.ascontiguousarray(queries.vectors[block].T)

        def scored(tile: Side, first: int) -> np.ndarray:
            cosines = as_float32(tile.vectors) @ vectors
            own = np.arange(max(block.start, first), min(block.stop, first + len(cosines)))
            cosines[own - first, own - block.start] = _LEFT_OUT
            return tile.best(cosines).T

        return _by_tiles(items, vectors.shape[1], scored)

    return score


def blocks(n: int, n_items: int = 0) -> list[slice]:
    """Slices that cover ``range(n)``, ``BLOCK`` long, or shorter where that many queries would have
    more than ``MATRIX`` scores with ``n_items``."""
    step = min(BLOCK, max(1, MATRIX // max(n_items, 1)))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


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


# Read at import: when Dask starts workers, it sets this to 1 here as well.
_OMP_NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS") or 0)


def threads() -> int:
    """Number of threads to compute with: OMP_NUM_THREADS where it is set (Dask sets it to 1 for
    its workers), else the cores that this process may use."""
    import joblib

    return _OMP_NUM_THREADS or joblib.cpu_count()


def in_threads(function: Callable, pieces: Sequence) -> list:
    """``function(piece)`` of every piece, one thread for each core; BLAS adds none of its own."""
    n = min(threads(), len(pieces))
    if n < 2:
        return [function(piece) for piece in pieces]
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n) as pool:
        return list(pool.map(function, pieces))


# — methods —


class Scorer:
    """A method over a set of items; what does not depend on the queries is computed once, here.

    ``scorer(queries)`` gives their scoring function: a slice -> ``(n_in_slice, n_items) float32``.

    Args:
        method: the scoring rule.
        items: what is ranked.
        bank: training captions, which stand in for the queries where hubs are measured; None leaves
            ``querybank`` without effect.
    """

    def __init__(self, method: Method, items: Side, bank: Side | None = None) -> None:
        self.method, self.steps = method, method.steps
        self.texts = self.prepare(items)  # the items before their texts are taken together
        self.items = self._together(self.texts)
        if self.steps.keys() & {"lexical", "hybrid"}:
            settings = self.steps.get("lexical", steps()["lexical"].settings)
            self._words, self._counted = bm25_sides(self.items, **settings)
        self._bank_penalty = None
        if "querybank" in self.steps and bank is not None:
            self._bank_penalty = self._querybank(self.prepare(bank))

    def __call__(self, queries: Side) -> Score:
        steps, queries = self.steps, self._together(self.prepare(queries))
        if "reference" in steps:
            return leave_one_out(queries, self.items)
        score, penalty = self._compare(queries), self._bank_penalty
        if "csls" in steps:
            penalty = csls_penalty(self._blocks(score, queries), int(steps["csls"]["k"]))
        elif "dual_softmax" in steps:
            temperature = steps["dual_softmax"]["temperature"]
            penalty = inverted_softmax_penalty(self._blocks(score, queries), temperature) / 2
        if penalty is not None:
            penalty = penalty.astype(np.float32)
            return lambda block: score(block) - penalty
        return score

    def prepare(self, side: Side) -> Side:
        """Step 1: the side with centred vectors, if the method has ``centred``."""
        return side.centred() if "centred" in self.steps else side

    def _together(self, side: Side) -> Side:
        """Step 2: each image as one text, if the method has ``mean`` or ``centroid``."""
        averaged = self.steps.keys() & {"mean", "centroid"}
        return side.merged(unit="centroid" in averaged) if averaged else side

    def _compare(self, queries: Side) -> Score:
        """Steps 3 and 4: cosine, words, and what plug-ins add."""
        if "lexical" in self.steps:
            return lexical(self._counted(queries), self._words)
        score = cosine(queries, self.items)
        if "hybrid" in self.steps:
            words = lexical(self._counted(queries), self._words)
            weight, k = (self.steps["hybrid"][name] for name in ("weight", "k"))
            if self.method.given("hybrid", "weight"):
                score = fused(weighted_sum, score, words, weight)
            else:
                score = fused(reciprocal_rank_fusion, score, words, k)
        for name, step in self.method.plugged.items():
            score = step.compare(score, queries, self.items, self.steps[name])
        return score

    def _blocks(self, score: Score, queries: Side) -> Iterator[np.ndarray]:
        return map(score, blocks(queries.n, self.items.n))

    def _querybank(self, bank: Side) -> np.ndarray:
        settings, scores = self.steps["querybank"], self._blocks(self._compare(bank), bank)
        if self.method.given("querybank", "k"):
            return csls_penalty(scores, int(settings["k"]))
        return inverted_softmax_penalty(scores, settings["temperature"])


def fused(formula: Callable, first: Score, second: Score, setting: float) -> Score:
    """Two scores joined by a formula."""
    return lambda block: formula(first(block), second(block), setting)
