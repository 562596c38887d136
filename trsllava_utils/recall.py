"""Recall: ranks go in, recall at K, median rank and mean recall come out.

A tie counts as its *expected* value: with the tied items put in random order, the probability that
a relevant one is among the first K. So results do not depend on the order of a file. Recalls
are percentages; MedR, the median rank, is a rank from 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import gammaln

KS = (1, 5, 10)
TITLES = {"t2i": "text-to-image", "i2t": "image-to-text"}


def miss_probability(n_items: np.ndarray, n_relevant: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Probability that ``drawn`` items out of ``n_items``, without replacement, hold none of
    ``n_relevant``.

    Hypergeometric: :math:`\\binom{n-r}{d} / \\binom{n}{d}`. Arrays broadcast; the result is
        float64 in [0, 1].
    """
    n, r, d = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (n_items, n_relevant, drawn))
    )
    d = np.clip(d, 0, n)
    possible = d <= n - r
    safe = np.where(possible, d, 0)
    log = gammaln(n - r + 1) - gammaln(n - r - safe + 1) - gammaln(n + 1) + gammaln(n - safe + 1)
    return np.where(possible, np.exp(log), 0.0)


def hit_probability(ranks: pd.DataFrame, k: int) -> np.ndarray:
    """Per query, the expected value of "a relevant item is in the top ``k``", ties in random order.

    ``n_greater`` items come first; the remaining ``k - n_greater`` places go to the ``n_tied``
    items, of which ``n_relevant_tied`` are relevant.

    Returns:
        ``(n_queries,) float64`` in [0, 1].
    """
    places = k - ranks["n_greater"].to_numpy()
    return 1.0 - miss_probability(ranks["n_tied"], ranks["n_relevant_tied"], places)


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
    out["mR"] = mean_recall(out)
    return out


def mean_recall(result: dict) -> float:
    """mR: the mean of R@1, R@5 and R@10 over both directions."""
    return float(np.mean([result[d][f"R@{k}"] for d in ("t2i", "i2t") for k in KS]))


def chance_ranks(ranks: pd.DataFrame) -> pd.DataFrame:
    """The ranks of the same queries in random order: all items are tied."""
    return ranks.assign(n_greater=0, n_tied=ranks["n_items"], n_relevant_tied=ranks["n_relevant"])


def chance(ranks: pd.DataFrame) -> dict:
    """The metrics that a random order would reach, exactly, on the same queries and gallery."""
    return metrics(chance_ranks(ranks))
