"""Scoring rules: a method and two sides of texts go in, a function from queries to scores comes
out.

A rule is a function of the scores before it, for a block of queries at a time, so that the whole
matrix is never held: ``prepare`` puts the steps of a method (``methods.py``) together, and each
formula stands with its source at the function that computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.special import logsumexp
from scipy.stats import rankdata
from sklearn.feature_extraction.text import CountVectorizer

from trsllava_utils.captioning.records import FIELDS
from trsllava_utils.cluster import in_threads
from trsllava_utils.retrieval.methods import STEPS, Method

VERSION = 2  # of the rules: raised when a formula changes, so that old rankings are not used
TIE_TOLERANCE = 1e-6
BLOCK = 512  # queries scored at a time, at most
TILE = 1 << 21  # scores of texts held at a time: about what a processor's cache holds
FEW = 256  # queries: for fewer, tiles are no longer, and made one after the other
MATRIX = 1 << 27  # scores of items held at a time: 512 MB
_SELF = -2.0  # below any cosine: a left-out caption

Score = Callable[[slice], np.ndarray]  # a block of queries -> (n_in_block, n_items) float32


@dataclass(frozen=True)
class Side:
    """The texts on one side of a retrieval. A *group* is one query or one item; it may have
    several texts.

    Attributes:
        texts: ``(n_texts,)`` str.
        groups: ``(n_texts,)`` int from 0, ascending: the group of each text.
        parts: ``(n_texts,)`` int from 0, ascending: within a part the best text counts.
        weights: ``(n_parts,) float32``: share of a part in its group; they sum to 1.
        vectors: ``(n_texts, dim) float32`` unit rows (or float16, for ``cosine``).
        clip: ``(n_groups, dim) float32`` unit rows, or None.
        terms: ``(n_texts, n_words) float32`` sparse, for the lexical rule, or None.
    """

    texts: np.ndarray
    groups: np.ndarray
    parts: np.ndarray
    weights: np.ndarray
    vectors: np.ndarray
    clip: np.ndarray | None = None
    terms: csr_matrix | None = None

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
            None if self.clip is None else self.clip[block],
            None if self.terms is None else self.terms[first:last],
        )

    def reduce(self, scores: np.ndarray) -> np.ndarray:
        """Scores of texts ``(n_texts, n)`` to scores of groups ``(n_groups, n)``: maximum in a
        part, weighted sum of the parts."""
        starts = _starts(self.parts)
        if len(starts) < len(self.parts):
            scores = _fold(np.maximum, scores, starts)
        of_parts = _starts(self.groups[starts])
        if len(of_parts) < len(starts):
            scores = _fold(np.add, scores * self.weights[:, None], of_parts)
        return scores


def _starts(groups: np.ndarray) -> np.ndarray:
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


def one_each(texts: np.ndarray, vectors: np.ndarray, clip: np.ndarray | None = None) -> Side:
    """A side in which every text stands for itself."""
    each = np.arange(len(texts))
    return Side(np.asarray(texts), each, each, np.ones(len(texts), np.float32), vectors, clip)


def by_image(
    rows: pd.DataFrame,
    vectors: np.ndarray,
    groups: np.ndarray,
    method: Method,
    clip: np.ndarray | None = None,
) -> Side:
    r"""A side of images, each with all its texts, scored by the second step of the method.

    ``max`` (arXiv 2512.10596): :math:`s(q, i) = \max_t q^\top x_{i,t}` over the texts t of image
    i. ``mean``: their mean. ``fields``: ``max``, with one_sentence, feature and caption as texts of
    their own; with weights :math:`\sum_f w_f \max_v q^\top x_{i,v,f} / \sum_f w_f` over the fields
    that the image has.

    Args:
        rows: text corpus of the images; vectors: ``(n, dim) float32`` unit rows.
        groups: ``(n,)`` int, ascending: the image of each row.
        clip: ``(n_images, dim) float32`` unit rows, or None.
    """
    parts, weights = groups, np.ones(groups[-1] + 1)
    if "mean" in method.steps:
        parts, weights = np.arange(len(rows)), np.ones(len(rows))
    elif any(method.steps.get("fields", {}).values()):
        field = rows["field"].map(FIELDS.index).to_numpy()
        order = np.lexsort((field, groups))
        rows, vectors, groups, field = rows.iloc[order], vectors[order], groups[order], field[order]
        parts = np.cumsum(np.diff(groups * len(FIELDS) + field, prepend=field[0]) != 0)
        weights = np.array([method.steps["fields"][f] for f in FIELDS])[field[_starts(parts)]]
        # an image all of whose fields weigh nothing (one plain caption) counts them alike
        weights = np.maximum(weights, 1e-9)
    of_parts = _starts(groups[_starts(parts)])
    total = np.add.reduceat(weights, of_parts)
    shares = weights / np.repeat(total, np.diff([*of_parts, len(weights)]))
    return Side(rows["text"].to_numpy(), groups, parts, shares.astype(np.float32), vectors, clip)


def centre(side: Side, mean: np.ndarray) -> Side:
    r"""``centred``: :math:`x \to (x - \mu) / \lVert x - \mu \rVert`, :math:`\mu` the mean of its
    side, so that the direction which all texts of one writer share (the modality gap) is gone
    (Liang et al., Mind the gap, NeurIPS 2022; the first step of Mu and Viswanath, All-but-the-top,
    ICLR 2018)."""
    moved = side.vectors - mean
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return replace(side, vectors=(moved / np.maximum(length, 1e-12)).astype(np.float32))


def word_index(items: Side, k1: float, b: float) -> tuple[Side, Callable[[Side], Side]]:
    r"""``lexical``: the items with word counts weighted by BM25 (Robertson and Zaragoza, 2009), and
    a function that counts the words of queries, so that the score of two texts is a product of
    rows:

    .. math:: \sum_{w} c_q(w) \ln\Bigl(1 + \frac{N - n_w + 1/2}{n_w + 1/2}\Bigr)
        \frac{c(w) (k_1 + 1)}{c(w) + k_1 (1 - b + b L / \bar L)}

    with :math:`n_w` of the N item texts holding w, c(w) its count and L the words in this text. A
    word in every text, such as the names of the fields, counts for next to nothing.
    """
    vectorizer = CountVectorizer(dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
    counts = vectorizer.fit_transform(items.texts).tocsr()
    held = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log1p((counts.shape[0] - held + 0.5) / (held + 0.5))
    length = np.asarray(counts.sum(axis=1)).ravel()
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    damped = counts.data + k1 * (1 - b + b * length[row] / length.mean())
    data = (idf[counts.indices] * counts.data * (k1 + 1) / damped).astype(np.float32)
    weighted = csr_matrix((data, counts.indices, counts.indptr), counts.shape)

    def count(queries: Side) -> Side:
        return replace(queries, terms=vectorizer.transform(queries.texts).tocsr())

    return replace(items, terms=weighted), count


def cosine(queries: Side, items: Side) -> Score:
    """Cosine of unit vectors, reduced to groups on both sides."""

    def score(block: slice) -> np.ndarray:
        side = queries.take(block)
        asked = _float32(side.vectors)
        return side.reduce(_by_tiles(items, len(asked), lambda tile, _: _cosines(asked, tile)))

    return score


def _cosines(asked: np.ndarray, tile: Side) -> np.ndarray:
    """Cosines of ``asked (n, dim)`` to the groups of a tile: ``(n, n_groups)``."""
    vectors, each = _float32(tile.vectors), len(tile.parts) // tile.n
    if not np.array_equal(tile.parts, np.repeat(np.arange(tile.n), each)):
        return tile.reduce(vectors @ asked.T).T
    # As many texts each: the nth ones of all groups at once, so that no score has to be moved.
    best = asked @ vectors[::each].T
    for nth in range(1, each):
        np.maximum(best, asked @ vectors[nth::each].T, out=best)
    return best


def _float32(vectors: np.ndarray) -> np.ndarray:
    """Vectors as float32, and aligned: Dask hands arrays over at odd addresses, which numpy
    multiplies in another way, with other last digits."""
    if vectors.dtype == np.float32:
        return np.require(vectors, requirements="A")
    import torch  # ten times as fast at this as numpy

    return torch.from_numpy(vectors).float().numpy()


def lexical(queries: Side, items: Side) -> Score:
    """BM25 (see :func:`word_index`), reduced to groups on both sides."""

    def score(block: slice) -> np.ndarray:
        side = queries.take(block)
        asked = side.terms.T.tocsc()

        def scored(tile: Side, _: int) -> np.ndarray:
            return tile.reduce((tile.terms @ asked).toarray()).T

        return side.reduce(_by_tiles(items, asked.shape[1], scored))

    return score


def _by_tiles(items: Side, n: int, scored: Callable[[Side, int], np.ndarray]) -> np.ndarray:
    """Scores ``(n, n_items) float32`` of n texts, from the scores of the items' texts.

    Those are the better part of all numbers and needed only for their maximum. So they are made a
    tile at a time, small enough to be reduced before it leaves the processor's cache.

    Args:
        scored: some of the items, number of the first of their texts -> ``(n, n_items)``.
    """
    out = np.empty((n, items.n), np.float32)
    texts_each = max(1, round(len(items.groups) / max(items.n, 1)))
    step = max(1, TILE // (max(n, FEW) * texts_each))

    def fill(start: int) -> None:
        tile = slice(start, min(start + step, items.n))
        part = items.take(tile)
        first = int(np.searchsorted(items.groups, start))
        out[:, tile] = scored(part, first)

    starts = range(0, items.n, step)
    if n < FEW:
        for start in starts:
            fill(start)
    else:
        in_threads(fill, starts)  # reducing runs beside the next product
    return out


def clip(queries: Side, items: Side) -> Score:
    """Zero-shot CLIP (Radford et al., ICML 2021): cosine of image and text."""
    return lambda block: _float32(queries.clip[block]) @ _float32(items.clip).T


def leave_one_out(queries: Side, items: Side) -> Score:
    """``human``: the ceiling that paraphrase gives. A human caption is the query; every image is
    described by its human captions, less the query itself. Query n is text n of the items."""

    def score(block: slice) -> np.ndarray:
        asked = np.ascontiguousarray(queries.vectors[block].T)

        def scored(tile: Side, first: int) -> np.ndarray:
            cosines = _float32(tile.vectors) @ asked
            own = np.arange(max(block.start, first), min(block.stop, first + len(cosines)))
            cosines[own - first, own - block.start] = _SELF
            return tile.reduce(cosines).T

        return _by_tiles(items, asked.shape[1], scored)

    return score


def weighted_sum(first: Score, second: Score, weight: float) -> Score:
    r"""``hybrid(weight=w)`` and ``fusion``: :math:`(1 - w) \tilde s_1 + w \tilde s_2`, the scores
    of a query scaled to 0…1 over the items (Bruch, Gai and Ingber, TOIS 2023)."""

    def unit(scores: np.ndarray) -> np.ndarray:
        low = scores.min(axis=1, keepdims=True)
        span = scores.max(axis=1, keepdims=True) - low
        return (scores - low) / np.where(span > TIE_TOLERANCE, span, 1)

    return lambda block: (1 - weight) * unit(first(block)) + weight * unit(second(block))


def reciprocal_rank_fusion(first: Score, second: Score, k: float) -> Score:
    r"""``hybrid``: :math:`\sum_m 1 / (k + r_m)`, r the rank in each list (Cormack, Clarke and
    Büttcher, SIGIR 2009; k = 60 there). Tied items share their mean rank."""

    def reciprocal(scores: np.ndarray) -> np.ndarray:
        return 1 / (k + rankdata(-np.round(scores, 6), axis=1))

    # times k, so that neighbours in a long list stay further apart than a tie
    return lambda block: k * (reciprocal(first(block)) + reciprocal(second(block)))


def inverted_softmax(scores: Score, n: int, temperature: float, n_items: int = 0) -> np.ndarray:
    r"""``querybank``: what an item j loses, :math:`b_j = t \ln \frac1n \sum_b e^{s(b, j) / t}` over
    a bank of n queries. Ordering by :math:`s(q, j) - b_j` is ordering by
    :math:`e^{s(q, j) / t} / \sum_b e^{s(b, j) / t}` (inverted softmax, Smith et al., ICLR 2017;
    QB-Norm, Bogolin et al., CVPR 2022). With the test queries as bank and half of :math:`b_j` it is
    ``dual_softmax``, the product of the softmax over items and that over queries (Cheng et al.,
    CAMoE, arXiv 2109.04290). Returns ``(n_items,)``."""
    total = np.stack([logsumexp(scores(b) / temperature, axis=0) for b in blocks(n, n_items)])
    return temperature * (logsumexp(total, axis=0) - np.log(n))


def half_mean_of_nearest(scores: Score, n: int, k: int, n_items: int = 0) -> np.ndarray:
    r"""``csls`` and ``querybank(k=…)``: what an item j loses, :math:`b_j = r_j / 2`, r the mean
    score of its k nearest among n queries. CSLS (Conneau et al., ICLR 2018) is
    :math:`2 s - r_q - r_j`, and :math:`r_q` is the same for all items. Returns ``(n_items,)``."""
    nearest = np.zeros((0, 0), np.float32)
    for block in blocks(n, n_items):
        seen = scores(block)
        seen = np.concatenate([nearest, seen]) if len(nearest) else seen
        nearest = -np.partition(-seen, k - 1, axis=0)[:k] if len(seen) > k else seen
    return nearest.mean(axis=0) / 2


def blocks(n: int, n_items: int = 0) -> list[slice]:
    """Slices that cover ``range(n)``, ``BLOCK`` long, or less where that many queries would have
    more than ``MATRIX`` scores with ``n_items``."""
    step = min(BLOCK, max(1, MATRIX // max(n_items, 1)))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def rerank(score: Score, queries: Side, items: Side, n: int, relevance: Callable) -> Score:
    """``rerank``: the first n items of a query (and those tied with the last) in the order of a
    cross-encoder that reads both texts together (Nogueira and Cho, arXiv 1901.04085); the rest keep
    their order below them. Of several texts the best pair counts. ``relevance`` scores pairs.
    """
    query_texts, item_texts = (np.split(s.texts, _starts(s.groups)[1:]) for s in (queries, items))

    def reranked(block: slice) -> np.ndarray:
        scores = score(block).astype(np.float32)
        last = min(n, scores.shape[1]) - 1
        nth = -np.partition(-scores, last, axis=1)[:, [last]]
        chosen = np.argwhere(scores >= nth - TIE_TOLERANCE)
        pairs = [
            [(a, b) for a in query_texts[block.start + q] for b in item_texts[i]] for q, i in chosen
        ]
        distinct = list(dict.fromkeys(pair for several in pairs for pair in several))
        value = dict(zip(distinct, relevance(distinct), strict=True))
        best = np.array([max(value[pair] for pair in several) for several in pairs], np.float32)
        # the rest end one below the least of the reranked
        scores -= scores.max(axis=1, keepdims=True) - (best.min() - 1)
        scores[tuple(chosen.T)] = best
        return scores

    return reranked


def prepare(
    method: Method, items: Side, bank: Side | None = None, relevance: Callable | None = None
) -> Callable[[Side], Score]:
    """The scoring function of a method over these items; all that queries play no part in is done
    once, here.

    Args:
        method: parsed.
        items: what is ranked, vectors already centred where the method says so.
        bank: training captions, which stand in for the queries where hubs are measured; None
            leaves ``querybank`` without effect.
        relevance: scores pairs of texts (``rerank``).

    Returns:
        ``queries -> (slice of queries -> scores (n_in_block, n_items) float32)``, higher is better.
    """
    steps = method.steps
    if "human" in steps:
        return lambda queries: leave_one_out(queries, items)
    base = _base(method, items)
    banked = None
    if "querybank" in steps and bank is not None:
        settings, asked = steps["querybank"], base(bank)
        if method.given("querybank", "k"):
            banked = half_mean_of_nearest(asked, bank.n, int(settings["k"]), items.n)
        else:
            banked = inverted_softmax(asked, bank.n, settings["temperature"], items.n)

    def scorer(queries: Side) -> Score:
        score, loss = base(queries), banked
        if "csls" in steps:
            loss = half_mean_of_nearest(score, queries.n, int(steps["csls"]["k"]), items.n)
        elif "dual_softmax" in steps:
            temperature = steps["dual_softmax"]["temperature"]
            loss = inverted_softmax(score, queries.n, temperature, items.n) / 2
        if loss is not None:
            score = _less(score, loss.astype(np.float32))
        if "rerank" in steps:
            score = rerank(score, queries, items, int(steps["rerank"]["n"]), relevance)
        return score

    return scorer


def _less(score: Score, loss: np.ndarray) -> Score:
    """A hub loses its lead: scores less what every query grants an item."""
    return lambda block: score(block) - loss


def _base(method: Method, items: Side) -> Callable[[Side], Score]:
    """Steps 3 and 4: cosine, words or CLIP, and their fusion."""
    steps = method.steps
    if "clip" in steps:
        return lambda queries: clip(queries, items)
    if "lexical" in steps or "hybrid" in steps:
        settings = steps.get("lexical", STEPS["lexical"].settings)
        worded, count = word_index(items, **settings)

    def score(queries: Side) -> Score:
        if "lexical" in steps:
            return lexical(count(queries), worded)
        score = cosine(queries, items)
        if "hybrid" in steps:
            words = lexical(count(queries), worded)
            if method.given("hybrid", "weight"):
                score = weighted_sum(score, words, steps["hybrid"]["weight"])
            else:
                score = reciprocal_rank_fusion(score, words, steps["hybrid"]["k"])
        if "fusion" in steps:
            score = weighted_sum(score, clip(queries, items), steps["fusion"]["weight"])
        return score

    return score
