"""Recall: ranks go in, recall at K, median rank and mean recall come out.

A tie counts as its *expected* value: with the tied items put in random order, the probability that
a relevant one is among the first K. So results do not depend on the order of a file. Recalls
are percentages; MedR is the median of the queries' expected ranks, from 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import gammaln

KS = (1, 5, 10)
TITLES = {"t2i": "text-to-image", "i2t": "image-to-text"}


def hit_probability(ranks: pd.DataFrame, k: int) -> np.ndarray:
    r"""Per query, the chance that a relevant item is in the top ``k``, ties being in random order.

    :math:`1 - \binom{n-r}{d} / \binom{n}{d}`, hypergeometric: ``n_greater`` items come first; the
    remaining d = ``k - n_greater`` places go to the n = ``n_tied`` items, of which r =
    ``n_relevant_tied`` are relevant.

    Returns:
        ``(n_queries,) float64`` in [0, 1].
    """
    columns = ("n_tied", "n_relevant_tied", "n_greater")
    n, r, ahead = (ranks[name].to_numpy(np.float64) for name in columns)
    d = np.clip(k - ahead, 0, n)
    can_miss = d <= n - r
    d = np.where(can_miss, d, 0)
    log = gammaln(n - r + 1) - gammaln(n - r - d + 1) - gammaln(n + 1) + gammaln(n - d + 1)
    return 1.0 - np.where(can_miss, np.exp(log), 0.0)


def recall_at_k(ranks: pd.DataFrame, k: int) -> float:
    """R@k: the share of queries, in percent, with a relevant item among the first ``k``."""
    return float(100 * hit_probability(ranks, k).mean())


def expected_rank(ranks: pd.DataFrame) -> np.ndarray:
    """Per query, the expected rank (1 = best) of the best relevant item: ``n_greater + (t + 1) /
    (r + 1)`` with t tied items, r of them relevant."""
    tied, relevant = ranks["n_tied"], ranks["n_relevant_tied"]
    return (ranks["n_greater"] + (tied + 1) / (relevant + 1)).to_numpy(np.float64)


def metrics(ranks: pd.DataFrame) -> dict:
    """``{"t2i": {"R@1", "R@5", "R@10", "MedR"}, "i2t": {...}, "mR"}``; mR is the mean of the six
    recalls.

    >>> ranks = rank_dataset("max", Sources(load_dataset("sample"), "rsrt")).ranks
    >>> round(metrics(ranks)["mR"], 1)
    80.9
    """
    out: dict = {}
    for direction, rows in ranks.groupby("direction", sort=False):
        out[direction] = {f"R@{k}": recall_at_k(rows, k) for k in KS}
        out[direction]["MedR"] = float(np.median(expected_rank(rows)))
    out["mR"] = float(np.mean([out[d][f"R@{k}"] for d in TITLES for k in KS]))
    return out


def chance(ranks: pd.DataFrame) -> dict:
    """The metrics that a random order would reach, exactly, on the same queries and gallery."""
    tied = {"n_tied": ranks["n_items"], "n_relevant_tied": ranks["n_relevant"]}
    return metrics(ranks.assign(n_greater=0, **tied))
