"""Methods as text, and every scoring rule on a case computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from trsllava_extras import formulas
from trsllava_extras.experiments import candidates
from trsllava_extras.methods import Method, Scorer, steps
from trsllava_utils.files import InputError
from trsllava_utils.scoring import Side, one_each

ALL = slice(0, 100)


def unit(*rows) -> np.ndarray:
    x = np.asarray(rows, np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def side(vectors, texts=None, clip=None) -> Side:
    texts = texts or [f"text {i}" for i in range(len(vectors))]
    return one_each(np.array(texts), np.asarray(vectors, np.float32), clip)


def images(rows: list[tuple[int, str]], vectors: np.ndarray) -> Side:
    """``rows``: (image, text)."""
    texts = np.array([text for _, text in rows], dtype=object)
    return Side(texts, np.array([image for image, _ in rows]), vectors)


# — methods as text —


def test_a_method_is_its_steps_in_order_with_all_settings():
    method = Method(" texts(one_sentence + caption, plain)+ centred+hybrid(weight=0.3)+querybank ")
    assert method.name == "texts(one_sentence+caption,plain)+centred+hybrid(weight=0.3)+querybank"
    assert list(method.steps) == ["texts", "centred", "hybrid", "querybank"]
    assert method.texts == "one_sentence+caption,one_sentence+feature+caption"
    assert method.steps["querybank"]["temperature"] == 0.05
    assert method.is_given("hybrid", "weight") and not method.is_given("hybrid", "k")
    assert Method("texts+max").texts == Method("max").texts == "" and method.needs_bank
    assert not method.plugged and Method("clip").plugged


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("meen", "Did you mean 'mean'"),
        ("", "method='' should not be empty"),
        ("max+centred", "centred cannot follow max; the order is"),
        ("max+mean", "mean cannot follow max"),
        ("csls+csls", "csls cannot follow csls"),
        ("csls(q=3)", "unknown setting of csls 'q'; valid: k"),
        ("max(k=3)", "valid: (none)"),
        ("csls(k=ten)", "k must be a whole number from 1, not 'ten'"),
        ("csls(k=2.5)", "whole number"),
        ("csls(k)", "whole number from 1, not ''"),
        ("querybank(temperature=0)", "temperature must be a positive number"),
        ("hybrid(weight=1.2)", "weight must lie between 0 and 1"),
        ("hybrid(weight=nan)", "weight must be 0 or more"),
        ("max)", "not NAME or NAME(setting=number)"),
        ("centred+lexical", "centred has no effect together with lexical"),
        ("max+reference", "max has no effect together with reference"),
        ("centroid+clip", "centroid has no effect together with clip"),
        ("texts(plain)+reference", "texts has no effect together with reference"),
        ("max+texts(plain)", "texts cannot follow max; the order is texts, centred"),
        ("texts(sentence)", "unknown texts 'sentence'; valid: joined, one_sentence"),
        ("texts(caption+joined)", "unknown texts 'joined'; valid: one_sentence"),
        ("texts(caption+caption)", "names something twice"),
        ("texts(fields,caption)", "caption names something twice"),
        ("fields", "unknown method 'fields'"),
    ],
)
def test_what_is_wrong_with_a_method_is_said(text, says):
    with pytest.raises(InputError) as caught:
        Method(text)
    assert says in str(caught.value)


def test_transductive_methods_are_marked():
    labels = {name: Method(name).label for name in steps()}
    assert {n for n, label in labels.items() if label.endswith("†")} == {"csls", "dual_softmax"}
    assert {n for n, label in labels.items() if label.endswith("‡")} == {"centred"}
    assert Method("centred+csls").label == "centred+csls†"
    assert Method("querybank").transductive("t2i") is False


def test_grids_hold_valid_methods_and_leave_written_settings_alone():
    grids = {name: step.grid for name, step in steps().items() if step.grid}
    assert "fusion" in grids and len(grids) == 6
    for step, settings in grids.items():
        assert len(candidates(Method(step), step)) == len(settings) > 1
    assert candidates(Method("csls(k=3)"), "csls") == []
    assert candidates(Method("texts(plain)+centroid"), "texts") == []
    tried = candidates(Method("centred+hybrid+csls(k=3)"), "hybrid")
    assert all(m.name.startswith("centred+hybrid") and m.steps["csls"]["k"] == 3 for m in tried)


# — how the texts of an image are taken together —

ROWS = [(0, "a"), (0, "b"), (0, "c"), (1, "d"), (1, "e"), (2, "plain")]
TEXTS = unit([1, 0, 0], [0, 1, 0], [1, 0, 0], [0.6, 0.8, 0], [0.6, 0, 0.8], [0, 0, 1])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("max", [1, 0.6, 0]),
        ("mean", [2 / 3, 0.6, 0]),
        # means (2/3, 1/3, 0), (0.6, 0.4, 0.4), (0, 0, 1) divided by their lengths
        ("centroid", [2 / 5**0.5, 0.6 / 0.68**0.5, 0]),
    ],
)
def test_texts_of_an_image_by_hand(method, expected):
    query, items = side(unit([1, 0, 0])), images(ROWS, TEXTS)
    score = Scorer(Method(method), items)(query)(ALL)
    assert score == pytest.approx(np.array([expected]), abs=1e-6)
    asked = Scorer(Method(method), query)(items)(ALL)  # the images ask
    assert asked == pytest.approx(np.array([expected]).T, abs=1e-6)


def test_centroids_are_taken_after_centring():
    mean = np.array([0.2, 0.1, 0], np.float32)
    items = replace(images(ROWS, TEXTS), mean=mean)
    moved = formulas.centre(TEXTS, mean)
    by_hand = unit(moved[:3].mean(0), moved[3:5].mean(0), moved[5])
    query = replace(side(unit([1, 2, 3])), mean=np.zeros(3, np.float32))
    score = Scorer(Method("centred+centroid"), items)(query)(ALL)
    assert score == pytest.approx(query.vectors @ by_hand.T, abs=1e-6)


def test_opposite_texts_have_a_mean_without_direction():
    nothing = formulas.mean_vectors(unit([1, 0], [-1, 0]), np.array([0, 0]), unit=True)
    assert nothing.tolist() == [[0, 0]]


def test_merged_texts_are_one_document_for_the_lexical_rule():
    rows = [(0, "a river"), (0, "a bridge"), (1, "a river"), (1, "a forest")]
    items, query = images(rows, np.eye(4, dtype=np.float32)), side(np.eye(1), ["river bridge"])
    whole = side(np.eye(2), ["a river a bridge", "a river a forest"])
    merged = Scorer(Method("centroid+lexical"), items)(query)(ALL)
    assert merged == pytest.approx(Scorer(Method("lexical"), whole)(query)(ALL))
    best = Scorer(Method("lexical"), items)(query)(ALL)
    assert best[0, 0] < merged[0, 0] or best[0, 0] == pytest.approx(best.max())


def test_a_block_scores_like_the_whole():
    rng = np.random.default_rng(0)
    asked = images([(i // 3, str(i)) for i in range(12)], unit(*rng.normal(size=(12, 5))))
    items = side(unit(*rng.normal(size=(7, 5))))
    for method, taken in {"max": np.max, "mean": np.mean}.items():
        score = Scorer(Method(method), items)(asked)
        whole, parts = score(slice(0, 4)), [score(slice(i, i + 2)) for i in (0, 2)]
        assert np.concatenate(parts) == pytest.approx(whole, abs=1e-6)
        by_hand = taken((asked.vectors @ items.vectors.T).reshape(4, 3, 7), axis=1)
        assert whole == pytest.approx(by_hand, abs=1e-6)


# — the space, words, fusion —


def test_centred_takes_out_the_mean_and_keeps_unit_length():
    moved = formulas.centre(np.eye(2), np.array([0.5, 0.5]))
    assert moved == pytest.approx(unit([1, -1], [-1, 1]))
    assert np.isfinite(formulas.centre(np.array([[1, 0]]), np.array([1, 0]))).all()


def test_centred_is_applied_to_items_queries_and_bank():
    rng = np.random.default_rng(5)
    means = rng.normal(size=(2, 6)).astype(np.float32) / 9
    queries, items = side(unit(*rng.normal(size=(4, 6)))), side(unit(*rng.normal(size=(3, 6))))
    queries, items = replace(queries, mean=means[0]), replace(items, mean=means[1])
    moved = [formulas.centre(one.vectors, one.mean) for one in (queries, items)]
    assert Scorer(Method("centred"), items)(queries)(ALL) == pytest.approx(moved[0] @ moved[1].T)
    banked = Scorer(Method("centred+querybank(k=1)"), items, queries)(queries)(ALL)
    plain = moved[0] @ moved[1].T
    assert banked == pytest.approx(plain - plain.max(axis=0) / 2, abs=1e-6)


def test_lexical_is_bm25_by_hand():
    queries, items = (
        side(np.eye(2), ["river bridge", "sea"]),
        side(np.eye(3), ["a bridge over a river", "a river", "a forest"]),
    )
    score = Scorer(Method("lexical"), items)(queries)(ALL)
    mean_length = (5 + 2 + 2) / 3

    def weight(count, length, holding):
        idf = np.log(1 + (3 - holding + 0.5) / (holding + 0.5))
        return idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean_length))

    first = weight(1, 5, 2) + weight(1, 5, 1)
    assert score == pytest.approx(np.array([[first, weight(1, 2, 2), 0], [0, 0, 0]]), abs=1e-6)


def test_weighted_sum_scales_each_score_to_the_unit_interval():
    fused = formulas.weighted_sum(np.array([[2, 4, 3]]), np.array([[0, 10, 30]]), 0.25)
    assert fused == pytest.approx(np.array([[0, 0.75 + 0.25 / 3, 0.375 + 0.25]]))
    flat = formulas.weighted_sum(np.array([[1, 1]]), np.array([[0, 1]]), 0.5)
    assert flat == pytest.approx(np.array([[0, 0.5]]))


def test_reciprocal_rank_fusion_shares_the_rank_of_ties():
    fused = formulas.reciprocal_rank_fusion(np.array([[3, 2, 1]]), np.array([[5, 5, 1]]), 60)
    expected = [60 / 61 + 60 / 61.5, 60 / 62 + 60 / 61.5, 60 / 63 + 60 / 63]
    assert fused == pytest.approx(np.array([expected]))


# — hubs —

SCORES = np.array([[0.9, 0.8, 0.1], [0.8, 0.2, 0.3], [0.7, 0.1, 0.6]])


def test_inverted_softmax_by_hand_and_in_blocks():
    by_hand = 0.1 * np.log(np.mean(np.exp(SCORES / 0.1), axis=0))
    assert formulas.inverted_softmax_penalty([SCORES], 0.1) == pytest.approx(by_hand)
    assert formulas.inverted_softmax_penalty([SCORES[:2], SCORES[2:]], 0.1) == pytest.approx(
        by_hand
    )


def test_csls_by_hand_and_in_blocks():
    by_hand = np.array([0.85, 0.5, 0.45]) / 2
    assert formulas.csls_penalty([SCORES], 2) == pytest.approx(by_hand)
    assert formulas.csls_penalty([SCORES], 9) == pytest.approx(SCORES.mean(0) / 2)
    assert formulas.csls_penalty(SCORES[:, None], 2) == pytest.approx(by_hand)


def test_dual_softmax_orders_like_the_product_of_two_softmaxes():
    rng = np.random.default_rng(3)
    queries, items = side(unit(*rng.normal(size=(20, 6)))), side(unit(*rng.normal(size=(9, 6))))
    cosines = (queries.vectors @ items.vectors.T).astype(np.float64)
    t = 0.05
    log_product = 2 * cosines / t - logsumexp(cosines / t, axis=1, keepdims=True)
    log_product -= logsumexp(cosines / t, axis=0, keepdims=True)
    found = Scorer(Method("dual_softmax"), items)(queries)(ALL)
    assert (found.argsort(axis=1) == log_product.argsort(axis=1)).all()


def test_a_hub_loses_its_lead_by_the_bank():
    # item 0 is near every query; item 1 is what query 0 is about
    queries = side(unit([1, 0.9, 0.3]))
    items = side(unit([1, 1, 1], [1, 0.2, 0]))
    bank = side(unit([0, 1, 1], [0, 1, 0.5], [0.2, 1, 1]))
    plain = Scorer(Method("max"), items)(queries)(ALL)
    bank_scores = (bank.vectors @ items.vectors.T).astype(np.float64)
    for name, loss in {
        "querybank(k=2)": np.sort(bank_scores, axis=0)[-2:].mean(axis=0) / 2,
        "querybank(k=0.67)": np.sort(bank_scores, axis=0)[-2:].mean(axis=0) / 2,  # a share of 3
        "querybank(k=0.01)": bank_scores.max(axis=0) / 2,  # at least one
        "querybank(temperature=0.1)": 0.1 * np.log(np.mean(np.exp(bank_scores / 0.1), axis=0)),
    }.items():
        found = Scorer(Method(name), items, bank)(queries)(ALL)
        assert found == pytest.approx(plain - loss, abs=1e-6)
        assert (plain.argmax(), found.argmax()) == (0, 1)
    assert Scorer(Method("querybank"), items, None)(queries)(ALL) == pytest.approx(plain)


def test_images_of_a_bank_ask_as_images_do():
    """Two training images, with two captions and one, each at the centroid of its own."""
    rng = np.random.default_rng(2)
    queries, items = side(unit(*rng.normal(size=(2, 5)))), side(unit(*rng.normal(size=(4, 5))))
    bank = images([(0, "a"), (0, "b"), (1, "c")], unit(*rng.normal(size=(3, 5))))
    first = bank.vectors[:2].mean(axis=0)
    cosines = np.stack([first / np.linalg.norm(first), bank.vectors[2]]) @ items.vectors.T
    plain = Scorer(Method("centroid"), items)(queries)(ALL)
    found = Scorer(Method("centroid+querybank(k=1)"), items, bank)(queries)(ALL)
    assert found == pytest.approx(plain - cosines.max(axis=0) / 2, abs=1e-6)
    best = np.stack([(bank.vectors[:2] @ items.vectors.T).max(axis=0), cosines[1]])
    found = Scorer(Method("max+querybank(k=2)"), items, bank)(queries)(ALL)
    assert found == pytest.approx(plain - best.mean(axis=0) / 2, abs=1e-6)


# — a second look —


def test_fusion_with_clip_by_hand():
    clip_q, clip_i = unit([1, 0]), unit([0, 1], [1, 0], [1, 1])
    queries = side(unit([1, 0, 0]), clip=clip_q)
    items = side(unit([1, 0, 0], [0, 1, 0], [1, 1, 0]), clip=clip_i)
    alone = Scorer(Method("clip"), items)(queries)(ALL)
    assert alone == pytest.approx(np.array([[0, 1, 0.5**0.5]]), abs=1e-6)
    fused = Scorer(Method("fusion(weight=0.25)"), items)(queries)(ALL)
    root = 0.5**0.5
    assert fused == pytest.approx(np.array([[0.75, 0.25, root]]), abs=1e-6)


def test_leave_one_out_never_finds_the_query_itself():
    texts = unit([1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1])
    asked = side(texts)
    described = images([(i // 2, str(i)) for i in range(4)], texts)
    scores = Scorer(Method("reference"), described)(asked)(slice(0, 4))
    assert scores[0, 0] == pytest.approx(texts[0] @ texts[1], abs=1e-6)
    assert (scores.argmax(axis=1) == [0, 0, 1, 1]).all()
    one = Scorer(Method("reference"), asked)(asked)(slice(0, 4))
    assert (np.diag(one) < -1).all()
