"""Intervals, tests, breakdowns and geometry against brute force and against closed forms."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from tests.conftest import functions
from trsllava_extras import statistics as stats
from trsllava_utils import recall as evaluation
from trsllava_utils.ranking import rank_relevant
from trsllava_utils.recall import hit_probability


def ranks_of(t2i: dict[str, list[int]], i2t: dict[str, list[int]], n_items: int = 50):
    """Ranks by hand: number of items ahead, for each query of each image; no ties."""
    rows = [
        (direction, f"{image}#{n}", image, ahead, 1, 1, 1, n_items)
        for direction, given in (("t2i", t2i), ("i2t", i2t))
        for image, several in given.items()
        for n, ahead in enumerate(several)
    ]
    names = "direction query_id image_id n_greater n_tied n_relevant_tied n_relevant n_items"
    return pd.DataFrame(rows, columns=names.split())


def random_ranks(rng, images: int, captions: int, spread: float, hits: float = 0.5):
    """Images with a chance of their own to be found: captions of one image go together."""
    chance = rng.beta(hits * spread, (1 - hits) * spread, images)
    ahead = np.where(rng.random((images, captions)) < chance[:, None], 0, 49)
    names = [f"i{n}" for n in range(images)]
    return ranks_of(
        dict(zip(names, ahead.tolist(), strict=True)),
        {n: [a[0]] for n, a in zip(names, ahead.tolist(), strict=True)},
    )


def test_contributions_average_to_the_recalls_with_unequal_numbers_of_captions():
    ranks = ranks_of({"a": [0, 3, 7], "b": [20], "c": [0, 0]}, {"a": [0], "b": [9], "c": [30]})
    table, result = stats.contributions(ranks), evaluation.metrics(ranks)
    for direction, measure in stats.MEASURES:
        expected = result[direction][measure] if direction else result[measure]
        assert table[direction, measure].mean() == pytest.approx(expected, abs=1e-9)
    assert table.loc["a", ("t2i", "R@5")] == pytest.approx(100 * 2 * 3 / 6)


def test_intervals_resample_images_with_all_their_queries():
    """Against a plain loop over multinomial draws."""
    rng = np.random.default_rng(0)
    ranks = random_ranks(rng, 60, 5, 0.2)
    found = stats.intervals(ranks, resamples=4000)
    hit = ranks[ranks["direction"] == "t2i"].assign(h=lambda r: r["n_greater"] < 1)
    sums = hit.groupby("image_id")["h"].sum().to_numpy()
    means = [100 * rng.choice(sums, len(sums)).sum() / (5 * len(sums)) for _ in range(4000)]
    assert found["t2i"]["R@1"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1.5)
    naive = np.sqrt(0.25 / len(hit)) * 100 * 1.96 * 2  # as if captions were independent
    assert np.diff(found["t2i"]["R@1"]) > 1.5 * naive
    low, high = found["mR"]
    assert low < evaluation.metrics(ranks)["mR"] < high
    assert stats.intervals(ranks, resamples=4000) == found  # the same every time
    one = stats.intervals(ranks_of({"a": [0]}, {"a": [0]}))
    assert np.isnan(one["mR"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("images", [50, 400])
def test_intervals_cover_the_truth_nineteen_times_in_twenty(images):
    """Simulated studies: images drawn from a population whose recall is known."""
    rng = np.random.default_rng(1)
    studies, hits = 400, 0.4
    covered = 0
    for _ in range(studies):
        low, high = stats.intervals(random_ranks(rng, images, 5, 1.0, hits), 999)["t2i"]["R@1"]
        covered += low <= 100 * hits <= high
    # binomial: 0.95 within three standard errors, and a little less for few images
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies) - 0.015 <= covered / studies <= 0.985


def test_permutation_test_is_that_of_all_sign_patterns():
    a = ranks_of(
        {f"i{n}": [h] for n, h in enumerate([0, 0, 0, 3, 0, 20])}, {f"i{n}": [0] for n in range(6)}
    )
    b = ranks_of(
        {f"i{n}": [h] for n, h in enumerate([9, 7, 0, 0, 20, 20])}, {f"i{n}": [0] for n in range(6)}
    )
    found = stats.compare(a, b)
    delta = (stats.contributions(a) - stats.contributions(b))["", "mR"].to_numpy()
    means = [np.mean(delta * signs) for signs in product([1, -1], repeat=6)]
    upper = np.mean(np.array(means) >= delta.mean() - 1e-12)
    lower = np.mean(np.array(means) <= delta.mean() + 1e-12)
    assert found["p"] == pytest.approx(2 * min(upper, lower), abs=1e-9)
    assert found["difference"] == pytest.approx(delta.mean())
    assert found["d"] == pytest.approx(delta.mean() / delta.std(ddof=1))
    mirrored = stats.compare(b, a)
    assert mirrored["difference"] == -found["difference"] and mirrored["p"] == found["p"]


def test_permutation_p_agrees_with_the_t_test_on_many_images():
    rng = np.random.default_rng(2)
    a, b = random_ranks(rng, 300, 5, 1.0, 0.5), random_ranks(rng, 300, 5, 1.0, 0.44)
    found = stats.compare(a, b)
    delta = (stats.contributions(a) - stats.contributions(b))["", "mR"]
    t = scipy_stats.ttest_1samp(delta, 0)
    assert found["p"] == pytest.approx(t.pvalue, abs=0.02)
    assert (found["low"], found["high"]) == pytest.approx(t.confidence_interval(0.95), abs=0.6)


def test_false_alarms_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(5)
    names = [f"i{n}" for n in range(40)]
    alarms = []
    for _ in range(150):  # two methods that differ by nothing but luck
        luck = rng.integers(0, 12, (2, 40))
        a, b = (
            ranks_of({n: [h] for n, h in zip(names, x, strict=True)}, {n: [0] for n in names})
            for x in luck
        )
        alarms.append(stats.compare(a, b, resamples=499)["p"] < 0.05)
    assert np.mean(alarms) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_compare_all_adjusts_and_equal_methods_differ_by_nothing():
    rng = np.random.default_rng(3)
    base = random_ranks(rng, 80, 3, 1.0, 0.3)
    better = base.assign(n_greater=np.where(rng.random(len(base)) < 0.5, 0, base["n_greater"]))
    table = stats.compare_all({"max": base, "same": base.copy(), "better": better}, "max")
    assert list(table.index) == ["same", "better"]
    assert table.loc["same", ["difference", "p", "d"]].tolist() == [0, 1, 0]
    assert table.loc["better", "p (adjusted)"] < 0.01 and table.loc["better", "difference"] > 0
    assert (table["p (adjusted)"] >= table["p"] - 1e-12).all()
    with pytest.raises(ValueError, match="same images"):
        stats.compare(base, base[base["image_id"] != "i3"])


# — breakdowns —


def test_gallery_size_is_the_mean_over_all_galleries():
    """Against every sub-gallery that holds the caption's own image, ties included."""
    scores = np.array([[0.9, 0.5, 0.5, 0.1, 0.7], [0.2, 0.2, 0.2, 0.9, 0.1]], np.float32)
    own = [1, 0]
    relevant = np.arange(5) == np.array(own)[:, None]
    where = rank_relevant(scores, *np.nonzero(relevant))
    ranks = pd.DataFrame({**where, "direction": "t2i", "n_items": 5})
    module = functions("04_evaluation_visualisation", "by_gallery_size")
    for size, k in product((1, 2, 3, 5), (1, 2)):
        expected = []
        for s, o in zip(scores, own, strict=True):
            for rest in combinations([i for i in range(5) if i != o], size - 1):
                part = np.array([o, *rest])
                inside = rank_relevant(s[None, part], np.array([0]), np.array([0]))
                expected.append(hit_probability(pd.DataFrame(inside), k)[0])
        (found,) = module.by_gallery_size(ranks, [size], k)
        assert found == pytest.approx(100 * np.mean(expected), abs=1e-9)


def test_by_label_counts_images_and_captions():
    by_label = functions("04_evaluation_visualisation", "by_label").by_label
    ranks = ranks_of({"a": [0, 20], "b": [3], "c": [40]}, {"a": [0], "b": [30], "c": [0]})
    table = by_label(ranks, pd.Series({"a": "port", "b": "port", "c": ""}))
    assert table.to_dict("records") == [
        {"label": "port", "images": 2, "captions": 3, "t2i": pytest.approx(200 / 3), "i2t": 50}
    ]
    assert by_label(ranks, pd.Series({"a": ""})).empty
