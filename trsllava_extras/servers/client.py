"""Servers that speak the OpenAI protocol: a JSON request goes in, the JSON of the answer comes out.

Address and key come from the environment only (``OPENAI_BASE_URL``, ``OPENAI_API_KEY``); the key is
never printed. A server is not trusted: a request has one deadline, an answer a greatest size, and
pictures go to no other address than the one named (or its proxy). Hence httpcore, and not
OpenAI's SDK, which repeats requests unseen, follows redirects, and waits as long as something drips
in.
"""

from __future__ import annotations

import html
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from trsllava_utils.captioner import NoAnswerError
from trsllava_utils.files import InputError, MissingError, fingerprint, parse_json

RETRIES = 6  # of one request, when the connection or the server fails; together about 25 s
FEW_RETRIES = 2  # where patience seldom helps: no answer in time; 500, as long as nothing worked
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a request is repeated
LOADING_WAIT, LONGEST_LOADING = 10.0, 600.0  # seconds, while a server says that it loads its model
LARGEST_ANSWER = 24 << 20  # bytes; 256 vectors of 3,072 numbers take 16 MiB
_BUSY = {408, 409, 425, 429, *range(500, 600)}
_FINAL = {401, 402, 403, 404, 405, 501}
_NAMES = {"model", "model_not_found", "invalid_model", "invalid_api_key", "api_key"}
_LOADING = re.compile(r"\bloading\b|\bstarting up\b|\bwarming up\b", re.I)
# a server's way to say 413, whatever the status
TOO_LONG = re.compile(r"too (?:large|long|many tokens)|exceed|maximum context|less than \d+", re.I)
_ESCAPES = re.compile(r"\\+u([0-9a-fA-F]{4})|\\+x([0-9a-fA-F]{2})|%([0-9a-fA-F]{2})|\\+(?=/)")


class ServerError(NoAnswerError):
    """The server could not be reached or kept failing; this says nothing about what it was sent."""


class RefusedError(NoAnswerError):
    """The server understood, but does not take this request (400, 413, 422 …).

    Attributes:
        status: of HTTP.
        words: the server's reason.
        parameter: the option that it names as the cause; "" for none.
    """

    def __init__(self, status: int, words: str, parameter: str = "") -> None:
        super().__init__(f"refused by the server ({status}): {words}")
        self.status, self.words, self.parameter = status, words, parameter


class Server:
    """An address and a key.

    Args:
        purpose: who asks, for the error message, such as ``"captioner 'openai:gpt-4.1'"``.
        timeout: seconds that one request may take, from its first byte to the answer's last; 0:
            OPENAI_TIMEOUT, or 60.
        before_each: called before each try of a request; may raise to stop.
        on_wait: called with a sentence when a request has to wait to be repeated.
        largest: the most bytes of an answer.

    Raises:
        MissingError: OPENAI_API_KEY is not set.
        InputError: OPENAI_BASE_URL is no address, or OPENAI_TIMEOUT no number of seconds.
    """

    def __init__(
        self,
        purpose: str,
        timeout: float = 0,
        before_each: Callable[[], None] = lambda: None,
        on_wait: Callable[[str], None] = lambda words: None,
        largest: int = LARGEST_ANSWER,
    ) -> None:
        if not _key():
            raise MissingError(
                f"{purpose} needs OPENAI_API_KEY in the environment, and OPENAI_BASE_URL for a "
                "server other than OpenAI's; a server of your own takes any word as its key"
            )
        self.url = _address()
        self.address = redact(f"{self.url.netloc.decode()}{self.url.path}")
        self._largest = largest
        if not _key().isascii() or not _key().isprintable():
            raise InputError("OPENAI_API_KEY holds a character that no key can have")
        self._timeout = timeout or _seconds_allowed()
        self._before_each, self._on_wait = before_each, on_wait
        self._headers = {
            "authorization": f"Bearer {_key()}",
            "accept-encoding": "identity",
            "content-type": "application/json",
        }
        self._pool = _connections(self.url)
        self._purpose = purpose
        self._has_worked = False
        self._given_up: dict[str, str] = {}  # before anything worked: why, and what was asked

    def post(self, path: str, request: dict[str, Any], retries: int = RETRIES) -> dict[str, Any]:
        """Send a request, repeated while the server is busy; may be called from many threads.

        Returns:
            The answer, a JSON object that is no error.

        Raises:
            ServerError: no answer, or one that is none of this protocol.
            RefusedError: the server does not take this request.
            InputError: it is useless to go on: wrong key, no such model, no money; or nothing has
                worked so far, and another request failed in the same words.
        """
        tries, loads_until = 0, math.inf
        while True:
            self._before_each()
            try:
                answer = self._once(path, request)
                self._has_worked = True
                return answer
            except _BusyError as busy:
                reason, tries = busy, tries + 1
            wait = reason.wait or FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.75, 1)
            if reason.is_loading and time.monotonic() < loads_until:
                loads_until = min(loads_until, time.monotonic() + LONGEST_LOADING)
                tries, wait = 0, LOADING_WAIT
            if reason.status != 429:
                self.check_hope(request, reason.words)
            is_lasting = reason.is_lasting or (reason.status == 500 and not self._has_worked)
            if tries > min(retries, FEW_RETRIES if is_lasting else RETRIES):
                self.give_up(request, reason.words)
                raise ServerError(f"no answer after {tries} tries ({reason})")
            wait = min(wait, LONGEST_WAIT)
            if wait >= 2:
                self._on_wait(f"waiting {wait:.0f} s: {reason}")
            time.sleep(wait)

    def give_up(self, request: dict[str, Any], words: str) -> None:
        """Remember why a request failed for good, if nothing has worked so far."""
        if not self._has_worked:
            self._given_up[_gist(words)] = _subject(request)

    def check_hope(self, request: dict[str, Any], words: str) -> None:
        """Raise InputError if nothing has worked so far, and a request about something else failed
        for good in the same words: then it is not what was asked."""
        earlier = None if self._has_worked else self._given_up.get(_gist(words))
        if earlier and earlier != _subject(request):
            raise InputError(
                f"{words.rstrip('.')}. {self._purpose} has got no answer so far, and this twice: "
                "check the model's name, OPENAI_BASE_URL, OPENAI_API_KEY and what the server says"
            )

    def get(self, path: str) -> dict[str, Any]:
        """Fetch something once; errors as for :meth:`post`."""
        try:
            return self._once(path)
        except _BusyError as busy:
            raise ServerError(str(busy)) from None

    def _once(self, path: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        url = str(self.url.copy_with(path=f"{self.url.path.rstrip('/')}/{path}"))
        _thread.deadline = time.monotonic() + self._timeout
        try:
            content = None if request is None else json.dumps(request).encode()
            sent = {"headers": self._headers, "content": content}
            with self._pool.stream("POST" if content else "GET", url, **sent) as response:
                content = bytearray()
                for chunk in response.iter_stream():
                    content += chunk
                    if len(content) > self._largest:
                        raise ServerError(f"{self.address}: over {self._largest:,} bytes")
        except InputError:
            raise
        except httpcore.TimeoutException:
            words = f"no whole answer within {self._timeout:g} s"
            raise _BusyError(words, is_lasting=True) from None
        except Exception as error:  # of the connection, or of what it is built on
            reason = str(error) or type(error).__name__
            raise _BusyError(redact(f"{self.address}: {reason}")) from None
        return self._judge(response, bytes(content))

    def _judge(self, response: httpcore.Response, content: bytes) -> dict[str, Any]:
        """The answer, or the error that fits it. An error counts by its own code, which some
        servers send in an answer of status 200."""
        status, text = response.status, content.decode("utf-8", "replace")
        headers = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in response.headers}
        if 300 <= status < 400:
            to = redact(headers.get("location", "nowhere"))
            raise InputError(
                f"{self.address} redirects to {to}, which is not followed; set OPENAI_BASE_URL to "
                "the right address"
            )
        if headers.get("content-encoding", "identity") != "identity":
            raise ServerError(f"{self.address}: a compressed answer, which was not asked for")
        try:
            value = parse_json(text, self.address)
        except InputError:
            value = None
        error = _error_in(value)
        if error is None and 200 <= status < 300:
            if isinstance(value, dict):
                return value
            raise _BusyError(
                f"{self.address}: {redact(text)[:200]!r} is no answer; is OPENAI_BASE_URL right?"
            )
        words, code, parameter = error or (redact(text)[:500] or "no reason given", "", "")
        status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else status
        names_model_or_key = status == 400 and _NAMES & {code, parameter}
        if status in _FINAL or code == "insufficient_quota" or names_model_or_key:
            raise InputError(
                f"the server refused what {self._purpose} asks ({status}): {words.rstrip('.')}. "
                "Check the model's name, OPENAI_BASE_URL, OPENAI_API_KEY and what is left of your "
                "quota."
            )
        if status in _BUSY and not (status == 500 and TOO_LONG.search(words)):
            raise _BusyError(f"{status}: {words}", status, _seconds(headers.get("retry-after")))
        if status < 400:
            raise ServerError(
                f"{self.address} answered with an error: {words}; is OPENAI_BASE_URL right?"
            )
        raise RefusedError(status, words, parameter)


_thread = threading.local()  # .deadline of this thread's request, on the monotonic clock


def _left() -> float:
    """Seconds until the deadline."""
    if (left := _thread.deadline - time.monotonic()) <= 0:
        raise httpcore.ReadTimeout
    return left


class _Network(httpcore.SyncBackend):
    """Connections on which all steps of a request together have one deadline; left to itself,
    httpcore gives each read the whole time."""

    def connect_tcp(self, host: str, port: int, timeout=None, *args, **options) -> _Stream:
        return _Stream(super().connect_tcp(host, port, _left(), *args, **options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self.close, self.get_extra_info = stream.close, stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left())

    def start_tls(self, ssl_context, server_hostname=None, timeout=None) -> _Stream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left()))


def _connections(url: httpx.URL) -> httpcore.ConnectionPool:
    """Connections to a server, by way of the proxy that the environment names for it."""
    how = {"network_backend": _Network(), "max_connections": None, "max_keepalive_connections": 64}
    if url.scheme == "https":
        how["ssl_context"] = httpcore.default_ssl_context()
    proxy = None if proxy_bypass(url.host) else getproxies().get(url.scheme)
    if not proxy:
        return httpcore.ConnectionPool(**how)
    parts = urlsplit(proxy)
    who = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    at = f"{parts.scheme or 'http'}://{parts.hostname}:{parts.port or 80}"
    return httpcore.HTTPProxy(at, proxy_auth=who, **how)


class _BusyError(ServerError):
    def __init__(
        self, words: str, status: int = 0, wait: float = 0.0, is_lasting: bool = False
    ) -> None:
        super().__init__(words)
        self.words, self.status, self.is_lasting = words, status, is_lasting
        self.wait = wait  # seconds that the server asks for; 0: it does not say
        self.is_loading = status == 503 and bool(_LOADING.search(words))


def _gist(words: str) -> str:
    """Words without what differs from one request to the next."""
    return re.sub(r"\w*\d\w*", "", words)[:300]


def _subject(request: dict[str, Any]) -> str:
    """What a request is about, in whichever form it asks."""
    return fingerprint(request.get("messages") or request.get("input"))


def _error_in(value: Any) -> tuple[str, str, str] | None:
    """Words, code and parameter of an error; None where there is none."""
    if not isinstance(value, dict):
        return None
    error = value.get("error") or (value if value.get("object") == "error" else None)
    if error is None and "message" in value and not {"choices", "data"} & value.keys():
        error = value
    if not error:
        return None
    error = error if isinstance(error, dict) else {"message": error}
    words = error.get("message") or error.get("detail") or error
    return redact(words)[:500], str(error.get("code") or ""), str(error.get("param") or "")


def _seconds(retry_after: str | None) -> float:
    """The header Retry-After in seconds; 0 where it says nothing usable."""
    with suppress(TypeError, ValueError):
        seconds = float(retry_after)
        return seconds if 0 < seconds < math.inf else 0.0
    with suppress(TypeError, ValueError):
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return 0.0


def _address() -> httpx.URL:
    """The address in OPENAI_BASE_URL, if it is one."""
    base = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    try:
        url = httpx.URL(base.rstrip("/"))
        if url.scheme in ("http", "https") and url.host and re.fullmatch(r"[!-~]+", base):
            httpx.Request("POST", url)
            if (url.port or 80) < 2**16 and b"%0" not in url.raw_path.lower():
                return url
    except (httpx.InvalidURL, ValueError):
        pass
    raise InputError(f"OPENAI_BASE_URL={redact(base)!r}: give http://host:port/v1 or https://…")


def _seconds_allowed() -> float:
    given = os.environ.get("OPENAI_TIMEOUT") or "60"
    with suppress(ValueError):
        if 0 < (seconds := float(given)) < math.inf:
            return seconds
    raise InputError(f"OPENAI_TIMEOUT={given!r}: give the seconds that a request may take")


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY", "").strip()


def holds_key(text: str) -> bool:
    """Whether a text repeats the key, in any way of escaping it. A key that is a plain word, such
    as "none", is no secret, and may stand in any caption."""
    key = _key()
    is_secret = len(key) >= 20 or (len(key) >= 8 and any(letter.isdigit() for letter in key))
    return is_secret and any(key in form for form in _forms(text))


def redact(text: object) -> str:
    """A server's words without the key, should the server have repeated it."""
    words = str(text)
    if not holds_key(words):
        return words
    words = words.replace(_key(), "[key]")
    return _forms(words)[-1].replace(_key(), "[key]") if holds_key(words) else words


def _forms(text: str) -> tuple[str, str, str]:
    """A text as it is, and with what is escaped in it as plain letters."""
    plain = _ESCAPES.sub(lambda m: chr(int(m[m.lastindex], 16)) if m.lastindex else "", text)
    return text, plain, html.unescape(plain)
