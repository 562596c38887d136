r"""Scoring: two sides of texts go in, a score for each query and item comes out.

The formula behind the paper's rule, ``max``, is :func:`best_cosine`: dot products of unit vectors,
of which the best counts over the texts of an image,

.. math:: s(q, i) = \max_v \mathbf q^\top \mathbf x_{i,v}.

Both are computed in :func:`_best_cosines`; where groups have unequal numbers of texts, and where an
image asks, :meth:`Side.best` takes the maximum. Queries are scored a block at a time, against a
tile of items at a time: most numbers made on the way are scores of single texts, needed only for
their maximum, and a tile is small enough to be reduced in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

VERSION = 3  # of the rules: raised when a formula changes, so that old rankings are not used
BLOCK = 512  # queries scored at a time, at most
TILE_SCORES = 1 << 21  # scores of texts held at a time: about the size of a processor's cache
FEW = 256  # below this number of queries, tiles are as long as for this number
MATRIX = 1 << 24  # scores held at a time: 64 MB
TIE_TOLERANCE = 1e-6  # at most so far from the best relevant score, one is tied with it

Score = Callable[[slice], np.ndarray]  # a block of queries -> (n_in_block, n_items) float32


@dataclass(frozen=True)
class Side:
    """The texts of one side, queries or items, in *groups*: an image has several texts, a reference
    caption is a group of one."""

    texts: np.ndarray  # (n_texts,) str
    groups: np.ndarray  # (n_texts,) int: the group of each, ascending, every number from 0 on
    vectors: np.ndarray  # (n_texts, dim) float32 unit rows (or float16, for the cosine)
    # for plug-in rules:
    second: np.ndarray | None = None  # (n_groups, dim) float32 unit rows of a model of their own
    mean: np.ndarray | None = None  # (dim,) mean vector of all texts from the same source

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
            self.mean,
        )

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


def best_cosine(queries: Side, items: Side) -> Score:
    """The cosine of unit vectors; of the texts of a group, on either side, the best counts."""

    def score(block: slice) -> np.ndarray:
        asking = queries.take(block)
        vectors = as_float32(asking.vectors)
        return by_tiles(items, asking, lambda tile, _: asking.best(_best_cosines(vectors, tile)))

    return score


def _best_cosines(queries: np.ndarray, tile: Side) -> np.ndarray:
    """The best cosine of ``queries (n, dim)`` to each group of a tile: ``(n, n_groups)``."""
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


def blocks(n: int, n_items: int = 0) -> list[slice]:
    """Slices that cover ``range(n)``, ``BLOCK`` long, or shorter where that many queries would have
    more than ``MATRIX`` scores with ``n_items``."""
    step = min(BLOCK, max(1, MATRIX // max(n_items, 1)))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def by_tiles(items: Side, asking: Side, scored: Callable[[Side, int], np.ndarray]) -> np.ndarray:
    """Scores ``(n, n_items) float32`` of n queries.

    Args:
        scored: scores one tile: some of the items, and the index of their first text ->
            ``(n, n_items_in_tile)``.
    """
    out = np.empty((asking.n, items.n), np.float32)
    texts_each = max(1, round(len(items.groups) / max(items.n, 1)))
    step = max(1, TILE_SCORES // (max(len(asking.groups), FEW) * texts_each))

    for start in range(0, items.n, step):
        tile = slice(start, min(start + step, items.n))
        first = int(np.searchsorted(items.groups, start))
        out[:, tile] = scored(items.take(tile), first)
    return out
