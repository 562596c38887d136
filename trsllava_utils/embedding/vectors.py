"""Vectors on disk: a text corpus goes in, a unit vector for each row comes out; no text is encoded
twice.

Files in ``data/<dataset>/derived/embeddings/<encoder>/``: ``<corpus>.safetensors`` (the vectors),
``<corpus>.parquet`` (their rows) and ``<corpus>.json`` (the manifest: encoder, versions).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import InputError, atomic_path, fingerprint, progress, slug, versions
from trsllava_utils.cluster import spread
from trsllava_utils.embedding.encoders import SAME, Encoder, kept_encoder
from trsllava_utils.storage import read_kept, write_manifest

CHUNK = 2048  # texts encoded by one call


@dataclass(frozen=True)
class Stored:
    """What is on disk of a corpus: vectors by row, the keys of their texts, whether a text was too
    long, and the manifest."""

    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    keys: list[str] = field(default_factory=list)
    too_long: list[bool] = field(default_factory=list)
    manifest: dict = field(default_factory=dict)

    @property
    def control(self) -> list[float]:
        """The encoder's vector of the control text when these vectors were made."""
        return self.manifest.get("control", [])

    def is_by(self, model: Encoder) -> bool:
        """Whether the vectors are by this model, and not by one that had its name before."""
        if self.manifest.get("encoder") != model.identity:
            return False
        if len(self.control) != len(model.control):
            return False
        return not self.control or float(np.dot(self.control, model.control)) >= SAME


@dataclass(frozen=True)
class Embeddings:
    """Vectors and the corpus rows they belong to.

    Attributes:
        rows: the text corpus, one row per vector.
        vectors: ``(len(rows), dim) float32``, unit rows.
        path: the safetensors file.
        encoded: how many distinct texts had to be encoded in this run (0: all were on disk).
        identity: fingerprint of rows, role and encoder.
        too_long: how many distinct texts are longer than the encoder reads, and were cut.
    """

    rows: pd.DataFrame
    vectors: np.ndarray
    path: Path
    encoded: int
    identity: str = ""
    too_long: int = 0


def embed_corpus(
    corpus: pd.DataFrame,
    encoder: str | Encoder,
    derived: Path,
    name: str,
    *,
    role: str = "document",
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
        scheduler: where the encoder runs, see ``cluster.py``.

    Raises:
        InputError: the encoder returned a zero or non-finite vector.
        MissingError: its weights or its key are not there.
    """
    model = kept_encoder(encoder) if isinstance(encoder, str) else encoder
    path = _path(derived, model, name)
    corpus = corpus.reset_index(drop=True)
    rows = fingerprint(corpus.astype(str).values.tolist(), role)
    stored = _read(path)
    if not stored.is_by(model):
        stored = Stored(manifest={"control": model.control})
    identity = fingerprint(rows, model.identity, *[stored.control] * bool(stored.control))
    if stored.manifest.get("identity") == identity:
        long = stored.manifest.get("too_long", 0)
        return Embeddings(corpus, stored.vectors, path, 0, identity, long)

    keys = [
        hashlib.sha256(f"{role}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
        for text in corpus["text"]
    ]
    texts = dict(zip(keys, corpus["text"], strict=True))
    others = (_read(p) for p in sorted({*path.parent.glob("*.safetensors")} - {path}))
    known = _known(chain([stored], others), model, texts)
    missing = {key: text for key, text in texts.items() if key not in known}
    if missing:
        # workers load the encoder themselves, and in the precision resolved here
        how = (model.name, role, model.precision) if scheduler else (model, role)
        fresh = _encode(list(missing.values()), how, scheduler)
        long = model.too_long(list(missing.values()))
        known.update(zip(missing, zip(fresh, long, strict=True), strict=True))
    vectors = np.stack([known[key][0] for key in keys]) if keys else np.zeros((0, 1), np.float32)
    too_long = sum(bool(known[key][1]) for key in texts)
    manifest = {
        "identity": identity,
        "encoder": model.identity,
        "control": stored.control,
        "role": role,
        "shape": list(vectors.shape),
        "too_long": too_long,
        "versions": versions("sentence-transformers", "transformers", "torch"),
    }
    long = [known[key][1] for key in keys]
    _write(path, corpus.assign(key=keys, too_long=long), vectors, manifest)
    return Embeddings(corpus, vectors, path, len(missing), identity, too_long)


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


def _encode(texts: list[str], how: tuple, scheduler: str) -> np.ndarray:
    """:func:`unit_vectors` of chunks of texts, with a progress bar."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    vectors: dict[int, np.ndarray] = {}
    with progress(total=len(texts), desc="encoding", unit="text", delay=2) as bar:
        for number, encoded in spread(unit_vectors, chunks, scheduler, how):
            vectors[number] = encoded
            bar.update(len(encoded))
    return np.concatenate([vectors[number] for number in range(len(chunks))])


def _path(derived: Path, model: Encoder, name: str) -> Path:
    """The safetensors file of a corpus; bfloat16 vectors have a folder of their own."""
    folder = slug(model.name) + "-bfloat16" * (model.precision == "bfloat16")
    return derived / "embeddings" / folder / f"{slug(name)}.safetensors"


def _known(
    corpora: Iterable[Stored], model: Encoder, wanted: dict[str, str]
) -> dict[str, tuple[np.ndarray, bool]]:
    """Vectors by text key that lie in stored corpora of this encoder, and whether the text was too
    long; reads no more than needed."""
    known: dict[str, tuple[np.ndarray, bool]] = {}
    for stored in corpora:
        if stored.is_by(model):
            rows = zip(stored.keys, stored.vectors, stored.too_long, strict=True)
            known.update((key, (vector, long)) for key, vector, long in rows if key in wanted)
        if wanted.keys() <= known.keys():
            break
    return known


def _read(path: Path) -> Stored:
    """What is stored of a corpus; nothing if a file is missing or damaged."""
    from safetensors.numpy import load

    files = [path, path.with_suffix(".parquet")]
    manifest, contents = read_kept(path.with_suffix(".json"), files)
    if not manifest:
        return Stored()
    rows = pd.read_parquet(io.BytesIO(contents[1]))
    vectors = load(contents[0])["vectors"]
    return Stored(vectors, rows["key"].tolist(), rows["too_long"].tolist(), manifest)


def _write(path: Path, rows: pd.DataFrame, vectors: np.ndarray, manifest: dict) -> None:
    from safetensors.numpy import save

    with atomic_path(path) as tmp:
        tmp.write_bytes(save({"vectors": np.ascontiguousarray(vectors)}))
    with atomic_path(path.with_suffix(".parquet")) as tmp:
        rows.to_parquet(tmp, index=False)
    write_manifest(path.with_suffix(".json"), manifest, [path, path.with_suffix(".parquet")])
