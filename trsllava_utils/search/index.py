"""Search: a sentence or an image goes in, the images it finds come out.

What is searched are the captioner's texts; reference captions are not needed. Where the sentence is
one of the dataset's own captions, its images are known, and marked.

    from trsllava_utils.search import search
    search("two planes near a round building", dataset="rsicd", k=8)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import InputError, check_choice
from trsllava_utils.captioning.records import text_forms
from trsllava_utils.datasets.dataset import clean_text, load_dataset
from trsllava_utils.datasets.metadata import parse_bbox, select
from trsllava_utils.datasets.scenes import TILING
from trsllava_utils.parameters import MINILM, check
from trsllava_utils.retrieval import Method, Sources, sides
from trsllava_utils.retrieval.products import top_items
from trsllava_utils.retrieval.scoring import Scorer
from trsllava_utils.retrieval.side import Side, one_each
from trsllava_utils.search.found import Found

FILTERS = ("where", "bbox")
OPTIONS = ("texts", "clip", "precision", *FILTERS, *TILING)


@dataclass(frozen=True)
class _Answer:
    """One query against all images."""

    query: str  # the sentence, or the id of an image
    side: Side  # its texts, with their vectors as the method compares them
    scores: np.ndarray  # (n_images,)
    own: set[str] | None  # images that have it as a reference caption; None if it is an image


class Index:
    """A gallery made ready to be searched with one method: what does not depend on the query is
    computed once.

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
        both = sides(self._method, sources, self.image_ids)
        self._described, self._mean = both.images.side, both.captions.side.mean
        self._by_text = Scorer(self._method, self._described, both.bank)
        self._forms = text_forms(self._method.texts or sources.texts)
        self._starts = np.searchsorted(self._described.groups, np.arange(len(self.image_ids) + 1))

    def find(self, query: str, k: int = 8, page: int = 1, label: str = "", **only: str) -> Found:
        """The images for a sentence.

        Args:
            query: the sentence.
            k: images per page.
            page: which page, from 1.
            label: only images of this class; empty: all.
            only: filters ``where`` (``"date >= '2023-06-01' and cloud < 20"``) and ``bbox``
                (``"west,south,east,north"``), see :func:`trsllava_utils.datasets.metadata.select`.

        Raises:
            InputError: an empty query, there is no such class or page, or a filter that cannot be
                understood.
        """
        check(query=query, k=k, page=page, label=label)
        listed = self._listed(label, **only)
        clip = self.sources.encode_clip(query) if self._method.needs_clip else None
        side = one_each(np.array([query]), self.sources.encode(query), clip, self._mean)
        own = self._captioned.get(_folded(query), set())
        scores = self._by_text(side)(slice(0, 1))[0]
        answer = _Answer(query, self._by_text.prepare(side), scores, own)
        return self._page(answer, k, page, listed)

    def like(self, image_id: str, k: int = 8, page: int = 1, label: str = "", **only: str) -> Found:
        """The images whose texts are nearest to those of an image (the image itself left out).

        Raises:
            InputError: the image has no captions here; else as for :meth:`find`.
        """
        if image_id not in self.image_ids:
            raise InputError(f"image {image_id!r} has no captions, so it cannot be a query")
        check(k=k, page=page, label=label)
        number = self.image_ids.index(image_id)
        side = self._described.take(slice(number, number + 1))
        scores = self._by_image(side)(slice(0, 1))[0]
        answer = _Answer(image_id, self._by_image.prepare(side), scores, None)
        listed = self._listed(label, **only)
        return self._page(answer, k, page, listed[listed != number])

    @cached_property
    def _by_image(self) -> Scorer:
        # a bank of reference captions cannot stand in for queries that are images
        return Scorer(self._method, self._described)

    @cached_property
    def _captioned(self) -> dict[str, set[str]]:
        """Reference caption -> the images that have it."""
        captions = self.sources.dataset.captions
        images: dict[str, set[str]] = {}
        for image_id, text in zip(captions["image_id"], captions["text"], strict=True):
            images.setdefault(_folded(text), set()).add(image_id)
        return images

    def _listed(self, label: str, where: str = "", bbox: str = "") -> np.ndarray:
        """Numbers of the images that the filters let through."""
        listed = np.arange(len(self.image_ids))
        check(where=where, bbox=bbox)
        if label:
            check_choice("class", label, sorted(set(self.labels) - {""}))
            listed = listed[self.labels == label]
        if where.strip() or bbox.strip():
            passed = select(self.sources.metadata, where, bbox)
            listed = listed[[self.image_ids[i] in passed for i in listed]]
        return listed

    def _page(self, answer: _Answer, k: int, page: int, listed: np.ndarray) -> Found:
        """One page of the ranking of the images listed."""
        first = (page - 1) * k
        if first and first >= len(listed):
            raise InputError(f"no page {page} of {k} images: {len(listed):,} images are listed")
        order = top_items(answer.scores[None, listed], min(page * k, len(listed)))[0]
        best = listed[order[first:]]
        ids = [self.image_ids[i] for i in best]
        nearest = [self._nearest(i, answer.side) for i in best]
        table = pd.DataFrame(
            {
                "rank": np.arange(first + 1, first + 1 + len(best)),
                "image_id": ids,
                "score": answer.scores[best].astype(float),
                "label": self.labels[best],
                "variant": [self._variant(i, t) for i, t in zip(ids, nearest, strict=True)],
                "text": nearest,
                "hit": pd.array([i in answer.own if answer.own else None for i in ids], "boolean"),
            }
        )
        known = self.sources.metadata
        columns = [c for c in known if c not in (*table, "split", "geometry")]
        table = table.join(known[columns], on="image_id")
        by_image = answer.own is None
        return Found(answer.query, by_image, self._method.name, table, len(listed), self.sources)

    def _nearest(self, image: int, query: Side) -> str:
        """The text of an image with the greatest cosine to any text of the query."""
        items = self._by_text.texts
        texts = slice(self._starts[image], self._starts[image + 1])
        cosine = (items.vectors[texts] @ query.vectors.T).max(axis=1)
        return items.texts[texts][int(np.argmax(cosine))]

    def _variant(self, image_id: str, text: str) -> int:
        """Number, from 1, of the variant that holds the text."""
        variants = self.sources.captions.records[image_id].variants
        return next(
            number
            for number, variant in enumerate(variants, 1)
            if text in {clean_text(variant.text(form)) for form in self._forms}
        )


def _folded(text: str) -> str:
    """A caption for comparison: case, blanks and the full stop do not count."""
    return " ".join(clean_text(text).lower().rstrip(" .").split())


def search(
    query: str,
    dataset: str = "sample",
    k: int = 8,
    *,
    method: str = "max",
    captioner: str = "",
    encoder: str = MINILM,
    split: str = "test",
    data_dir: str = "",
    **options: str | int,
) -> Found:
    """Search a captioned dataset or folder of images in one call; to search again and again, keep
    an :class:`Index`.

    Args:
        query: what the images should show.
        dataset, split, data_dir: see :func:`trsllava_utils.datasets.load_dataset`.
        k: number of images.
        method: the scoring rule.
        captioner, encoder, options: see :class:`trsllava_utils.retrieval.Sources`; options are
            ``texts, clip, precision``, ``tile`` and ``overlap`` of the windows of scenes, and the
            filters of :meth:`Index.find`.

    Returns:
        The first ``k`` images. Jupyter shows them as pictures; ``.table`` holds them.

    Raises:
        InputError, MissingError: see ``load_dataset`` and :class:`Index`; where captions are
            missing, the message is the command that makes them.
    """
    for name in options:
        check_choice("parameter", name, OPTIONS)
    only = {name: options.pop(name) for name in FILTERS if name in options}
    check(query=query, k=k, **only)
    if only.get("bbox", "").strip():
        parse_bbox(only["bbox"])  # before anything is embedded
    tiling = {name: options.pop(name) for name in TILING if name in options}
    loaded = load_dataset(dataset, data_dir, split, **tiling)
    return Index(Sources(loaded, captioner, encoder, **options), method).find(query, k, **only)
