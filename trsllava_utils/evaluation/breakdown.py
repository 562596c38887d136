"""Breakdown: where recall is won and lost — by class, by difficulty, by the size of the gallery.

Ranks go in, tables in percent come out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from trsllava_utils.embedding.vectors import Embeddings
from trsllava_utils.evaluation.recall import expected_rank, hit_probability
from trsllava_utils.evaluation.statistics import contributions
from trsllava_utils.retrieval.formulas import TIE_TOLERANCE
from trsllava_utils.retrieval.products import blocks


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


def confusion(top: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """Classes confused at rank 1 of text-to-image: row the class of the query's image, column that
    of the first image, percent of the row's captions. Images tied with the first share its place.

    Args:
        labels: class by image id.
    """
    rows = top[top["direction"] == "t2i"]
    best = rows.groupby("query_id")["score"].transform("max")
    first = rows[rows["score"] >= best - TIE_TOLERANCE]
    share = 1 / first.groupby("query_id")["score"].transform("size")
    own = first["query_id"].str.rpartition("#")[0]  # <image_id>#<variant>
    own, first = own.map(labels).fillna(""), first["image_id"].map(labels).fillna("")
    known = (own != "") & (first != "")
    table = pd.crosstab(own[known], first[known], share[known], aggfunc="sum").fillna(0.0)
    names = sorted(set(table.index) | set(table.columns))
    table = table.reindex(index=names, columns=names, fill_value=0.0)
    return 100 * table.div(table.sum(axis=1).where(lambda total: total > 0, 1), axis=0)


def twin_likeness(reference: Embeddings, images: list[str]) -> pd.Series:
    """How like an image its twin is, the most similar other image of the gallery: the cosine of the
    mean directions of their reference captions, by image id (-1 without another image).

    It says how hard an image is to tell apart, whatever the captioner made of it.
    """
    rows = reference.rows["image_id"].isin(images).to_numpy()
    owner = reference.rows["image_id"][rows].to_numpy()
    means = pd.DataFrame(reference.vectors[rows]).groupby(owner).mean()
    unit = means.to_numpy() / np.linalg.norm(means, axis=1, keepdims=True)
    nearest = []
    for block in blocks(len(unit), len(unit)):
        cosine = unit[block] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(block.start, block.stop)] = -1  # with itself
        nearest.append(cosine.max(axis=1))
    return pd.Series(np.concatenate(nearest), means.index, name="likeness")


def strata(likeness: pd.Series) -> pd.Series:
    """Images grouped by the likeness of their twin, from easy to hard (a categorical)."""
    names = ["below 0.8", "0.8 to 0.85", "0.85 to 0.9", "above 0.9"]
    return pd.cut(likeness, [-2, 0.8, 0.85, 0.9, 2], labels=names)


def by_stratum(rankings: dict[str, pd.DataFrame], groups: pd.Series) -> pd.DataFrame:
    """mR of each method within each group of images (the gallery stays whole): a column per method,
    and ``images``."""
    out = {}
    for method, ranks in rankings.items():
        parts = ranks.groupby(ranks["image_id"].map(groups), observed=True)
        out[method] = {name: contributions(rows)["", "mR"].mean() for name, rows in parts}
    table = pd.DataFrame(out).reindex([c for c in groups.cat.categories])
    table.insert(0, "images", groups.value_counts())
    return table.dropna(how="all", subset=table.columns[1:])


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


def extremes(ranks: pd.DataFrame, top: pd.DataFrame, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Text-to-image successes, found at rank 1 with the greatest margin over the next image, and
    failures, whose image came last; of every image its most extreme query.

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
    return tuple(t.drop_duplicates("image_id").head(n) for t in (first, last))
