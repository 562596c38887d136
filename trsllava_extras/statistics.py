"""Statistics: ranks go in, intervals and paired tests come out.

The unit is the *image*, not the query: the five captions of an image are not independent. The
gallery is held fixed; what varies is whose captions are the queries. All values are percent.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from trsllava_utils.recall import KS, hit_probability

MEASURES = [*((d, f"R@{k}") for d in ("t2i", "i2t") for k in KS), ("", "mR")]


def image_sums(ranks: pd.DataFrame) -> pd.DataFrame:
    """What every image contributes: its hits and its number of queries.

    Returns:
        Index ``image_id``; columns ``(direction, "R@1")``, … hold sums of hit probabilities,
        ``(direction, "n")`` the number of queries, all float64.
    """
    columns = {"image_id": ranks["image_id"], "direction": ranks["direction"], "n": 1.0}
    table = pd.DataFrame({**columns, **{f"R@{k}": hit_probability(ranks, k) for k in KS}})
    sums = table.pivot_table(index="image_id", columns="direction", aggfunc="sum", fill_value=0.0)
    return sums.swaplevel(axis=1).sort_index(axis=1)


def contributions(ranks: pd.DataFrame) -> pd.DataFrame:
    """Per image, numbers in percent whose mean over the images is the recall: columns
    :data:`MEASURES`."""
    sums = image_sums(ranks)
    out = {(d, m): 100 * sums[d, m] * len(sums) / sums[d, "n"].sum() for d, m in MEASURES if d}
    table = pd.DataFrame(out)
    table["", "mR"] = table.mean(axis=1)
    return table


def intervals(ranks: pd.DataFrame, resamples: int = 2000) -> dict:
    """Bootstrap intervals of all recalls and of mR (percentile method; Efron and Tibshirani, 1993,
    chapter 13), resampling images with all their queries.

    Returns:
        ``{"t2i": {"R@1": [low, high], …}, "i2t": {…}, "mR": [low, high]}`` in percent; NaN for
        fewer than two images.
    """
    from scipy import stats  # slow to import

    sums = image_sums(ranks)
    parts = [(sums[d, m].to_numpy(), sums[d, "n"].to_numpy()) for d, m in MEASURES if d]

    def recalls(images: np.ndarray, axis: int) -> np.ndarray:
        six = [100 * h[images].sum(axis) / n[images].sum(axis) for h, n in parts]
        return np.stack([*six, np.mean(six, axis=0)])

    low = high = np.full(len(MEASURES), np.nan)
    if len(sums) > 1:
        low, high = stats.bootstrap(
            (np.arange(len(sums)),),
            recalls,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(sums)),
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
    out: dict = {"t2i": {}, "i2t": {}}
    for (direction, measure), a, b in zip(MEASURES, low, high, strict=True):
        (out[direction] if direction else out)[measure] = [float(a), float(b)]
    return out


def compare(
    ranks: pd.DataFrame,
    baseline: pd.DataFrame,
    measure: tuple[str, str] = ("", "mR"),
    resamples: int = 9999,
) -> dict[str, float]:
    """Paired comparison of two methods on the same images.

    The null hypothesis of the permutation test (Fisher, 1935): for each image it is a coin toss
    which of its two results belongs to which method.

    Args:
        ranks, baseline: of the two methods, with the same queries' images.
        measure: one of :data:`MEASURES`.
        resamples: of the permutation test; the bootstrap uses 2,000.

    Returns:
        ``difference`` (percentage points) with ``low`` and ``high`` (95 % bootstrap), ``p``
        (two-sided), and ``d``, Cohen's d of the paired differences (0.2 small, 0.5 medium, 0.8
        large).

    Raises:
        ValueError: they are about different images.
    """
    from scipy import stats  # slow to import

    a, b = contributions(ranks)[measure], contributions(baseline)[measure]
    if not a.index.equals(b.index):
        raise ValueError("the two methods did not rank the same images")
    delta = (a - b).to_numpy()
    out = {"difference": float(delta.mean()), "low": np.nan, "high": np.nan, "p": 1.0, "d": 0.0}
    if len(delta) < 2 or not delta.any():
        return out
    batch = max(1, 2_000_000 // len(delta))
    low, high = stats.bootstrap(
        (delta,), np.mean, n_resamples=2000, batch=batch, method="percentile", vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    with np.errstate(over="ignore"):  # scipy counts all sign patterns, 2^n
        test = stats.permutation_test(
            (delta,), np.mean, permutation_type="samples", n_resamples=resamples, batch=batch,
            vectorized=True, rng=np.random.default_rng(0),
        )  # fmt: skip
    spread = delta.std(ddof=1)
    effect = delta.mean() / spread if spread > 0 else np.inf * np.sign(delta.mean())
    numbers = {"low": low, "high": high, "p": test.pvalue, "d": effect}
    return out | {name: float(value) for name, value in numbers.items()}


def compare_all(
    rankings: dict[str, pd.DataFrame], baseline: str, measure: tuple[str, str] = ("", "mR")
) -> pd.DataFrame:
    """:func:`compare` of every method with the baseline.

    ``p (adjusted)`` controls the false discovery rate over the table (Benjamini and Hochberg,
    1995): of the rows below 0.05 no more than a twentieth are expected to be false alarms.
    """
    from scipy import stats  # slow to import

    rows = {
        name: compare(ranks, rankings[baseline], measure)
        for name, ranks in rankings.items()
        if name != baseline
    }
    columns = ["difference", "low", "high", "d", "p"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    if len(table):
        table["p (adjusted)"] = stats.false_discovery_control(table["p"])
    return table
