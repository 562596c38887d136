"""What scoring rules draw on: a dataset, a captioner and an encoder go in; captions and vectors
come out, from disk where they are up to date.

The methods ``embed_…`` encode and store on disk, ``encode…`` encode one query in memory. A rule
whose training captions, CLIP weights or reranker are missing stops with a sentence and leaves the
others alone. Another split, encoder or number of variants is ``dataclasses.replace(sources, …)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import InputError, MissingError, fingerprint, not_here
from trsllava_utils.captioning import Captions, choose_captioner, load_captions
from trsllava_utils.datasets import Dataset, locate, other_split
from trsllava_utils.embedding import (
    MINILM,
    ClipEncoder,
    Embeddings,
    embed_corpus,
    embed_texts,
    unit_vectors,
)
from trsllava_utils.embedding.clip import embed_clip_images, embed_clip_texts
from trsllava_utils.embedding.encoders import disable_progress_bars
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


@dataclass(frozen=True)
class Sources:
    """Texts and vectors of one split.

    Attributes:
        dataset: the split.
        captioner: who described its images; empty: see ``choose_captioner``, chosen once, so that
            other splits have the same.
        encoder: name of the text encoder.
        clip: name of a CLIP (see ``clip.py``); empty: none.
        reranker: a sentence-transformers CrossEncoder, by hub id or folder; empty: none.
        bands: of the images, for CLIP.
        variants: use only so many captions per image; 0: all.
        scheduler: where texts are encoded and queries ranked, see ``cluster.py``.
        precision: of the text encoder, see :func:`trsllava_utils.embedding.load_encoder`.
    """

    dataset: Dataset
    captioner: str = ""
    encoder: str = MINILM
    clip: str = ""
    reranker: str = ""
    bands: str = ""
    variants: int = 0
    scheduler: str = ""
    precision: str = "float32"
    _results: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "captioner", choose_captioner(self.dataset, self.captioner))

    @cached_property
    def captions(self) -> Captions:
        """The captioner's records.

        Raises:
            MissingError: there are none yet; the message says how to get some.
        """
        return load_captions(self.dataset, self.captioner)

    @property
    def gallery(self) -> list[str]:
        """Ids of the images that are searched: those with machine and reference captions, sorted.

        Raises:
            InputError: there are none.
        """
        reference = set(self.dataset.captions["image_id"])
        common = sorted(image_id for image_id in self.captions.records if image_id in reference)
        if not common:
            raise InputError(
                "no image has both captions of the captioner and reference captions; evaluation "
                "needs both"
            )
        return common

    @cached_property
    def places(self) -> pd.DataFrame:
        """Where the images are: ``image_id -> lat, lon``; empty where nobody knows."""
        return locate(self.dataset)

    @_once
    def embed_captions(self, texts: str = "joined") -> Embeddings:
        """The captioner's texts: "joined", one per variant (the paper's way), or "fields", one per
        field."""
        name = f"{self.dataset.split}.{self.captions.captioner}.{texts}"
        made = self._embed(self.captions.corpus(texts), name, "document")
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

    def _embed(self, corpus: pd.DataFrame, name: str, role: str) -> Embeddings:
        how = {"role": role, "precision": self.precision, "scheduler": self.scheduler}
        return embed_corpus(corpus, self.encoder, self.dataset.derived, name, **how)

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
        return embed_clip_images(self.dataset, self._clip_name(), self.bands)

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

    def embed_query(self, query: str) -> np.ndarray:
        """A free query as a unit row ``(1, dim) float32``, kept on disk for the next run."""
        derived, precision = self.dataset.derived, self.precision
        made = embed_texts([query], self.encoder, derived, "query", precision=precision)
        self._results["encode", query] = made.vectors
        return made.vectors

    @_once
    def encode(self, query: str) -> np.ndarray:
        """A free query as a unit row ``(1, dim) float32``, in memory only."""
        return unit_vectors([query], self.encoder, "query", self.precision)

    @_once
    def encode_clip(self, query: str) -> np.ndarray:
        """The same in CLIP's space."""
        return unit_vectors([query], self._clip_encoder(), "text")

    @_once
    def _clip_encoder(self) -> ClipEncoder:
        return ClipEncoder(self._clip_name())

    def relevance(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """The cross-encoder's score of each (query text, item text): ``(n,) float32``."""
        return self._cross_encoder().predict(pairs, batch_size=64, show_progress_bar=False)

    def reranker_name(self) -> str:
        """Name of the cross-encoder.

        Raises:
            MissingError: none was given.
        """
        if not self.reranker:
            raise MissingError(
                "needs a cross-encoder; pass -p reranker cross-encoder/ms-marco-MiniLM-L6-v2"
            )
        return self.reranker

    @_once
    def _cross_encoder(self):
        name = self.reranker_name()
        from sentence_transformers import CrossEncoder

        disable_progress_bars()
        try:
            return CrossEncoder(name)
        except (OSError, ValueError) as error:
            raise not_here(f"cross-encoder {name!r}", error, "pass a hub id or a folder") from error

    def identity(self, method: Method) -> str:
        """Fingerprint of all that a method draws on, for manifests; embeds what is missing."""
        inputs = [self.embed_reference(), self.embed_captions(method.texts)]
        if method.needs_bank:
            inputs.append(self.embed_bank())
        if method.needs_clip:
            inputs += [self.embed_clip_images(), self.embed_clip_reference()]
            inputs += [self.embed_clip_bank()] if method.needs_bank else []
        reranker = self.reranker_name() if method.needs_reranker else ""
        return fingerprint([e.identity for e in inputs], reranker, self.variants)
