"""Embedding: unit rows, caching, staleness."""

from __future__ import annotations

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.conftest import HashEncoder
from trsllava_utils import files as artefacts
from trsllava_utils import weights
from trsllava_utils.data import load_dataset
from trsllava_utils.encoders import load_encoder, unit_vectors
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.parameters import MINILM
from trsllava_utils.rankings import rank_dataset
from trsllava_utils.sources import Sources
from trsllava_utils.vectors import embed_corpus


def corpus(*texts: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(len(texts))],
            "source": "s",
            "variant": 0,
            "field": "full",
            "text": list(texts),
        }
    )


def test_encodes_each_distinct_text_once_and_reuses(tmp_path):
    encoder = HashEncoder()
    first = embed_corpus(corpus("a", "b", "a"), encoder, tmp_path)
    assert encoder.seen == ["a", "b"] and first.encoded == 2
    assert (
        np.allclose(np.linalg.norm(first.vectors, axis=1), 1) and first.vectors.dtype == np.float32
    )
    second = embed_corpus(corpus("a", "c", "a"), encoder, tmp_path)
    assert encoder.seen == ["a", "b", "c"] and second.encoded == 1
    assert np.array_equal(second.vectors[0], first.vectors[0])
    assert embed_corpus(corpus("a", "c", "a"), encoder, tmp_path).encoded == 0


def test_a_run_keeps_what_another_one_wrote_meanwhile(tmp_path):
    class Slow(HashEncoder):
        def encode(self, texts, role):
            embed_corpus(corpus("b", "c", "d"), HashEncoder(), tmp_path)  # the other one
            return super().encode(texts, role)

    embed_corpus(corpus("a"), HashEncoder(), tmp_path)
    mine = embed_corpus(corpus("d", "e", "a", "b", "f"), Slow(), tmp_path)
    everything, encoder = "abcdef", HashEncoder()
    kept = embed_corpus(corpus(*everything), encoder, tmp_path)
    assert kept.encoded == 0 and not encoder.seen
    fresh = embed_corpus(corpus(*everything), HashEncoder(), tmp_path / "fresh")
    assert np.array_equal(kept.vectors, fresh.vectors)
    assert np.array_equal(mine.vectors, fresh.vectors[[3, 4, 0, 1, 5]])


def test_the_file_is_one_that_safetensors_reads(tmp_path):
    made = embed_corpus(corpus("b", "a", "c"), HashEncoder(), tmp_path)
    made = embed_corpus(corpus("b", "d"), HashEncoder(), tmp_path)
    there = load_file(made.path)
    assert {name: str(x.dtype) for name, x in there.items()} == {
        "vectors": "float32",
        "keys": "uint8",
        "too_long": "bool",
    }
    rows = {key.tobytes(): row for row, key in enumerate(there["keys"])}
    mine = [rows[hashlib.sha256(f"document\0{text}".encode()).digest()] for text in "bd"]
    assert len(rows) == 4 and np.array_equal(there["vectors"][mine], made.vectors)
    assert not there["too_long"].any() and len(there["too_long"]) == 4


def test_stale_vectors_are_not_used(tmp_path):
    first = embed_corpus(corpus("a", "b"), HashEncoder("one"), tmp_path)
    other = HashEncoder("two")
    path = first.path
    moved = tmp_path / "embeddings" / "two.safetensors"
    for end in ("", ".json"):
        content = path.with_name(path.name + end).read_bytes()
        moved.with_name(moved.name + end).write_bytes(content)
    assert embed_corpus(corpus("a", "b"), other, tmp_path).encoded == 2
    path.write_bytes(path.read_bytes()[:-8])  # damaged
    assert embed_corpus(corpus("a", "b"), HashEncoder("one"), tmp_path).encoded == 2
    assert embed_corpus(corpus("a", "b"), HashEncoder("one"), tmp_path, role="query").encoded == 2


def test_full_disk_leaves_the_old_artefact(tmp_path, monkeypatch):
    first = embed_corpus(corpus("a"), HashEncoder(), tmp_path)
    before = first.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefacts.os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        embed_corpus(corpus("b"), HashEncoder(), tmp_path)
    assert first.path.read_bytes() == before and not list(first.path.parent.glob(".x*"))
    monkeypatch.undo()
    assert embed_corpus(corpus("a"), HashEncoder(), tmp_path).encoded == 0


def test_minilm_is_the_real_one():
    x = load_encoder().encode(
        ["boats in a harbour", "ships at the quay", "a wheat field"], "document"
    )
    assert x.shape == (3, 384) and x[0] @ x[1] > x[0] @ x[2] + 0.2


def test_unknown_encoder_and_missing_key(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingError, match="all-MiniLM-L6-v2"):
        load_encoder("/no/such/model").encode(["text"], "query")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(MissingError, match="OPENAI_API_KEY"):
        load_encoder("openai:text-embedding-3-small")


def test_openai_protocol(tmp_path, monkeypatch):
    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            import json

            texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
            data = [
                {"object": "embedding", "index": i, "embedding": [float(len(t)), 1.0]}
                for i, t in enumerate(texts)
            ]
            body = json.dumps(
                {
                    "object": "list",
                    "model": "m",
                    "data": data[::-1],
                    "usage": {"prompt_tokens": 1, "total_tokens": 1},
                }
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    try:
        out = embed_corpus(corpus("a", "bbb"), "openai:m", tmp_path)
    finally:
        server.shutdown()
    assert np.allclose(out.vectors[1], np.array([3, 1]) / np.sqrt(10))
    stored = b"".join(p.read_bytes() for p in out.path.parent.iterdir())
    assert b"secret-key" not in stored and os.environ["OPENAI_API_KEY"] == "secret-key"


def test_vectors_are_those_of_the_library(tmp_path):
    encoder = load_encoder()
    texts = [f"{n} boats " + "near a pier " * (n % 9) for n in range(60)]
    each = np.concatenate([encoder._model.encode([t], normalize_embeddings=True) for t in texts])
    assert np.allclose(encoder.encode(texts, "document"), each, atol=1e-6)
    assert encoder.encode([], "query").shape == (0, 384)


def test_precision_is_part_of_every_identity(tmp_path, monkeypatch):
    texts = [f"{n} boats near a pier" for n in range(40)]
    exact, half = (load_encoder(precision=p) for p in ("float32", "bfloat16"))
    assert exact.identity.endswith(" float32") and half.identity.endswith(" bfloat16")
    off = np.abs(half.encode(texts, "document") - exact.encode(texts, "document")).max(axis=1)
    assert ((off > 1e-5) & (off < 0.02)).all()
    for units, meant in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(weights, "computes_bfloat16", lambda units=units: units)
        assert load_encoder(precision="auto").identity.endswith(" " + meant)
    with pytest.raises(InputError, match="Did you mean 'bfloat16'"):
        load_encoder(precision="float16")
    for precision in ("float32", "bfloat16", "float32"):
        encoder = half if precision == "bfloat16" else exact
        made = embed_corpus(corpus(*texts), encoder, tmp_path)
        mean = np.abs(made.vectors - exact.encode(texts, "document")).max()
        assert mean < 1e-6 if precision == "float32" else mean > 1e-5
    assert made.encoded == 0  # neither precision displaces the other's vectors


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_corpus_embedded_in_two_goes_has_the_vectors_of_one(tmp_path, precision, monkeypatch):
    monkeypatch.setattr(weights, "computes_bfloat16", lambda: True)
    texts = [f"{n} boats " + "near a pier " * (n % 9) for n in range(200)]
    how = {"encoder": load_encoder(precision=precision)}
    whole = embed_corpus(corpus(*texts), derived=tmp_path / "a", **how)
    embed_corpus(corpus(*texts[:20]), derived=tmp_path / "b", **how)
    grown = embed_corpus(corpus(*texts), derived=tmp_path / "b", **how)
    assert grown.encoded == 180 and grown.identity == whole.identity
    cosine = (grown.vectors * whole.vectors).sum(axis=1)
    assert cosine.min() > (1 - 1e-6 if precision == "float32" else 0.9995)


def test_two_encoders_side_by_side(tmp_path, static_encoder):
    """The cosine of joined vectors is the mean of the two cosines, also in a search."""
    pair = f"{MINILM} + {static_encoder}"
    texts = ["a harbour with boats", "a green field", "boats"]
    joined = unit_vectors(texts, pair, "document")
    each = [unit_vectors(texts, name, "document") for name in (MINILM, static_encoder)]
    mean = np.mean([x @ x.T for x in each], axis=0)
    assert joined @ joined.T == pytest.approx(mean, abs=1e-6)
    model = load_encoder(pair)
    assert model.identity == " + ".join(load_encoder(n).identity for n in pair.split(" + "))
    assert model.too_long([*texts, "boats " * 400]) == [False, False, False, True]
    sources = Sources(load_dataset("sample", str(tmp_path)), "rsrt", encoder=pair)
    assert rank_dataset("max", sources, 1).ranks["n_items"].iloc[0] == 105
    with pytest.raises(InputError, match="encoder is empty"):
        load_encoder(f"{MINILM} + ")
