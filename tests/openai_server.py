"""A server that speaks the OpenAI chat protocol and misbehaves as told. It knows nothing about the
pictures: its captions are made of the request's seed.

By hand: ``python tests/openai_server.py --latency 0.2`` prints its address and serves until killed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ["harbour", "airport", "forest", "farmland", "river", "stadium", "beach", "bridge"]
SIDES = ["north", "south", "east", "west", "north-east", "south-west", "centre"]
GERMAN = {
    "one_sentence": "Ein Luftbild eines Hafens mit mehreren Schiffen an den Kais im Norden.",
    "feature": "weiße Schiffe im Norden; dunkles Wasser in der Mitte; graue Dächer im Süden",
    "caption": "Das Bild zeigt einen Hafen mit weißen Schiffen, daneben liegen große Lagerhallen.",
}


def answer(seed: int, n: int) -> dict:
    """``n`` RSRT variants drawn with a seed."""
    rng = random.Random(seed)
    variants = []
    for _ in range(n):
        kind, (a, b, c), k = rng.choice(KINDS), rng.sample(SIDES, 3), rng.randint(2, 99)
        variants.append(
            {
                "one_sentence": f"An overhead view of a {kind} with {k} objects in the {a}.",
                "feature": f"{k} bright objects in the {a}; a grey road in the {b}; trees, {c}",
                "caption": f"The {kind} takes up the {a} of the picture. A road runs from the {b} "
                f"to the {c} and passes {k} smaller things.",
            }
        )
    return {"variants": variants}


class LocalServer(ThreadingHTTPServer):
    """A server on this machine that answers from a thread while it is entered."""

    def __enter__(self) -> LocalServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Server(LocalServer):
    """Serves in a thread: ``with Server() as server: … server.url``.

    Args:
        script: what the n-th request (from 0) gets: "good", or a name of ``_Handler``'s methods.
        latency: seconds before every answer.
        formats: response formats that are understood.
        refused: request options that are answered with 400.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        script: Callable[[int], str] = lambda n: "good",
        latency: float = 0.0,
        formats: tuple[str, ...] = ("json_schema", "json_object"),
        refused: tuple[str, ...] = (),
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script, self.latency, self.formats, self.refused = script, latency, formats, refused
        self.requests: list[dict] = []
        self.done: list[str] = []  # what each request got
        self.now = self.most = 0  # requests under way: now, and at most
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """Clients that are killed break the connection; nobody needs to read that."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        known = {"object": "list", "data": [{"id": "vlm", "object": "model"}, {"id": "other"}]}
        self._json(200 if self.path.endswith("/models") else 404, known)

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            name = server.script(len(server.requests))
            server.requests.append(request)
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(server.latency)
        problem = self._refusal(request)
        try:
            if problem:
                self._json(400, {"error": problem})
            else:
                getattr(self, name)(request)
        finally:
            with server.lock:
                server.now -= 1
                server.done.append("refused" if problem else name)

    def _refusal(self, request: dict) -> dict | None:
        form = request.get("response_format", {}).get("type")
        if form and form not in self.server.formats:
            return {"message": f"response_format {form} is unknown", "param": "response_format"}
        for option in self.server.refused:
            if option in request:
                hint = " Use max_completion_tokens." if option == "max_tokens" else ""
                return {"message": f"unknown option {option}.{hint}", "param": option}
        return None

    def _json(self, status: int, value: dict, **headers: str) -> None:
        self._send(status, json.dumps(value, ensure_ascii=False).encode(), **headers)

    def _send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _completion(self, request: dict, content: str | None, finish: str = "stop") -> dict:
        message = {"role": "assistant", "content": content}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": f"{request['model']}-2026-01",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300},
        }

    def _say(self, request: dict, content: str | None, finish: str = "stop") -> None:
        self._json(200, self._completion(request, content, finish))

    def _answer(self, request: dict) -> str:
        asked = json.dumps(request["messages"][0]["content"][0])
        wanted = re.search(r"Describe it (\d) times|Write (\d) captions", asked)
        n = int(wanted[1] or wanted[2]) if wanted else 1
        value = answer(request.get("seed", random.getrandbits(31)), n)
        if "Write" in asked:  # as the examples are: plain captions
            value["variants"] = [{"caption": v["one_sentence"]} for v in value["variants"]]
        if not wanted:
            value = {"caption": value["variants"][0]["caption"]}
        return json.dumps(value, ensure_ascii=False)

    # what a request may get

    def good(self, request: dict) -> None:
        self._say(request, self._answer(request))

    def slow(self, request: dict) -> None:
        time.sleep(1.5)
        self.good(request)

    def drop(self, request: dict) -> None:
        self.close_connection = True

    def torn(self, request: dict) -> None:
        """Half of the body, then the connection breaks."""
        body = json.dumps(self._completion(request, self._answer(request))).encode()
        self._send(200, body[: len(body) // 2], length=len(body))
        self.close_connection = True

    def page(self, request: dict) -> None:
        """A proxy's page in place of the answer."""
        self._send(200, b"<html>502 Bad Gateway</html>")

    def busy(self, request: dict) -> None:
        self._json(429, {"error": {"message": "slow down"}}, Retry_After="0.3")

    def quota(self, request: dict) -> None:
        self._json(429, {"error": {"message": "no money", "code": "insufficient_quota"}})

    def broken(self, request: dict) -> None:
        self._json(500, {"error": {"message": "something broke"}})

    def half(self, request: dict) -> None:
        text = self._answer(request)
        self._say(request, text[: len(text) // 2])

    def cut(self, request: dict) -> None:
        text = self._answer(request)
        self._say(request, text[: len(text) // 2], "length")

    def prose(self, request: dict) -> None:
        self._say(request, f"Here [as asked] it is:\n```json\n{self._answer(request)}\n```\nBye!")

    def schema(self, request: dict) -> None:
        self._say(request, json.dumps({"variants": [{"sentence": "A harbour."}]}))

    def empty(self, request: dict) -> None:
        self._say(request, None)

    def nothing(self, request: dict) -> None:
        self._json(200, {**self._completion(request, ""), "choices": []})

    def german(self, request: dict) -> None:
        five = [{k: f"{i}: {v}" for k, v in GERMAN.items()} for i in range(5)]
        self._say(request, json.dumps({"variants": five}, ensure_ascii=False))

    def refuse(self, request: dict) -> None:
        refusal = {k: "I'm sorry, I cannot see any image here." for k in GERMAN}
        self._say(request, json.dumps({"variants": [refusal] * 5}))

    def loop(self, request: dict) -> None:
        text = json.loads(self._answer(request))
        text["variants"][0]["caption"] = "There are trees and houses. " * 12
        self._say(request, json.dumps(text))

    def safety(self, request: dict) -> None:
        self._json(400, {"error": {"message": "the image was refused by a filter"}})

    def key(self, request: dict) -> None:
        """401, with the key repeated in the error, as some proxies do."""
        sent = self.headers["authorization"]
        self._json(401, {"error": {"message": f"wrong key: {sent}", "code": "invalid_api_key"}})

    def chatty(self, request: dict) -> None:
        """The key comes back inside the caption."""
        text = json.loads(self._answer(request))
        text["variants"][0]["caption"] += f" Sign: {self.headers['authorization']}"
        self._say(request, json.dumps(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    with Server(latency=args.latency, port=args.port) as running:
        print(running.url, flush=True)
        threading.Event().wait()
