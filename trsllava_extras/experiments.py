"""Experiments: sources go in and are varied (split, settings, captioner, gallery), or ranks go in
and are broken down (by class, by the size of the gallery), and tables come out.

Settings are chosen on the *validation* split; test queries play no part in the choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from trsllava_extras.methods import Method, steps
from trsllava_utils.annotations import folded
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.ranking import retrieve
from trsllava_utils.rankings import Rankings, rank_dataset
from trsllava_utils.recall import KS, expected_rank, hit_probability, metrics
from trsllava_utils.sources import Sources


def rank_methods(
    methods: Iterable[str], sources: Sources, top_k: int = 10
) -> tuple[dict[str, Rankings], dict[str, str]]:
    """:func:`rank_dataset` for several methods.

    Returns:
        Rankings by the label of the method, and the reason for every method that draws on something
        that is not there.
    """
    done, missing = {}, {}
    for method in dict.fromkeys(methods):
        parsed = Method(method)
        try:
            done[parsed.label] = rank_dataset(method, sources, top_k)
        except MissingError as error:
            missing[parsed.label] = str(error)
    return done, missing


def validation(sources: Sources) -> Sources:
    """The same sources on the validation split.

    Raises:
        MissingError: it is the split to be evaluated, the dataset has none, or the captioner has
            not described it.
    """
    dataset = sources.dataset
    if dataset.split not in ("train", "test"):
        raise MissingError(f"{dataset.title} ({dataset.split}) holds the validation split itself")
    try:
        varied = sources.on("val")
        len(varied.gallery)  # raises where captions are missing
        return varied
    except InputError as error:  # no such split, or no image with both kinds of caption
        raise MissingError(str(error)) from error


def tune(methods: Iterable[str], sources: Sources) -> tuple[pd.DataFrame, dict[str, str]]:
    """Try every setting of every step that has a grid and no settings written out; one step after
    the other, each with the best of the steps before it.

    Args:
        methods: the rules.
        sources: of the validation split.

    Returns:
        All that was tried, ``rule, step, method, mR`` (percent), and the best method of each rule
        by mR, the first of equals; a rule with nothing to choose, or that draws on something that
        is not there, stays as it is.
    """
    rows, chosen = [], {}
    for rule in dict.fromkeys(methods):
        best = Method(rule)
        for step in list(best.steps):
            try:
                tried = [
                    (metrics(rank_dataset(m.name, sources, top_k=1).ranks)["mR"], m)
                    for m in candidates(best, step)
                ]
            except MissingError:
                break
            rows += [(rule, step, method.name, mr) for mr, method in tried]
            best = max(tried, key=lambda pair: pair[0])[1] if tried else best
        chosen[rule] = best.name
    return pd.DataFrame(rows, columns=["rule", "step", "method", "mR"]), chosen


def candidates(method: Method, step: str) -> list[Method]:
    """The method with every setting of the grid of ``step``; nothing if the step's settings are
    written out or it has no grid."""
    grid = () if method.is_given(step) else steps()[step].grid
    return [Method("+".join({**method.written, step: step + s}.values())) for s in grid]


def compare_captioners(
    captioners: Iterable[str], sources: Sources, methods: Iterable[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Several captioners on the *same* images, those that all of them describe, by each method;
    beside them the reference captions of these images as descriptions (method ``reference``).

    Args:
        captioners: to compare with that of ``sources``.
        sources: what the methods draw on.
        methods: scoring rules that look at a captioner.

    Returns:
        Ranks by captioner and method ("rsrt, max"), the captioner of ``sources`` first, and the
        reasons for captioners that are left out: no captions, or none of the same images.
    """
    several, missing, common = [sources], {}, set(sources.gallery)
    for name in dict.fromkeys(captioners):
        other = replace(sources, captioner=name)
        try:
            shared = common & set(other.gallery)
        except (InputError, MissingError) as error:
            missing[name] = str(error)
            continue
        if not shared:
            missing[name] = "describes none of the images that the others describe"
        elif other.captioner != sources.captioner:
            several, common = [*several, other], shared
    common = sorted(common)
    ranks = {
        f"{one.described_by}, {Method(method).label}": retrieve(method, one, 1, common)[0]
        for one in several
        for method in dict.fromkeys(methods)
    }
    ranks[Method("reference").label] = retrieve("reference", sources, 1, common)[0]
    return ranks, missing


def growing_gallery(method: str, sources: Sources) -> tuple[pd.DataFrame, int]:
    """Text-to-image recall as the gallery grows: from two images to the whole split, and
    beyond: captioned images of the other splits are added as distractors.

    Returns:
        ``images, R@1, R@5, R@10`` (percent), and the number of images of the split.
    """
    own, n = sources.gallery, len(sources.gallery)
    wider = sources.on("all")
    try:
        grown = len(wider.gallery) > n
        ranks = retrieve(method, wider, 1, queries=own)[0] if grown else None
    except MissingError:  # the method needs training captions, which are in the gallery now
        ranks = None
    if ranks is None:
        ranks = rank_dataset(method, sources).ranks
    largest = int(ranks.loc[ranks["direction"] == "t2i", "n_items"].iloc[0])
    sizes = sorted({*np.geomspace(min(2, largest), largest, 12).astype(int).tolist(), n, largest})
    recalls = {f"R@{k}": by_gallery_size(ranks, sizes, k)["recall"] for k in KS}
    return pd.DataFrame({"images": sizes, **recalls}), n


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
