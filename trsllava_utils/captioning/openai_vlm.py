"""Captioner ``openai:MODEL``: a vision-language model behind any server that speaks the OpenAI
chat protocol (vLLM, SGLang, Ollama, LM Studio, OpenAI). Many requests are under way at once; the
SDK repeats one when the server is busy or fails. The form of the answer is requested in the
strictest way that the server understands.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections import Counter
from typing import Any

import numpy as np
import openai
from PIL import Image

from trsllava_utils.artefacts import InputError
from trsllava_utils.captioning.captioner import (
    BudgetSpentError,
    Question,
    Reply,
    ServerError,
    Settings,
)
from trsllava_utils.captioning.prompts import LIMITS, make_prompt
from trsllava_utils.openai_api import open_client, redact

RETRIES = 6  # of one request, when the connection or the server fails; together about 25 s
_FAILED = (
    openai.APIConnectionError,  # and timeouts
    openai.RateLimitError,
    openai.InternalServerError,
    openai.ConflictError,
)
_FINAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
_REFUSED = (openai.BadRequestError, openai.UnprocessableEntityError)


class OpenAICaptioner:
    """See the module's first paragraph; :class:`~trsllava_utils.captioning.captioner.Captioner`."""

    batch_size = 1

    def __init__(self, name: str, settings: Settings) -> None:
        self._settings = settings
        self._client = open_client(
            f"captioner {name!r}", timeout=settings.timeout, max_retries=RETRIES
        )
        self._model = name.removeprefix("openai:")
        self._prompt = make_prompt(settings)
        self.prompt_text = self._prompt.text
        self._slots = threading.BoundedSemaphore(settings.concurrency)  # requests in flight
        # more threads than that: pictures are read and answers checked while all are in flight
        self.concurrency = settings.concurrency + max(1, settings.concurrency // 2)
        self.attempts = settings.attempts
        self.usage: Counter[str] = Counter()
        self.identity = {
            "model": self._model,
            "prompt": self._prompt.fingerprint,
            "seed": settings.seed,
            "temperature": settings.temperature,
        }
        self._lock = threading.Lock()
        self._formats = self._response_formats()
        self._tokens_name = "max_tokens"
        self._dropped: frozenset[str] = frozenset()  # options that this server does not take
        self._proven: tuple | None = None  # a form of the request that was accepted

    @property
    def notes(self) -> list[str]:
        """What the server does not take, so that requests are less strict."""
        form = self._formats[0].get("response_format", {}).get("type", "plain text")
        loose = len(self._formats) < 3  # without lengths it needs no note: the gate checks them
        notes = [f"the server takes no JSON schema; answers were asked for as {form}"] * loose
        notes += [f"the server takes no {name}; it was left out" for name in sorted(self._dropped)]
        return notes

    def _form(self) -> tuple:
        return len(self._formats), self._tokens_name, self._dropped

    def _response_formats(self) -> list[dict[str, Any]]:
        """From the strictest to the loosest: schema with lengths, schema, JSON mode, plain text."""
        schemas = [self._prompt.schema(lengths) for lengths in (True, False)]
        named = [{"name": self._prompt.kind, "strict": True, "schema": s} for s in schemas]
        formats = [{"type": "json_schema", "json_schema": n} for n in named]
        return [{"response_format": f} for f in (*formats, {"type": "json_object"})] + [{}]

    def describe(self, questions: list[Question]) -> list[Reply]:
        return [self._describe(question) for question in questions]

    def _describe(self, question: Question) -> Reply:
        content = self._content(question)
        while True:
            with self._lock:
                form, request = self._form(), self._request(question, content)
            try:
                completion = self._send(request)
            except _REFUSED as error:
                if self._proven == form:  # it works, so it is this image that the server refuses
                    return Reply("", self._model, f"refused by the server: {redact(error)}")
                self._loosen(form, error)
                continue
            except _FINAL as error:
                raise InputError(
                    f"the server refused model {self._model!r}: {redact(error)}. Check the model's "
                    "name, OPENAI_BASE_URL and OPENAI_API_KEY."
                ) from None
            except _FAILED as error:
                if getattr(error, "code", None) == "insufficient_quota":
                    raise InputError(f"the server's quota is used up: {redact(error)}") from None
                raise ServerError(
                    f"no answer after {RETRIES + 1} tries ({type(error).__name__}: {redact(error)})"
                ) from None
            except json.JSONDecodeError:
                return Reply("", self._model, "broken answer: not the JSON of a completion")
            self._proven = form
            return self._read(completion)

    def _send(self, request: dict[str, Any]):
        with self._slots:
            with self._lock:
                if 0 < self._settings.max_requests <= self.usage["requests"]:
                    raise BudgetSpentError(f"max_requests={self._settings.max_requests} are spent")
                self.usage["requests"] += 1
            return self._client.chat.completions.create(**request)

    def _content(self, question: Question) -> list[dict[str, Any]]:
        text = {"type": "text", "text": self._prompt.for_question(question)}
        urls = [_data_url(picture) for picture in question.pictures.values()]
        return [text, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]

    def _request(self, question: Question, content: list[dict[str, Any]]) -> dict[str, Any]:
        options = {
            "temperature": question.temperature,
            "seed": question.seed,
            # about four characters per token; the rest is room for JSON and other languages
            self._tokens_name: 256 + self._settings.n * sum(LIMITS.values()) // 3,
        }
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            **{k: v for k, v in options.items() if k not in self._dropped},
            **self._formats[0],
        }

    def _loosen(self, form: tuple, error: openai.APIStatusError) -> None:
        """Take out of the request what this server does not understand."""
        with self._lock:
            if form != self._form():
                return  # another thread has just done it
            words = str(error)
            named = {error.param} if error.param else set(re.findall(r"\w+", words))
            unknown = named & {"temperature", "seed"} - self._dropped
            if self._tokens_name == "max_tokens" and "max_completion_tokens" in words:
                self._tokens_name = "max_completion_tokens"
            elif unknown:
                self._dropped |= unknown
            elif len(self._formats) > 1:
                self._formats = self._formats[1:]
            else:
                raise InputError(
                    f"the server refuses the request even in its plainest form: {redact(error)}. "
                    f"Does {self._model!r} take images?"
                ) from None

    def _read(self, completion) -> Reply:
        """The words of a completion; anything may be missing from it."""
        if isinstance(completion, str):  # some proxy's page
            return Reply(redact(completion[:200]), self._model, "broken answer")
        usage = getattr(completion, "usage", None)
        with self._lock:
            self.usage["input tokens"] += getattr(usage, "prompt_tokens", None) or 0
            self.usage["output tokens"] += getattr(usage, "completion_tokens", None) or 0
        model = getattr(completion, "model", None) or self._model
        choices = getattr(completion, "choices", None)
        if not choices or choices[0].message is None:
            return Reply("", model, "empty reply")
        text = choices[0].message.content or ""
        if refusal := getattr(choices[0].message, "refusal", None):
            return Reply(redact(refusal), model, "refusal")
        cut = choices[0].finish_reason == "length"
        return Reply(redact(text), model, "cut at the token limit" if cut else "")


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
