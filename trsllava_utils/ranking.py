"""Ranking: a method and its sources go in, ranks come out.

In text-to-image the queries are reference captions and the items images, described by the texts of
a captioner; in image-to-text it is the other way round. Both are one scoring function over two
sides of texts. Scores within 1e-6 are tied; ties are counted here (:func:`rank_relevant`), and
``recall.py`` gives each its expected value. (Lists of results, ``top``, are sorted by plain
score.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils.files import (
    MissingError,
    fingerprint,
    read_once,
    read_sealed,
    slug,
    write_sealed,
)
from trsllava_utils.methods import Method
from trsllava_utils.parameters import check
from trsllava_utils.scoring import TIE_TOLERANCE, VERSION, Score, Scorer, Side, blocks, one_each
from trsllava_utils.sources import Sources
from trsllava_utils.vectors import Embeddings, spread


@dataclass(frozen=True)
class Rankings:
    """The outcome of retrieval in both directions.

    Attributes:
        ranks: one row per query: ``direction, query_id, image_id, n_greater, n_tied,
            n_relevant_tied, n_relevant, n_items``: all that recall with exact ties needs.
        top: the first ``top_k`` items of every query: ``direction, query_id, rank, item_id,
            image_id, score, hit``.
        path: the Parquet file of ``ranks``; that of ``top`` lies beside it.
        reused: whether they were on disk and up to date.
        identity: fingerprint of all that they were made from.
    """

    ranks: pd.DataFrame
    top: pd.DataFrame
    path: Path
    reused: bool
    identity: str


def rank_dataset(method: str, sources: Sources, top_k: int = 10) -> Rankings:
    """Rank every query of a split, in both directions (:func:`retrieve`); kept on disk as Parquet,
    and loaded from there while vectors and settings are the same and ``top_k`` results were kept.

    >>> ranks = rank_dataset("max", Sources(load_dataset("sample"), "rsrt")).ranks
    >>> len(ranks)
    630
    """
    check(top_k=top_k)
    parsed = Method(method)
    stem = f"{sources.setting}.{slug(parsed.name)}-{fingerprint(parsed.name)[:6]}"
    path = sources.dataset.derived / "rankings" / stem
    made_from = {"inputs": sources.identity(parsed), "method": parsed.name, "rules": VERSION}

    files = {name: path.with_name(f"{stem}.{name}.parquet") for name in ("ranks", "top")}
    kept = {name: _stored(file) for name, file in files.items() if file.exists()}
    reused = len(kept) == len(files) and all(
        about.get("made_from") == made_from and about.get("top_k", 0) >= top_k
        for about, _ in kept.values()
    )
    if reused:
        tables = {name: table.copy() for name, (_, table) in kept.items()}
    else:
        tables = dict(zip(files, retrieve(method, sources, top_k), strict=True))
        for name, file in files.items():
            content = tables[name].to_parquet()
            write_sealed(file, content, {"made_from": made_from, "top_k": top_k})
    top = tables["top"][tables["top"]["rank"] <= top_k].reset_index(drop=True)
    return Rankings(tables["ranks"], top, files["ranks"], reused, fingerprint(made_from))


@read_once
def _stored(path: Path) -> tuple[dict, pd.DataFrame | None]:
    """A table and what it was made from; nothing if it is damaged."""
    about, content = read_sealed(path)
    return about, pd.read_parquet(BytesIO(content)) if about else None


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


@dataclass(frozen=True)
class NamedSide:
    """A side with names."""

    side: Side  # n groups of texts
    ids: np.ndarray  # (n,) str: the name of each group
    owner: np.ndarray  # (n,) int, ascending: index of the image that a group belongs to


@dataclass(frozen=True)
class Sides:
    """All that a method compares."""

    images: NamedSide  # as items: each described by its texts
    captions: NamedSide  # the reference captions, each for itself: queries and items
    image_queries: NamedSide  # the images as queries
    bank: Side | None  # training captions; None where the method needs none


def sides(method: Method, sources: Sources, images: list[str]) -> Sides:
    """The two sides of both directions, for these images."""
    index = {image_id: i for i, image_id in enumerate(images)}
    reference_rows, reference_vectors, owner = _rows(sources.embed_reference(), index)
    second = dict.fromkeys(("images", "reference", "bank"))  # vectors of a plug-in
    for name, step in method.plugged.items():
        embedded = step.vectors(sources, "images")
        if blind := index.keys() - set(embedded.rows["image_id"]):
            raise MissingError(
                f"{len(blind):,} of {len(images):,} images of the gallery have no "
                f"pixels for {name} to look at"
            )
        second["images"] = _rows(embedded, index)[1]
        second["reference"] = _rows(step.vectors(sources, "reference"), index)[1]
        second["bank"] = step.vectors(sources, "bank").vectors if method.needs_bank else None
    texts = reference_rows["text"].to_numpy()
    reference, bank = one_each(texts, reference_vectors, second["reference"]), None
    if method.needs_bank:
        training = sources.embed_bank()
        mean, texts = training.vectors.mean(axis=0), training.rows["text"].to_numpy()
        bank = one_each(texts, training.vectors, second["bank"], mean)
        reference = replace(reference, mean=mean)

    def described(embeddings: Embeddings) -> NamedSide:
        rows, vectors, groups = _rows(embeddings, index)
        mean = vectors.mean(axis=0) if method.needs_bank else None
        side = Side(rows["text"].to_numpy(), groups, vectors, second["images"], mean=mean)
        return NamedSide(side, np.array(images, dtype=object), np.arange(len(images)))

    captions = NamedSide(reference, query_ids(reference_rows).to_numpy(), owner)
    if method.captions_ask:
        return Sides(described(sources.embed_reference()), captions, captions, bank)
    items = described(sources.embed_captions(method.texts))
    asks = sources.query_captioner
    asking = described(sources.embed_image_queries(method.texts)) if asks else items
    return Sides(items, captions, asking, bank)


def _rows(
    embeddings: Embeddings, index: dict[str, int]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows, vectors and image indices of the images in ``index``, in its order."""
    image = embeddings.rows["image_id"].map(index)
    order = image.dropna().sort_values(kind="stable").index
    groups = image[order].to_numpy(dtype=np.int64)
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
        method: a scoring rule, see ``methods.py``.
        sources: what it draws on.
        top_k: results kept for every query.
        images: the gallery; default: all images that have both kinds of text.
        queries: the images of the gallery whose captions are queries; the others are distractors.
            Default: all.

    Returns:
        The ``ranks`` and ``top`` tables of :class:`Rankings`.

    Raises:
        InputError: an unknown method, or ``top_k`` is not positive.
        MissingError: the method draws on something that is not there.
    """
    check(top_k=top_k)
    parsed = Method(method)
    gallery = sorted(images) or sources.gallery
    own = set(queries) or set(gallery)
    gallery.sort(key=lambda image_id: image_id not in own)  # distractors last
    both, ranks, top = sides(parsed, sources, gallery), [], []
    for direction, left, right in (
        ("t2i", both.captions, both.images),
        ("i2t", both.image_queries, both.captions),
    ):
        n = int(np.searchsorted(left.owner, len(own)))
        # the bank holds reference captions: it can stand in for the queries of text-to-image only
        bank = both.bank if direction == "t2i" else None
        scorer = Scorer(parsed, right.side, bank)
        score = scorer(left.side.take(slice(0, n)))
        task = RankingTask(direction, score, left, right, np.array(gallery, dtype=object), n, top_k)
        tables = task.run(sources.scheduler)
        ranks.append(tables[0])
        top.append(tables[1])
    return pd.concat(ranks, ignore_index=True), pd.concat(top, ignore_index=True)


@dataclass(frozen=True)
class RankingTask:
    """The queries of one direction, to be ranked against all items."""

    direction: str  # "t2i" or "i2t"
    score: Score  # of the first n queries against the items
    queries: NamedSide
    items: NamedSide  # the same object where queries are items
    images: np.ndarray  # (n_images,) str: the gallery, to which owner of both sides refers
    n: int  # how many of the queries are ranked
    top_k: int  # results kept for each

    def run(self, scheduler: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
        """The ``ranks`` and ``top`` tables of :class:`Rankings`, a block of queries at a time."""
        each = blocks(self.n, self.items.side.n)
        pieces = [[block] for block in each] if scheduler else [each]  # or all at once
        done = sorted(spread(_rank_blocks, pieces, scheduler, (self,)), key=itemgetter(0))
        ranks, top = zip(*(tables for _, several in done for tables in several), strict=True)
        return pd.concat(ranks, ignore_index=True), pd.concat(top, ignore_index=True)

    def tables(self, block: slice, scores: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows of one block of queries, from their ``scores (n_in_block, n_items)``."""
        ids, owner = self.queries.ids[block], self.queries.owner[block]
        queries, relevant = self._relevant(block)
        ranks = {
            "direction": self.direction,
            "query_id": ids,
            "image_id": self.images[owner],
            **rank_relevant(scores, queries, relevant),
            "n_relevant": np.bincount(queries, minlength=len(owner)),
            "n_items": scores.shape[1],
        }
        best = top_items(scores, self.top_k)
        k = best.shape[1]
        hit = self.items.owner[best] == owner[:, None]
        if self.queries is self.items:  # a caption is no answer to itself
            hit &= best != np.arange(block.start, block.start + len(owner))[:, None]
        top = {
            "direction": self.direction,
            "query_id": np.repeat(ids, k),
            "rank": np.tile(np.arange(1, k + 1), len(best)),
            "item_id": self.items.ids[best].ravel(),
            "image_id": self.images[self.items.owner[best]].ravel(),
            "score": np.take_along_axis(scores, best, 1).ravel().astype(np.float32),
            "hit": hit.ravel(),
        }
        return pd.DataFrame(ranks), pd.DataFrame(top)

    def _relevant(self, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a query of the block and a relevant item: those of the same image."""
        owner, owners = self.queries.owner[block], self.items.owner
        first, last = (np.searchsorted(owners, owner, side) for side in ("left", "right"))
        each = last - first  # the items of an image are adjacent
        queries = np.repeat(np.arange(len(owner)), each)
        items = np.arange(len(queries)) - np.repeat(np.cumsum(each) - each, each) + first[queries]
        if self.queries is self.items:
            others = items != queries + block.start
            queries, items = queries[others], items[others]
        return queries, items


def _rank_blocks(pieces: list[slice], task: RankingTask) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """``ranks`` and ``top`` of each block."""
    return [task.tables(block, task.score(block)) for block in pieces]


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


def caption_texts(queries: Embeddings) -> dict[str, str]:
    """The text of every reference caption by its id ``<image_id>#<variant>``."""
    return dict(zip(query_ids(queries.rows), queries.rows["text"], strict=True))
