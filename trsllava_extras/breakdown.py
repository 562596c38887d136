"""Breakdown: where recall is won and lost — by class, by the size of the gallery.

Ranks go in, tables in percent come out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from trsllava_utils.annotations import folded
from trsllava_utils.recall import expected_rank, hit_probability


def by_label(ranks: pd.DataFrame, labels: pd.Series, k: int = 10) -> pd.DataFrame:
    """Recall at ``k`` by class of the image: ``label, images, captions, t2i, i2t``, best first.

    Args:
        labels: class by image id; images without one are left out.
    """
    rows = ranks.assign(label=ranks["image_id"].map(labels), hit=100 * hit_probability(ranks, k))
    rows = rows[rows["label"].fillna("") != ""]
    out = rows.pivot_table("hit", "label", "direction")
    t2i = rows[rows["direction"] == "t2i"].groupby("label")
    out["images"], out["captions"] = t2i["image_id"].nunique(), t2i.size()
    out = out.reindex(columns=["images", "captions", "t2i", "i2t"]).reset_index()
    return out.sort_values(["t2i", "label"], ascending=[False, True], ignore_index=True)


def by_gallery_size(ranks: pd.DataFrame, sizes: list[int], k: int = 10) -> pd.DataFrame:
    r"""Text-to-image recall at ``k`` as images are drawn from the gallery at random, the caption's
    own among them; exact, without drawing: ``images, recall``.

    With :math:`a` of the :math:`N - 1` other images ahead, :math:`m - 1` of them drawn, the number
    ahead among those is hypergeometric and a hit needs fewer than k. Ties in random order.

    Args:
        sizes: numbers of images, at most that of the ranked gallery.
    """
    from scipy.stats import hypergeom  # slow to import

    t2i = ranks[ranks["direction"] == "t2i"]
    n = int(t2i["n_items"].iloc[0])
    first, last = t2i["n_greater"].to_numpy(), (t2i["n_greater"] + t2i["n_tied"]).to_numpy()
    recalls = []
    for size in sizes:
        # chance of a hit with a = 0 … N - 1 images ahead; ties: the mean over the places they share
        hit = hypergeom.cdf(k - 1, n - 1, np.arange(n), size - 1)
        total = np.concatenate([[0.0], np.cumsum(hit)])
        recalls.append(100 * np.mean((total[last] - total[first]) / (last - first)))
    return pd.DataFrame({"images": sizes, "recall": recalls})


def extremes(
    ranks: pd.DataFrame, top: pd.DataFrame, texts: dict[str, str], n: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Text-to-image successes, found at rank 1 with the greatest margin over the next image, and
    failures, whose image came last; of every image, and of equal texts, the most extreme query.

    Args:
        texts: the text of every query, see ``caption_texts``.

    Returns:
        Up to ``n`` of each: ``query_id, image_id, rank, margin``.
    """
    t2i = ranks[ranks["direction"] == "t2i"]
    scores = top[(top["direction"] == "t2i") & (top["rank"] <= 2)]
    scores = scores.pivot_table("score", "query_id", "rank").reindex(columns=[1, 2])
    margins = t2i["query_id"].map(scores[1] - scores[2]).fillna(0.0)
    queries = t2i[["query_id", "image_id"]].assign(rank=expected_rank(t2i), margin=margins)
    first = queries[queries["rank"] == 1].sort_values("margin", ascending=False, kind="stable")
    last = queries[queries["rank"] > 1].sort_values("rank", ascending=False, kind="stable")
    words = t2i["query_id"].map(texts).map(folded)
    distinct = (table[~words[table.index].duplicated()] for table in (first, last))
    return tuple(table.drop_duplicates("image_id").head(n) for table in distinct)
