"""The product before real servers: what is captioned and embedded, what it costs, and whose fault a
failure is. ``make servers`` runs this; it installs five servers below ``.servers/`` at first."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

from tests.conftest import scenes
from tests.servers.conftest import SEEN
from tests.servers.real import BLIND, CHAT, EMBED, KEY, Running, relayed
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.encoders import load_encoder, unit_vectors
from trsllava_utils.files import PROJECT_ROOT, InputError

MOST = 8  # requests before a sentence says that it is useless
chat = pytest.mark.parametrize("name", CHAT)
embed = pytest.mark.parametrize("name", EMBED)


def saw(behaviour: str, name: str, what: object) -> None:
    SEEN.setdefault(behaviour, {})[name] = str(what)


def after(requests: int) -> str:
    return f"a sentence after {requests} request{'s' * (requests > 1)}"


def texts() -> list[str]:
    lines = (PROJECT_ROOT / "data/sample/rsrt.jsonl").read_text("utf-8").splitlines()
    return [v["caption"] for line in lines[:60] for v in json.loads(line)["variants"]]


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Caption a few images with a server; the captions or the error, and its new requests."""

    def run(server: Running, images: int = 6, model: str = "", key: str = KEY, **settings):
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", key)
        before = len(server.requests)
        how = {"language": "", "variants": server.kind.variants, **settings}
        try:
            name = f"openai:{model or server.model}"
            got = caption_dataset(scenes(tmp_path, images), name, Settings(**how))
        except InputError as error:
            got = error
        return got, server.requests[before:]

    return run


def vectors(server: Running, monkeypatch, words: list[str], model: str = "minilm") -> np.ndarray:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    return unit_vectors(words, load_encoder(f"openai:{model}"), "document")


@chat
def test_all_images_are_captioned(up, ask, name):
    server = up(CHAT[name])
    captions, requests = ask(server)
    assert captions.report.captioned == 6 and not captions.report.retried
    assert len(requests) == 6 + (name == "vLLM")  # whose context is smaller than what is asked for
    forms = {request["response_format"]["type"] for request in requests}
    assert forms == {"json_schema"} and not captions.problems
    saw("Captions: images captioned, requests", name, f"6 of 6, {len(requests)}")
    tokens = sorted({request["max_tokens"] for request in requests})
    saw("Captions: tokens asked for", name, ", ".join(map(str, reversed(tokens))))
    again, requests = ask(server)
    assert again.report.already == 6 and not requests


def test_a_schema_that_transformers_serve_ignores_is_said(up, ask, models):
    server = up(CHAT["transformers serve"])
    captions, requests = ask(server, 2, str(models / "speaker"), attempts=2)
    assert captions.report.retries == {"cut at the token limit": 2} and len(requests) == 4
    first, second = (r["messages"][0]["content"][0]["text"] for r in requests[:: len(requests) - 1])
    assert second.startswith(first) and "could not be used" in second


@chat
def test_a_wrong_model(up, ask, tmp_path, name):
    error, requests = ask(up(CHAT[name]), model="no-such-model")
    if name == "llama.cpp":  # it has one, and answers for every name
        assert error.report.captioned == 6
        return saw("Captions: wrong model", name, "is not noticed")
    assert "no-such-model" in str(error) and len(requests) <= MOST
    assert not list(tmp_path.rglob("*.rejected.jsonl"))
    return saw("Captions: wrong model", name, after(len(requests)))


@chat
def test_a_wrong_key(up, ask, tmp_path, name):
    if not CHAT[name].has_key:
        return saw("Captions: wrong key", name, "has no keys")
    error, requests = ask(up(CHAT[name]), key="sk-a-wrong-key-0123456789")
    assert "OPENAI_API_KEY" in str(error) and len(requests) <= MOST
    assert "sk-a-wrong-key" not in str(error) and not list(tmp_path.rglob("*.rejected.jsonl"))
    return saw("Captions: wrong key", name, after(len(requests)))


@chat
def test_killed_in_the_middle(models, up, ask, tmp_path, name):
    """A second server of the kind, so that the others stay up."""
    up(CHAT[name])  # and for LiteLLM, what is behind it
    with relayed(Running(CHAT[name], models)) as server:
        server.start()
        server.after = lambda n: n == 4 and server.kill()
        error, _ = ask(server, 40, concurrency=2)
        assert isinstance(error, InputError) and not list(tmp_path.rglob("*.rejected.jsonl"))
        (file,) = tmp_path.rglob("captions/*.jsonl")
        saved = len(file.read_text("utf-8").splitlines())
        assert 2 <= saved <= 6
        server.after = lambda n: None
        server.start()
        captions, _ = ask(server, 40)
    assert captions.report.already == saved and len(captions.records) == 40
    saw(
        "Captions: killed after 4 of 40 images",
        name,
        f"{saved} on disk, then the other {40 - saved}",
    )


@chat
def test_two_runs_at_once(up, tmp_path, monkeypatch, name):
    server = up(CHAT[name])
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = {}

    def run(n: int) -> None:
        how = Settings(language="", variants=server.kind.variants, seed=n)
        dataset = scenes(tmp_path / str(n), 6)
        made[n] = caption_dataset(dataset, f"openai:{server.model}", how).report.captioned

    threads = [threading.Thread(target=run, args=(n,)) for n in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert made == {0: 6, 1: 6}
    saw("Captions: two runs at once", name, "both whole")


def test_a_server_that_starts_after_the_run(models, ask):
    """Within the time that a request is repeated for, half a minute."""
    with relayed(Running(CHAT["llama.cpp"], models)) as server:
        later = threading.Timer(5, server.start)
        later.start()
        captions, _ = ask(server)
        later.join()
    assert captions.report.captioned == 6
    saw("Captions: started 5 s after the run", "llama.cpp", "6 of 6")


def test_a_model_without_eyes(models, ask, tmp_path):
    with relayed(Running(BLIND, models)) as server:
        server.start()
        error, requests = ask(server)
    assert str(error).startswith("500: image input is not supported") and len(requests) <= MOST
    assert not list(tmp_path.rglob("*.rejected.jsonl"))
    said = f"the server's hint after {len(requests)} requests"
    saw("Captions: a model that takes no pictures", "llama.cpp", said)


@embed
def test_vectors_are_those_of_the_model(up, monkeypatch, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    words = texts()
    there = vectors(up(EMBED[name]), monkeypatch, words)
    here = unit_vectors(words, load_encoder(), "document")
    cosine = float((there * here).sum(1).min())
    assert cosine >= 0.99999
    saw("Embeddings: least cosine with MiniLM on this machine", name, f"{cosine:.7f}")
    orders = [np.argsort(-(v[:20] @ v.T), axis=1, kind="stable")[:, :10] for v in (there, here)]
    scores = here[:20] @ here.T
    by_rank = [np.take_along_axis(scores, order, 1) for order in orders]
    assert np.abs(by_rank[0] - by_rank[1]).max() < 1e-3  # the same but for near ties
    same = np.mean([len({*a} & {*b}) for a, b in zip(*orders, strict=True)])
    saw("Embeddings: of the first ten of 20 queries, the same", name, f"{same:g}")


@embed
def test_a_long_text_takes_no_other_with_it(up, monkeypatch, caplog, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = up(EMBED[name])
    words = [*texts()[:40], "a pier with boats " * 140]  # 562 tokens, and the encoder reads 512
    before = len(server.requests)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    model = load_encoder("openai:minilm")
    there = unit_vectors(words, model, "document")
    here = unit_vectors(words, load_encoder(), "document")
    assert (there * here).sum(1)[:-1].min() >= 0.99999 and (there[-1] @ here[-1]) > 0.8
    asked, cut = len(server.requests) - before, model.too_long(words)
    assert asked <= MOST + 2 and sum(cut) == len(caplog.messages) <= 1
    what = f"cut and named after {asked} requests" if any(cut) else "cut by the server"
    saw("Embeddings: a text of 562 tokens", name, what)


@embed
def test_a_wrong_model_or_key_of_an_encoder(up, monkeypatch, name):
    server = up(EMBED[name])
    for what, model, key in (("model", "no-such", KEY), ("key", "minilm", "sk-a-wrong-key-012345")):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        before = len(server.requests)
        if what == "model" and name in ("llama.cpp", "infinity"):
            vectors(server, monkeypatch, texts()[:4], model)
            saw("Embeddings: wrong model", name, "is not noticed")
            continue
        with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
            vectors(server, monkeypatch, texts()[:4], model)
        asked = len(server.requests) - before
        assert asked <= MOST and key not in str(caught.value)
        saw(f"Embeddings: wrong {what}", name, after(asked))


@pytest.mark.parametrize("name", [*CHAT][:3])
def test_a_server_that_does_not_embed(up, monkeypatch, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = up(CHAT[name])
    before, began = len(server.requests), time.monotonic()
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        vectors(server, monkeypatch, texts()[:4], server.model)
    asked = len(server.requests) - before
    assert asked <= MOST and time.monotonic() - began < 10
    saw("Captions: asked to embed", name, after(asked))
