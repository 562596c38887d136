"""Search: a sentence or an image goes in, the images it finds come out, to be looked at or kept.

No human captions are needed: what is searched are the captioner's texts. Where the sentence is one
of the dataset's own captions, its images are known, and marked.

    from trsllava_utils.search.index import search
    search("two planes near a round building", dataset="rsicd", k=8)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import InputError, atomic_path, check_choice
from trsllava_utils.datasets.dataset import clean_text, load_dataset
from trsllava_utils.embedding.encoders import MINILM
from trsllava_utils.retrieval.methods import Method
from trsllava_utils.retrieval.products import Score, Side, centre, one_each, prepare
from trsllava_utils.retrieval.ranking import sides, top_items
from trsllava_utils.retrieval.sources import Sources
from trsllava_utils.search import pages


@dataclass(frozen=True, repr=False)
class Found:
    """One page of a result. Shown by Jupyter as a gallery.

    Attributes:
        query: the sentence, or the id of the image that others are to be like.
        by_image: whether it is an image.
        method: the scoring rule.
        table: ``rank, image_id, score, label, variant, text, hit, lat, lon``: ``variant`` (from 1)
            and ``text`` are the captioner's nearest to the query; ``hit`` says whether the query is
            a human caption of this image (NA where it is nobody's); ``lat`` and ``lon`` are there
            only where the dataset knows places.
        total: images that were ranked.
        sources: whose images and captions they are.
    """

    query: str
    by_image: bool
    method: str
    table: pd.DataFrame
    total: int
    sources: Sources

    def __repr__(self) -> str:
        columns = ["rank", "image_id", "score", "label", "lat", "lon"]
        table = self.table[[c for c in columns if c in self.table]]
        return table.round({"score": 3, "lat": 4, "lon": 4}).to_string(index=False)

    def _repr_html_(self) -> str:
        return pages.gallery(self)

    def save_html(self, path: str | Path) -> Path:
        """Write the gallery, with every image's captions, as one page that needs no network."""
        with atomic_path(path) as tmp:
            tmp.write_text(pages.search_page(self), encoding="utf-8")
        return Path(path)

    def save_csv(self, path: str | Path) -> Path:
        """Write the table."""
        with atomic_path(path) as tmp:
            tmp.write_text(self.csv(), encoding="utf-8")
        return Path(path)

    def csv(self) -> str:
        """The table as CSV, headed by the query."""
        first = {"query": self.query, "method": self.method}
        return self.table.assign(**first)[[*first, *self.table]].to_csv(index=False)


class Index:
    """A gallery made ready to be searched with one method: what does not depend on the query is
    done once.

    Args:
        sources: the texts and vectors.
        method: a scoring rule, see ``methods.py``.

    Raises:
        InputError: the method looks at all test queries, of which there are none here.
        MissingError: the method draws on something that is not there.
    """

    def __init__(self, sources: Sources, method: str = "max") -> None:
        self._method = Method(method)
        if not self._method.ranks_one_query:
            raise InputError(
                f"method {method!r} ranks the queries of a dataset, not one of your own"
            )
        self.sources = sources
        self.image_ids = list(sources.captions.records)
        images = sources.dataset.images.set_index("image_id")
        self.labels = images["label"].reindex(self.image_ids).to_numpy()
        described, _, bank = sides(self._method, sources, self.image_ids)
        self._items = described.side
        self._by_text = prepare(self._method, self._items, bank, sources.relevance)
        self._starts = np.searchsorted(self._items.groups, np.arange(len(self.image_ids) + 1))

    def find(self, query: str, k: int = 8, page: int = 1, label: str = "") -> Found:
        """The images for a sentence.

        Args:
            query: the sentence.
            k: images a page.
            page: which page, from 1.
            label: only images of this class; empty: all.

        Raises:
            InputError: an empty query, or there is no such class or page.
        """
        if not query.strip():
            raise InputError("the query is empty; type what the image should show")
        vector = self.sources.encode(query)
        clip = self.sources.encode_clip(query) if self._items.clip is not None else None
        asked = one_each(np.array([query]), vector, clip)
        if "centred" in self._method.steps:
            asked = centre(asked, self.sources.bank.vectors.mean(axis=0))
        own = self._captioned.get(_folded(query), set())
        return self._page(query, asked, self._by_text(asked), own, k, page, label)

    def like(self, image_id: str, k: int = 8, page: int = 1, label: str = "") -> Found:
        """The images whose texts are nearest to those of an image (the image itself left out).

        Raises:
            InputError: the image has no captions here, or there is no such class or page.
        """
        if image_id not in self.image_ids:
            raise InputError(f"image {image_id!r} has no captions, so nothing can be like it")
        number = self.image_ids.index(image_id)
        asked = self._items.take(slice(number, number + 1))
        return self._page(image_id, asked, self._by_image(asked), None, k, page, label, number)

    @cached_property
    def _by_image(self):
        # a bank of human captions cannot stand in for images that ask
        return prepare(self._method, self._items, None, self.sources.relevance)

    @cached_property
    def _captioned(self) -> dict[str, set[str]]:
        """Human caption -> the images that have it."""
        captions = self.sources.dataset.captions
        found: dict[str, set[str]] = {}
        for image_id, text in zip(captions["image_id"], captions["text"], strict=True):
            found.setdefault(_folded(text), set()).add(image_id)
        return found

    def _page(
        self,
        query: str,
        asked: Side,
        score: Score,
        own: set[str] | None,
        k: int,
        page: int,
        label: str,
        left_out: int | None = None,
    ) -> Found:
        """One page of the ranking; ``own``: the images the query belongs to, None for an image."""
        scores = score(slice(0, 1))[0]
        listed = np.arange(len(scores))
        if label:
            check_choice("class", label, sorted(set(self.labels) - {""}))
            listed = listed[self.labels == label]
        listed = listed[listed != left_out]
        first = (page - 1) * k
        if k < 1 or page < 1 or (first and first >= len(listed)):
            raise InputError(f"no page {page} of {k} images: {len(listed):,} images are listed")
        order = top_items(scores[None, listed], min(page * k, max(len(listed), 1)))[0][first:]
        best = listed[order]
        nearest = [self._nearest(i, asked) for i in best]
        ids = [self.image_ids[i] for i in best]
        table = pd.DataFrame(
            {
                "rank": np.arange(first + 1, first + 1 + len(best)),
                "image_id": ids,
                "score": scores[best].astype(float),
                "label": self.labels[best],
                "variant": [self._variant(i, t) for i, t in zip(ids, nearest, strict=True)],
                "text": nearest,
                "hit": pd.array([i in own if own else None for i in ids], dtype="boolean"),
            }
        )
        if len(self.sources.places):
            table = table.join(self.sources.places, on="image_id")
        return Found(query, own is None, self._method.name, table, len(listed), self.sources)

    def _nearest(self, image: int, asked: Side) -> str:
        """The text of an image with the greatest cosine to any text that asks."""
        texts = slice(self._starts[image], self._starts[image + 1])
        cosine = (self._items.vectors[texts] @ asked.vectors.T).max(axis=1)
        return self._items.texts[texts][int(np.argmax(cosine))]

    def _variant(self, image_id: str, text: str) -> int:
        """Number, from 1, of the variant that holds the text."""
        variants = self.sources.captions.records[image_id].variants
        return next(
            number
            for number, variant in enumerate(variants, 1)
            if text in {clean_text(t) for t in (variant.joined(), *variant.fields.values())}
        )


def _folded(text: str) -> str:
    """A caption for comparison: case, blanks and the full stop do not count."""
    return " ".join(clean_text(text).lower().rstrip(" .").split())


def search(
    query: str,
    dataset: str = "sample",
    k: int = 8,
    method: str = "max",
    captioner: str = "pixels",
    encoder: str = MINILM,
    split: str = "test",
    data_dir: str = "",
    clip: str = "",
    reranker: str = "",
    bands: str = "",
) -> Found:
    """Search a captioned dataset or folder of images in one call; to ask again and again, keep an
    :class:`Index`.

    Returns:
        The first ``k`` images. Jupyter shows them as a gallery; ``.table`` holds them.

    Raises:
        InputError, MissingError: see :func:`trsllava_utils.datasets.load_dataset` and
            :class:`Index`; where captions are missing, the message is the command that makes them.
    """
    loaded = load_dataset(dataset, data_dir, split)
    return Index(Sources(loaded, captioner, encoder, clip, reranker, bands), method).find(query, k)
