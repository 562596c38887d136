"""What scoring rules draw on: a dataset, a captioner, an encoder go in; captions and vectors come
out, each made when it is first asked for and from then on taken from disk.

So a rule whose training captions, CLIP weights or reranker are not there stops by itself, with a
sentence, and leaves the others alone. Another split, encoder or number of variants is
``dataclasses.replace(sources, …)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import InputError, MissingError, fingerprint, read_json
from trsllava_utils.captioning import Captions, load_captions
from trsllava_utils.datasets.dataset import Dataset, other_split
from trsllava_utils.datasets.places import locate
from trsllava_utils.embedding import clip
from trsllava_utils.embedding.encoders import MINILM, Encoder, load_encoder, without_bars
from trsllava_utils.embedding.vectors import Embeddings, embed_corpus


@dataclass(frozen=True)
class Sources:
    """Texts and vectors of one split, by name.

    Attributes:
        dataset: the split.
        captioner: who described its images.
        encoder: name of the text encoder.
        clip: name of a CLIP (see ``clip.py``); empty: none.
        reranker: a sentence-transformers CrossEncoder, by hub id or folder; empty: none.
        bands: of the images, for CLIP.
        variants: use only so many captions an image; 0: all.
        scheduler: where texts are encoded and queries ranked, see ``cluster.py``.
    """

    dataset: Dataset
    captioner: str = "pixels"
    encoder: str = MINILM
    clip: str = ""
    reranker: str = ""
    bands: str = ""
    variants: int = 0
    scheduler: str = ""

    @cached_property
    def captions(self) -> Captions:
        """The captioner's records.

        Raises:
            MissingError: there are none yet; the message is the command that makes them.
        """
        return load_captions(self.dataset, self.captioner)

    @property
    def gallery(self) -> list[str]:
        """The images that are searched: those with captions of both kinds.

        Raises:
            InputError: there are none.
        """
        human = set(self.dataset.captions["image_id"])
        common = sorted(image_id for image_id in self.captions.records if image_id in human)
        if not common:
            raise InputError(
                "no image has both captions of the captioner and human captions; evaluation "
                "needs both"
            )
        return common

    @cached_property
    def joined(self) -> Embeddings:
        """The captioner's texts, one a variant (the paper's way)."""
        return self._documents("joined")

    @cached_property
    def fields(self) -> Embeddings:
        """The captioner's texts, one a field."""
        return self._documents("fields")

    def _documents(self, texts: str) -> Embeddings:
        name = f"{self.dataset.split}.{self.captions.captioner}.{texts}"
        made = self._embed(self.captions.corpus(texts), name, "document")
        if not self.variants:
            return made
        first = (made.rows["variant"] < self.variants).to_numpy()
        rows = made.rows[first].reset_index(drop=True)
        return replace(made, rows=rows, vectors=made.vectors[first])

    @cached_property
    def human(self) -> Embeddings:
        """The human captions."""
        return self._embed(self.dataset.captions, f"{self.dataset.split}.human", "query")

    @cached_property
    def bank(self) -> Embeddings:
        """The bank: distinct human captions of the *training* split.

        Raises:
            MissingError: there are none.
        """
        return self._embed(self._training, "train.bank", "query")

    def _embed(self, corpus: pd.DataFrame, name: str, role: str) -> Embeddings:
        derived = self.dataset.derived
        return embed_corpus(corpus, self.encoder, derived, name, role, self.scheduler)

    @cached_property
    def _training(self) -> pd.DataFrame:
        try:
            found = other_split(self.dataset, "train").captions.drop_duplicates("text")
        except InputError:
            found = self.dataset.captions[:0]
        if found.empty or self.dataset.split in ("train", "all"):
            raise MissingError(
                f"needs a bank of training captions, and {self.dataset.title} "
                f"({self.dataset.split}) has none apart from its queries"
            )
        return found

    @cached_property
    def clip_images(self) -> Embeddings:
        """CLIP's vectors of the images."""
        return clip.embed_images(self.dataset, self._clip_name, self.bands)

    @cached_property
    def clip_human(self) -> Embeddings:
        """CLIP's vectors of the human captions."""
        name = f"{self.dataset.split}.human"
        return clip.embed_texts(self.dataset, self.dataset.captions, self._clip_name, name)

    @cached_property
    def clip_bank(self) -> Embeddings:
        """CLIP's vectors of the bank."""
        return clip.embed_texts(self.dataset, self._training, self._clip_name, "train.bank")

    @property
    def _clip_name(self) -> str:
        if not self.clip:
            raise MissingError("needs a CLIP; pass -p clip openai/clip-vit-base-patch32")
        return self.clip

    @property
    def reranker_name(self) -> str:
        """Name of the cross-encoder."""
        if not self.reranker:
            raise MissingError(
                "needs a cross-encoder; pass -p reranker cross-encoder/ms-marco-MiniLM-L6-v2"
            )
        return self.reranker

    @cached_property
    def _cross_encoder(self):
        name = self.reranker_name
        from sentence_transformers import CrossEncoder

        without_bars()
        try:
            return CrossEncoder(name)
        except (OSError, ValueError) as error:
            raise MissingError(
                f"cross-encoder {name!r} is not on this machine and cannot be "
                f"downloaded ({str(error).splitlines()[0][:120]})"
            ) from error

    def relevance(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """The cross-encoder's score of each (query text, item text): ``(n,) float32``."""
        return self._cross_encoder.predict(pairs, batch_size=64, show_progress_bar=False)

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self.encoder)

    def encode(self, query: str) -> np.ndarray:
        """A query of one's own as a unit row ``(1, dim) float32``."""
        return self._encoder.encode([query], "query")

    def encode_clip(self, query: str) -> np.ndarray:
        """The same in CLIP's space."""
        vector = self._clip_encoder.encode([query], "text")
        return vector / np.linalg.norm(vector)

    @cached_property
    def places(self) -> pd.DataFrame:
        """Where the images are: ``image_id -> lat, lon``; empty where nobody knows."""
        return locate(self.dataset)

    @cached_property
    def _clip_encoder(self) -> clip.ClipEncoder:
        return clip.ClipEncoder(self._clip_name)

    def identity(self, needs: tuple[str, ...]) -> str:
        """Fingerprint of what these attributes hold, for manifests."""
        return fingerprint([_identity(getattr(self, need)) for need in needs], self.variants)


def _identity(source: Embeddings | str) -> list | str:
    if isinstance(source, str):
        return source
    manifest = read_json(source.path.with_suffix(".json")) or {}
    return [manifest.get(key) for key in ("rows", "encoder_identity", "files")]
