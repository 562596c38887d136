"""Vectors on disk: a text corpus goes in, a unit vector for each row comes out; no text is encoded
twice.

All vectors of an encoder lie in one file, ``derived/embeddings/<encoder>.safetensors``, each under
the key of its text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load

from trsllava_utils import plugins
from trsllava_utils.encoders import Encoder, kept_encoder, unit_vectors
from trsllava_utils.files import (
    MissingError,
    fingerprint,
    progress,
    read_once,
    read_sealed,
    slug,
    versions,
    write_sealed,
)

STEP, CHUNK = 128, 2048  # texts encoded by one call: here, so that the bar moves; by a worker
SAME = 0.999  # two vectors of the control text with at least this cosine are by one model


@dataclass(frozen=True)
class Stored:
    """What is on disk of an encoder: vectors, their rows by the key of the text, whether a text was
    too long, and the manifest."""

    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.float32))
    rows: dict[bytes, int] = field(default_factory=dict)
    too_long: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    manifest: dict = field(default_factory=dict)

    def is_by(self, model: Encoder) -> bool:
        """Whether the vectors are by this model, and not by one that had its name before."""
        control = self.manifest.get("control", [])
        if self.manifest.get("encoder") != model.identity or len(control) != len(model.control):
            return False
        return not control or float(np.dot(control, model.control)) >= SAME


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
    *,
    role: str = "document",
    scheduler: str = "",
) -> Embeddings:
    """Embed a text corpus, taking from disk every vector that is still right.

    >>> corpus = load_captions(load_dataset("sample"), "rsrt").corpus()[:3]
    >>> embed_corpus(corpus, "all-MiniLM-L6-v2", Path(tempfile.mkdtemp())).vectors.shape
    (3, 384)

    A stored vector is used only for the same text, role, encoder and precision. Equal texts are
    encoded once. The model is loaded only when there is something to encode.

    Args:
        corpus: a text corpus (``image_id, source, variant, field, text``).
        encoder: name of the encoder, or an Encoder.
        derived: the dataset's folder of artefacts.
        role: "query" or "document", which models with prompts treat differently; for CLIP "text" or
            "image".
        scheduler: where the encoder runs, for the plug-in ``trsllava.schedulers``; empty: here.

    Raises:
        InputError: the encoder returned a zero or non-finite vector.
        MissingError: its weights or its key are not there.
    """
    model = kept_encoder(encoder) if isinstance(encoder, str) else encoder
    path, stored = _on_disk(model, derived)
    if not stored.is_by(model):
        stored = Stored(manifest={"control": [*model.control]})
    corpus = corpus.reset_index(drop=True)
    keys = [_key(text, role) for text in corpus["text"]]
    texts = dict(zip(keys, corpus["text"], strict=True))
    missing = {key: text for key, text in texts.items() if key not in stored.rows}
    n, new, vectors = len(stored.rows), [], stored.vectors
    try:
        for several, made in _encode(missing, model, role, scheduler) if missing else ():
            if not new:  # one matrix for all: a copy of it costs more memory than all else here
                vectors = np.empty((n + len(missing), made.shape[1]), np.float32)
                vectors[:n] = stored.vectors
            vectors[n + len(new) :][: len(several)] = made
            new += several
    finally:  # what was encoded before an error is kept
        now = _on_disk(model, derived)[1] if new else stored
        if now.rows.keys() > stored.rows.keys() and now.is_by(model):
            stored = now  # another run has added to it meanwhile
            unknown = [row for row, key in enumerate(new) if key not in stored.rows]
            vectors = np.concatenate([stored.vectors, vectors[n:][unknown]])
            new = [new[row] for row in unknown]
        if new:
            rows = {key: row for row, key in enumerate([*stored.rows, *new])}
            cut = np.r_[stored.too_long, model.too_long([missing[key] for key in new])].astype(bool)
            stored = Stored(vectors[: len(rows)], rows, cut, stored.manifest)
            _write(path, stored, model)
    control = stored.manifest["control"]
    content = fingerprint(corpus.astype(str).values.tolist(), role)
    identity = fingerprint(content, model.identity, *[control] * bool(control))
    vectors = stored.vectors[[stored.rows[key] for key in keys]]
    too_long = int(stored.too_long[[stored.rows[key] for key in texts]].sum())
    return Embeddings(corpus, vectors, path, len(missing), identity, too_long)


def stored_vector(text: str, model: Encoder, derived: Path, role: str) -> np.ndarray | None:
    """The vector of one text, ``(1, dim) float32``, if it is on disk."""
    stored = _on_disk(model, derived)[1]
    row = stored.rows.get(_key(text, role))
    # is_by last, because it may ask a server
    return stored.vectors[[row]] if row is not None and stored.is_by(model) else None


def vector_path(name: str, precision: str, derived: Path) -> Path:
    """Where the vectors of an encoder of that name lie."""
    half = "-bfloat16" * (precision == "bfloat16")
    return derived / "embeddings" / f"{slug(name)[-100:]}{half}.safetensors"


def _on_disk(model: Encoder, derived: Path) -> tuple[Path, Stored]:
    path = vector_path(model.name, model.precision, derived)
    return path, _read(path) if path.is_file() else Stored()


def _key(text: str, role: str) -> bytes:
    return hashlib.sha256(f"{role}\0{text}".encode("utf-8", "surrogatepass")).digest()


def _encode(
    texts: dict[bytes, str], model: Encoder, role: str, scheduler: str
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """:func:`unit_vectors` of some texts after the other, behind their keys, here or by the plug-in
    for schedulers, with a progress bar."""
    step = CHUNK if scheduler else STEP
    # texts of about one length share a batch, so little of it is padding
    order = sorted(texts, key=lambda key: -len(texts[key]))
    parts = [order[start : start + step] for start in range(0, len(order), step)]
    chunks = [[texts[key] for key in part] for part in parts]
    made = enumerate(unit_vectors(chunk, model, role) for chunk in chunks)
    if scheduler:
        spread = plugins.find("schedulers", "dask")
        if spread is None:
            raise MissingError(f"scheduler={scheduler!r} needs the package trsllava_extras")
        # workers load the encoder themselves, and in the precision resolved here
        made = spread(unit_vectors, chunks, scheduler, (model.name, role, model.precision))
    with progress(total=len(texts), desc="encoding", unit="text", delay=2) as bar:
        for number, encoded in made:
            yield parts[number], encoded
            bar.update(len(encoded))


@read_once
def _read(path: Path) -> Stored:
    """What is stored; nothing if a file is missing or damaged."""
    manifest, content = read_sealed(path)
    if not isinstance(manifest.get("control"), list):
        return Stored()
    tensors = load(content)
    rows = {key.tobytes(): row for row, key in enumerate(tensors["keys"])}
    return Stored(tensors["vectors"], rows, tensors["too_long"], manifest)


def _write(path: Path, stored: Stored, model: Encoder) -> None:
    keys = np.frombuffer(b"".join(stored.rows), np.uint8).reshape(-1, 32)
    tensors = {"vectors": stored.vectors, "keys": keys, "too_long": stored.too_long}
    about = {"encoder": model.identity, "control": stored.manifest["control"]}
    about["versions"] = versions("sentence-transformers", "transformers", "torch")
    write_sealed(path, _safetensors(tensors), about)
    _read.put(path, replace(stored, manifest=about))


def _safetensors(tensors: dict[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """A safetensors file piece by piece: the library's ``save`` holds two copies of it in memory.
    The format: https://github.com/huggingface/safetensors#format."""
    dtypes, header, end = {"float32": "F32", "uint8": "U8", "bool": "BOOL"}, {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        about = {"dtype": dtypes[tensor.dtype.name], "shape": tensor.shape}
        header[name] = {**about, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie where processors like them
    yield len(text).to_bytes(8, "little") + text
    yield from (np.ascontiguousarray(tensor).data for tensor in tensors.values())
