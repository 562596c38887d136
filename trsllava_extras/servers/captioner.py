"""Captioner ``openai:MODEL``: a vision-language model behind any server that speaks the OpenAI
chat protocol (vLLM, SGLang, Ollama, LM Studio, OpenAI). Many requests are under way at once. The
form of the answer is requested in the strictest way that the server takes.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from trsllava_extras.schema import schema
from trsllava_extras.servers.client import RefusedError, Server, ServerError, holds_key, redact
from trsllava_utils.annotations import clean_text
from trsllava_utils.captioner import BudgetSpentError, NoAnswerError, Question, Reply, Settings
from trsllava_utils.files import InputError, parse_json
from trsllava_utils.prompts import LIMITS, ReplyError, make_prompt, parse_reply

LARGEST = 4 << 20  # bytes of an answer
NO_SCHEMA = ("not JSON", "wrong schema")
FEWEST_TOKENS = 256  # that an answer is cut down to, where the model's context is small
_THOUGHT = r"(?:think(?:ing)?|thought|reasoning)[\]>▷]"
# how servers say how many tokens there may be, of input and answer together or of the answer
_CONTEXT = re.compile(
    r"context (?:length|window|size)\D{0,20}(\d+)|max_model_len\D{0,4}(\d+)|n_ctx\D{0,4}(\d+)", re.I
)
_ANSWER = re.compile(r"at most (\d+) (?:completion|output) tokens", re.I)
_INPUT = re.compile(
    r"(\d+) (?:input|prompt) tokens|(\d+) in the messages|request (?:has |\()(\d+)", re.I
)


@dataclass(frozen=True)
class Form:
    """How an answer is asked for; looser where a server takes less."""

    tokens: int  # of the longest answer
    tokens_name: str = "max_tokens"
    format: int = 0  # number of the response format, the strictest first
    dropped: frozenset[str] = frozenset()  # options that are left out


class OpenAICaptioner:
    """See the module's first paragraph; :class:`~trsllava_utils.captioner.Captioner`."""

    batch_size = 1

    def __init__(self, name: str, settings: Settings) -> None:
        self._settings = settings
        told = {"before_each": self._count_request, "largest": LARGEST}
        told["on_wait"] = lambda words: self.on_wait(words)  # which the run sets
        self._server = Server(f"captioner {name!r}", settings.timeout, **told)
        self._model = name.removeprefix("openai:")
        self._prompt = make_prompt(settings)
        self.prompt_text = self._prompt.text
        self._slots = threading.BoundedSemaphore(settings.concurrency)  # requests in flight
        # more threads than that: pictures are read and answers checked while all are in flight
        self.concurrency = settings.concurrency + max(1, settings.concurrency // 2)
        self.attempts = settings.attempts
        self.usage: Counter[str] = Counter()
        self.on_wait = lambda words: None
        self.identity = {
            "model": self._model,
            "prompt": self._prompt.fingerprint,
            "seed": settings.seed,
            "temperature": settings.temperature,
        }
        self._lock = threading.Lock()
        self._formats = self._response_formats()
        # about four characters per token; the rest is room for JSON and other languages
        self._longest = 256 + settings.n * sum(LIMITS.values()) // 3
        self._form = Form(self._longest)
        self._proven = False  # the form: an answer came
        self._until_proven = threading.Lock()
        self._hopeless: InputError | None = None  # why it is useless to ask on
        self._is_schema_ignored = False

    @property
    def notes(self) -> list[str]:
        """What the server does not take, so that requests are less strict."""
        form = self._formats[self._form.format].get("response_format", {}).get("type", "plain text")
        notes = []
        if self._form.format > 1:  # a missing count needs no note: the parser counts
            notes.append(f"the server takes no JSON schema; answers were asked for as {form}")
        if self._is_schema_ignored:
            notes.append(
                f"the server takes a {form} and does not keep to it; words ask for JSON too"
            )
        dropped = sorted(self._form.dropped)
        return notes + [f"the server takes no {name}; it was left out" for name in dropped]

    def _response_formats(self) -> list[dict[str, Any]]:
        """From the strictest to the loosest: schema with the number of variants, schema, JSON mode,
        plain text."""
        schemas = [schema(self._prompt, counted) for counted in (True, False)]
        named = [{"name": self._prompt.kind, "strict": True, "schema": s} for s in schemas]
        formats = [{"type": "json_schema", "json_schema": n} for n in named]
        return [{"response_format": f} for f in (*formats, {"type": "json_object"})] + [{}]

    def describe(self, questions: list[Question]) -> list[Reply]:
        try:
            return [self._describe(question) for question in questions]
        except InputError:
            raise
        except Exception as error:  # its words may hold the key
            raise ServerError(redact(repr(error))) from None

    def _describe(self, question: Question) -> Reply:
        """Ask; as long as no answer came, for one image at a time, so that a server that takes
        none is not sent many."""
        with self._until_proven:
            if self._hopeless:
                raise self._hopeless
            if not self._proven:
                try:
                    return self._ask(question)
                except InputError as error:
                    self._hopeless = None if isinstance(error, NoAnswerError) else error
                    raise
        return self._ask(question)

    def _ask(self, question: Question) -> Reply:
        """Ask, in looser forms until one is taken; it is then used for all images. If even the
        loosest form is refused, the cause is this image or, if another image was refused in the
        same words and nothing has worked, the server."""
        content = self._content(question)
        form, proven = self._form, self._proven
        while True:
            request = self._request(question, content, form)
            try:
                answer = self._send(request)
            except RefusedError as error:
                self._server.check_hope(request, error.words)
                looser = self._looser(form, error, proven)
                if looser is None and proven:
                    return Reply("", self._model, f"refused by the server: {error.words}")
                if looser is None:
                    self._server.give_up(request, error.words)
                    raise
                form = looser
                continue
            with self._lock:
                if not self._proven or form.tokens < self._form.tokens:
                    self._form, self._proven = form, True
            return self._read(answer, form)

    def _looser(self, form: Form, error: RefusedError, proven: bool) -> Form | None:
        """The next form to try after this one was refused; None if there is none."""
        words, parameter = error.words, error.parameter
        if context := _CONTEXT.search(words) or _ANSWER.search(words):
            limit, used = _number(context), _INPUT.search(words)
            tokens = (
                limit if context.re is _ANSWER else limit - _number(used) if used else limit // 2
            )
            if tokens >= form.tokens:  # the input counts too, and is not told
                tokens = form.tokens // 2
            return replace(form, tokens=tokens) if tokens >= FEWEST_TOKENS else None
        if proven:
            return None
        named = {parameter} if parameter else set(re.findall(r"\w+", words))
        unknown = named & {"temperature", "seed"} - form.dropped
        if form.tokens_name == "max_tokens" and "max_completion_tokens" in words:
            return replace(form, tokens_name="max_completion_tokens")
        if unknown:
            return replace(form, dropped=form.dropped | unknown)
        if form.format + 1 < len(self._formats):
            return replace(form, format=form.format + 1)
        return None

    def _count_request(self) -> None:
        """Before each request, repeated ones too."""
        with self._lock:
            if 0 < self._settings.max_requests <= self.usage["requests"]:
                raise BudgetSpentError(f"max_requests={self._settings.max_requests} are spent")
            self.usage["requests"] += 1

    def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._slots:
            return self._server.post("chat/completions", request)

    def _content(self, question: Question) -> list[dict[str, Any]]:
        text = {"type": "text", "text": self._prompt.for_question(question)}
        urls = [_data_url(picture) for picture in question.pictures.values()]
        return [text, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]

    def _request(
        self, question: Question, content: list[dict[str, Any]], form: Form
    ) -> dict[str, Any]:
        options = {"temperature": question.temperature, "seed": question.seed}
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            **{k: v for k, v in options.items() if k not in form.dropped},
            form.tokens_name: form.tokens,
            **self._formats[form.format],
        }

    def _read(self, answer: dict[str, Any], form: Form) -> Reply:
        """The words of an answer; anything may be missing from it, or of another kind."""
        usage, choices = _dict(answer.get("usage")), answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise ServerError(f"an answer that is no completion: {redact(answer)[:200]}")
        with self._lock:
            for name, field in (("input", "prompt_tokens"), ("output", "completion_tokens")):
                count = usage.get(field)
                is_count = isinstance(count, int) and 0 <= count < 10**9
                self.usage[f"{name} tokens"] += count if is_count else 0
        model = clean_text(answer.get("model")) or self._model
        choice = _dict(choices[0])
        message = _dict(choice.get("message"))
        text = text_of(message)
        if holds_key(f"{text} {model} {message.get('refusal')}"):
            return Reply("", self._model, "repeated the key: the reply was not kept")
        model = model[:200]
        if refusal := _words(message.get("refusal")):
            return Reply(refusal, model, "refusal")
        *_, text = re.split(rf"[\[<◁]/{_THOUGHT}", text, flags=re.I)  # thoughts may hold a draft
        if re.match(rf"\s*[\[<◁]{_THOUGHT}", text, re.I):
            return Reply(text, model, "unfinished thought")
        try:
            parse_reply(text, self._prompt)
        except ReplyError as error:
            if choice.get("finish_reason") == "length":
                return self._cut(text, model, form)
            schema_asked_for = self._formats[form.format].get("response_format")
            self._is_schema_ignored |= bool(schema_asked_for) and error.reason in NO_SCHEMA
        return Reply(text, model)

    def _cut(self, text: str, model: str, form: Form) -> Reply:
        """What to do with an answer that was cut: where the server's context is what cuts it, the
        image is not at fault."""
        if form.tokens < self._longest:
            raise ServerError(
                f"the model's context leaves {form.tokens} tokens for an answer, which was cut "
                "there: start the server with a larger one, or pass fewer variants or a smaller "
                "max_side"
            )
        return Reply(text, model, "cut at the token limit")


def text_of(message: dict) -> str:
    """The answer in a message of a chat: of all forms in which servers put it, the first that holds
    any words."""
    calls = message.get("tool_calls")
    calls = [_dict(call).get("function") for call in calls] if isinstance(calls, list) else []
    forms = (
        message.get("content"),
        *(_dict(call).get("arguments") for call in [*calls, message.get("function_call")]),
        # servers that part thoughts from answers sometimes take a whole answer for thoughts
        message.get("reasoning_content"),
        message.get("reasoning"),
    )
    return next(filter(str.strip, map(_words, forms)), "")


def _words(content: Any) -> str:
    """Words that may come in parts, as an object, or as JSON in JSON."""
    if isinstance(content, list):  # parts of type "reasoning" and the like are drafts
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        texts = [p.get("text") for p in parts if p.get("type", "text") in ("text", "output_text")]
        return _words("".join(text for text in texts if isinstance(text, str)))
    inner = content
    if isinstance(content, str) and content.lstrip()[:1] in ('"', "{"):
        with suppress(InputError):
            inner = parse_json(content, "the reply")
    if isinstance(inner, dict):
        inside = [inner.get(name) for name in ("text", "arguments", "parameters")]
        inside += [v for v in [inner.get("variants")] if isinstance(v, str)]
        if wrapped := next(filter(None, inside), None):
            return _words(wrapped)
        return json.dumps(inner) if inner is content else content
    if isinstance(inner, str) and inner is not content:
        return _words(inner)
    return content if isinstance(content, str) else ""


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _number(match: re.Match) -> int:
    return int(next(filter(None, match.groups())))


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
