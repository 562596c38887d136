"""The one place where a method is applied: its steps, in their order, over items and queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from trsllava_utils.retrieval.formulas import (
    csls_penalty,
    inverted_softmax_penalty,
    reciprocal_rank_fusion,
    weighted_sum,
)
from trsllava_utils.retrieval.methods import STEPS, Method
from trsllava_utils.retrieval.products import (
    Score,
    blocks,
    bm25_sides,
    clip_cosine,
    cosine,
    leave_one_out,
    lexical,
)
from trsllava_utils.retrieval.side import Side

VERSION = 3  # of the rules: raised when a formula changes, so that old rankings are not used


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
            settings = self.steps.get("lexical", STEPS["lexical"].settings)
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
            score = _minus(score, penalty.astype(np.float32))
        return score

    def prepare(self, side: Side) -> Side:
        """Step 1: the side with centred vectors, if the method has ``centred``."""
        return side.centred() if "centred" in self.steps else side

    def _together(self, side: Side) -> Side:
        """Step 2: each image as one text, if the method has ``mean`` or ``centroid``."""
        averaged = self.steps.keys() & {"mean", "centroid"}
        return side.merged(unit="centroid" in averaged) if averaged else side

    def _compare(self, queries: Side) -> Score:
        """Steps 3 and 4: cosine, words or CLIP, and their fusion."""
        steps, items = self.steps, self.items
        if "clip" in steps:
            return clip_cosine(queries, items)
        if "lexical" in steps:
            return lexical(self._counted(queries), self._words)
        score = cosine(queries, items)
        if "hybrid" in steps:
            words = lexical(self._counted(queries), self._words)
            weight, k = steps["hybrid"]["weight"], steps["hybrid"]["k"]
            if self.method.given("hybrid", "weight"):
                score = _both(weighted_sum, score, words, weight)
            else:
                score = _both(reciprocal_rank_fusion, score, words, k)
        if "fusion" in steps:
            pixels = clip_cosine(queries, items)
            score = _both(weighted_sum, score, pixels, steps["fusion"]["weight"])
        return score

    def _blocks(self, score: Score, queries: Side) -> Iterator[np.ndarray]:
        return map(score, blocks(queries.n, self.items.n))

    def _querybank(self, bank: Side) -> np.ndarray:
        settings, scores = self.steps["querybank"], self._blocks(self._compare(bank), bank)
        if self.method.given("querybank", "k"):
            return csls_penalty(scores, int(settings["k"]))
        return inverted_softmax_penalty(scores, settings["temperature"])


def _both(formula: Callable, first: Score, second: Score, setting: float) -> Score:
    return lambda block: formula(first(block), second(block), setting)


def _minus(score: Score, penalty: np.ndarray) -> Score:
    return lambda block: score(block) - penalty
