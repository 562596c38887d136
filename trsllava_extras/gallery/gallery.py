"""Galleries of any size: captions and their vectors in partitions under one URL, embedded and
searched one partition at a time, on this machine or on a Dask cluster.

    part-000000-1f0c….parquet                                    rows of a text corpus
    part-000000-1f0c….all-MiniLM-L6-v2-9e….float32.safetensors   the vectors of these rows

A file of vectors holds the hashes of its vectors and of its rows, which are compared when a
partition is opened.
An image scores the maximum over its texts, rule ``max``, which partitions can compute apart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from trsllava_extras.cluster import in_threads, spread
from trsllava_extras.gallery.partitions import PARTITION, Partitions, first_rows, whole_names
from trsllava_utils.encoders import kept_encoder, unit_vectors
from trsllava_utils.files import InputError, MissingError, fingerprint, progress, reading, slug
from trsllava_utils.parameters import MINILM, check
from trsllava_utils.ranking import count_ahead, query_ids, top_items
from trsllava_utils.scoring import Side, best_cosine, blocks, one_each
from trsllava_utils.vectors import Embeddings
from trsllava_utils.weights import resolve_precision


@dataclass(frozen=True)
class Gallery:
    """The partitions under a URL.

    Attributes:
        url: of the folder.
        encoder: name of the text encoder.
        dtype: how vectors are stored, "float32" or "float16"; products are float32 always.
        scheduler: where partitions are computed, see ``cluster.py``.
        precision: of the encoder, see :func:`trsllava_utils.encoders.load_encoder`.
    """

    url: str
    encoder: str = MINILM
    dtype: str = "float32"
    scheduler: str = field(default="", compare=False)
    precision: str = "float32"

    def __post_init__(self) -> None:
        check(encoder=self.encoder, dtype=self.dtype, scheduler=self.scheduler)
        # "auto" is decided here, once, and not by each worker
        object.__setattr__(self, "precision", resolve_precision(self.precision))

    @property
    def store(self) -> Partitions:
        """Where the files are."""
        return Partitions(self.url)

    def add(self, corpus: pd.DataFrame, texts_each: int = PARTITION) -> list[str]:
        """Append a text corpus; see :meth:`trsllava_extras.gallery.partitions.Partitions.add`."""
        return self.store.add(corpus, texts_each)

    def embed(self) -> int:
        """Make the vectors of every partition that has none, or damaged ones.

        Returns:
            How many partitions that were.

        Raises:
            MissingError: the gallery is empty, or the encoder is not there.
        """
        names, todo = self._listed()
        if not names:
            raise MissingError(f"no captions in {self.url}; Gallery.add puts them there")
        todo += [name for name in names if name not in todo and not self._is_whole(name)]
        done = spread(_embed, todo, self.scheduler, (self,))
        for _ in progress(done, total=len(todo), desc="embedding", unit="partition", delay=2):
            pass
        return len(todo)

    def rank(self, queries: Embeddings, top_k: int = 100) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Text-to-image retrieval of reference captions. The result is exact: the first k images of
        the partitions are merged, and the numbers of images ahead are added.

        Args:
            queries: captions, embedded as queries, of the images that they are to find.
            top_k: results kept for every query.

        Returns:
            ``ranks`` and ``top``, as :class:`trsllava_utils.rankings.Rankings` has them.

        Raises:
            InputError: ``top_k`` is not positive.
            MissingError: vectors are missing.
        """
        check(top_k=top_k)
        names = self._embedded()
        pieces = list(enumerate(names))
        owner = queries.rows["image_id"].to_numpy(dtype=object)
        best = np.full(len(owner), -np.inf, np.float32)
        shared = (self, owner, queries.vectors)
        for _, scores in spread(_own_scores, pieces, self.scheduler, shared):
            np.maximum(best, scores, out=best)
        counts, top, n_items = np.zeros((2, len(owner)), np.int64), Top.empty(len(owner)), 0
        parts = spread(_rank, pieces, self.scheduler, (self, queries.vectors, best, top_k))
        bar = progress(parts, total=len(pieces), desc="ranking", unit="partition", delay=2)
        for _, (part_counts, part_top, part_items) in bar:
            counts += part_counts
            top = top.merge(part_top, top_k)
            n_items += part_items
        here = np.isfinite(best).astype(np.int64)
        ids = {"direction": "t2i", "query_id": query_ids(queries.rows)}
        ranks = {**ids, "image_id": owner, "n_greater": counts[0], "n_tied": counts[1]}
        ranks |= {"n_relevant_tied": here, "n_relevant": here, "n_items": n_items}
        k = top.items.shape[1]
        image_ids = self._image_ids(names, top.items.ravel())
        table = pd.DataFrame(ids).loc[np.repeat(np.arange(len(owner)), k)]
        table = table.reset_index(drop=True).assign(
            rank=np.tile(np.arange(1, k + 1), len(owner)),
            item_id=image_ids,
            image_id=image_ids,
            score=top.scores.ravel(),
            hit=image_ids == np.repeat(owner, k),
        )
        return pd.DataFrame(ranks), table

    def find(self, query: str, k: int = 8) -> pd.DataFrame:
        """The images for a sentence, on this machine; vectors are mapped, not read, into memory.

        Returns:
            ``rank, image_id, score, text``: ``text`` is the nearest of the image's.

        Raises:
            InputError: an empty query, or ``k`` is not positive.
            MissingError: vectors are missing.
        """
        check(query=query, k=k)
        names = self._embedded()
        vector = unit_vectors([query], self.encoder, "query", self.precision)
        side = one_each(np.array([query]), vector)

        def first(number: int) -> Top:
            scores = best_cosine(side, open_part(self, names[number]).side)(slice(0, 1))
            return Top.of(scores, number, k)

        top = Top.empty(1)
        for part in in_threads(first, range(len(names))):
            top = top.merge(part, k)
        ids = self._image_ids(names, top.items[0])
        texts = [self._nearest(names, item, vector[0]) for item in top.items[0]]
        columns = {"image_id": ids, "score": top.scores[0].astype(float), "text": texts}
        return pd.DataFrame({"rank": np.arange(1, len(ids) + 1), **columns})

    def _listed(self) -> tuple[list[str], list[str]]:
        """The partitions, and those of them that have no vectors."""
        there = self.store.files
        names, ending = whole_names(there), self.vectors_name("")
        return names, [name for name in names if name + ending not in there]

    def _embedded(self) -> list[str]:
        """The partitions.

        Raises:
            MissingError: there are none, or some have no vectors.
        """
        names, bare = self._listed()
        if bare or not names:
            raise MissingError(
                f"{len(bare)} of {len(names)} partitions of {self.url} have no {self.dtype} "
                f"vectors by {self.encoder}; make them: python -m trsllava_utils gallery {self.url}"
            )
        return names

    def _is_whole(self, name: str) -> bool:
        try:
            open_part(self, name)
        except DamagedError:
            return False
        return True

    def _image_ids(self, names: list[str], items: np.ndarray) -> np.ndarray:
        """``(n,)`` items as Top numbers them -> ``(n,)`` str."""
        numbers, local = np.divmod(items, Top.PART)
        ids = np.empty(len(items), dtype=object)
        for number in np.unique(numbers):
            here = numbers == number
            ids[here] = open_part(self, names[number]).ids[local[here]]
        return ids

    def _nearest(self, names: list[str], item: int, vector: np.ndarray) -> str:
        """The text of an image with the greatest cosine to a query."""
        number, image = divmod(int(item), Top.PART)
        side = open_part(self, names[number]).side
        first, last = np.searchsorted(side.groups, (image, image + 1))
        row = first + int(np.argmax(side.vectors[first:last].astype(np.float32) @ vector))
        return self.store.text(names[number], row)

    def vectors_name(self, partition: str) -> str:
        """Name of the file that holds the vectors of a partition."""
        identity = fingerprint(kept_encoder(self.encoder, self.precision).identity)[:8]
        return f"{partition}.{slug(Path(self.encoder).name)}-{identity}.{self.dtype}.safetensors"


@dataclass(frozen=True)
class Part:
    """A partition made ready: its texts' vectors by image, mapped into memory, and image ids."""

    side: Side
    ids: np.ndarray


class DamagedError(InputError):
    """Vectors are not those that were made of the rows beside them; they can be made again."""


@lru_cache(maxsize=256)
def open_part(gallery: Gallery, name: str) -> Part:
    """A partition with its vectors, kept from call to call.

    Raises:
        DamagedError: the vectors are not those that were written.
        InputError: the rows are not those that the vectors were made of.
    """
    path = gallery.store.local(gallery.vectors_name(name))
    try:
        with safe_open(path, "pt") as file:  # unlike numpy's, a view of the file
            made_of, vectors = file.metadata() or {}, file.get_tensor("vectors").numpy()
    except (SafetensorError, TypeError, OSError):  # TypeError: of a kind that numpy lacks
        made_of, vectors = {}, np.empty((0, 0))
    of_vectors, _, of_rows = made_of.get("sha256", "").partition(" ")
    parquet = gallery.store.local(f"{name}.parquet")
    with reading(parquet):
        rows = Path(parquet).read_bytes()
    if of_rows != hashlib.sha256(rows).hexdigest():
        gallery.store.rows(name)  # raises where it is the rows that were changed
    elif of_vectors == hashlib.sha256(memoryview(vectors)).hexdigest():
        return _part(rows, vectors)
    raise DamagedError(
        f"{path} is damaged, or of an earlier version; make it again: python -m trsllava_utils "
        f"gallery {gallery.url}"
    )


def _part(rows: bytes, vectors: np.ndarray) -> Part:
    image_ids = pq.read_table(BytesIO(rows), columns=["image_id"])["image_id"].to_pandas()
    starts = first_rows(image_ids)
    groups = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(image_ids)))
    texts = np.broadcast_to(np.array("", dtype=object), len(groups))  # not needed for scores
    side = Side(texts, groups, vectors)
    return Part(side, image_ids.to_numpy()[starts])


@dataclass(frozen=True)
class Top:
    """The first items of every query, best first; equal scores in the order of the gallery.

    Attributes:
        scores: ``(n_queries, k) float32``.
        items: ``(n_queries, k) int64``: number of the partition times ``PART`` plus that of the
            image in it.
    """

    PART = 1 << 32
    scores: np.ndarray
    items: np.ndarray

    @classmethod
    def empty(cls, n: int) -> Top:
        """No items for n queries."""
        return cls(np.zeros((n, 0), np.float32), np.zeros((n, 0), np.int64))

    @classmethod
    def of(cls, scores: np.ndarray, number: int, k: int) -> Top:
        """The first k of a partition, from ``scores (n_queries, n_images)``."""
        best = top_items(scores, k)
        return cls(np.take_along_axis(scores, best, axis=1), best + number * cls.PART)

    def merge(self, other: Top, k: int) -> Top:
        """The first k of both; in which order partitions come makes no difference."""
        scores = np.concatenate([self.scores, other.scores], axis=1)
        items = np.concatenate([self.items, other.items], axis=1)
        order = np.lexsort((items, -scores), axis=1)[:, :k]
        return Top(np.take_along_axis(scores, order, 1), np.take_along_axis(items, order, 1))


# Functions run on one partition, here or on a worker. They may run twice if a worker dies.


def _embed(name: str, gallery: Gallery) -> None:
    rows, sha256 = gallery.store.rows(name)
    number, distinct = pd.factorize(rows["text"].to_numpy())
    vectors = unit_vectors(distinct.tolist(), gallery.encoder, "document", gallery.precision)
    vectors = np.ascontiguousarray(vectors.astype(gallery.dtype)[number])
    made_of = f"{hashlib.sha256(memoryview(vectors)).hexdigest()} {sha256}"
    content = save({"vectors": vectors}, {"sha256": made_of})
    gallery.store.write(gallery.vectors_name(name), content)


def _own_scores(
    piece: tuple[int, str], gallery: Gallery, owner: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """Scores ``(n_queries,)`` of the queries' own images; minus infinity for those elsewhere."""
    part = open_part(gallery, piece[1])
    image = pd.Index(part.ids).get_indexer(owner)
    scores = np.full(len(owner), -np.inf, np.float32)
    bounds = np.searchsorted(part.side.groups, np.arange(len(part.ids) + 1))
    for query in np.flatnonzero(image >= 0):
        texts = part.side.vectors[bounds[image[query]] : bounds[image[query] + 1]]
        scores[query] = (texts.astype(np.float32) @ vectors[query]).max()
    return scores


def _rank(
    piece: tuple[int, str], gallery: Gallery, vectors: np.ndarray, best: np.ndarray, k: int
) -> tuple[np.ndarray, Top, int]:
    """Images ahead of and level with ``best`` ``(2, n_queries)``, the first k, number of images."""
    number, name = piece
    side = open_part(gallery, name).side
    score = best_cosine(one_each(np.broadcast_to("", len(vectors)), vectors), side)
    counts, tops = [], []
    for block in blocks(len(vectors), side.n):
        scores = score(block)
        counts.append(count_ahead(scores, best[block]))
        tops.append(Top.of(scores, number, k))
    top = Top(np.concatenate([t.scores for t in tops]), np.concatenate([t.items for t in tops]))
    return np.concatenate(counts, axis=1), top, side.n
