"""Servers that misbehave: whose fault is it, and what does it cost?"""

from __future__ import annotations

import base64
import gzip
import json
import socket
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import KEY
from tests.faults.conftest import RawServer, caption, completion, good
from trsllava_extras.servers import captioner as openai_vlm
from trsllava_extras.servers import client as openai_api
from trsllava_utils.encoders import load_encoder
from trsllava_utils.files import InputError
from trsllava_utils.records import CORPUS_COLUMNS
from trsllava_utils.vectors import embed_corpus

CHAT = pytest.mark.fault("Chat servers")
ERROR = {"error": {"message": "the reason"}}


def nothing_blamed(tmp_path: Path) -> bool:
    return not list(tmp_path.rglob("*.rejected.jsonl"))


@CHAT
@pytest.mark.parametrize(
    "body",
    [
        {"error": "the reason"},
        ERROR,
        {"error": {"message": "the reason", "code": 429}},
        {"error": {"message": "the reason", "code": "500", "metadata": {"a": 1}}},
        {"error": {"detail": "the reason"}},
        {"object": "error", "message": "the reason", "code": 40001},
        {"error": {"message": "the reason", "code": "²"}},
        {"error": {"message": "the reason", "code": "9" * 5000}},
        {"message": "the reason"},
        {"ok": "the reason"},
        {"choices": None, "hint": "the reason"},
        {"choices": "the reason"},
        {"choices": [], "hint": "the reason"},
        ["the reason"],
        "the reason",
        b"<html>the reason</html>",
        b"the reason",
        b'{"choices": [{"message": {"content": "the reason',
        b"the reason \xff\xfe",
    ],
    ids=lambda body: str(body)[:30],
)
def test_an_error_in_an_answer_of_status_200_is_the_servers(chat, tmp_path, body):
    error, server = chat(lambda handler, *_: handler.send(body))
    assert isinstance(error, InputError) and "the reason" in str(error)
    assert nothing_blamed(tmp_path) and len(server.requests) <= 20
    later, _ = chat(good)
    assert later.report.captioned == 3 and not later.problems


@CHAT
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
@pytest.mark.parametrize(
    "wait", [None, "-5", "soon", "1e9", "nan", "Wed, 21 Oct 2015 07:28:00 GMT"]
)
def test_a_busy_server_is_asked_again(chat, status, wait):
    def respond(handler, request, n):
        headers = {"retry_after": wait} if wait else {}
        handler.send(ERROR, status, **headers) if n == 1 else good(handler, request)

    captions, server = chat(respond)
    assert captions.report.captioned == 3 and captions.report.usage["requests"] == 4
    assert len(server.requests) == 4


@CHAT
@pytest.mark.parametrize("wait", ["1e9", "3600", "59"])
def test_waits_that_a_server_asks_for_are_told_and_capped(monkeypatch, wait):
    slept, told = [], []
    monkeypatch.setattr(openai_api.time, "sleep", slept.append)

    def respond(handler, request, n):
        good(handler, request) if n else handler.send(ERROR, 429, retry_after=wait)

    with RawServer(respond) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        openai_api.Server("a test", on_wait=told.append).post("chat/completions", {"seed": 1})
    assert slept == [min(float(wait), 60.0)]
    assert told == [f"waiting {slept[0]:.0f} s: 429: the reason"]


@CHAT
@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 301, 302, 307, 308])
def test_what_no_patience_mends_stops_the_run_at_once(chat, tmp_path, status):
    with RawServer(good) as other:
        to = {"location": f"http://{other.address}/v1/chat/completions"}
        headers = to if status < 400 else {}
        error, server = chat(lambda handler, *_: handler.send(ERROR, status, **headers))
        assert other.requests == []  # pictures and key go to no other address
    assert isinstance(error, InputError) and "OPENAI_BASE_URL" in str(error)
    assert len(server.requests) <= 2 and nothing_blamed(tmp_path)


@CHAT
@pytest.mark.parametrize("status", [400, 418, 422, 500])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_one_image_that_the_server_cannot_take(chat, tmp_path, status, first, concurrency):
    """It is set aside, after bounded tries; the others are captioned as strictly as ever."""
    bad: list[str] = []

    def respond(handler, request, n):
        picture = request["messages"][0]["content"][1]["image_url"]["url"]
        if not bad and n == (0 if first else 2):
            bad.append(picture)
        handler.send(ERROR, status) if picture in bad else good(handler, request)

    for _ in range(4):
        captions, server = chat(respond, images=6, concurrency=concurrency, attempts=2)
    entries = [json.loads(line) for line in captions.files[0].rejected_path.open()]
    assert len(captions.records) == 5 and captions.report.aside == 1
    assert len({entry["image"] for entry in entries}) == 1 and server.requests == []


@CHAT
def test_neighbours_that_the_server_cannot_take_do_not_hide_the_others(chat):
    def respond(handler, request, n):
        picture = request["messages"][0]["content"][1]["image_url"]["url"]
        bad.append(picture) if len(bad) < 6 and picture not in bad and n < 2 else None
        handler.send(ERROR, 500) if picture in bad else good(handler, request)

    bad: list[str] = []
    captions, _ = chat(respond, images=12, concurrency=1)
    assert captions.report.captioned == 12 - len(bad)


@CHAT
@pytest.mark.parametrize("lives", [(15, 2, 1), (18, 1, 0)])
def test_a_server_that_dies_near_the_end_is_no_fault_of_the_images(chat, lives):
    """Those that failed after the last answer may not be blamed for it, however often it dies."""
    for alive in lives:
        chat(
            lambda handler, request, n, alive=alive: (
                good(handler, request) if n < alive else handler.send(ERROR, 500)
            ),
            images=20,
            concurrency=4,
        )
    captions, _ = chat(good, images=20)
    assert len(captions.records) == 20 and captions.report.aside == 0


@CHAT
@pytest.mark.parametrize("error", [400, 500])
def test_a_server_that_takes_no_image_is_no_fault_of_the_images(chat, tmp_path, error):
    for _ in range(2):
        stopped, _ = chat(lambda handler, *_: handler.send(ERROR, error), images=8)
        assert "the reason" in str(stopped) and nothing_blamed(tmp_path)
    captions, server = chat(good, images=8)
    assert captions.report.captioned == len(server.requests) == 8


DRAFT = '<think>{"variants": [{"one_sentence": "a draft", "feature": "a', "</think>"


@CHAT
@pytest.mark.parametrize(
    "reply",
    [
        lambda text: completion(None, reasoning_content=text),
        lambda text: completion("", reasoning=text),
        lambda text: completion([{"type": "text", "text": text}]),
        lambda text: completion([text[:9], {"type": "text", "text": text[9:]}, {"type": "x"}]),
        lambda text: completion(f"{DRAFT[0]} draft{DRAFT[1]}{text}"),
        lambda text: completion(f"<think>{text.replace('view', 'draft')}</think>\n\n{text}"),
        lambda text: completion(f"\ufeff{text}\u2028"),
        lambda text: completion(text) | {"usage": "many", "model": None},
        lambda text: completion(text) | {"usage": {"prompt_tokens": "9"}, "model": 7},
        lambda text: completion(text) | {"error": None},
        lambda text: completion(text) | {"model": "m\ud800", "usage": {"prompt_tokens": 10**400}},
        lambda text: completion(text) | {"usage": {"completion_tokens": -(10**8)}},
    ],
)
def test_answers_in_other_clothes(chat, reply):
    captions, _ = chat(lambda handler, request, _: handler.send(reply(caption(request))))
    assert captions.report.captioned == 3 and not captions.report.retried
    assert not any("draft" in str(record) for record in captions.records.values())


@CHAT
@pytest.mark.parametrize(
    "reply",
    [
        completion(None),
        completion(7),
        completion([]),
        completion({"a": 1}),
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": []}]},
        completion("I see a harbour."),
        completion("{" * 100_000),
        completion('{"a":' * 50_000 + "1" + "}" * 50_000),
        completion('{"variants": ' + "9" * 5000 + "}"),
        completion("word " * 100_000),
        completion('{"variants": [{"one_sentence": "\\ud83d"}]}'),
        completion("", "length"),
        completion("", refusal="I'd rather not."),
    ],
    ids=lambda reply: str(reply)[:40],
)
def test_replies_that_cannot_be_used_are_the_images_own(chat, reply):
    started = time.perf_counter()
    captions, server = chat(
        lambda handler, request, n: handler.send(reply) if n == 1 else good(handler, request)
    )
    assert captions.report.captioned == 3 and captions.report.retried == 1
    assert time.perf_counter() - started < 5 and len(server.requests) == 4


@CHAT
@pytest.mark.parametrize("words", ["maximum context length is 2000 tokens", "context window: 2000"])
@pytest.mark.parametrize("told", [" and your request has 1100 input tokens", ""])
def test_a_small_context(chat, words, told):
    def respond(handler, request, n):
        longest = request.get("max_tokens") or request.get("max_completion_tokens")
        text = f"'max_tokens' or 'max_completion_tokens' is too large. The model's {words}{told}"
        error = {"error": {"message": text, "param": "max_tokens"}}
        handler.send(error, 400) if longest > 900 else good(handler, request)

    captions, server = chat(respond)
    assert captions.report.captioned == 3 and "response_format" in server.requests[-1]
    assert [r.get("max_tokens") for r in server.requests[-2:]] == [900 if told else 478] * 2


# what real servers say where a context is too small: vLLM, OpenAI, llama.cpp, LiteLLM's relays
LIMITS = [
    ("max_tokens=3756 cannot be greater than max_model_len=2048", [1024]),
    ("This model's maximum context length is 2048 tokens. However, you requested 3756 output tokens "
     "and your prompt contains at least 1100 input tokens", [948]),
    ("maximum context length is 4096 tokens. However, you requested 5000 tokens (1244 in the "
     "messages, 3756 in the completion)", [2852]),
    ("max_tokens is too large: 3756. This model supports at most 2000 completion tokens", [2000]),
    ("request (1500 tokens) exceeds the available context size (2048 tokens)", [548]),
    ("the sum of the prompt and max_tokens is over n_ctx=2048", [1024]),
]  # fmt: skip


@CHAT
@pytest.mark.parametrize(("words", "tokens"), LIMITS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("parameter", ["max_tokens", None])
def test_limits_of_context_are_read_from_the_servers_words(chat, words, tokens, parameter):
    """The answer gets the room there is, and the schema stays."""

    def respond(handler, request, n):
        if request["max_tokens"] <= tokens[-1]:
            return handler.send(completion(caption(request, 5)))
        return handler.send({"error": {"message": words, "param": parameter}}, 400)

    captions, server = chat(respond, variants=5)
    assert captions.report.captioned == 3 and len(server.requests) == 3 + len(tokens)
    assert [r["max_tokens"] for r in server.requests[1:]] == tokens + tokens[-1:] * 2
    assert {r["response_format"]["type"] for r in server.requests} == {"json_schema"}


@CHAT
def test_an_answer_that_the_servers_context_cuts_is_no_images_fault(chat, tmp_path):
    def respond(handler, request, n):
        if request["max_tokens"] > 300:
            words = "maximum context length is 1300 tokens, and 1000 input tokens are there"
            return handler.send({"error": {"message": words}}, 400)
        return handler.send(completion(caption(request, 5)[:200], "length"))

    error, _ = chat(respond, variants=5)
    assert "larger" in str(error) and "300 tokens" in str(error) and nothing_blamed(tmp_path)


HOPELESS = {
    "no pictures": (500, {"message": "image input is not supported - hint: provide the mmproj"}),
    "no such route": (501, {"message": "This server does not support embeddings"}),
    "a model in 400": (400, {"message": "Invalid model name passed in model=vlm"}),
    "a model named": (400, {"message": "unknown model", "param": "model", "code": "400"}),
    "a key in 400": (400, {"message": "Authentication Error, Invalid proxy server token"}),
    "a bad gateway": (502, {"message": "Bad Gateway, request 83f2"}),
    "a crash": (500, {"message": "EngineCore died at 0x7f12"}),
}


@CHAT
@pytest.mark.parametrize("why", HOPELESS)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_server_that_takes_nothing_gets_eight_requests_at_most(
    chat, tmp_path, monkeypatch, why, concurrency
):
    monkeypatch.setattr(openai_api, "RETRIES", 6)
    status, words = HOPELESS[why]
    error, server = chat(
        lambda handler, *_: handler.send({"error": words}, status),
        images=20,
        concurrency=concurrency,
    )
    assert len(server.requests) <= 8 and nothing_blamed(tmp_path)
    for name in (words["message"], "openai:vlm", "model's name", "OPENAI_API_KEY"):
        assert name in str(error)
    captions, _ = chat(good, images=20)
    assert captions.report.captioned == 20


@CHAT
def test_a_server_that_loads_its_model_is_waited_for(chat, monkeypatch):
    """As long as it says so, though other failures would have ended the run."""
    monkeypatch.setattr(openai_api, "LOADING_WAIT", 0.001)
    loading = {"error": {"message": "Loading model", "code": 503, "type": "unavailable_error"}}

    def respond(handler, request, n):
        good(handler, request) if n >= 30 else handler.send(loading, 503)

    captions, server = chat(respond, concurrency=4)
    assert captions.report.captioned == 3 and len(server.requests) == 33
    monkeypatch.setattr(openai_api, "LONGEST_LOADING", 0.0)
    error, server = chat(lambda handler, *_: handler.send(loading, 503), images=20)
    assert "Loading model" in str(error) and len(server.requests) <= 8


DRAFT_JSON, FINAL = caption({"seed": 1}).replace("view", "draft"), caption({"seed": 2})
CALL = {"id": "c", "type": "function", "function": {"name": "rsrt", "arguments": FINAL}}


@CHAT
@pytest.mark.parametrize(
    "reply",
    [
        completion(None, "tool_calls", tool_calls=[CALL]),
        completion("", tool_calls=[{"function": {"arguments": json.loads(FINAL)}}]),
        completion(None, function_call={"name": "rsrt", "arguments": FINAL}),
        completion(json.loads(FINAL)),
        completion({"type": "text", "text": FINAL}),
        completion(json.dumps(FINAL)),
        completion(json.dumps(json.dumps(FINAL))),
        completion(json.dumps({"name": "rsrt", "arguments": json.loads(FINAL)})),
        completion(json.dumps({"variants": json.dumps(json.loads(FINAL)["variants"])})),
        completion(FINAL, "length"),
        completion([{"type": "reasoning", "text": DRAFT_JSON}, {"type": "text", "text": FINAL}]),
        completion([{"type": "thinking", "thinking": [{"type": "text", "text": DRAFT_JSON}]}, FINAL]),
        completion(f"<thought>maybe {DRAFT_JSON} no</thought>{FINAL}"),
        completion(f"[THINK]{DRAFT_JSON}[/THINK]{FINAL}"),
        completion(f"Let me draft: {DRAFT_JSON}\n\nFinal answer: {FINAL}"),
        completion(f"{DRAFT_JSON}\n{FINAL}\nThis is {{final}}."),
    ],
    ids=lambda reply: json.dumps(reply)[70:110],
)  # fmt: skip
def test_the_last_whole_answer_counts_wherever_it_stands(chat, reply):
    captions, server = chat(lambda handler, *_: handler.send(reply), images=1)
    (record,) = captions.records.values()
    kept = [variant.model_dump() for variant in record.variants]
    assert kept == json.loads(FINAL)["variants"] and len(server.requests) == 1


@CHAT
def test_a_thought_without_end_is_asked_for_again(chat):
    def respond(handler, request, n):
        handler.send(completion(f"<think>{DRAFT_JSON} hmm" if n == 0 else caption(request)))

    captions, _ = chat(respond, images=1)
    assert captions.report.retries == {"unfinished thought": 1}
    assert "draft" not in str(captions.records)


@CHAT
def test_a_schema_that_is_taken_and_ignored_is_said_once(chat):
    """Such servers often draw the same words whatever the seed: the words of a retry differ."""

    def respond(handler, request, n):
        asked = request["messages"][0]["content"][0]["text"]
        text = caption(request) if "could not be used" in asked else "I see a harbour."
        handler.send(completion(text))

    captions, server = chat(respond)
    assert captions.report.captioned == captions.report.retried == 3
    assert len(server.requests) == 6
    assert captions.problems == (
        "the server takes a json_schema and does not keep to it; words ask for JSON too",
    )


@CHAT
def test_characters_that_are_no_text_are_left_out(chat):
    """Half of an emoji, control characters: the caption is kept without them."""

    def respond(handler, request, n):
        text = caption(request).replace("objects", "ob\\ud83djects\\u0000\\u001b[1m \\ud83d\\ude00")
        handler.send(completion(text))

    captions, server = chat(respond)
    assert captions.report.captioned == 3 and len(server.requests) == 3
    assert all("objects[1m 😀" in str(record) for record in captions.records.values())


def dribble(handler, request, n):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n")
    for _ in range(12):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def dribble_headers(handler, request, n):
    for letter in b"HTTP/1.1 200 OK\r\nx: y":
        handler.wfile.write(bytes([letter]))
        time.sleep(0.05)


def silent(handler, request, n):
    time.sleep(0.5)


def reset(handler, request, n):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def torn(handler, request, n):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{")
    handler.close_connection = True


def endless(handler, request, n):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(1000):
        handler.wfile.write(b" " * 10_000)


def bomb(handler, request, n):
    handler.send(gzip.compress(b" " * 50_000_000), content_encoding="gzip")


def bombs(handler, request, n):
    handler.send(gzip.compress(gzip.compress(b" " * 9_000_000)), content_encoding="gzip, gzip")


def nonsense(handler, request, n):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    handler.close_connection = True


BROKEN = [dribble, dribble_headers, silent, reset, torn, endless, bomb, bombs, nonsense]


@CHAT
@pytest.mark.parametrize("respond", BROKEN, ids=lambda respond: respond.__name__)
def test_broken_and_hostile_answers_end_in_time_and_blame_no_image(
    chat, tmp_path, monkeypatch, respond
):
    monkeypatch.setattr(openai_vlm, "LARGEST", 2_000_000)
    monkeypatch.setattr(openai_api, "RETRIES", 1)
    started = time.perf_counter()
    error, _ = chat(respond, images=2, timeout=0.15)
    assert time.perf_counter() - started < 8 and nothing_blamed(tmp_path)
    problems = str(error) + str(getattr(error, "problems", ""))
    assert "no answer" in problems or "bytes" in problems or "compressed" in problems


BASES = ["ftp://x/v1", "localhost:8000", "http://", "http://[::1", "http://x:99999/v1", f"x/{KEY}"]
BASES += ["http://x/é/v1", "http://x/%0d%0aX: y/v1", "http://xn--a/v1", "http://a b/v1"]


@CHAT
@pytest.mark.parametrize("base", BASES)
def test_addresses_that_are_none(monkeypatch, base):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", base)
    with pytest.raises(InputError, match="OPENAI_BASE_URL") as caught:
        openai_api.Server("a test")
    assert KEY not in str(caught.value)


@CHAT
@pytest.mark.parametrize("seconds", ["soon", "-1", "0", "nan", "inf"])
def test_times_that_are_none(monkeypatch, seconds):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_TIMEOUT", seconds)
    with pytest.raises(InputError, match="OPENAI_TIMEOUT"):
        load_encoder("openai:m")


@CHAT
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_repeated_requests_count_towards_the_limit(chat, limit):
    captions, server = chat(lambda handler, *_: handler.send(ERROR, 503), max_requests=limit)
    assert len(server.requests) == limit
    assert captions.report.usage["requests"] == limit


# — the key —

SECRET = pytest.mark.fault("The key")
SHAPES = {
    "plain": lambda key: key,
    "escaped": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "first letter": lambda key: f"\\u{ord(key[0]):04x}{key[1:]}",
    "escaped twice": lambda key: f"\\\\u{ord(key[0]):04x}{key[1:]}",
    "hexadecimal": lambda key: f"\\x{ord(key[0]):02x}{key[1:]}",
    "percent": lambda key: f"%{ord(key[0]):02X}{key[1:]}",
}


def in_caption(key):
    return completion(json.dumps({"variants": [{"one_sentence": f"A sign says {key}"}]})), 200


def in_raw_caption(key):
    body = completion(json.dumps({"variants": [{"caption": "A sign: KEY"}]}))
    return json.dumps(body).replace("KEY", key).encode(), 200


PLACES = {
    "caption": in_caption,
    "raw caption": in_raw_caption,
    "model": lambda key: (completion('{"variants": []}') | {"model": key}, 200),
    "refusal": lambda key: (completion("", refusal=f"not with {key}"), 200),
    "thoughts": lambda key: (completion("", reasoning_content=f"Bearer {key}"), 200),
    "error": lambda key: ({"error": {"message": f"bad key {key}", "code": key}}, 400),
    "teapot": lambda key: (f"I am a teapot, {key}".encode(), 418),
    "page": lambda key: (f"<html>{key}</html>".encode(), 200),
    "wrong key": lambda key: ({"error": {"message": f"wrong key: {key}"}}, 401),
    "busy": lambda key: ({"error": f"{key} is over its limit"}, 429),
    "redirect": lambda key: (b"", 302),
    "at a cut": lambda key: (b"<" + b"a" * (199 - len(key)) + key.encode(), 200),
    "at a long cut": lambda key: (b"<" + b"a" * (499 - len(key)) + key.encode() + b"xx", 418),
    "in a long name": lambda key: (completion("{}") | {"model": "m" * 171 + key}, 200),
}


@SECRET
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_key_goes_nowhere(chat, tmp_path, capfd, place, shape):
    body, status = place(shape(KEY))
    headers = {"location": f"http://x/?key={KEY}"} if status == 302 else {}
    outcome, _ = chat(lambda handler, *_: handler.send(body, status, **headers), images=2)
    text = [p.read_text() for p in tmp_path.rglob("*.json*")] + [*capfd.readouterr()]
    if isinstance(outcome, Exception):
        text += traceback.format_exception(outcome)
    else:
        text += [str(outcome.report), str(outcome.problems)]
    seen = "".join(text)
    for escaped in SHAPES.values():
        assert escaped(KEY)[: len(KEY) - 2] not in seen


@SECRET
@pytest.mark.parametrize("key", ["abc%41defgh-1234567890-xyz", "k&amp;-123456789"])
def test_a_key_that_looks_escaped_itself(chat, tmp_path, key):
    def respond(handler, request, n):
        handler.send(completion(caption(request).replace("objects", json.dumps(key)[1:-1])))

    captions, _ = chat(respond, key=key)
    written = "".join(p.read_text() for p in tmp_path.rglob("*.json*"))
    assert captions.report.captioned == 0 and json.dumps(key)[1:-1] not in written


@SECRET
def test_a_key_escaped_for_pages(chat, tmp_path):
    def respond(handler, request, n):
        handler.send(completion(caption(request).replace("objects", KEY.replace("-", "&#45;"))))

    assert chat(respond)[0].report.captioned == 0


@SECRET
@pytest.mark.parametrize(
    "key", ["none", "EMPTY", "ollama", "lm-studio", "red", "sk-no-key-required"]
)
def test_a_key_that_is_a_word_may_stand_in_captions(chat, key):
    def respond(handler, request, n):
        text = caption(request).replace("objects", f"objects, {key} of them grey,")
        handler.send(completion(text))

    captions, _ = chat(respond, key=key)
    assert captions.report.captioned == 3
    assert all(f"{key} of them grey" in str(record) for record in captions.records.values())


# — embedding servers —

EMBED = pytest.mark.fault("Embedding servers")
TEXTS = [f"{n} boats near a pier" for n in range(40)]


def vector(text: str, model: int = 0) -> list[float]:
    return np.random.default_rng([model, *text.encode()]).standard_normal(8).tolist()


def answers(texts: list[str], model: int = 0) -> dict:
    return {"data": [{"index": i, "embedding": vector(t, model)} for i, t in enumerate(texts)]}


@pytest.fixture
def embed(monkeypatch, tmp_path):
    monkeypatch.setattr(openai_api, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(openai_api, "RETRIES", 2)

    def run(respond, texts=TEXTS, folder="d", at=None):
        with RawServer(respond) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"http://{at or server.address}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
            rows = [(f"i{n}", "x", 0, "full", text) for n, text in enumerate(texts)]
            corpus = pd.DataFrame(rows, columns=CORPUS_COLUMNS)
            return embed_corpus(corpus, load_encoder("openai:m"), tmp_path / folder)

    return run


@EMBED
@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("most", [1, 7, 32])
def test_batches_are_halved_until_they_fit(embed, status, most):
    def respond(handler, request, n):
        texts = request["input"]
        error = {"message": f"batch size {len(texts)} > {most}", "code": status}
        handler.send(answers(texts)) if len(texts) <= most else handler.send(error, status)

    made = embed(respond)
    expected = np.array([vector(text) for text in TEXTS], np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(made.vectors, expected, atol=1e-6)


def with_first(change):
    def respond(handler, request, n):
        value = answers(request["input"])
        change(value["data"])
        handler.send(value)

    return respond


@EMBED
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop(),
        lambda data: data.append(data[0]),
        lambda data: data[0].update(index=1),
        lambda data: data[0].update(index=10**6),
        lambda data: data[0].pop("embedding"),
        lambda data: data[0].update(embedding=[1.0]),
        lambda data: data[0].update(embedding=[]),
        lambda data: data[0].update(embedding="AAAA"),
        lambda data: data[0].update(embedding=None),
        lambda data: data[0].update(embedding=[[1.0] * 8]),
        lambda data: data[0].update(embedding=[0.0] * 8),
        lambda data: data[0].update(embedding=[float("nan")] * 8),
        lambda data: data[0].update(embedding=[1e300] * 8),
        lambda data: data.clear(),
        lambda data: data.__setitem__(0, "no"),
    ],
)
def test_vectors_that_are_none_stop_with_a_sentence(embed, change):
    with pytest.raises(InputError, match=r"one vector for each|zero or non-finite|another model"):
        embed(with_first(change), TEXTS[:2])


@EMBED
@pytest.mark.parametrize(
    "respond",
    [
        lambda handler, *_: handler.send({"data": None}),
        lambda handler, *_: handler.send({"data": 7}),
        lambda handler, *_: handler.send(ERROR),
        lambda handler, *_: handler.send(ERROR, 500),
        lambda handler, *_: handler.send(ERROR, 401),
        lambda handler, *_: handler.send(b"<html>", 200),
        lambda handler, request, n: handler.send({"error": "too long"}, 400),
        reset,
    ],
)
def test_no_vectors_at_all_stop_with_a_sentence(embed, respond):
    with pytest.raises(InputError):
        embed(respond, TEXTS[:2])


@EMBED
def test_two_servers_at_two_ports_are_two_encoders(embed):
    made = [embed(lambda h, r, n, m=m: h.send(answers(r["input"], m))) for m in (0, 1)]
    assert made[0].identity != made[1].identity and made[1].encoded == len(TEXTS)


@EMBED
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_model_that_changes_in_mid_run(embed, after):
    def respond(handler, request, n):
        handler.send(answers(request["input"], int(n >= after)))

    texts = [f"text {n}" for n in range(600)]
    with RawServer(respond) as server:
        with pytest.raises(InputError, match="another model than before"):
            embed(respond, texts, at=server.address)
        right = embed(respond, texts, at=server.address)
    expected = np.array([vector(text, 1) for text in texts], np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert right.encoded == 600 and np.allclose(right.vectors, expected, atol=1e-6)


@EMBED
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_vectors_of_any_length_are_made_unit(embed, factor):
    def respond(handler, request, n):
        value = answers(request["input"])
        for entry in value["data"]:
            entry["embedding"] = [factor * x for x in entry["embedding"]]
        handler.send(value)

    assert np.allclose(np.linalg.norm(embed(respond).vectors, axis=1), 1, atol=1e-5)


@EMBED
@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS, "one more"]], ids=["same texts", "more texts"])
def test_a_model_that_changed_behind_its_address(embed, monkeypatch, texts):
    model = [0]

    def respond(handler, request, n):
        handler.send(answers(request["input"], model[0]))

    with RawServer(respond) as server:
        before = embed(respond, at=server.address)
        same = embed(respond, at=server.address)
        assert same.encoded == 0 and same.identity == before.identity
        model[0] = 1
        after = embed(respond, texts, at=server.address)
        assert after.encoded == len(texts) and after.identity != before.identity


# — what real embedding servers do —


def unit(texts: list[str]) -> np.ndarray:
    expected = np.array([vector(text) for text in texts], np.float32)
    return expected / np.linalg.norm(expected, axis=1, keepdims=True)


def without_index(rows, request):
    [row.pop("index") for row in rows]


def all_zero(rows, request):
    [row.update(index=0) for row in rows]


def shuffled(rows, request):
    rows.reverse()


def in_base64(rows, request):
    for row in rows:
        numbers = np.array(row["embedding"], "<f4").tobytes()
        row["embedding"] = base64.b64encode(numbers).decode()


def short(rows, request):
    [row.update(embedding=[0.389 * x for x in row["embedding"]]) for row in rows]


@EMBED
@pytest.mark.parametrize("change", [without_index, all_zero, shuffled, in_base64, short])
def test_vectors_in_other_clothes(embed, change):
    def respond(handler, request, n):
        value = answers(request["input"])
        change(value["data"], request)
        handler.send(value)

    made = embed(respond)
    assert np.allclose(made.vectors, unit(TEXTS), atol=1e-6)


@EMBED
def test_an_option_that_the_server_does_not_know_is_left_out(embed):
    def respond(handler, request, n):
        error = {"error": {"message": "unknown parameter encoding_format"}}
        known = "encoding_format" not in request
        handler.send(answers(request["input"])) if known else handler.send(error, 400)
        asked.append(known)

    asked: list[bool] = []
    assert np.allclose(embed(respond).vectors, unit(TEXTS), atol=1e-6)
    assert asked.count(False) == 1


LONG = "a pier " * 300  # 2,100 characters
TOO_LONG = {
    "llama.cpp": (500, "input (562 tokens) is too large to process. increase the physical batch "
                  "size (current batch size: 512)"),
    "TEI": (413, "inputs must have less than 512 tokens. Given: 562"),
    "vLLM": (400, "This model's maximum context length is 512 tokens. However, you requested 562 "
             "tokens in the input"),
    "no reason": (422, "refused"),
    "a crash": (500, "internal error"),
}  # fmt: skip


@EMBED
@pytest.mark.parametrize("who", TOO_LONG)
def test_a_text_that_is_too_long_is_cut_and_named_and_takes_no_other_with_it(embed, caplog, who):
    """Its vector is that of what the server takes of it; the next run has nothing to do."""
    status, words = TOO_LONG[who]
    taken: list[int] = []

    def respond(handler, request, n):
        sizes = [len(text) for text in request["input"]]
        if max(sizes) > 1912:  # 512 of 562 tokens
            return handler.send({"error": {"message": words, "code": status}}, status)
        taken.append(max(sizes))
        return handler.send(answers(request["input"]))

    texts = [*TEXTS, LONG]
    with RawServer(respond) as server:
        made = embed(respond, texts, at=server.address)
        (said,) = caplog.messages
        assert "'a pier a pier" in said and "characters were used" in said
        asked, kept = len(server.requests), max(taken)
        again = embed(respond, texts, at=server.address)
        assert again.encoded == 0 and len(server.requests) == asked + 1  # the control text
    assert made.too_long == again.too_long == 1 and asked <= (8 if "tokens" in words else 24)
    assert kept > (1600 if "tokens" in words else 1400)
    assert np.allclose(made.vectors, unit([*TEXTS, LONG[:kept]]), atol=1e-6)


@EMBED
@pytest.mark.parametrize("status", [400, 413, 500, 501])
def test_a_server_that_embeds_nothing_blames_no_text(embed, monkeypatch, status):
    monkeypatch.setattr(openai_api, "RETRIES", 6)

    def respond(handler, request, n):
        asked.append(request["input"])
        handler.send({"error": {"message": "the reason"}}, status)

    asked: list[list[str]] = []
    with pytest.raises(InputError, match="the reason") as caught:
        embed(respond)
    assert "boats near" not in str(caught.value) and len(asked) <= 8
    assert {str(texts) for texts in asked} == {"['a harbour with twelve white boats']"}


@EMBED
def test_batches_fit_the_time_that_the_server_takes(embed, monkeypatch):
    """They start small, and shrink where no answer comes in time."""
    monkeypatch.setenv("OPENAI_TIMEOUT", "0.4")

    def respond(handler, request, n):
        sizes.append(len(request["input"]))
        time.sleep(0.03 * sizes[-1])  # 13 texts are too many
        with suppress(OSError):
            handler.send(answers(request["input"]))

    sizes: list[int] = []
    made = embed(respond)
    assert np.allclose(made.vectors, unit(TEXTS), atol=1e-6)
    assert sizes[1] == 17 and len([n for n in sizes if n > 13]) <= 3

    def quick(handler, request, n):
        sizes.append(len(request["input"]))
        handler.send(answers(request["input"]))

    sizes.clear()
    embed(quick, [f"text {n}" for n in range(1000)], "other")
    assert sizes[:5] == [1, 17, 33, 65, 17] and max(sizes) <= 256


@EMBED
def test_what_was_encoded_before_a_server_died_is_kept(embed):
    def dying(handler, request, n):
        alive = n < 6
        handler.send(answers(request["input"])) if alive else handler.send(ERROR, 500)

    texts = [f"text {n}" for n in range(1000)]
    with RawServer(dying) as server:
        with pytest.raises(InputError, match="the reason"):
            embed(dying, texts, at=server.address)
        server.respond = lambda handler, request, n: handler.send(answers(request["input"]))
        made = embed(dying, texts, at=server.address)
    assert 0 < made.encoded < 1000 and np.allclose(made.vectors, unit(texts), atol=1e-6)
