"""Embedding: texts go in, unit vectors come out, cached on disk so that no text is encoded twice.

A corpus is stored as three files: ``<corpus>.safetensors`` (vectors), ``<corpus>.parquet`` (their
rows) and ``<corpus>.json`` (the manifest).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import (
    InputError,
    atomic_path,
    file_sha256,
    fingerprint,
    progress,
    read_json,
    slug,
    versions,
    write_json,
)
from trsllava_utils.cluster import spread
from trsllava_utils.embedding.encoders import (
    MINILM,
    MINILM_SHA256,
    Encoder,
    kept_encoder,
    load_encoder,
)

CHUNK = 2048  # texts a task


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


def embed_corpus(
    corpus: pd.DataFrame,
    encoder: str | Encoder,
    derived: Path,
    name: str,
    role: str = "document",
    scheduler: str = "",
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
        scheduler: where an encoder given by name runs, see ``cluster.py``.

    Raises:
        InputError: the encoder gave no direction for a text.
        MissingError: its weights or its key are not there.
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
    for other in sorted({*path.parent.glob("*.safetensors")} - {path}) if wanted else ():
        vectors, other_keys, its = _read(other)  # the same text may stand in another corpus
        if its.get("encoder_identity") == model.identity:
            have.update(
                (k, v) for k, v in zip(other_keys, vectors, strict=True) if wanted.pop(k, None)
            )
    if wanted:
        texts, away = list(wanted.values()), scheduler and isinstance(encoder, str)
        fresh = _encode_texts(texts, encoder if away else model, role, scheduler if away else "")
        have.update(zip(wanted, fresh, strict=True))
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


def _encode_texts(
    texts: list[str], encoder: str | Encoder, role: str, scheduler: str
) -> np.ndarray:
    """:func:`unit_vectors` a chunk at a time, under a bar; a task each on a cluster."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    done: list[np.ndarray] = [np.zeros((0, 1), np.float32)] * len(chunks)
    with progress(total=len(texts), desc="encoding", unit="text", delay=2) as bar:
        for number, vectors in spread(unit_vectors, chunks, scheduler, (encoder, role)):
            done[number] = vectors
            bar.update(len(vectors))
    return np.concatenate(done)


def unit_vectors(texts: list[str], encoder: str | Encoder, role: str) -> np.ndarray:
    """Texts -> ``(n, dim) float32`` unit rows.

    Raises:
        InputError: the encoder gave no direction for a text.
    """
    model = kept_encoder(encoder) if isinstance(encoder, str) else encoder
    vectors = np.asarray(model.encode(texts, role), np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.isfinite(vectors).all(axis=1) & (norms[:, 0] > 0)
    if not good.all():
        raise InputError(
            f"encoder {model.identity!r} gave no direction for the text "
            f"{texts[int(np.argmin(good))][:60]!r}"
        )
    return vectors / norms


def _trusted(encoder: str, manifest: dict) -> bool:
    """Whether the stored vectors can be used without loading the model: its identity follows from
    its name alone."""
    if encoder.removeprefix("sentence-transformers/") == MINILM:
        return manifest.get("encoder_identity") == f"{MINILM}@{MINILM_SHA256[:12]}"
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
