"""Retrieval: vectors of two corpora go in, scores, ranks and rankings come out.

Query corpus x database corpus -> ``scores[n_queries, n_items]``. In text-to-image the queries are
human captions and the items are images, each scoring the best (``max``) of its texts; in
image-to-text the queries are images (all their texts) and the items are human captions. Both are
one function over *groups* of rows. Scores within 1e-6 are tied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import (
    InputError,
    atomic_path,
    check_choice,
    fingerprint,
    read_json,
    slug,
    write_json,
)
from trsllava_utils.embedding import Embeddings

METHODS = ("max", "mean")
TIE_TOLERANCE = 1e-6
DIRECTIONS = {"t2i": "text-to-image", "i2t": "image-to-text"}


@dataclass(frozen=True)
class Rankings:
    """The outcome of retrieval in both directions.

    Attributes:
        ranks: one row a query: ``direction, query_id, image_id, n_greater, n_tied,
            n_relevant_tied, n_relevant,
            n_items`` — all that recall with exact ties needs (see
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


def score_blocks(
    queries: np.ndarray,
    query_groups: np.ndarray,
    items: np.ndarray,
    item_groups: np.ndarray,
    method: str = "max",
    block: int = 256,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Scores of every query group against every item group, a block of query groups at a time.

    Args:
        queries: ``(n_q, dim) float32`` unit rows; items: ``(n_d, dim) float32`` unit rows.
        query_groups, item_groups: ``(n_q,)`` and ``(n_d,)`` int, ascending from 0 without gaps.
        method: "max" (the paper: cosine, an image scores the best of its texts) or "mean".

    Yields:
        ``(slice of query groups, scores (n_groups_in_block, n_item_groups) float32)``.
    """
    check_choice("method", method, METHODS)
    reduce = np.maximum.reduceat if method == "max" else np.add.reduceat
    q_starts, d_starts = _starts(query_groups), _starts(item_groups)
    q_sizes, d_sizes = (
        np.diff([*s, n]) for s, n in ((q_starts, len(queries)), (d_starts, len(items)))
    )
    for first in range(0, len(q_starts), block):
        last = min(first + block, len(q_starts))
        rows = slice(q_starts[first], q_starts[last] if last < len(q_starts) else len(queries))
        scores = queries[rows] @ items.T
        if len(d_starts) < len(items):
            scores = reduce(scores, d_starts, axis=1)
        if rows.stop - rows.start > last - first:
            scores = reduce(scores, q_starts[first:last] - rows.start, axis=0)
        if method == "mean":
            scores = scores / (q_sizes[first:last, None] * d_sizes[None, :])
        yield slice(first, last), scores.astype(np.float32, copy=False)


def _starts(groups: np.ndarray) -> np.ndarray:
    groups = np.asarray(groups)
    if len(groups) and (groups[0] != 0 or not np.isin(np.diff(groups), (0, 1)).all()):
        raise ValueError("groups must ascend from 0 without gaps")
    return np.flatnonzero(np.diff(groups, prepend=-1))


def rank_relevant(scores: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """Where the best relevant item stands, ties counted rather than broken.

    Args:
        scores: ``(n_queries, n_items) float32``; relevant: same shape, bool, at least one True a
            row.

    Returns:
        Per query: ``n_greater`` items ahead of the best relevant one by more than 1e-6,
            ``n_tied`` items level with it
        (itself included), and ``n_relevant_tied`` relevant ones among those; each ``(n_queries,)
        int64``.
    """
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    tied = np.abs(scores - best) <= TIE_TOLERANCE
    return {
        "n_greater": ((scores > best) & ~tied).sum(axis=1),
        "n_tied": tied.sum(axis=1),
        "n_relevant_tied": (tied & relevant).sum(axis=1),
    }


def top_items(scores: np.ndarray, k: int) -> np.ndarray:
    """``(n_queries, k)`` indices of the highest scores, best first; equal scores in the order of
    the items."""
    k = min(k, scores.shape[1])
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    part = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def retrieve(
    captions: Embeddings, queries: Embeddings, method: str = "max", top_k: int = 10
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both directions: human captions against images, and images against human captions.

    Only images that have both kinds of text take part. Human captions are named
    ``<image_id>#<variant>``.

    Returns:
        The ``ranks`` and ``top`` tables of :class:`Rankings`.

    Raises:
        InputError: no image has both, or ``top_k`` is not positive.
    """
    if top_k < 1:
        raise InputError(f"top_k={top_k}: give the number of results to keep, 1 or more")
    check_choice("method", method, METHODS)
    common = sorted(set(captions.rows["image_id"]) & set(queries.rows["image_id"]))
    if not common:
        raise InputError(
            "no image has both captions of the captioner and human captions; evaluation needs both"
        )
    index = {image_id: i for i, image_id in enumerate(common)}
    _, c_vectors, c_image = _sorted(captions, index)
    h_rows, h_vectors, h_image = _sorted(queries, index)
    human_ids = _caption_ids(h_rows).to_numpy()
    images = np.array(common, dtype=object)
    each = np.arange(len(h_rows))

    ranks, top = [], []
    for direction, ids, owner, item_ids, item_owner, blocks in (
        (
            "t2i",
            human_ids,
            h_image,
            images,
            np.arange(len(images)),
            score_blocks(h_vectors, each, c_vectors, c_image, method),
        ),
        (
            "i2t",
            images,
            np.arange(len(images)),
            human_ids,
            h_image,
            score_blocks(c_vectors, c_image, h_vectors, each, method),
        ),
    ):
        for rows, scores in blocks:
            relevant = owner[rows, None] == item_owner[None, :]
            where = rank_relevant(scores, relevant)
            n = len(scores)
            ranks.append(
                pd.DataFrame(
                    {
                        "direction": direction,
                        "query_id": ids[rows],
                        "image_id": images[owner[rows]],
                        **where,
                        "n_relevant": relevant.sum(axis=1),
                        "n_items": scores.shape[1],
                    }
                )
            )
            best = top_items(scores, top_k)
            top.append(
                pd.DataFrame(
                    {
                        "direction": direction,
                        "query_id": np.repeat(ids[rows], best.shape[1]),
                        "rank": np.tile(np.arange(1, best.shape[1] + 1), n),
                        "item_id": item_ids[best].ravel(),
                        "image_id": images[item_owner[best]].ravel(),
                        "score": np.take_along_axis(scores, best, 1).ravel(),
                        "hit": np.take_along_axis(relevant, best, 1).ravel(),
                    }
                )
            )
    return pd.concat(ranks, ignore_index=True), pd.concat(top, ignore_index=True)


def _caption_ids(rows: pd.DataFrame) -> pd.Series:
    return rows["image_id"] + "#" + rows["variant"].astype(str)


def caption_texts(queries: Embeddings) -> dict[str, str]:
    """The text of every human caption by its id ``<image_id>#<variant>``."""
    return dict(zip(_caption_ids(queries.rows), queries.rows["text"], strict=True))


def rank_dataset(
    captions: Embeddings,
    queries: Embeddings,
    derived: Path,
    name: str,
    method: str = "max",
    top_k: int = 10,
) -> Rankings:
    """:func:`retrieve`, kept on disk as Parquet; loaded from there while vectors and settings are
    the same."""
    check_choice("method", method, METHODS)
    path = derived / "rankings" / f"{slug(name)}.{method}.ranks.parquet"
    top_path = path.with_name(path.name.replace(".ranks.", ".top."))
    manifest_path = path.with_suffix(".json")
    made_from = [_embedding_identity(captions), _embedding_identity(queries)]
    manifest = {
        "inputs": fingerprint(made_from),
        "method": method,
        "top_k": top_k,
        "tie_tolerance": TIE_TOLERANCE,
    }
    if read_json(manifest_path) == manifest and path.is_file() and top_path.is_file():
        return Rankings(pd.read_parquet(path), pd.read_parquet(top_path), path, True)
    ranks, top = retrieve(captions, queries, method, top_k)
    manifest_path.unlink(missing_ok=True)  # between here and the end nothing vouches for the tables
    for table, target in ((ranks, path), (top, top_path)):
        with atomic_path(target) as tmp:
            table.to_parquet(tmp, index=False)
    write_json(manifest_path, manifest)
    return Rankings(ranks, top, path, False)


def _embedding_identity(embeddings: Embeddings) -> list:
    manifest = read_json(embeddings.path.with_suffix(".json")) or {}
    return [manifest.get("rows"), manifest.get("encoder_identity"), manifest.get("files")]


def _sorted(
    embeddings: Embeddings, index: dict[str, int]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows of the images in ``index``, in its order: rows, vectors, image number of each."""
    image = embeddings.rows["image_id"].map(index)
    order = image.dropna().sort_values(kind="stable").index
    return (
        embeddings.rows.loc[order],
        embeddings.vectors[order],
        image[order].to_numpy(dtype=np.int64),
    )


def search(
    query: np.ndarray, captions: Embeddings, k: int = 8, method: str = "max"
) -> pd.DataFrame:
    """Images for one query vector ``(dim,)``: ``rank, image_id, score, text``, ``text`` being the
    best-matching one."""
    index = {image_id: i for i, image_id in enumerate(dict.fromkeys(captions.rows["image_id"]))}
    rows, vectors, image = _sorted(captions, index)
    ((_, scores),) = score_blocks(query[None, :], np.array([0]), vectors, image, method)
    best = top_items(scores, k)[0]
    similarity = vectors @ query
    text = [
        rows["text"].iloc[np.flatnonzero(image == i)[similarity[image == i].argmax()]] for i in best
    ]
    names = list(index)
    return pd.DataFrame(
        {
            "rank": range(1, len(best) + 1),
            "image_id": [names[i] for i in best],
            "score": scores[0, best],
            "text": text,
        }
    )
