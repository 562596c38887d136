"""What scoring rules draw on: a dataset, a captioner and an encoder go in; captions and vectors
come out, from disk where they are up to date.

The methods ``embed_…`` encode and store on disk, ``encode…`` encode one query in memory. A rule
whose training captions or CLIP weights are missing stops with a sentence and leaves the
others alone. Another split, encoder or number of variants is ``dataclasses.replace(sources, …)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import InputError, MissingError, fingerprint, slug
from trsllava_utils.captioning import Captions, choose_captioner, load_captions, seen_by
from trsllava_utils.captioning.names import in_style
from trsllava_utils.captioning.records import text_forms
from trsllava_utils.datasets import Dataset, load_metadata, other_split
from trsllava_utils.embedding import (
    MINILM,
    ClipEncoder,
    Embeddings,
    Encoder,
    embed_corpus,
    kept_encoder,
    unit_vectors,
)
from trsllava_utils.embedding.clip import embed_clip_images, embed_clip_texts
from trsllava_utils.parameters import check
from trsllava_utils.retrieval.methods import Method


def _once(method: Callable) -> Callable:
    """A method whose result stays with its object for the next call."""

    @wraps(method)
    def remembered(self, *args):
        key = (method.__name__, *args)
        if key not in self._results:
            self._results[key] = method(self, *args)
        return self._results[key]

    return remembered


def _file_name(texts: str) -> str:
    """``a+b`` and ``a,b`` are different texts, so they get different names."""
    return slug(texts.replace("+", "_"))


@dataclass(frozen=True)
class Sources:
    """Texts and vectors of one split.

    Attributes:
        dataset: the split; its images are shown as the captioner saw them.
        captioner: who described its images, one or several (``captioning/captions.py``); empty:
            see ``choose_captioner``, chosen once, so that other splits have the same.
        encoder: name of the text encoder.
        texts: which texts of a caption are compared, see ``records.py``; a method may name others.
        query_captioner: whose texts of an image ask in image-to-text: the short description (prompt
            "query") of a model, or captions by name; empty: those of ``captioner``.
        clip: name of a CLIP (see ``clip.py``); empty: none.
        variants: use only so many captions per image and captioner; 0: all.
        scheduler: where texts are encoded and queries ranked, see ``cluster.py``.
        precision: of the text encoder, see :func:`trsllava_utils.embedding.load_encoder`.
    """

    dataset: Dataset
    captioner: str = ""
    encoder: str = MINILM
    texts: str = "joined"
    query_captioner: str = ""
    clip: str = ""
    variants: int = 0
    scheduler: str = ""
    precision: str = "float32"
    _results: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = vars(self).items()
        check({name: value for name, value in own if name not in ("dataset", "variants")})
        if self.variants:
            check(variants=self.variants)
        object.__setattr__(self, "captioner", choose_captioner(self.dataset, self.captioner))
        object.__setattr__(self, "dataset", seen_by(self.captioner, self.dataset))
        object.__setattr__(self, "texts", ",".join(text_forms(self.texts)))
        if self.query_captioner:
            asking = choose_captioner(self.dataset, self.query_captioner, "query")
            object.__setattr__(self, "query_captioner", asking)

    @cached_property
    def captions(self) -> Captions:
        """The captioner's records.

        Raises:
            MissingError: there are none yet; the message says how to get some.
        """
        return load_captions(self.dataset, self.captioner)

    @cached_property
    def query_captions(self) -> Captions:
        """The texts of images that ask in image-to-text; errors as for ``captions``."""
        asking = self.query_captioner
        return load_captions(self.dataset, asking) if asking else self.captions

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
        parts = [self.dataset.split, _file_name(self.described_by), slug(self.encoder)]
        parts += [self.precision] if self.precision != "float32" else []
        parts += [f"first{self.variants}"] if self.variants else []
        return ".".join(parts)

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

    @cached_property
    def metadata(self) -> pd.DataFrame:
        """What is known of the images; see :func:`trsllava_utils.datasets.load_metadata`."""
        return load_metadata(self.dataset)[0]

    @_once
    def embed_captions(self, texts: str = "") -> Embeddings:
        """The captioner's texts in these forms (see ``records.py``); default: ``self.texts``."""
        return self._embed_texts(self.captions, texts or self.texts)

    @_once
    def embed_image_queries(self, texts: str = "") -> Embeddings:
        """The texts of images that ask in image-to-text."""
        if not self.query_captioner:
            return self.embed_captions(texts)
        return self._embed_texts(self.query_captions, texts or self.texts)

    def _embed_texts(self, captions: Captions, texts: str) -> Embeddings:
        name = f"{self.dataset.split}.{captions.captioner}.{_file_name(texts)}"
        made = self._embed(captions.corpus(texts), name, "document")
        if not self.variants:
            return made
        first = (made.rows["variant"] < self.variants).to_numpy()
        rows = made.rows[first].reset_index(drop=True)
        return replace(made, rows=rows, vectors=made.vectors[first])

    @_once
    def embed_reference(self) -> Embeddings:
        """The reference captions, as queries."""
        return self._embed(self.dataset.captions, f"{self.dataset.split}.reference", "query")

    @_once
    def embed_bank(self) -> Embeddings:
        """The bank: distinct reference captions of the *training* split, as queries.

        Raises:
            MissingError: there are none.
        """
        return self._embed(self._training_captions(), "train.bank", "query")

    @cached_property
    def _encoder(self) -> Encoder:
        """One object for all texts: what it is may change on disk while this is in use."""
        return kept_encoder(self.encoder, self.precision)

    def _embed(self, corpus: pd.DataFrame, name: str, role: str) -> Embeddings:
        how = {"role": role, "scheduler": self.scheduler}
        return embed_corpus(corpus, self._encoder, self.dataset.derived, name, **how)

    @_once
    def _training_captions(self) -> pd.DataFrame:
        try:
            captions = other_split(self.dataset, "train").captions.drop_duplicates("text")
        except InputError:
            captions = self.dataset.captions[:0]
        if captions.empty or self.dataset.split in ("train", "all"):
            raise MissingError(
                f"needs a bank of training captions, and {self.dataset.title} "
                f"({self.dataset.split}) has none apart from its queries"
            )
        return captions

    @_once
    def embed_clip_images(self) -> Embeddings:
        """CLIP's vectors of the images."""
        return embed_clip_images(self.dataset, self._clip_name())

    @_once
    def embed_clip_reference(self) -> Embeddings:
        """CLIP's vectors of the reference captions."""
        captions, name = self.dataset.captions, f"{self.dataset.split}.reference"
        return embed_clip_texts(self.dataset, captions, self._clip_name(), name)

    @_once
    def embed_clip_bank(self) -> Embeddings:
        """CLIP's vectors of the bank."""
        captions = self._training_captions()
        return embed_clip_texts(self.dataset, captions, self._clip_name(), "train.bank")

    def _clip_name(self) -> str:
        if not self.clip:
            raise MissingError("needs a CLIP; pass -p clip openai/clip-vit-base-patch32")
        return self.clip

    @_once
    def encode(self, query: str) -> np.ndarray:
        """A free query as a unit row ``(1, dim) float32``, in memory only."""
        return unit_vectors([query], self._encoder, "query")

    @_once
    def encode_clip(self, query: str) -> np.ndarray:
        """The same in CLIP's space."""
        return unit_vectors([query], self._clip_encoder(), "text")

    @_once
    def _clip_encoder(self) -> ClipEncoder:
        return ClipEncoder(self._clip_name())

    def identity(self, method: Method) -> str:
        """Fingerprint of all that a method draws on, for manifests; embeds what is missing."""
        inputs = [self.embed_reference(), self.embed_captions(method.texts)]
        inputs.append(self.embed_image_queries(method.texts))
        if method.needs_bank:
            inputs.append(self.embed_bank())
        if method.needs_clip:
            inputs += [self.embed_clip_images(), self.embed_clip_reference()]
            inputs += [self.embed_clip_bank()] if method.needs_bank else []
        return fingerprint([e.identity for e in inputs], self.variants)
