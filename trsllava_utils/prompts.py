"""The prompts, and the parser that reads the answers.

The prompts lie in ``prompt_texts/``: ``rsrt`` (structured captions), ``style`` (plain captions in
the manner of examples), ``query`` (a short description to search with), ``description`` (a long
one), and ``renderings``, a note where an image has a false-colour picture. The fingerprint of a
prompt is part of the identity of its captions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trsllava_utils.captioner import Question, Settings
from trsllava_utils.files import InputError, MissingError, fingerprint, read_text, user_path
from trsllava_utils.records import FIELDS, Variant

VERSION = 2
LIMITS = {"one_sentence": 300, "feature": 600, "caption": 1200}  # characters; the gate checks
MAX_REPLY = 200_000  # characters; an answer has a twentieth
MAX_BRACKETS = 1000  # { and [; an answer has seven

_LANGUAGES = """ar Arabic, de German, en English, es Spanish, fr French, hi Hindi, it Italian,
ja Japanese, ko Korean, pt Portuguese, ru Russian, zh Chinese"""
LANGUAGES = dict(pair.split() for pair in _LANGUAGES.split(","))


@cache
def _template(name: str) -> str:
    path = Path(__file__).with_name("prompt_texts") / f"{name}.txt"
    return path.read_text(encoding="utf-8").rstrip("\n")


class ReplyError(ValueError):
    """A reply that cannot be used. ``reason`` is short, to be counted; the message says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Prompt:
    """A prompt with everything filled in."""

    text: str  # what the model reads, beside the pictures
    kind: str  # "rsrt", "style", "query" or "description"
    n: int  # how many descriptions it asks for
    rules: str  # the text without the examples
    examples: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        return fingerprint(VERSION, self.text, self.kind, self.n, LIMITS, _template("renderings"))

    def for_question(self, question: Question) -> str:
        """The text for one image: with the number of pictures and the facts that are known."""
        names, notes = list(question.pictures), []
        if "false colour" in names:
            values = {"count": len(names), "names": ", ".join(names)}
            notes = [_fill(_template("renderings"), **values)]
        elif len(names) > 1:
            notes = [f"You get {len(names)} pictures of the same place: {', '.join(names)}."]
        return "\n\n".join([self.text, *notes, *question.facts])


def _fill(template: str, **values: object) -> str:
    """``{name}`` -> value; other braces (of the JSON example) stay."""
    return re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), template)


def make_prompt(settings: Settings) -> Prompt:
    """The prompt these settings ask for.

    Raises:
        MissingError: ``prompt_file`` is not there.
        InputError: it is empty or not text.
    """
    template, examples = _template(settings.prompt), settings.examples
    if settings.prompt_file:
        template = read_words("prompt_file", settings.prompt_file)
    if settings.prompt == "style" and not examples:
        raise InputError("prompt='style' needs example captions: pass them through with_examples")
    language = LANGUAGES.get(settings.language, settings.language or "English")
    values = {"n": settings.n, "language": language}
    text = _fill(template, **values, examples="\n".join(f"- {example}" for example in examples))
    rules = _fill(template, **values, examples="")
    return Prompt(text, settings.prompt, settings.n, rules, examples)


def read_words(parameter: str, file: str) -> str:
    """The text of a file that a parameter names; errors as for :func:`make_prompt`."""
    path = user_path(file)
    if not path.is_file():
        raise MissingError(f"{parameter}: {path} not found; give the path of a text file")
    text = read_text(path).strip()
    if not text:
        raise InputError(f"{parameter}: {path} is empty")
    return text


def parse_reply(text: str, prompt: Prompt) -> list[Variant]:
    """A model's words -> the variants asked for.

    Prose or code fences around the JSON are tolerated, as is a bare list of variants; a model that
    gives more variants than asked for is cut to the first ones. Of several answers the last whole
    one counts: those before it are drafts.

    Raises:
        ReplyError: empty, no whole JSON, another shape, or too few variants.
    """
    if not text.strip():
        raise ReplyError("empty reply")
    if len(text) > MAX_REPLY:
        raise ReplyError("too long", f"{len(text):,} characters")
    if text.count("{") + text.count("[") > MAX_BRACKETS:
        raise ReplyError("not JSON", "thousands of brackets")
    failure = None
    for value in reversed([*_json_values(text)]):
        entries = _entries(value, prompt)
        try:
            if entries is None:
                raise ReplyError("wrong schema", f"{json.dumps(value)[:80]} …")
            return _variants(entries[: prompt.n], prompt)
        except ReplyError as error:
            # a fault of a real answer says more than that there is other JSON as well
            failure = failure if failure and entries is None else error
    raise failure or ReplyError("not JSON", f"{text.strip()[:80]!r} …")


def _variants(entries: list, prompt: Prompt) -> list[Variant]:
    """The descriptions, checked."""
    if prompt.kind != "rsrt":  # plain captions, as objects or as bare strings
        entries = [{"caption": e.get("caption") if isinstance(e, dict) else e} for e in entries]
    try:
        variants = [Variant.model_validate(entry) for entry in entries]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReplyError("wrong schema", f"{where}: {first['msg']}") from error
    if len(variants) < prompt.n:
        raise ReplyError("wrong schema", f"{len(variants)} of {prompt.n} variants")
    if prompt.kind == "rsrt" and not all(v.structured for v in variants):
        raise ReplyError("wrong schema", f"a variant lacks one of {', '.join(FIELDS)}")
    return variants


def _json_values(text: str) -> Iterator[Any]:
    """The JSON objects and lists in a text, in order; those inside another one are not repeated."""
    decoder = json.JSONDecoder(strict=False)  # models put line breaks into strings
    position = 0
    while match := re.compile(r"[{\[]").search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
            yield value
        except json.JSONDecodeError as error:
            if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
                return  # cut off: anything further belongs to this value
            position = match.end()
        except (ValueError, RecursionError):  # a number of thousands of digits, deep nesting
            return


def _entries(value: Any, prompt: Prompt) -> list | None:
    """The descriptions in a JSON value, if it has the shape of an answer."""
    if isinstance(value, dict) and isinstance(value.get("variants"), list):
        return value["variants"]
    if isinstance(value, list) and value and isinstance(value[0], dict | str):
        return value
    if isinstance(value, dict) and prompt.n == 1 and "caption" in value:
        return [value]
    return None
