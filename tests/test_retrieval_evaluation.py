"""Scoring, ranking and recall against brute force, scikit-learn and laws that must hold."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from trsllava_utils import evaluation, retrieval
from trsllava_utils.artefacts import InputError
from trsllava_utils.embedding import Embeddings


def embeddings(image_ids: list[str], vectors: np.ndarray) -> Embeddings:
    rows = pd.DataFrame({"image_id": image_ids, "source": "s", "field": "caption"})
    rows["variant"] = rows.groupby("image_id").cumcount()
    rows["text"] = [f"text {i}" for i in range(len(rows))]
    vectors = np.asarray(vectors, np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(rows, vectors, Path("none.safetensors"), 0)


def random_pair(seed: int, images: int = 12, variants: int = 3, captions: int = 2, dim: int = 8):
    rng = np.random.default_rng(seed)
    ids = [f"i{n:02d}" for n in range(images)]
    a = embeddings(
        [i for i in ids for _ in range(variants)], rng.normal(size=(images * variants, dim))
    )
    b = embeddings(
        [i for i in ids for _ in range(captions)], rng.normal(size=(images * captions, dim))
    )
    return a, b


def brute_scores(
    captions: Embeddings, human: Embeddings, method: str
) -> tuple[np.ndarray, list[str]]:
    ids = sorted(set(captions.rows["image_id"]))
    reduce = np.max if method == "max" else np.mean
    scores = np.array(
        [[reduce([c @ q for c, own in zip(captions.vectors, captions.rows["image_id"], strict=True) if own == i]) for i in ids]
         for q in human.vectors]
    )  # fmt: skip
    return scores, ids


@pytest.mark.parametrize("method", retrieval.METHODS)
def test_scores_and_recall_equal_brute_force_and_sklearn(method):
    captions, human = random_pair(1)
    ranks, top = retrieval.retrieve(captions, human, method, top_k=4)
    scores, ids = brute_scores(captions, human, method)
    truth = [ids.index(i) for i in human.rows["image_id"]]
    t2i = ranks[ranks["direction"] == "t2i"]
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(truth, scores, k=k, labels=range(len(ids)))
        assert evaluation.recall_at_k(t2i, k) == pytest.approx(100 * expected, abs=1e-9)
    best = np.argsort(-scores, axis=1)[:, :4]
    found = top[top["direction"] == "t2i"]["image_id"].to_numpy().reshape(-1, 4)
    assert (found == np.array(ids)[best]).all()
    # image to text: any of the image's own captions
    own = human.rows["image_id"].to_numpy()
    i2t = ranks[ranks["direction"] == "i2t"]
    hits = [own[np.argsort(-scores[:, j])[:5]].tolist().count(i) > 0 for j, i in enumerate(ids)]
    assert evaluation.recall_at_k(i2t, 5) == pytest.approx(100 * np.mean(hits), abs=1e-9)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_ties_count_as_the_mean_over_all_orders(levels, data):
    n = len(levels)
    relevant = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)))
    k = data.draw(st.integers(1, n))
    scores = np.array([levels], np.float32)
    where = pd.DataFrame(retrieval.rank_relevant(scores, relevant[None]))
    hits, ranks = [], []
    for order in permutations(range(n)):  # every order of the file, then a stable sort
        ranking = sorted(order, key=lambda i: -levels[i])
        rank = 1 + next(p for p, i in enumerate(ranking) if relevant[i])
        hits.append(rank <= k)
        ranks.append(rank)
    assert evaluation.hit_probability(where, k)[0] == pytest.approx(np.mean(hits), abs=1e-9)
    assert evaluation.expected_rank(where)[0] == pytest.approx(np.mean(ranks), abs=1e-9)


def test_scores_within_the_tolerance_are_tied():
    where = retrieval.rank_relevant(
        np.array([[0.5, 0.5 + 5e-7, 0.5 + 5e-6]], np.float32), np.array([[True, False, False]])
    )
    assert (where["n_greater"][0], where["n_tied"][0]) == (1, 2)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_row_order_does_not_matter_and_recall_grows_with_k(seed):
    captions, human = random_pair(seed)
    ranks, _ = retrieval.retrieve(captions, human)
    mix = np.random.default_rng(seed).permutation(len(captions.rows))
    shuffled = Embeddings(
        captions.rows.iloc[mix].reset_index(drop=True), captions.vectors[mix], captions.path, 0
    )
    assert evaluation.metrics(retrieval.retrieve(shuffled, human)[0]) == evaluation.metrics(ranks)
    curve = evaluation.recall_curve(ranks, np.arange(1, 13))
    assert (np.diff(curve["t2i"]) >= 0).all() and (np.diff(curve["i2t"]) >= 0).all()
    assert curve["t2i"].iloc[-1] == pytest.approx(100)


def test_chance_is_exact_and_all_equal_scores_reach_just_it():
    captions, human = random_pair(3)
    flat = embeddings(captions.rows["image_id"].tolist(), np.ones_like(captions.vectors))
    same = embeddings(human.rows["image_id"].tolist(), np.ones_like(human.vectors))
    ranks, _ = retrieval.retrieve(flat, same)
    level = evaluation.chance(ranks)
    found = evaluation.metrics(ranks)
    for direction in ("t2i", "i2t"):
        assert found[direction] == pytest.approx(level[direction], abs=1e-9)
    assert level["t2i"]["R@1"] == pytest.approx(100 / 12)
    assert level["i2t"]["R@1"] == pytest.approx(100 * 2 / 24)
    assert level["mR"] == pytest.approx(evaluation.mean_recall(level))


def test_gallery_is_restricted_to_captioned_images():
    captions, human = random_pair(4)
    keep = captions.rows["image_id"].isin(["i00", "i01", "i02"]).to_numpy()
    few = Embeddings(
        captions.rows[keep].reset_index(drop=True), captions.vectors[keep], captions.path, 0
    )
    ranks, _ = retrieval.retrieve(few, human)
    assert ranks.groupby("direction")["n_items"].first().to_dict() == {"i2t": 6, "t2i": 3}
    with pytest.raises(InputError, match="no image has both"):
        retrieval.retrieve(embeddings(["other"], np.ones((1, 8))), human)


def test_rankings_are_reused_and_made_again(tmp_path):
    captions, human = random_pair(5)
    first = retrieval.rank_dataset(captions, human, tmp_path, "x")
    assert not first.reused and retrieval.rank_dataset(captions, human, tmp_path, "x").reused
    assert not retrieval.rank_dataset(captions, human, tmp_path, "x", top_k=3).reused
    first.path.with_suffix(".json").write_text('{"inputs": "other"}')
    assert not retrieval.rank_dataset(captions, human, tmp_path, "x", top_k=3).reused


def test_unknown_method_and_top_k():
    captions, human = random_pair(6)
    with pytest.raises(InputError, match="Did you mean 'mean'"):
        retrieval.retrieve(captions, human, "meen")
    with pytest.raises(InputError, match="top_k"):
        retrieval.retrieve(captions, human, "max", 0)


def test_search_returns_the_best_text():
    captions, _ = random_pair(7)
    found = retrieval.search(captions.vectors[4], captions, k=3)
    assert found["image_id"][0] == "i01" and found["text"][0] == "text 4"
    assert found["score"].is_monotonic_decreasing and found["score"][0] == pytest.approx(
        1, abs=1e-5
    )
