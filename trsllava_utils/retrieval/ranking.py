"""Retrieval: a method and its sources go in, ranks and rankings come out.

In text-to-image the queries are human captions and the items are images, described by the texts of
a captioner; in image-to-text it is the other way round. Both are one scoring function over two
sides of texts (``scoring.py``). Scores within 1e-6 are tied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import (
    InputError,
    MissingError,
    atomic_path,
    fingerprint,
    read_json,
    slug,
    write_json,
)
from trsllava_utils.cluster import ahead, spread
from trsllava_utils.embedding.vectors import Embeddings
from trsllava_utils.retrieval.methods import Method
from trsllava_utils.retrieval.products import (
    TIE_TOLERANCE,
    VERSION,
    Score,
    Side,
    blocks,
    by_image,
    centre,
    one_each,
    prepare,
)
from trsllava_utils.retrieval.sources import Sources


@dataclass(frozen=True)
class Rankings:
    """The outcome of retrieval in both directions.

    Attributes:
        ranks: one row a query: ``direction, query_id, image_id, n_greater, n_tied,
            n_relevant_tied, n_relevant, n_items`` — all that recall with exact ties needs (see
            :mod:`trsllava_utils.evaluation`).
        top: the first ``top_k`` items of every query: ``direction, query_id, rank, item_id,
            image_id, score, hit``.
        path: the Parquet file of ``ranks``; that of ``top`` lies beside it.
        reused: whether they were on disk and up to date.
    """

    ranks: pd.DataFrame
    top: pd.DataFrame
    path: Path
    reused: bool


@dataclass(frozen=True)
class Labelled:
    """A side with names.

    Attributes:
        side: ``n`` groups of texts.
        ids: ``(n,)`` str, the name of each group.
        owner: ``(n,)`` int, ascending: number of the image it belongs to.
    """

    side: Side
    ids: np.ndarray
    owner: np.ndarray


def sides(
    method: Method, sources: Sources, images: list[str]
) -> tuple[Labelled, Labelled, Side | None]:
    """The images named, their human captions, and the bank (None where the method needs none)."""
    index = {image_id: i for i, image_id in enumerate(images)}
    h_rows, h_vectors, h_groups = _rows(sources.human, index)
    rows, vectors, groups = h_rows, h_vectors, h_groups  # method "human": described by people
    if "human" not in method.steps:
        texts = sources.fields if "fields" in method.steps else sources.joined
        rows, vectors, groups = _rows(texts, index)
    clip_images = clip_human = clip_bank = bank = None
    if "clip_images" in method.needs:
        blind = index.keys() - set(sources.clip_images.rows["image_id"])
        if blind:
            raise MissingError(
                f"{len(blind):,} of {len(images):,} images of the gallery have no "
                "pixels for CLIP to look at"
            )
        clip_images = _rows(sources.clip_images, index)[1]
        clip_human = _rows(sources.clip_human, index)[1]
    machine = by_image(rows, vectors, groups, method, clip_images)
    human = one_each(h_rows["text"].to_numpy(), h_vectors, clip_human)
    if "bank" in method.needs:
        clip_bank = sources.clip_bank.vectors if "clip_bank" in method.needs else None
        bank = one_each(sources.bank.rows["text"].to_numpy(), sources.bank.vectors, clip_bank)
    if "centred" in method.steps:
        mean = bank.vectors.mean(axis=0)
        human, bank = centre(human, mean), centre(bank, mean)
        machine = centre(machine, machine.vectors.mean(axis=0))
    names = np.array(images, dtype=object)
    return (
        Labelled(machine, names, np.arange(len(images))),
        Labelled(human, query_ids(h_rows).to_numpy(), h_groups),
        bank,
    )


def _rows(
    embeddings: Embeddings, index: dict[str, int]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows of the images in ``index``, in its order: rows, vectors, image number of each."""
    image = embeddings.rows["image_id"].map(index)
    order = image.dropna().sort_values(kind="stable").index
    groups = image[order].to_numpy(dtype=np.int64)
    return embeddings.rows.loc[order], embeddings.vectors[order], groups


def rank_relevant(
    scores: np.ndarray, queries: np.ndarray, items: np.ndarray
) -> dict[str, np.ndarray]:
    """Where the best relevant item stands, ties counted rather than broken.

    Args:
        scores: ``(n_queries, n_items) float32``.
        queries, items: ``(n_pairs,) int``: item i is relevant to query q. A query without a
            relevant item stands behind all items.

    Returns:
        Per query: ``n_greater`` items ahead of the best relevant one by more than 1e-6,
        ``n_tied`` items level with it (itself included), and ``n_relevant_tied`` relevant ones
        among those; each ``(n_queries,) int64``.
    """
    n = len(scores)
    best = np.full(n, -np.inf, np.float32)
    np.maximum.at(best, queries, scores[queries, items])
    greater, level = count_ahead(scores, best)
    relevant_level = np.abs(scores[queries, items] - best[queries]) <= TIE_TOLERANCE
    return {
        "n_greater": greater,
        "n_tied": level,
        "n_relevant_tied": np.bincount(queries[relevant_level], minlength=n),
    }


def count_ahead(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """``(2, n_queries) int64``: items ahead of ``best (n_queries,)`` by more than 1e-6, and items
    level with it."""
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
        found = np.flatnonzero(row >= floor)
        out[q] = found[np.argsort(-row[found], kind="stable")[:k]]
    return out


def retrieve(
    method: str,
    sources: Sources,
    top_k: int = 10,
    images: Iterable[str] = (),
    queries: Iterable[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both directions: human captions against images, and images against human captions.

    Human captions are named ``<image_id>#<variant>``.

    Args:
        method: a scoring rule, see ``methods.py``.
        sources: what it draws on.
        top_k: results kept for every query.
        images: the gallery; default: all images that have both kinds of text.
        queries: those images of the gallery that are asked for; the others only distract. Default:
            all.

    Returns:
        The ``ranks`` and ``top`` tables of :class:`Rankings`.

    Raises:
        InputError: an unknown method, or ``top_k`` is not positive.
        MissingError: the method draws on something that is not there.
    """
    if top_k < 1:
        raise InputError(f"top_k={top_k}: give the number of results to keep, 1 or more")
    parsed = Method(method)
    gallery = sorted(images) or sources.gallery
    asked = set(queries) or set(gallery)
    gallery.sort(key=lambda image_id: image_id not in asked)  # distractors last
    described, captions, bank = sides(parsed, sources, gallery)
    pictures = captions if "human" in parsed.steps else described  # what an image asks with
    ranks, top = [], []
    for direction, left, right in (("t2i", captions, described), ("i2t", pictures, captions)):
        n = int(np.searchsorted(left.owner, len(asked)))
        asking = left.side.take(slice(0, n))
        # the bank holds human captions: it can stand in for the queries of text-to-image only
        stand_in = bank if direction == "t2i" else None
        score = prepare(parsed, right.side, stand_in, sources.relevance)(asking)
        tables = rank_queries(direction, score, left, right, gallery, n, top_k, sources.scheduler)
        ranks.append(tables[0])
        top.append(tables[1])
    return pd.concat(ranks, ignore_index=True), pd.concat(top, ignore_index=True)


def rank_queries(
    direction: str,
    score: Score,
    left: Labelled,
    right: Labelled,
    images: list[str],
    n: int,
    top_k: int,
    scheduler: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One direction, a block of queries at a time.

    Args:
        direction: "t2i" or "i2t", for the tables.
        score: of the first queries of ``left`` against the items, ``right``.
        left, right: the sides; the same one where queries are items.
        images: the gallery, which their owners count.
        n: how many queries ask.
        top_k: results kept for each.
        scheduler: where blocks are ranked, see ``cluster.py``.

    Returns:
        The ``ranks`` and ``top`` tables of :class:`Rankings`.
    """
    task = _Task(direction, score, left, right, images, top_k)
    each = blocks(n, right.side.n)
    pieces = [[block] for block in each] if scheduler else [each]  # here in one go
    done = sorted(spread(_rank_blocks, pieces, scheduler, (task,)), key=itemgetter(0))
    ranks, top = zip(*(tables for _, made in done for tables in made), strict=True)
    return pd.concat(ranks, ignore_index=True), pd.concat(top, ignore_index=True)


@dataclass(frozen=True)
class _Task:
    """The arguments of :func:`rank_queries`, as one thing to send to a worker."""

    direction: str
    score: Score
    left: Labelled
    right: Labelled
    images: list[str]
    top_k: int


def _rank_blocks(pieces: list[slice], task: _Task) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """``ranks`` and ``top`` of each block."""
    left, right = task.left, task.right
    tables = []
    for block, scores in zip(pieces, ahead(task.score, pieces), strict=True):
        names = {"direction": task.direction, "query_id": left.ids[block]}
        itself = block.start if left is right else None  # a caption is no answer to itself
        owner = left.owner[block]
        tables.append(_tables(names, task.images, owner, right, scores, itself, task.top_k))
    return tables


def _tables(
    names: dict,
    images: list[str],
    owner: np.ndarray,
    items: Labelled,
    scores: np.ndarray,
    itself: int | None,
    top_k: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of ``ranks`` and ``top`` for one block of queries; ``itself``: the item that the
    first query is, where queries are items."""
    image_ids = np.array(images, dtype=object)
    first, last = (np.searchsorted(items.owner, owner, side) for side in ("left", "right"))
    each = last - first  # the items of an image are adjacent
    queries = np.repeat(np.arange(len(owner)), each)
    relevant = np.arange(len(queries)) - np.repeat(np.cumsum(each) - each, each) + first[queries]
    if itself is not None:
        others = relevant != queries + itself
        queries, relevant = queries[others], relevant[others]
    ranks = pd.DataFrame(
        {
            **names,
            "image_id": image_ids[owner],
            **rank_relevant(scores, queries, relevant),
            "n_relevant": np.bincount(queries, minlength=len(owner)),
            "n_items": scores.shape[1],
        }
    )
    best = top_items(scores, top_k)
    k = best.shape[1]
    hit = items.owner[best] == owner[:, None]
    if itself is not None:
        hit &= best != np.arange(itself, itself + len(owner))[:, None]
    top = pd.DataFrame(
        {
            "direction": names["direction"],
            "query_id": np.repeat(names["query_id"], k),
            "rank": np.tile(np.arange(1, k + 1), len(best)),
            "item_id": items.ids[best].ravel(),
            "image_id": image_ids[items.owner[best]].ravel(),
            "score": np.take_along_axis(scores, best, 1).ravel().astype(np.float32),
            "hit": hit.ravel(),
        }
    )
    return ranks, top


def query_ids(rows: pd.DataFrame) -> pd.Series:
    """The name of every human caption, ``<image_id>#<variant>``."""
    return rows["image_id"] + "#" + rows["variant"].astype(str)


def caption_texts(queries: Embeddings) -> dict[str, str]:
    """The text of every human caption by its id ``<image_id>#<variant>``."""
    return dict(zip(query_ids(queries.rows), queries.rows["text"], strict=True))


def rank_dataset(method: str, sources: Sources, top_k: int = 10) -> Rankings:
    """:func:`retrieve`, kept on disk as Parquet; loaded from there while vectors and settings are
    the same and at least ``top_k`` results were kept."""
    parsed = Method(method)
    setting = [sources.dataset.split, sources.captions.captioner, slug(sources.encoder)]
    setting += [f"first{sources.variants}"] if sources.variants else []
    stem = ".".join([*setting, f"{slug(parsed.name)}-{fingerprint(parsed.name)[:6]}"])
    path = sources.dataset.derived / "rankings" / f"{stem}.ranks.parquet"
    top_path = path.with_name(path.name.replace(".ranks.", ".top."))
    manifest_path = path.with_suffix(".json")
    manifest = {
        "inputs": sources.identity(parsed.needs),
        "method": parsed.name,
        "top_k": top_k,
        "rules": VERSION,
    }
    kept = read_json(manifest_path) or {}
    enough = kept.get("top_k", 0) >= top_k and {**kept, "top_k": top_k} == manifest
    if enough and path.is_file() and top_path.is_file():
        top = pd.read_parquet(top_path)
        top = top[top["rank"] <= top_k].reset_index(drop=True)
        return Rankings(pd.read_parquet(path), top, path, True)
    ranks, top = retrieve(method, sources, top_k)
    manifest_path.unlink(missing_ok=True)  # between here and the end nothing vouches for the tables
    for table, target in ((ranks, path), (top, top_path)):
        with atomic_path(target) as tmp:
            table.to_parquet(tmp, index=False)
    write_json(manifest_path, manifest)
    return Rankings(ranks, top, path, False)


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
