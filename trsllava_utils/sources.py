"""What scoring rules draw on: a dataset, a captioner and an encoder go in; captions and vectors
come out, from disk where they are up to date.

Another split, captioner, encoder or number of variants is ``dataclasses.replace(sources, …)``. What
has been read, and what was found missing, is remembered in one place that all variations of a
``Sources`` share: nothing is read or looked for twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from trsllava_utils.captioner import in_style
from trsllava_utils.captions import Captions, choose_captioner, load_captions, seen_by
from trsllava_utils.data import Dataset
from trsllava_utils.encoders import Encoder, kept_encoder, unit_vectors
from trsllava_utils.files import InputError, MissingError, slug
from trsllava_utils.parameters import MINILM, check
from trsllava_utils.records import text_forms
from trsllava_utils.vectors import Embeddings, embed_corpus, stored_vector


@dataclass(frozen=True)
class Sources:
    """Texts and vectors of one split.

    Attributes:
        dataset: the split; its images are shown as the captioner saw them.
        captioner: who described its images, one or several; empty: see ``choose_captioner``, chosen
            once, so that other splits have the same.
        query_captioner: whose texts of an image ask in image-to-text: the short description (prompt
            "query") of a model, or captions by name; empty: those of ``captioner``.
        encoder: name of the text encoder.
        texts: which texts of a caption are compared, see ``records.py``; a method may name others.
        clip: name of a CLIP, for the rules ``clip`` and ``fusion``; empty: none.
        precision: of the text encoder, see :func:`trsllava_utils.encoders.load_encoder`.
        variants: use only so many captions per image and captioner; 0: all.
        all_references: in image-to-text, search the reference captions of images that nobody
            described, too.
        scheduler: where texts are encoded, see :func:`~.vectors.embed_corpus`.
    """

    dataset: Dataset
    captioner: str = ""
    encoder: str = MINILM
    texts: str = "joined"
    query_captioner: str = ""
    clip: str = ""
    variants: int = 0
    all_references: bool = False
    scheduler: str = ""
    precision: str = "float32"
    _known: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check({name: getattr(self, name) for name in (*SETTING, "scheduler")})
        if self.variants:
            check(variants=self.variants)
        set_ = object.__setattr__.__get__(self)  # frozen for everybody else
        asked = (self.dataset, self.captioner)
        set_("captioner", self.once(choose_captioner, *asked))
        set_("dataset", self.once(seen_by, self.captioner, self.dataset))
        set_("texts", ",".join(text_forms(self.texts)))
        if self.query_captioner:
            asking = self.once(choose_captioner, self.dataset, self.query_captioner, "query")
            set_("query_captioner", asking)

    def once(self, function: Callable, *args: Any) -> Any:
        """The result of a call, or what it misses, remembered for this and all varied sources."""
        key = (function, *args)
        if key not in self._known:
            try:
                self._known[key] = function(*args), None
            except MissingError as error:
                self._known[key] = None, error
        result, error = self._known[key]
        if error:
            raise error
        return result

    @property
    def captions(self) -> Captions:
        """The captioner's records.

        Raises:
            MissingError: there are none yet; the message says how to get some.
        """
        return self.once(load_captions, self.dataset, self.captioner)

    @property
    def query_captions(self) -> Captions:
        """The texts of images that ask in image-to-text; errors as for ``captions``."""
        return self.once(load_captions, self.dataset, self.query_captioner or self.captioner)

    @property
    def described_by(self) -> str:
        """Whose texts they are, for titles: "rsrt", "rsrt+style° (plain), asked by query"."""
        mark = "°" if in_style(self.captioner) else ""
        texts = f" ({self.texts})" if self.texts != "joined" else ""
        asking = f", asked by {self.query_captions.captioner}" if self.query_captioner else ""
        return f"{self.captions.captioner}{mark}{texts}{asking}"

    @property
    def setting(self) -> str:
        """File name of what is made from these sources: split, texts, encoder, what is unusual."""
        # a+b and a,b are different texts, so they get different names
        parts = [self.dataset.split, slug(self.described_by.replace("+", "_")), slug(self.encoder)]
        parts += [self.precision] if self.precision != "float32" else []
        parts += [f"first{self.variants}"] if self.variants else []
        parts += ["all_references"] if self.all_references else []
        return ".".join(parts)

    def chosen(self) -> dict[str, str]:
        """All that makes this setting, by the names of the notebooks' parameters."""
        return {name: getattr(self, name) for name in SETTING}

    @property
    def gallery(self) -> list[str]:
        """Ids of the images that are searched: those with reference captions, captions of the
        captioner and, where it is another, of the one that asks; sorted.

        Raises:
            InputError: there are none.
        """
        described = self.captions.records.keys() & self.query_captions.records.keys()
        common = sorted(described & set(self.dataset.captions["image_id"]))
        if not common:
            raise InputError(
                "no image has both captions of the captioner and reference captions; evaluation "
                "needs both"
            )
        return common

    def asked_about(self, images: list[str]) -> list[str]:
        """These images and, with ``all_references``, behind them the others with reference
        captions, sorted."""
        others = {*self.dataset.captions["image_id"]} if self.all_references else ()
        return [*images, *sorted({*others}.difference(images))]

    def on(self, split: str) -> Sources:
        """The same on another split; errors as for :meth:`Dataset.on`."""
        return replace(self, dataset=self.dataset.on(split))

    # — vectors: embed_… encodes and stores on disk, encode one query in memory —

    def embed_captions(self, texts: str = "") -> Embeddings:
        """The captioner's texts in these forms (see ``records.py``); default: ``self.texts``."""
        return self._first(self.captions, texts or self.texts)

    def embed_image_queries(self, texts: str = "") -> Embeddings:
        """The texts of images that ask in image-to-text."""
        return self._first(self.query_captions, texts or self.texts)

    def _first(self, captions: Captions, texts: str) -> Embeddings:
        made = self.embed(captions.corpus, texts, role="document")
        if not self.variants:
            return made
        first = (made.rows["variant"] < self.variants).to_numpy()
        rows = made.rows[first].reset_index(drop=True)
        return replace(made, rows=rows, vectors=made.vectors[first])

    def embed_reference(self) -> Embeddings:
        """The reference captions, as queries."""
        return self.embed(reference_texts, self.dataset, role="query")

    def embed(self, corpus: Callable, *args: Any, role: str) -> Embeddings:
        """The vectors of ``corpus(*args)``, a table that is made only once."""
        where = (self.model, self.dataset.derived, self.scheduler)
        return self.once(_embedded, corpus, args, role, where)

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        """Queries of one's own as unit rows ``(n, dim) float32``, kept on disk, so that asking them
        again loads no model."""
        corpus, where = pd.DataFrame({"text": texts}), self.dataset.derived
        return embed_corpus(corpus, self.model, where, role="query").vectors

    def encode(self, query: str) -> np.ndarray:
        """A free query as a unit row ``(1, dim) float32``: the one on disk if the text is there as
        a query, else in memory only."""
        known = stored_vector(query, self.model, self.dataset.derived, "query")
        return unit_vectors([query], self.model, "query") if known is None else known

    @property
    def model(self) -> Encoder:
        """One object for all texts: what it is may change on disk while this is in use."""
        return self.once(kept_encoder, self.encoder, self.precision)


_NOT_SET = ("dataset", "variants", "all_references", "scheduler", "_known")
SETTING = tuple(f.name for f in fields(Sources) if f.name not in _NOT_SET)


def reference_texts(dataset: Dataset) -> pd.DataFrame:
    """The dataset's own captions."""
    return dataset.captions


def _embedded(corpus: Callable, args: tuple, role: str, where: tuple) -> Embeddings:
    model, derived, scheduler = where
    return embed_corpus(corpus(*args), model, derived, role=role, scheduler=scheduler)
