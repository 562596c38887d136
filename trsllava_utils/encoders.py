"""Encoders: texts go in, unit vectors come out.

Named by a string: ``all-MiniLM-L6-v2`` (it comes with the package), any sentence-transformers id or
folder, or a plug-in (``trsllava.encoders``): its kind before a colon, ``openai:MODEL``, or "A + B".
"""

from __future__ import annotations

import os
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from trsllava_utils import plugins
from trsllava_utils.files import InputError
from trsllava_utils.parameters import MINILM, check
from trsllava_utils.weights import (
    MINILM_SHA256,
    NO_CODE,
    embedded_minilm,
    not_here,
    resolve_precision,
    revision,
)


class Encoder(Protocol):
    """Turns texts into vectors; ``identity`` changes when the vectors would."""

    identity: str
    name: str  # names the file of its vectors; workers load it by this name too
    precision: str
    # vector of a control text, where the model may change behind an unchanged name; else empty
    control: list[float]

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """Texts, role "query" or "document" -> ``(n, dim) float32``, of any length."""

    def too_long(self, texts: list[str]) -> list[bool]:
        """Which texts are longer than the model reads, as far as that is known."""


def unit_vectors(
    texts: list[str], encoder: str | Encoder, role: str, precision: str = "float32"
) -> np.ndarray:
    """Texts -> ``(n, dim) float32`` unit rows.

    Raises:
        InputError: the encoder returned a zero or non-finite vector.
    """
    model = kept_encoder(encoder, precision) if isinstance(encoder, str) else encoder
    vectors = np.asarray(model.encode(texts, role), np.float32)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    good = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not good.all():
        raise InputError(
            f"encoder {model.identity!r} returned a zero or non-finite vector for the text "
            f"{texts[int(np.argmin(good))][:60]!r}"
        )
    return (vectors / norms).astype(np.float32)


def load_encoder(encoder: str = MINILM, precision: str = "float32") -> Encoder:
    """The encoder of that name (names are listed at the top of this module).

    Args:
        encoder: its name.
        precision: what the model computes in: "float32" (exact), "bfloat16" (faster on machines
            with units for it, and a little different), or "auto": bfloat16 on such machines. It is
            part of the identity of every vector.

    Raises:
        InputError: no name, or an unknown precision.
        MissingError: what the plug-in needs, a key for example, is not there.
    """
    check(encoder=encoder, precision=precision)
    if not encoder.strip():
        raise InputError(
            f"encoder is empty; pass -p encoder {MINILM}, a sentence-transformers id, or "
            "openai:MODEL"
        )
    kind = "joined" if " + " in encoder else encoder.partition(":")[0] if ":" in encoder else ""
    make = plugins.find("encoders", kind) or SentenceTransformerEncoder
    return make(encoder, precision)


def kept_encoder(encoder: str, precision: str = "float32") -> Encoder:
    """:func:`load_encoder`; the last one stays loaded for the next call, unless another server is
    meant."""
    check(encoder=encoder)
    return _kept(encoder, precision, *map(os.environ.get, ("OPENAI_BASE_URL", "OPENAI_API_KEY")))


_kept = lru_cache(1)(lambda encoder, precision, *server: load_encoder(encoder, precision))


class SentenceTransformerEncoder:
    """Any sentence-transformers model, with its query and document prompts where it has them. The
    weights are loaded at the first use.

    Args:
        name: hub id or folder.
        precision: see :func:`load_encoder`.
    """

    control: list[float] = []  # noqa: RUF012 (never changed)

    def __init__(self, name: str, precision: str = "float32") -> None:
        self.name = name
        self._is_minilm = name.removeprefix("sentence-transformers/") == MINILM
        self.precision = resolve_precision(precision)

    @cached_property
    def identity(self) -> str:
        if self._is_minilm:
            return f"{MINILM}@{MINILM_SHA256[:12]} {self.precision}"
        if not revision(self.name):
            self._model.eval()  # loads, and so downloads: then the revision is known
        return f"{self.name}{revision(self.name)} {self.precision}"

    @cached_property
    def _model(self):
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            path = embedded_minilm() if self._is_minilm else self.name
            return SentenceTransformer(path, **NO_CODE)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            hint = (
                f"use -p encoder {MINILM} (embedded), a sentence-transformers id or folder, or "
                "openai:MODEL"
            )
            raise not_here(f"encoder {self.name!r}", error, hint) from error

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`Encoder`.

        Raises:
            MissingError: the weights are not there.
        """
        import torch

        model, half = self._model, self.precision == "bfloat16"
        encode = model.encode_query if role == "query" else model.encode_document
        how = {"normalize_embeddings": True, "show_progress_bar": False}
        how["batch_size"] = 32 if model.device.type == "cpu" else 512
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            vectors = encode(texts, **how)
        return np.reshape(vectors, (len(texts), model.get_embedding_dimension())).astype(np.float32)

    def too_long(self, texts: list[str]) -> list[bool]:
        """See :class:`Encoder`."""
        model, longest = self._model, self._model.max_seq_length
        if not longest or not callable(model.tokenizer):  # models of single words read any text
            return [False] * len(texts)
        pieces = model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return [len(several) > longest for several in pieces]
