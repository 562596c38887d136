"""Search: a sentence, weighted words, a picture or images marked as right go in; the images found
come out.

What is searched are the captioner's texts; reference captions are not needed. Where the sentence is
one of the dataset's own captions, its images are known, and marked.

    from trsllava_extras.panel import search
    search("two planes near a round building", dataset="rsicd", k=8)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from trsllava_extras import choice
from trsllava_extras.metadata import metadata_of, parse_bbox, select
from trsllava_extras.methods import Method, Scorer
from trsllava_extras.panel.found import FILTERS, Found
from trsllava_extras.panel.picture import describe
from trsllava_extras.panel.query import Part, Query, folded, parse_query, phrase, with_feedback
from trsllava_extras.panel.uncaptioned import pictured
from trsllava_extras.tags import stamp
from trsllava_utils.annotations import clean_text
from trsllava_utils.data import Dataset, load_dataset
from trsllava_utils.files import InputError, MissingError, check_choice, first_few
from trsllava_utils.parameters import MINILM, TILING, check
from trsllava_utils.ranking import top_items
from trsllava_utils.records import CORPUS_COLUMNS, text_forms
from trsllava_utils.scoring import Side, blocks, one_each
from trsllava_utils.sources import Sources

PROBES, FEWEST = 500, 20  # phrases of captions that a score is compared with
NOTHING = "nothing to search for: say what the images should show"
RESERVED = ("rank", "percentile", "query", "method", "path", "window", "split", "geometry")
OPTIONS = ("texts", "clip", "query_captioner", "precision", *FILTERS, *TILING)


class Index:
    """Searches one gallery by one method. What is the same for all queries is computed once, here.

    Args:
        sources: the texts and vectors.
        method: a scoring rule, see ``methods.py``. Those with CLIP search images without captions
            too.

    Raises:
        InputError: the method looks at all test queries, of which there are none here.
        MissingError: the method draws on something that is not there.
    """

    def __init__(self, sources: Sources, method: str = "max") -> None:
        self.method = Method(method)
        if not self.method.ranks_one_query:
            raise InputError(
                f"method {method!r} ranks the queries of a dataset, not one of your own"
            )
        sources = pictured(sources) if self.method.plugged else sources
        self.sources = sources
        self.image_ids = list(sources.captions.records)
        self._number = {image_id: n for n, image_id in enumerate(self.image_ids)}
        images = sources.dataset.images.set_index("image_id")
        self._labels = images["label"].reindex(self.image_ids).to_numpy()
        both = self.method.sides(sources, self.image_ids)
        self._described, self._reference = both.images.side, both.references.side
        self._mean = self._reference.mean
        self._by_text = self.method.scorer(self._described, both.bank)
        self._image_bank = both.image_bank
        self._forms = text_forms(self.method.texts or sources.texts)
        self._starts = np.searchsorted(self._described.groups, np.arange(len(self.image_ids) + 1))

    def find(
        self,
        query: str,
        k: int = 8,
        page: int = 1,
        *,
        right: Sequence[str] = (),
        wrong: Sequence[str] = (),
        picture: str = "",
        **only: str,
    ) -> Found:
        """The images for a query.

        Args:
            query: a sentence, or weighted parts and images, see ``query.py``; images that it names
                are not listed themselves.
            k: images per page.
            page: which page, from 1.
            right, wrong: ids of images marked in an earlier result (relevance feedback).
            picture: an image file; the first part of the query is its description. Methods with
                CLIP compare the picture itself, the others the description.
            only: filters ``label`` (a class), ``where`` (``"date >= '2023-06-01' and cloud < 20"``)
                and ``bbox`` (``"west,south,east,north"``), see
                :func:`trsllava_extras.metadata.select`.

        Raises:
            InputError: an empty query, there is no such image or page, or a filter that cannot be
                understood.
        """
        if isinstance(query, str) and not query.strip():
            raise InputError(NOTHING)
        for name in only:
            check_choice("filter", name, FILTERS)
        request = {"query": query, "k": k, "page": page, "right": [*right], "wrong": [*wrong]}
        request |= {"picture": picture, **dict.fromkeys(FILTERS, ""), **only}
        check(**request)
        parsed = self._parse(query)
        moved = with_feedback(parsed, right, wrong)
        listed = self._listed(*(request[name] for name in FILTERS))
        listed = listed[~np.isin(listed, [self._number_of(i) for i in parsed.images])]
        scores, wanted = self._scores(moved, picture)
        first = (page - 1) * k
        if first and first >= len(listed):
            raise InputError(f"no page {page} of {k} images: {len(listed):,} images are listed")
        order = top_items(scores[None, listed], min(page * k, len(listed)))[0]
        table = self._table(listed[order[first:]], scores, wanted, parsed)
        table.insert(0, "rank", np.arange(first + 1, first + 1 + len(table)))
        is_sentence = bool(moved.sentence) and not picture
        if is_sentence and len(self.best_scores) >= FEWEST:
            below = np.searchsorted(self.best_scores, table["score"])
            table.insert(3, "percentile", 100 * below / len(self.best_scores))
        request["method"] = self.method.name
        return Found(parsed, table, len(listed), self.sources, request)

    def scores(
        self, query: str, *, right: Sequence[str] = (), wrong: Sequence[str] = ()
    ) -> pd.Series:
        """The score of every image, by its id; arguments and errors as for :meth:`find`."""
        check(query=query)
        parsed = with_feedback(self._parse(query), right, wrong)
        return pd.Series(self._scores(parsed)[0], self.image_ids, name="score")

    def pick(self, image_ids: Sequence[str], query: str = "my selection") -> Found:
        """These images as a result, in this order, to be saved like any other.

        Raises:
            InputError: one of them is not here.
        """
        unknown = [image_id for image_id in image_ids if image_id not in self._number]
        if unknown or not image_ids:
            raise InputError(f"not among the images here: {first_few(unknown) or '(none given)'}")
        best = np.array([self._number[image_id] for image_id in image_ids], dtype=int)
        scores = np.full(len(self.image_ids), np.nan)
        parsed = Query(query, ())
        table = self._table(best, scores, self._described.vectors[:0], parsed)
        table.insert(0, "rank", np.arange(1, len(best) + 1))
        return Found(parsed, table, len(best), self.sources, {"selected": [*image_ids]})

    def every(self, **only: str) -> Found:
        """All images that the filters of :meth:`find` let through, as a result without scores.

        Raises:
            InputError: none of them, or a filter that cannot be understood.
        """
        check(**only)
        listed = self._listed(*(only.get(name, "") for name in FILTERS))
        told = " and ".join(text for text in only.values() if text.strip())
        if not len(listed):
            raise InputError(f"no image meets the condition {told}")
        return self.pick([self.image_ids[n] for n in listed], told)

    def _parse(self, query: str) -> Query:
        """A query in parts; captions of the dataset are sentences, whatever signs they hold."""
        return parse_query(query, is_sentence=folded(query) in self._captioned.index)

    def _number_of(self, image_id: str) -> int:
        if image_id not in self._number:
            raise InputError(f"image {image_id!r} has no captions here, so it cannot be a query")
        return self._number[image_id]

    def _scores(self, query: Query, picture: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Scores of all images ``(n_images,)``, the weighted mean of those of the parts; and the
        vectors ``(n_texts, dim)`` of the parts with a positive weight, centred if the method is."""
        scores, wanted = np.zeros(len(self.image_ids), np.float32), []
        for part in query.parts:
            shown = picture if part is query.parts[0] else ""
            side = self._side(part, shown)
            by = self._by_image if part.image or shown else self._by_text
            scores += np.float32(part.weight) * by(side)(slice(0, 1))[0]
            wanted += [by.prepare(side).vectors] if part.weight > 0 else []
        return scores / sum(abs(part.weight) for part in query.parts), np.concatenate(wanted)

    def _side(self, part: Part, picture: str) -> Side:
        if part.image:
            number = self._number_of(part.image)
            return self._described.take(slice(number, number + 1))
        second, what = None, ("picture", picture) if picture else ("query", part.text)
        for step in self.method.plugged.values():
            second = step.vectors(self.sources, *what)
        vectors = self.sources.once(Sources.encode, self.sources, part.text)
        return one_each(np.array([part.text]), vectors, second, self._mean)

    @cached_property
    def _by_image(self) -> Scorer:
        return self.method.scorer(self._described, self._image_bank)

    @cached_property
    def best_scores(self) -> np.ndarray:
        """The score of the first image for short phrases of the captions searched, ascending: what
        people's queries of a few words get here, where they fit. Empty for methods with CLIP."""
        if self.method.plugged:
            return np.zeros(0, np.float32)
        made = self.sources.embed(_phrases, self.sources, role="query")
        side = one_each(made.rows["text"].to_numpy(), made.vectors, None, self._mean)
        score = self._by_text(side)
        best = [score(block).max(axis=1) for block in blocks(side.n, len(self.image_ids))]
        return np.sort(np.concatenate([np.zeros(0, np.float32), *best]))

    @property
    def _captioned(self) -> pd.Series:
        """The images by their reference captions."""
        return self.sources.once(_by_caption, self.sources.dataset)

    def _listed(self, label: str, where: str, bbox: str) -> np.ndarray:
        """Numbers of the images that the filters let through."""
        listed = np.arange(len(self.image_ids))
        if label:
            check_choice("class", label, sorted(set(self._labels) - {""}))
            listed = listed[self._labels == label]
        if where.strip() or bbox.strip():
            passed = _passed(self.sources.dataset, where, bbox, stamp(self.sources.dataset))
            listed = listed[[self.image_ids[n] in passed for n in listed]]
        return listed

    def _table(
        self, numbers: np.ndarray, scores: np.ndarray, wanted: np.ndarray, parsed: Query
    ) -> pd.DataFrame:
        """What is known of these images, and the text of each that is nearest to what is wanted."""
        ids = [self.image_ids[n] for n in numbers]
        nearest = [self._nearest(n, wanted) for n in numbers]
        words = folded(parsed.sentence)
        captioned = words and words in self._captioned.index
        own = set(self._captioned.loc[[words]]) if captioned else set()
        table = pd.DataFrame(
            {
                "image_id": ids,
                "score": scores[numbers].astype(float),
                "label": self._labels[numbers],
                "variant": [self._variant(i, t) for i, t in zip(ids, nearest, strict=True)],
                "text": nearest,
                "hit": pd.array([i in own if own else None for i in ids], "boolean"),
            }
        )
        known = metadata_of(self.sources.dataset)
        columns = [c for c in known if c not in (*table, *RESERVED)]
        return table.join(known[columns], on="image_id")

    def _nearest(self, image: int, wanted: np.ndarray) -> str:
        """The text of an image with the greatest cosine to any vector of what is wanted."""
        items = self._by_text.texts
        texts = slice(self._starts[image], self._starts[image + 1])
        if not len(wanted):
            return items.texts[texts][0]
        cosine = (items.vectors[texts] @ wanted.T).max(axis=1)
        return items.texts[texts][int(np.argmax(cosine))]

    def _variant(self, image_id: str, text: str) -> int:
        """Number, from 1, of the variant that holds the text."""
        variants = self.sources.captions.records[image_id].variants
        return next(
            number
            for number, variant in enumerate(variants, 1)
            if text in {clean_text(variant.text(form)) for form in self._forms}
        )


# What `Sources` remembers must not hold an index, which is as large as the gallery.


def _phrases(sources: Sources) -> pd.DataFrame:
    """``PROBES`` different phrases of the captions, as a text corpus."""
    texts = sources.captions.corpus("one_sentence")["text"]
    phrases = sorted(set(map(phrase, texts)) - {""})
    chosen = np.sort(np.random.default_rng(0).permutation(len(phrases))[:PROBES])
    rows = [("", "phrases", n, "caption", phrases[n]) for n in chosen]
    return pd.DataFrame(rows, columns=CORPUS_COLUMNS)


def _by_caption(dataset: Dataset) -> pd.Series:
    """Image ids by the reference captions, folded."""
    return dataset.captions.set_index(dataset.captions["text"].map(folded))["image_id"]


@lru_cache(16)
def _passed(dataset: Dataset, where: str, bbox: str, _: tuple) -> set[str]:
    """The images that a condition and a box let through, while tags are the same: every page asks
    again."""
    return select(metadata_of(dataset), where, bbox)


def search(
    query: str = "",
    dataset: str = "sample",
    k: int = 8,
    *,
    image: str = "",
    method: str = "",
    captioner: str = "",
    encoder: str = MINILM,
    split: str = "test",
    data_dir: str = "",
    **options: str | int,
) -> Found:
    """Search a captioned dataset or folder of images in one call; to search again and again, keep
    an :class:`Index`.

    Args:
        query: what the images should show; empty, with a filter: all that it lets through.
        dataset, split, data_dir: see :func:`trsllava_utils.load_dataset`.
        k: number of images.
        image: a picture to search with: a captioner describes it, unless a query does.
        method: the scoring rule; empty: ``fusion`` with a CLIP, which finds images without captions
            too, else ``max``. Where no image has a caption and no CLIP is named, one of the hub's
            cache is taken.
        captioner, encoder, options: see :class:`trsllava_utils.sources.Sources`; options are
            ``texts, clip, query_captioner, precision``, ``tile`` and ``overlap`` of the windows of
            scenes, and the filters of :meth:`Index.find`. ``query_captioner`` describes the image.

    Returns:
        The first ``k`` images. Jupyter shows them as pictures; ``.table`` holds them.

    Raises:
        InputError, MissingError: see ``load_dataset`` and :class:`Index`; where captions are
            missing, the message is the command that makes them.
    """
    only = {name: options.pop(name) for name in FILTERS if name in options}
    is_asked = not isinstance(query, str) or query.strip() or image
    if not is_asked and not "".join(only.values()).strip():
        raise InputError(NOTHING)
    check(k=k, **({"query": query} if is_asked and not image else {}), **only)
    if only.get("bbox", "").strip():
        parse_bbox(only["bbox"])  # before anything is embedded
    describer = options.pop("query_captioner", "")
    how = {"captioner": captioner, "encoder": encoder, "split": split, "data_dir": data_dir}
    index = index_of(dataset, method, **how, **options)
    if not is_asked:
        return index.every(**only)
    if image and not query.strip():
        query = describe(image, index.sources, str(describer))
    return index.find(query, k, picture=image, **only)


def index_of(
    dataset: str,
    method: str = "",
    *,
    captioner: str = "",
    encoder: str = MINILM,
    split: str = "test",
    data_dir: str = "",
    **options: str | int,
) -> Index:
    """The index that :func:`search` asks; arguments and errors as there, without filters."""
    for name in options:
        check_choice("parameter", name, OPTIONS)
    tiling = {name: options.pop(name) for name in TILING if name in options}
    loaded = load_dataset(dataset, data_dir, split, **tiling)
    sources = Sources(loaded, captioner, encoder=encoder, **options)
    try:
        _ = sources.clip or sources.captions
    except MissingError:
        sources = replace(sources, clip=choice.clip())
        if not sources.clip:
            raise
    return Index(sources, method or ("fusion" if sources.clip else "max"))
