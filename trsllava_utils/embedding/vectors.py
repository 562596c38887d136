"""Vectors on disk: a text corpus goes in, a unit vector for each row comes out; no text is encoded
twice.

Files in ``data/<dataset>/derived/embeddings/<encoder>/``: ``<corpus>.safetensors`` (the vectors),
``<corpus>.parquet`` (their rows) and ``<corpus>.json`` (the manifest: encoder, versions).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import (
    InputError,
    atomic_path,
    fingerprint,
    progress,
    read_manifest,
    slug,
    versions,
    write_manifest,
)
from trsllava_utils.cluster import spread
from trsllava_utils.embedding.encoders import Encoder, kept_encoder, load_encoder

CHUNK = 2048  # texts encoded by one call
Stored = tuple[np.ndarray, list[str], dict]  # vectors, the keys of their texts, the manifest


@dataclass(frozen=True)
class Embeddings:
    """Vectors and the corpus rows they belong to.

    Attributes:
        rows: the text corpus, one row per vector.
        vectors: ``(len(rows), dim) float32``, unit rows.
        path: the safetensors file.
        encoded: how many distinct texts had to be encoded in this run (0: all were on disk).
        identity: fingerprint of rows, role and encoder.
    """

    rows: pd.DataFrame
    vectors: np.ndarray
    path: Path
    encoded: int
    identity: str = ""


def embed_corpus(
    corpus: pd.DataFrame,
    encoder: str | Encoder,
    derived: Path,
    name: str,
    *,
    role: str = "document",
    precision: str = "float32",
    scheduler: str = "",
) -> Embeddings:
    """Embed a text corpus, taking from disk every vector that is still right.

    A stored vector is used only for the same text, role, encoder and precision. Equal texts are
    encoded once. The model is loaded only when there is something to encode.

    Args:
        corpus: a text corpus (``image_id, source, variant, field, text``).
        encoder: name of the encoder, or an Encoder.
        derived: the dataset's folder of artefacts.
        name: name of the corpus, for the file.
        role: "query" or "document", which models with prompts treat differently; "text" or "image"
            for CLIP.
        precision: of an encoder given by name; see :func:`load_encoder`.
        scheduler: where an encoder given by name runs, see ``cluster.py``.

    Raises:
        InputError: the encoder returned a zero or non-finite vector.
        MissingError: its weights or its key are not there.
    """
    by_name = isinstance(encoder, str)
    model = load_encoder(encoder, precision) if by_name else encoder
    path = _path(derived, model, encoder if by_name else model.identity, name)
    corpus = corpus.reset_index(drop=True)
    rows = fingerprint(corpus.astype(str).values.tolist(), role)
    identity = fingerprint(rows, model.identity)
    stored = vectors, _, manifest = _read(path)
    if manifest.get("identity") == identity:
        return Embeddings(corpus, vectors, path, 0, identity)

    keys = [hashlib.sha256(f"{role}\0{text}".encode()).hexdigest() for text in corpus["text"]]
    texts = dict(zip(keys, corpus["text"], strict=True))
    others = (_read(p) for p in sorted({*path.parent.glob("*.safetensors")} - {path}))
    known = _known(chain([stored], others), model.identity, texts)
    missing = {key: text for key, text in texts.items() if key not in known}
    if missing:
        # workers load an encoder given by name themselves, and in the precision resolved here
        how = (encoder, role, model.precision) if by_name and scheduler else (model, role)
        fresh = _encode(list(missing.values()), how, scheduler if by_name else "")
        known.update(zip(missing, fresh, strict=True))
    vectors = np.stack([known[key] for key in keys]) if keys else np.zeros((0, 1), np.float32)
    manifest = {
        "identity": identity,
        "encoder": model.identity,
        "role": role,
        "shape": list(vectors.shape),
        "versions": versions("sentence-transformers", "transformers", "torch"),
    }
    _write(path, corpus.assign(key=keys), vectors, manifest)
    return Embeddings(corpus, vectors, path, len(missing), identity)


def unit_vectors(
    texts: list[str], encoder: str | Encoder, role: str, precision: str = "float32"
) -> np.ndarray:
    """Texts -> ``(n, dim) float32`` unit rows.

    Raises:
        InputError: the encoder returned a zero or non-finite vector.
    """
    model = kept_encoder(encoder, precision) if isinstance(encoder, str) else encoder
    vectors = np.asarray(model.encode(texts, role), np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.isfinite(vectors).all(axis=1) & (norms[:, 0] > 0)
    if not good.all():
        raise InputError(
            f"encoder {model.identity!r} returned a zero or non-finite vector for the text "
            f"{texts[int(np.argmin(good))][:60]!r}"
        )
    return vectors / norms


def _encode(texts: list[str], how: tuple, scheduler: str) -> np.ndarray:
    """:func:`unit_vectors` of chunks of texts, with a progress bar."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    vectors: dict[int, np.ndarray] = {}
    with progress(total=len(texts), desc="encoding", unit="text", delay=2) as bar:
        for number, encoded in spread(unit_vectors, chunks, scheduler, how):
            vectors[number] = encoded
            bar.update(len(encoded))
    return np.concatenate([vectors[number] for number in range(len(chunks))])


def _path(derived: Path, model: Encoder, label: str, name: str) -> Path:
    """The safetensors file of a corpus; bfloat16 vectors have a folder of their own."""
    half = getattr(model, "precision", "float32") == "bfloat16"
    folder = slug(label) + "-bfloat16" * half
    return derived / "embeddings" / folder / f"{slug(name)}.safetensors"


def _known(
    corpora: Iterable[Stored], encoder: str, wanted: dict[str, str]
) -> dict[str, np.ndarray]:
    """Vectors by text key that lie in stored corpora of this encoder; reads no more than needed."""
    known: dict[str, np.ndarray] = {}
    for vectors, keys, manifest in corpora:
        if manifest.get("encoder") == encoder:
            known.update((k, v) for k, v in zip(keys, vectors, strict=True) if k in wanted)
        if wanted.keys() <= known.keys():
            break
    return known


def _read(path: Path) -> Stored:
    """Stored vectors, their text keys and the manifest; empty if a file is missing or damaged."""
    from safetensors.numpy import load_file

    manifest = read_manifest(path.with_suffix(".json"), [path, path.with_suffix(".parquet")])
    if not manifest:
        return np.zeros((0, 1), np.float32), [], {}
    keys = pd.read_parquet(path.with_suffix(".parquet"), columns=["key"])["key"].tolist()
    return load_file(path)["vectors"], keys, manifest


def _write(path: Path, rows: pd.DataFrame, vectors: np.ndarray, manifest: dict) -> None:
    from safetensors.numpy import save_file

    with atomic_path(path) as tmp:
        save_file({"vectors": np.ascontiguousarray(vectors)}, tmp)
    with atomic_path(path.with_suffix(".parquet")) as tmp:
        rows.to_parquet(tmp, index=False)
    write_manifest(path.with_suffix(".json"), manifest, [path, path.with_suffix(".parquet")])
