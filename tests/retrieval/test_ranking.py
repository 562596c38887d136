"""Scoring, ranking and recall against brute force, scikit-learn and laws that must hold."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given as draw_from
from hypothesis import settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_hit_rate

from tests.conftest import embeddings, random_sources, sources
from trsllava_extras.methods import Method, Scorer
from trsllava_utils import ranking as retrieval
from trsllava_utils import recall as evaluation
from trsllava_utils import scoring as scoring
from trsllava_utils.files import InputError
from trsllava_utils.ranking import rank_relevant
from trsllava_utils.recall import hit_probability
from trsllava_utils.scoring import Side, one_each


def brute_scores(given: SimpleNamespace, method: str) -> np.ndarray:
    """Reference captions x images, one dot product at a time."""
    reduce = np.max if method == "max" else np.mean
    own = given.joined.rows["image_id"].to_numpy()
    return np.array(
        [[reduce([c @ q for c in given.joined.vectors[own == i]]) for i in given.gallery]
         for q in given.reference.vectors]
    )  # fmt: skip


def brute_hits(scores: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Probability of a hit in the first ``k``, ties in random order, by counting all the ways to
    fill the last places from those tied for them."""
    hits = []
    for s, r in zip(np.round(scores, 5), relevant, strict=True):
        last = np.sort(s)[::-1][min(k, len(s)) - 1]
        ahead, level = s > last, np.flatnonzero(s == last)
        ways = [r[ahead].any() or r[list(w)].any() for w in combinations(level, k - ahead.sum())]
        hits.append(np.mean(ways))
    return np.array(hits)


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("method", ["max", "mean"])
def test_recall_equals_brute_force_and_torchmetrics(method, levels):
    given = random_sources(1, images=8, levels=levels, dim=3)
    ranks, _ = retrieval.retrieve(method, given, top_k=4)
    t2i_scores = brute_scores(given, method)
    owner = given.reference.rows["image_id"].to_numpy()
    relevant = owner[:, None] == np.array(given.gallery)
    result = evaluation.metrics(ranks)
    for direction, scores, right in (
        ("t2i", t2i_scores, relevant),
        ("i2t", t2i_scores.T, relevant.T),
    ):
        for k in (1, 5, 10):
            expected = 100 * brute_hits(scores, right, min(k, scores.shape[1])).mean()
            assert result[direction][f"R@{k}"] == pytest.approx(expected, abs=1e-9)
            if not levels:  # an independent implementation, which breaks ties as they come
                rates = [
                    float(retrieval_hit_rate(torch.tensor(s), torch.tensor(r), top_k=k))
                    for s, r in zip(scores, right, strict=True)
                ]
                assert result[direction][f"R@{k}"] == pytest.approx(100 * np.mean(rates), abs=1e-9)
    six = [result[d][f"R@{k}"] for d in ("t2i", "i2t") for k in (1, 5, 10)]
    assert result["mR"] == pytest.approx(np.mean(six), abs=1e-9)


def test_tied_recall_is_the_mean_of_torchmetrics_over_all_orders():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1], np.float32)
    relevant = np.array([False, True, False, True, False])
    where = pd.DataFrame(rank_relevant(scores[None], *np.nonzero(relevant[None])))
    for k in (1, 2, 3, 4, 5):
        rates = []
        for order in permutations(range(3)):  # nudge the tied items into every order
            nudged = scores + np.array([0, *(1e-3 * np.array(order)), 0], np.float32)
            rate = retrieval_hit_rate(torch.tensor(nudged), torch.tensor(relevant), top_k=k)
            rates.append(float(rate))
        assert hit_probability(where, k)[0] == pytest.approx(np.mean(rates), abs=1e-9)


def test_top_items_are_the_best():
    given = random_sources(1)
    _, top = retrieval.retrieve("max", given, top_k=4)
    best = np.argsort(-brute_scores(given, "max"), axis=1)[:, :4]
    found = top[top["direction"] == "t2i"]["image_id"].to_numpy().reshape(-1, 4)
    assert (found == np.array(given.gallery)[best]).all()


@pytest.mark.parametrize(
    "n, k, levels", [(50, 10, 3), (3000, 7, 2000), (5000, 100, 40), (900, 1, 1)]
)
def test_long_lists_have_the_same_first_items_as_a_stable_sort(n, k, levels):
    """Whatever the ties: sets of items bound the k-th best from below."""
    scores = np.random.default_rng(n).integers(0, levels, (5, n)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert (retrieval.top_items(scores, k) == expected).all()


def test_tiles_and_blocks_of_any_size_give_the_same(monkeypatch):
    """However small the pieces in which scores are made and ranked."""
    given = random_sources(2)
    for method in ("max", "mean", "reference", "hybrid(weight=0.3)"):
        whole = retrieval.retrieve(method, given)
        with monkeypatch.context() as small:
            small.setattr(scoring, "TILE_SCORES", 7)
            small.setattr(scoring, "FEW", 1)
            small.setattr(scoring, "MATRIX", 40)
            pieces = retrieval.retrieve(method, given)
        for a, b in zip(whole, pieces, strict=True):
            pd.testing.assert_frame_equal(a, b, check_exact=False, atol=1e-6)


def test_scores_do_not_depend_on_where_arrays_lie():
    """Dask hands arrays over at odd addresses, for which numpy has other ways to multiply."""
    rng = np.random.default_rng(3)
    texts, queries = rng.normal(size=(300, 64)), rng.normal(size=(90, 64))

    def scores(place):
        x, q = (place(part.astype(np.float32)) for part in (texts, queries))
        asked, each = one_each(np.full(90, ""), q, q), np.repeat(np.arange(100), 3)
        items = Side(np.full(300, ""), each, x, x[:100])
        rules = [Scorer(Method(name), items) for name in ("max", "clip")]
        return np.stack([rule(asked)(slice(0, 90)) for rule in rules])

    def oddly(array):
        buffer = np.empty(array.nbytes + 1, np.uint8)[1:]
        out = buffer.view(np.float32).reshape(array.shape)
        out[:] = array
        assert not out.flags.aligned
        return out

    assert (scores(np.array) == scores(oddly)).all()


@draw_from(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_ties_count_as_the_mean_over_all_orders(levels, data):
    n = len(levels)
    relevant = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)))
    k = data.draw(st.integers(1, n))
    scores = np.array([levels], np.float32)
    where = pd.DataFrame(rank_relevant(scores, *np.nonzero(relevant[None])))
    hits, ranks = [], []
    for order in permutations(range(n)):  # every order of the file, then a stable sort
        ranking = sorted(order, key=lambda i: -levels[i])
        rank = 1 + next(p for p, i in enumerate(ranking) if relevant[i])
        hits.append(rank <= k)
        ranks.append(rank)
    assert hit_probability(where, k)[0] == pytest.approx(np.mean(hits), abs=1e-9)
    assert evaluation.expected_rank(where)[0] == pytest.approx(np.mean(ranks), abs=1e-9)


def test_scores_within_the_tolerance_are_tied():
    where = rank_relevant(
        np.array([[0.5, 0.5 + 5e-7, 0.5 + 5e-6]], np.float32), np.array([0]), np.array([0])
    )
    assert (where["n_greater"][0], where["n_tied"][0]) == (1, 2)


@draw_from(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_row_order_does_not_matter_and_recall_grows_with_k(seed):
    given = random_sources(seed)
    ranks, _ = retrieval.retrieve("max", given)
    mix = np.random.default_rng(seed).permutation(len(given.joined.rows))
    rows = given.joined.rows.iloc[mix].reset_index(drop=True)
    shuffled = sources(
        replace(given.joined, rows=rows, vectors=given.joined.vectors[mix]), given.reference
    )
    assert evaluation.metrics(retrieval.retrieve("max", shuffled)[0]) == evaluation.metrics(ranks)
    for direction in ("t2i", "i2t"):
        rows = ranks[ranks["direction"] == direction]
        curve = [evaluation.recall_at_k(rows, k) for k in range(1, 13)]
        assert (np.diff(curve) >= 0).all()
    assert evaluation.recall_at_k(ranks[ranks["direction"] == "t2i"], 12) == pytest.approx(100)


def test_chance_is_exact_and_all_equal_scores_reach_just_it():
    given = random_sources(3)
    flat = embeddings(given.joined.rows["image_id"].tolist(), np.ones_like(given.joined.vectors))
    same = embeddings(
        given.reference.rows["image_id"].tolist(), np.ones_like(given.reference.vectors)
    )
    ranks, _ = retrieval.retrieve("max", sources(flat, same))
    level = evaluation.chance(ranks)
    found = evaluation.metrics(ranks)
    for direction in ("t2i", "i2t"):
        assert found[direction] == pytest.approx(level[direction], abs=1e-9)
    assert level["t2i"]["R@1"] == pytest.approx(100 / 12)
    assert level["i2t"]["R@1"] == pytest.approx(100 * 2 / 24)
    six = [level[d][f"R@{k}"] for d in ("t2i", "i2t") for k in (1, 5, 10)]
    assert level["mR"] == pytest.approx(np.mean(six))


def test_distractors_make_the_gallery_larger_but_ask_nothing():
    given = random_sources(4)
    ranks, _ = retrieval.retrieve("max", given, images=given.gallery, queries=["i07", "i02"])
    assert ranks.groupby("direction")["n_items"].first().to_dict() == {"i2t": 24, "t2i": 12}
    assert set(ranks["image_id"]) == {"i02", "i07"} and len(ranks) == 2 * 2 + 2
    whole, _ = retrieval.retrieve("max", given)
    key = ["direction", "query_id"]
    same = whole.merge(ranks[key], on=key).sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(same, ranks.sort_values(key, ignore_index=True))
    few, _ = retrieval.retrieve("max", given, images=["i00", "i01", "i02"])
    assert few.groupby("direction")["n_items"].first().to_dict() == {"i2t": 6, "t2i": 3}


def test_reference_captions_are_left_out_one_at_a_time():
    """Against a loop that builds every gallery anew."""
    given = random_sources(9, images=6, captions=3)
    ranks, _ = retrieval.retrieve("reference", given)
    owner, x = given.reference.rows["image_id"].to_numpy(), given.reference.vectors
    for n, query in enumerate(x):
        rest = np.arange(len(x)) != n
        cosine = x[rest] @ query
        images = pd.Series(cosine).groupby(owner[rest]).max()
        text = pd.Series(cosine)
        own = {"t2i": images[owner[n]], "i2t": text[owner[rest] == owner[n]].max()}
        for direction, everything in (("t2i", images), ("i2t", text)):
            row = ranks[ranks["direction"] == direction].iloc[n]
            assert row["n_greater"] == (everything > own[direction] + 1e-6).sum()
        assert row["n_relevant"] == 2


def test_unknown_method_and_top_k():
    given = random_sources(6)
    with pytest.raises(InputError, match="Did you mean 'mean'"):
        retrieval.retrieve("meen", given)
    with pytest.raises(InputError, match="top_k"):
        retrieval.retrieve("max", given, 0)
