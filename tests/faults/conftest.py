"""Faults: every test here is a kind of fault that the project survives, tried on several items. Each
is marked with its area; ``make faults`` writes which kinds were tried to ``docs/reliability.md``.
"""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.conftest import KEY, scenes
from tests.openai_server import LocalServer, answer
from trsllava_extras.servers import client as openai_api
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset

COLLECTED: dict[str, set[str]] = {}  # area -> its kinds, those that only `make faults` runs too
FAILED: set[str] = set()


def kind(item: pytest.Item) -> str:
    """What a test is about, in its own words."""
    return item.originalname.removeprefix("test_").replace("_", " ")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if mark := item.get_closest_marker("fault"):
            COLLECTED.setdefault(mark.args[0], set()).add(kind(item))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if item.get_closest_marker("fault") and outcome.get_result().failed:
        FAILED.add(kind(item))


def pytest_sessionfinish(session):
    if path := os.environ.get("FAULT_TABLE"):
        Path(path).write_text(table(COLLECTED, FAILED), encoding="utf-8")


def table(kinds: dict[str, set[str]], failed: set[str]) -> str:
    """The page of docs/."""
    text = Path(__file__).with_name("reliability.txt").read_text(encoding="utf-8")
    rows = ["| area | kinds of faults |", "| --- | --- |"]
    for area, several in sorted(kinds.items()):
        said = (f"{one} (**not survived**)" if one in failed else one for one in sorted(several))
        rows.append(f"| {area} ({len(several)}) | {'; '.join(said)} |")
    return text + "\n".join([*rows, ""])


class RawServer(LocalServer):
    """A server that answers as ``respond(handler, request, n)`` does with its n-th request."""

    daemon_threads = True

    def __init__(self, respond) -> None:
        super().__init__(("127.0.0.1", 0), Raw)
        self.respond, self.requests = respond, []
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """A client may hang up."""


class Raw(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RawServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(request)
        self.server.respond(self, request, len(self.server.requests) - 1)

    def send(self, body: object, status: int = 200, **headers: str) -> None:
        """Bytes as they are, everything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"content_type": "application/json", **headers}
        for name, value in ({"content_length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


def caption(request: dict, n: int = 1) -> str:
    return json.dumps(answer(request.get("seed", 0), n))


def completion(content: object, finish: str = "stop", **more: object) -> dict:
    message = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return {"model": "vlm", "choices": [choice], "usage": {"prompt_tokens": 9}}


def good(handler: Raw, request: dict, n: int = 0) -> None:
    handler.send(completion(caption(request)))


@pytest.fixture
def chat(tmp_path, monkeypatch):
    """Caption a few images with a server; returns the captions or the error, and the server."""
    monkeypatch.setattr(openai_api, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(openai_api, "RETRIES", 3)
    monkeypatch.setattr(openai_api, "LONGEST_WAIT", 0.05)

    def run(respond, images: int = 3, key: str = KEY, **settings):
        with RawServer(respond) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"http://{server.address}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", key)
            how = Settings(**{"variants": 1, "concurrency": 1, "timeout": 5.0, **settings})
            try:
                return caption_dataset(scenes(tmp_path, images), "openai:vlm", how), server
            except ValueError as error:
                return error, server

    return run
