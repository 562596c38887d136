"""Steps of scoring rules beside the plain one (``trsllava.steps``): means, words, hubs, a common
direction, and the reference captions themselves. The formulas are in ``formulas.py``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.sparse import csr_matrix

from trsllava_extras.formulas import (
    bm25_weights,
    centre,
    csls_penalty,
    inverted_softmax_penalty,
    mean_vectors,
    reciprocal_rank_fusion,
    weighted_sum,
)
from trsllava_extras.methods import Method, Step
from trsllava_utils.scoring import Score, Side, as_float32, by_tiles, run_starts

_BOTH = ("t2i", "i2t")
_LEFT_OUT = -2.0  # below any cosine


def _each(name: str, *values: float) -> tuple[str, ...]:
    return tuple(f"({name}={value})" for value in values)


_TEMPERATURES = _each("temperature", 0.05, 0.01, 0.02, 0.1, 0.2)


def _centred(side: Side) -> Side:
    """The side with its mean taken out of its vectors."""
    return replace(side, vectors=centre(side.vectors, side.mean), mean=None)


def merged(side: Side, unit: bool) -> Side:
    """Each group as one text, its texts one after the other, at the mean of their vectors; see
    :func:`mean_vectors`."""
    if side.n == len(side.texts):
        return side
    vectors = mean_vectors(side.vectors, side.groups, unit)
    each = np.split(side.texts, run_starts(side.groups)[1:])
    texts = np.array(["\n".join(several) for several in each], dtype=object)
    return replace(side, texts=texts, groups=np.arange(side.n), vectors=vectors)


# — words —

Words = tuple[csr_matrix, Callable[[np.ndarray], csr_matrix]]


def _word_index(items: Side, method: Method) -> Words:
    """BM25 weights of the items' texts ``(n_texts, n_words)``, and a function that counts the words
    of queries."""
    settings = {"k1": 1.2, "b": 0.75} | method.steps.get("lexical", {})
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

    return bm25_weights(counts(items.texts), **settings), counts


def _words(text: str) -> list[str]:
    return re.findall(r"\b\w+\b", text.lower())


def _lexical(_: Score, queries: Side, items: Side, method: Method, index: Words) -> Score:
    """BM25; of the texts of a group the best counts."""
    weights, counts = index
    asked = counts(queries.texts)

    def score(block: slice) -> np.ndarray:
        asking = queries.take(block)
        first = int(np.searchsorted(queries.groups, block.start))
        wanted = asked[first : first + len(asking.groups)].T.tocsc()

        def scored(tile: Side, start: int) -> np.ndarray:
            rows = weights[start : start + len(tile.groups)]
            return asking.best(tile.best((rows @ wanted).toarray()).T)

        return by_tiles(items, asking, scored)

    return score


def _hybrid(score: Score, queries: Side, items: Side, method: Method, index: Words) -> Score:
    """Cosine and words together."""
    words, settings = _lexical(score, queries, items, method, index), method.steps["hybrid"]
    if method.is_given("hybrid", "weight"):
        return fused(weighted_sum, score, words, settings["weight"])
    return fused(reciprocal_rank_fusion, score, words, settings["k"])


def fused(formula: Callable, first: Score, second: Score, setting: float) -> Score:
    """Two scores joined by a formula."""
    return lambda block: formula(first(block), second(block), setting)


# — hubs —


def _by_bank(scores: Iterable[np.ndarray], method: Method, n: int) -> np.ndarray:
    settings = method.steps["querybank"]
    if method.is_given("querybank", "k"):
        k = settings["k"]
        return csls_penalty(scores, int(k) if k >= 1 else max(1, round(k * n)))  # 0.005: a share
    return inverted_softmax_penalty(scores, settings["temperature"])


def _csls(scores: Iterable[np.ndarray], method: Method, n: int) -> np.ndarray:
    return csls_penalty(scores, int(method.steps["csls"]["k"]))


def _dual_softmax(scores: Iterable[np.ndarray], method: Method, n: int) -> np.ndarray:
    return inverted_softmax_penalty(scores, method.steps["dual_softmax"]["temperature"]) / 2


# — what a second annotator's words would reach —


def _leave_one_out(_: Score, queries: Side, items: Side, method: Method, index: None) -> Score:
    """A reference caption is the query, and every image is described by all its own without the
    query itself. Query n is text n of the items."""

    def score(block: slice) -> np.ndarray:
        asking = queries.take(block)
        vectors = np.ascontiguousarray(asking.vectors.T)

        def scored(tile: Side, first: int) -> np.ndarray:
            cosines = as_float32(tile.vectors) @ vectors
            own = np.arange(max(block.start, first), min(block.stop, first + len(cosines)))
            cosines[own - first, own - block.start] = _LEFT_OUT
            return tile.best(cosines).T

        return by_tiles(items, asking, scored)

    return score


MEAN = Step(2, together=partial(merged, unit=False))
CENTROID = Step(2, together=partial(merged, unit=True))
CENTRED = Step(1, bank=True, transductive=("i2t",), prepare=_centred)
LEXICAL = Step(3, {"k1": 1.2, "b": 0.75}, without=("centred",), index=_word_index, compare=_lexical)
HYBRID = Step(
    3,
    {"weight": 0.5, "k": 60.0},
    grid=("", *_each("weight", 0.1, 0.2, 0.3, 0.5, 0.7)),
    index=_word_index,
    compare=_hybrid,
)
_OTHERS = "texts centred max mean centroid lexical hybrid clip fusion querybank csls dual_softmax"
REFERENCE = Step(3, without=tuple(_OTHERS.split()), compare=_leave_one_out, captions_ask=True)
QUERYBANK = Step(
    5,
    {"temperature": 0.05, "k": 10.0},
    bank=True,
    grid=(*_TEMPERATURES, *_each("k", 5, 10, 50)),
    penalty=_by_bank,
)
CSLS = Step(5, {"k": 10.0}, transductive=_BOTH, grid=_each("k", 10, 5, 20, 50), penalty=_csls)
DUAL_SOFTMAX = Step(
    5, {"temperature": 0.05}, transductive=_BOTH, grid=_TEMPERATURES, penalty=_dual_softmax
)
