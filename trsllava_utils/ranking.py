"""Ranking: a scoring rule and its sources go in, ranks come out.

In text-to-image the queries are reference captions and the items images, described by the texts of
a captioner; in image-to-text it is the other way round. Both are one scoring function over two
sides of texts. Scores at most 1e-6 from that of the best relevant item are tied with it; ties are
counted here (:func:`rank_relevant`), and ``recall.py`` gives each its expected value. (Lists of
results, ``top``, are sorted by plain score.) ``rankings.py`` keeps what comes out on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from trsllava_utils import plugins
from trsllava_utils.files import InputError, MissingError, first_few
from trsllava_utils.parameters import check
from trsllava_utils.scoring import TIE_TOLERANCE, Score, Side, best_cosine, blocks, one_each
from trsllava_utils.sources import Sources
from trsllava_utils.vectors import Embeddings


@dataclass(frozen=True)
class NamedSide:
    """A side with names."""

    side: Side  # n groups of texts
    ids: np.ndarray  # (n,) str: the name of each group
    owner: np.ndarray  # (n,) int, ascending: index of the image that a group belongs to


@dataclass(frozen=True)
class Sides:
    """All that a rule compares."""

    images: NamedSide  # as items: each described by its texts
    references: NamedSide  # the reference captions, each for itself: queries and items
    image_queries: NamedSide  # the images as queries
    bank: Side | None = None  # for plug-in rules: training captions, each for itself,
    image_bank: Side | None = None  # and by image: the queries of image-to-text


class Rule(Protocol):
    """A scoring rule: :class:`Max`, or one of the plug-in (``trsllava.rules``)."""

    name: str  # its text without blanks
    label: str  # in tables
    ranks_one_query: bool  # it needs neither other queries nor reference captions

    def inputs(self, sources: Sources) -> list[Embeddings]:
        """All that it draws on; what is missing is embedded."""

    def sides(self, sources: Sources, images: list[str]) -> Sides:
        """What it compares in both directions, for these images."""

    def scorer(self, items: Side, bank: Side | None = None) -> Callable[[Side], Score]:
        """A function that takes queries, and gives their scores against the items."""


class Max:
    """The rule of the paper: an image scores the best cosine of its texts."""

    name = label = "max"
    ranks_one_query = True

    def inputs(self, sources: Sources) -> list[Embeddings]:
        return [sources.embed_reference(), sources.embed_captions(), sources.embed_image_queries()]

    def sides(self, sources: Sources, images: list[str]) -> Sides:
        return sides(sources, images)

    def scorer(self, items: Side, bank: Side | None = None) -> Callable[[Side], Score]:
        return lambda queries: best_cosine(queries, items)


def rule_of(method: str) -> Rule:
    """The rule of that name.

    Raises:
        InputError: there is none.
        MissingError: it needs the extras.
    """
    check(method=method)
    if method.strip() == "max":
        return Max()
    make = plugins.find("rules", "steps")
    if make is None:
        raise MissingError(f"method {method!r} needs the package trsllava_extras; max does not")
    return make(method)


def sides(sources: Sources, images: list[str], texts: str = "") -> Sides:
    """The two sides of both directions for these images, in these forms of their texts (default:
    those of the sources)."""
    rows, vectors, owner = of_images(sources.embed_reference(), sources.asked_about(images))
    each = one_each(rows["text"].to_numpy(), vectors)
    references = NamedSide(each, query_ids(rows).to_numpy(), owner)
    items = asking = described(sources.embed_captions(texts), images)
    if sources.query_captioner:
        asking = described(sources.embed_image_queries(texts), images)
    return Sides(items, references, asking)


def described(embeddings: Embeddings, images: list[str]) -> NamedSide:
    """Images, each described by its texts."""
    rows, vectors, groups = of_images(embeddings, images)
    side = Side(rows["text"].to_numpy(), groups, vectors)
    return NamedSide(side, np.array(images, dtype=object), np.arange(len(images)))


def of_images(
    embeddings: Embeddings, images: list[str]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows, vectors and image numbers of the texts of these images, in their order."""
    number = {image_id: n for n, image_id in enumerate(images)}
    image = embeddings.rows["image_id"].map(number)
    order = image.dropna().sort_values(kind="stable").index
    groups = image[order].to_numpy(dtype=np.int64)
    if order.equals(embeddings.rows.index):  # nothing is copied
        return embeddings.rows, embeddings.vectors, groups
    return embeddings.rows.loc[order], embeddings.vectors[order], groups


def retrieve(
    method: str,
    sources: Sources,
    top_k: int = 10,
    images: Iterable[str] = (),
    queries: Iterable[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both directions: reference captions against images, and images against reference captions.

    Reference captions are named ``<image_id>#<variant>``.

    Args:
        method: a scoring rule: "max", or one of the plug-in.
        sources: what it draws on.
        top_k: results kept for every query.
        images: the gallery; default: all images that have both kinds of text.
        queries: the images of the gallery that ask, and whose captions ask; the others are
            distractors. Default: all.

    Returns:
        Two tables. ``ranks``, one row per query: ``direction, query_id, image_id, n_greater,
        n_tied, n_relevant_tied, n_relevant, n_items``, all that recall with exact ties needs; and
        ``top``, the first ``top_k`` items of every query: ``direction, query_id, rank, item_id,
        image_id, score, hit``.

    Raises:
        InputError: an unknown method or image, or ``top_k`` is not positive.
        MissingError: the method draws on something that is not there.
    """
    check(top_k=top_k)
    rule, known = rule_of(method), sources.gallery
    gallery = sorted(images) or known
    own = set(queries) or set(gallery)
    if foreign := {*gallery}.difference(known) | own.difference(gallery):
        raise InputError(f"without captions, or not in the gallery: {first_few(sorted(foreign))}")
    gallery.sort(key=lambda image_id: image_id not in own)  # distractors last
    names = np.array(sources.asked_about(gallery), dtype=object)
    both, tables = rule.sides(sources, gallery), []
    for direction, left, right, bank in (
        ("t2i", both.references, both.images, both.bank),
        ("i2t", both.image_queries, both.references, both.image_bank),
    ):
        n = int(np.searchsorted(left.owner, len(own)))
        score = rule.scorer(right.side, bank)(left.side.take(slice(0, n)))
        made = rank_queries(score, left, right, n, top_k)
        for table in made:
            table.insert(0, "direction", direction)
            table["image_id"] = names[table["image_id"]]
        tables.append(made)
    ranks, top = zip(*tables, strict=True)
    return pd.concat(ranks, ignore_index=True), pd.concat(top, ignore_index=True)


def rank_queries(
    score: Score, queries: NamedSide, items: NamedSide, n: int, top_k: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``ranks`` and ``top`` of one direction, made a block of queries at a time; ``image_id`` is
    the index of the image.

    Args:
        score: of the queries against the items.
        queries, items: the two sides, one object where queries are items.
        n: how many of the queries are ranked.
        top_k: results kept for each.
    """
    tables = []
    for block in blocks(n, items.side.n):
        scores = score(block)
        ids, owner = queries.ids[block], queries.owner[block]
        asked, relevant = _relevant(block, queries, items)
        ranks = {
            "query_id": ids,
            "image_id": owner,
            **rank_relevant(scores, asked, relevant),
            "n_relevant": np.bincount(asked, minlength=len(owner)),
            "n_items": scores.shape[1],
        }
        best = top_items(scores, top_k)
        k = best.shape[1]
        hit = items.owner[best] == owner[:, None]
        if queries is items:  # a caption is no answer to itself
            hit &= best != np.arange(block.start, block.start + len(owner))[:, None]
        top = {
            "query_id": np.repeat(ids, k),
            "rank": np.tile(np.arange(1, k + 1), len(best)),
            "item_id": items.ids[best].ravel(),
            "image_id": items.owner[best].ravel(),
            "score": np.take_along_axis(scores, best, 1).ravel().astype(np.float32),
            "hit": hit.ravel(),
        }
        tables.append((pd.DataFrame(ranks), pd.DataFrame(top)))
    ranks, top = zip(*tables, strict=True)
    return pd.concat(ranks, ignore_index=True), pd.concat(top, ignore_index=True)


def _relevant(block: slice, queries: NamedSide, items: NamedSide) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a query of the block and a relevant item: those of the same image."""
    owner = queries.owner[block]
    first, last = (np.searchsorted(items.owner, owner, side) for side in ("left", "right"))
    each = last - first  # the items of an image are adjacent
    asked = np.repeat(np.arange(len(owner)), each)
    relevant = np.arange(len(asked)) - np.repeat(np.cumsum(each) - each, each) + first[asked]
    if queries is items:
        others = relevant != asked + block.start
        asked, relevant = asked[others], relevant[others]
    return asked, relevant


def rank_relevant(
    scores: np.ndarray, queries: np.ndarray, items: np.ndarray
) -> dict[str, np.ndarray]:
    """The rank of the best relevant item; ties are counted, not broken.

    Args:
        scores: ``(n_queries, n_items) float32``.
        queries, items: ``(n_pairs,) int``: item i is relevant to query q. A query without one
            has all items ahead of it.

    Returns:
        Per query: ``n_greater`` items ahead of the best relevant one by more than 1e-6,
        ``n_tied`` items level with it (itself included), and ``n_relevant_tied`` relevant ones
        among those; each ``(n_queries,) int64``.
    """
    n = len(scores)
    best = np.full(n, -np.inf, np.float32)
    np.maximum.at(best, queries, scores[queries, items])
    greater, tied = count_ahead(scores, best)
    relevant_tied = np.abs(scores[queries, items] - best[queries]) <= TIE_TOLERANCE
    return {
        "n_greater": greater,
        "n_tied": tied,
        "n_relevant_tied": np.bincount(queries[relevant_tied], minlength=n),
    }


def count_ahead(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """``(2, n_queries) int64``: items ahead of ``best (n_queries,)`` by more than a tie, and items
    tied with it."""
    counts = np.empty((2, len(scores)), np.int64)
    for q, row in enumerate(scores):  # a row stays in the processor's cache
        above = row - best[q]
        greater = np.count_nonzero(above > TIE_TOLERANCE)
        counts[:, q] = greater, np.count_nonzero(above >= -TIE_TOLERANCE) - greater
    return counts


def top_items(scores: np.ndarray, k: int) -> np.ndarray:
    """``(n_queries, k)`` indices of the highest scores, best first; equal scores in the order of
    the items."""
    n = scores.shape[1]
    k = min(k, n)
    sets = max(4 * k, min(512, n // 4), 1)  # the more, the nearer the floor is to the k-th best
    if n < 2 * sets:
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]
    out = np.empty((len(scores), k), np.int64)
    for q, row in enumerate(scores):
        # k sets of items hold a score this high, so the k best items lie at or above it
        highest = row[: n - n % sets].reshape(-1, sets).max(axis=0)
        floor = np.partition(highest, -k)[-k]
        candidates = np.flatnonzero(row >= floor)
        out[q] = candidates[np.argsort(-row[candidates], kind="stable")[:k]]
    return out


def query_ids(rows: pd.DataFrame) -> pd.Series:
    """The name of every reference caption, ``<image_id>#<variant>``."""
    return rows["image_id"] + "#" + rows["variant"].astype(str)
