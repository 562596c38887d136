"""Formulas of the scoring rules beside the plain one, each with its source. Arrays go in, arrays
come out: rows are queries and columns are items (images, or captions); a higher score is better.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import logsumexp

from trsllava_utils.scoring import TIE_TOLERANCE


def centre(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    r"""``centred``: :math:`\mathbf x \to (\mathbf x - \mu) / \lVert \mathbf x - \mu \rVert`.

    With :math:`\mu` the mean of all texts of one writer, the direction that they share (the
    modality gap) is gone. Liang et al., Mind the gap, NeurIPS 2022; it is the first step of Mu and
    Viswanath, All-but-the-top, ICLR 2018.

    Args:
        vectors: ``(n, dim) float32`` unit rows; mean: ``(dim,)``.

    Returns:
        ``(n, dim) float32`` unit rows.
    """
    moved = vectors - mean
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return (moved / np.maximum(length, 1e-12)).astype(np.float32)


def mean_vectors(vectors: np.ndarray, groups: np.ndarray, unit: bool) -> np.ndarray:
    r"""``mean``: :math:`\mathbf m_i = \frac1n \sum_v \mathbf x_{i,v}`, so that a score is the mean
    of the cosines; ``centroid``: the same as a unit vector, :math:`\mathbf m_i / \lVert \mathbf m_i
    \rVert`.

    The prototype of Rocchio (1971) and of Snell et al. (NeurIPS 2017); CLIP takes it over its
    prompts (Radford et al., ICML 2021, section 3.1.4).

    Args:
        vectors: ``(n, dim) float32`` unit rows; groups: ``(n,)`` int from 0, ascending.

    Returns:
        ``(n_groups, dim) float32``; with ``unit``, unit rows.
    """
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    means = np.add.reduceat(vectors, starts, axis=0) / sizes[:, None]
    if unit:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means.astype(np.float32)


def bm25_weights(counts: csr_matrix, k1: float, b: float) -> csr_matrix:
    r"""``lexical``: word counts of texts, weighted so that a query's counts times a row is BM25.

    .. math:: s(q, t) = \sum_{w} c_q(w) \ln\Bigl(1 + \frac{N - n_w + 1/2}{n_w + 1/2}\Bigr)
        \frac{c_t(w) (k_1 + 1)}{c_t(w) + k_1 (1 - b + b L_t / \bar L)}

    with :math:`n_w` of the N texts holding the word w, c its counts, and L the words in a text. A
    word in every text, such as the name of a field, counts for next to nothing. Robertson and
    Zaragoza, The probabilistic relevance framework, 2009.

    Args:
        counts: ``(n_texts, n_words) float32``; k1, b: how soon repeats saturate, and how much long
            texts are damped.

    Returns:
        ``(n_texts, n_words) float32``.
    """
    n, n_words = counts.shape
    texts_with = np.bincount(counts.indices, minlength=n_words)
    idf = np.log1p((n - texts_with + 0.5) / (texts_with + 0.5))
    length = np.asarray(counts.sum(axis=1)).ravel()
    row = np.repeat(np.arange(n), np.diff(counts.indptr))
    damped = counts.data + k1 * (1 - b + b * length[row] / length.mean())
    data = (idf[counts.indices] * counts.data * (k1 + 1) / damped).astype(np.float32)
    return csr_matrix((data, counts.indices, counts.indptr), counts.shape)


def weighted_sum(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    r"""``hybrid(weight=w)`` and ``fusion``: :math:`(1 - w) \tilde s_1 + w \tilde s_2`, the scores
    of each query scaled to 0…1 over the items. Bruch, Gai and Ingber, TOIS 2023."""
    return (1 - weight) * _unit_interval(first) + weight * _unit_interval(second)


def _unit_interval(scores: np.ndarray) -> np.ndarray:
    low = scores.min(axis=1, keepdims=True)
    span = scores.max(axis=1, keepdims=True) - low
    return (scores - low) / np.where(span > TIE_TOLERANCE, span, 1)


def reciprocal_rank_fusion(first: np.ndarray, second: np.ndarray, k: float) -> np.ndarray:
    r"""``hybrid``: :math:`\sum_m 1 / (k + r_m)`, r the rank in each list; tied items share their
    mean rank. Cormack, Clarke and Büttcher, SIGIR 2009 (k = 60 there)."""
    from scipy.stats import rankdata  # slow to import

    def share(scores: np.ndarray) -> np.ndarray:
        # times k, so that neighbours in a long list stay further apart than a tie
        return k / (k + rankdata(-np.round(scores, 6)))

    out = np.empty(first.shape)
    for q, pair in enumerate(zip(first, second, strict=True)):  # rankdata needs eight times a row
        out[q] = share(pair[0]) + share(pair[1])
    return out


def inverted_softmax_penalty(blocks: Iterable[np.ndarray], temperature: float) -> np.ndarray:
    r"""``querybank``: the penalty of an item j over a bank of n queries q',
    :math:`b_j = t \ln \frac1n \sum_{q'} e^{s(q', j) / t}`.

    Ordering by :math:`s(q, j) - b_j` is ordering by :math:`e^{s(q, j) / t} / \sum_{q'}
    e^{s(q', j) / t}`: inverted softmax, Smith et al., ICLR 2017; QB-Norm, Bogolin et al., CVPR
    2022. With the test queries as bank and half of :math:`b_j` it is ``dual_softmax``, the product
    of the softmax over items and that over queries: Cheng et al., CAMoE, arXiv 2109.04290.

    Args:
        blocks: scores of the bank, ``(n_in_block, n_items)`` each.

    Returns:
        ``(n_items,)``.
    """
    sums, n = [], 0
    for scores in blocks:
        sums.append(logsumexp(scores / temperature, axis=0))
        n += len(scores)
    return temperature * (logsumexp(np.stack(sums), axis=0) - np.log(n))


def csls_penalty(blocks: Iterable[np.ndarray], k: int) -> np.ndarray:
    r"""``csls`` and ``querybank(k=…)``: the penalty :math:`b_j = r_j / 2` of an item j, r the
    mean score of its k nearest queries.

    CSLS (Conneau et al., ICLR 2018) is :math:`2 s - r_q - r_j`, and :math:`r_q` is the same for all
    items.

    Args:
        blocks: scores of the queries, ``(n_in_block, n_items)`` each.

    Returns:
        ``(n_items,)``.
    """
    nearest = None
    for scores in blocks:
        seen = scores if nearest is None else np.concatenate([nearest, scores])
        nearest = -np.partition(-seen, k - 1, axis=0)[:k] if len(seen) > k else seen
    return nearest.mean(axis=0) / 2
