"""Functions that stand in a notebook, where they are taught, computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.conftest import embeddings, functions, random_sources, sources
from tests.openai_server import answer
from trsllava_extras.methods import Method
from trsllava_extras.rules import CENTRED
from trsllava_utils.ranking import sides
from trsllava_utils.records import Record, Variant


def test_captions_in_numbers():
    module = functions("01_structured_captioning", "in_numbers")
    good = [Variant(**v) for v in answer(1, 5)["variants"]]
    table = module.in_numbers(
        [Record(image=f"{i}.png", model="m", variants=good) for i in range(4)]
    )
    assert table.loc["joined", "texts"] == 20 and table.loc["joined", "distinct"] == 5
    assert table.loc["joined", "near-duplicates (%)"] == 0
    assert list(table.index)[:2] == ["one_sentence", "feature"]


def test_agreement_of_variants_by_hand():
    module = functions("01_structured_captioning", "agreement")
    said = ["a river and a road", "two bridges", "a red roof", "a port"]
    rows = pd.DataFrame({"text": said, "image_id": list("aaab"), "source": "m"})
    rows["variant"] = [0, 1, 2, 0]
    table = module.agreement(rows, np.array([[1, 0], [0.6, 0.8], [0, 1], [0, 1]], np.float32))
    cosines = [0.6 / np.hypot(0.6, 1.8), 1.4 / np.hypot(1, 1), 0.8 / np.hypot(1.6, 0.8)]
    assert table["cosine to the others"].tolist() == pytest.approx(cosines, abs=1e-3)
    assert table["texts"].tolist() == [2, 1, 1]
    assert table["names a scene (%)"].tolist() == [100, 100, 0]


def test_uniformity_in_closed_form():
    module = functions("03_retrieval", "uniformity")
    x = np.array([[1, 0], [0, 1]], np.float32)
    assert module.squared(x, x).mean() == 0 and module.squared(x, -x).mean() == pytest.approx(4)
    assert module.uniformity(x) == pytest.approx(-4)  # one squared distance, 2
    by_hand = np.log((1 + 2 * np.exp(-4)) / 3)
    assert module.uniformity(np.vstack([x, x[:1]])) == pytest.approx(by_hand)


def test_hubs_are_counted_and_centring_closes_the_gap():
    module = functions("03_retrieval", "squared", "on_the_sphere")
    given = random_sources(0, images=30, variants=2, captions=3)
    moved = given.reference.vectors + np.eye(8)[0] * 3
    reference = embeddings(given.reference.rows["image_id"].tolist(), moved)
    given = sources(given.joined, reference)
    given.dataset, given.embed = None, lambda *_, role: given.embed_reference()
    both = sides(given, given.gallery)
    numbers, *_, counts = module.on_the_sphere(both.references, both.images, k=5)
    texts = both.images.side.vectors.reshape(30, 2, -1).transpose(1, 2, 0)
    nearest = np.argsort(-(both.references.side.vectors @ texts).max(axis=0), axis=1)[:, :5]
    by_hand = np.bincount(nearest.ravel(), minlength=30)
    assert counts.tolist() == by_hand.tolist() and by_hand.sum() == 5 * 90
    assert numbers["hubness (0 none, above 1 strong)"] == pytest.approx(stats.skew(by_hand))
    both = Method("centred").sides(given, given.gallery)
    pair = (replace(one, side=CENTRED.prepare(one.side)) for one in (both.references, both.images))
    gap = "modality gap (0 none, 2 largest)"
    assert module.on_the_sphere(*pair)[0][gap] < 0.25 * numbers[gap]
    flat = sources(embeddings(["a", "b"], np.ones((2, 3))), embeddings(["a", "b"], np.ones((2, 3))))
    both = sides(flat, flat.gallery)
    assert np.isfinite(module.on_the_sphere(both.references, both.images, k=1)[0]).all()
