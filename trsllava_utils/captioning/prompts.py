"""What a vision-language model is asked, and how its answer is read: the prompts, the JSON schema
of the answer, and the parser. A prompt has a version and a fingerprint; the fingerprint is part of
the identity of every caption made with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trsllava_utils.artefacts import InputError, MissingError, fingerprint
from trsllava_utils.captioning.captioner import Settings
from trsllava_utils.captioning.records import FIELDS, Variant

VERSION = 1
LIMITS = {"one_sentence": 300, "feature": 600, "caption": 1200}  # characters

RSRT = """\
You see an overhead image, taken from a satellite or an aircraft. The top of the image is north.
Describe it {n} times in {language}, as JSON:

{"variants": [{"one_sentence": "…", "feature": "…", "caption": "…"}, …]}

Each of the {n} variants has three fields:
- "one_sentence": one sentence that goes from the general to the particular: first the kind of
  scene, then its main objects, then how they lie to one another. At most 30 words.
- "feature": the visible features as short phrases separated by semicolons, each with colour, shape
  or number where it can be seen, and with its compass position (north, south-east, centre …). At
  most 60 words.
- "caption": one detailed paragraph: land cover, objects, their number and arrangement, roads and
  water, what borders what. At most 120 words.

Rules:
- Only what is visible. No place names, no dates, no guesses about purpose, weather or people.
- Numbers in words or digits, never percentages.
- The variants describe the same image but differ in focus and in wording, as different people
  would describe it.
- Answer with the JSON object and nothing else."""

QUERY = """\
You see an overhead image, taken from a satellite or an aircraft. The top of the image is north.
Somebody wants to find this image among thousands of others by a description. Write that
description in {language}, as JSON:

{"caption": "…"}

Name the kind of scene, the main objects with colour and number, and how they lie to one another,
in one or two plain sentences, at most 50 words. Only what is visible: no place names, no guesses,
no percentages. Answer with the JSON object and nothing else."""

RENDERINGS = """\
You get {count} pictures of the same place: {names}. In false colour, near infrared is shown as
red, so that vegetation looks red; use it to tell vegetation, water and built-up land apart, but
describe the colours of the true-colour picture."""

LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pt": "Portuguese",
    "ru": "Russian",
    "zh": "Chinese",
}


class ReplyError(ValueError):
    """A reply that cannot be used. ``reason`` is short, to be counted; the message says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Prompt:
    """A prompt with everything filled in.

    Attributes:
        text: what the model reads, beside the pictures.
        kind: "rsrt" or "query".
        n: how many descriptions it asks for.
        fingerprint: of the text, the version and the shape of the answer.
    """

    text: str
    kind: str
    n: int

    @property
    def fingerprint(self) -> str:
        return fingerprint(VERSION, self.text, self.kind, self.n, LIMITS, RENDERINGS)

    def for_pictures(self, names: list[str]) -> str:
        """The text for these renderings of the image."""
        if len(names) < 2:
            return self.text
        note = _fill(RENDERINGS, count=len(names), names=", ".join(names))
        return f"{self.text}\n\n{note}"

    def schema(self, lengths: bool = True) -> dict[str, Any]:
        """The JSON schema of the answer, with or without the limits that some servers refuse."""
        fields = FIELDS if self.kind == "rsrt" else ("caption",)
        texts = {}
        for field in fields:
            limits = {"minLength": 1, "maxLength": LIMITS[field]} if lengths else {}
            texts[field] = {"type": "string", **limits}
        variant = _object(texts)
        if self.kind == "query":
            return variant
        limits = {"minItems": self.n, "maxItems": self.n} if lengths else {}
        return _object({"variants": {"type": "array", "items": variant, **limits}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _fill(template: str, **values: object) -> str:
    """``{name}`` -> value; other braces (of the JSON example) stay."""
    return re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), template)


def make_prompt(settings: Settings) -> Prompt:
    """The prompt these settings ask for.

    Raises:
        MissingError: ``prompt_file`` is not there.
        InputError: it is empty or not text.
    """
    template = RSRT if settings.prompt == "rsrt" else QUERY
    if settings.prompt_file:
        path = Path(settings.prompt_file).expanduser()
        if not path.is_file():
            raise MissingError(f"prompt_file: {path} not found; give the path of a text file")
        try:
            template = path.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"prompt_file: {path} is not UTF-8 text") from error
        if not template:
            raise InputError(f"prompt_file: {path} is empty")
    language = LANGUAGES.get(settings.language, settings.language or "English")
    return Prompt(_fill(template, n=settings.n, language=language), settings.prompt, settings.n)


def parse_reply(text: str, prompt: Prompt) -> list[Variant]:
    """A model's words -> the variants asked for.

    Prose or code fences around the JSON are tolerated, as is a bare list of variants; a model that
    gives more variants than asked for is cut to the first ones.

    Raises:
        ReplyError: empty, no whole JSON, another shape, or too few variants.
    """
    if not text.strip():
        raise ReplyError("empty reply")
    found = False
    failure = ReplyError("not JSON", f"{text.strip()[:80]!r} …")
    for value in _json_values(text):
        entries = _entries(value, prompt)
        if entries is None:
            if not found:
                failure = ReplyError("wrong schema", f"{json.dumps(value)[:80]} …")
            continue
        found = True
        try:
            variants = [Variant.model_validate(entry) for entry in entries[: prompt.n]]
        except ValidationError as error:
            first = error.errors()[0]
            failure = ReplyError(
                "wrong schema", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            )
            continue
        if len(variants) < prompt.n:
            failure = ReplyError("wrong schema", f"{len(variants)} of {prompt.n} variants")
        elif prompt.kind == "rsrt" and not all(v.structured for v in variants):
            failure = ReplyError("wrong schema", f"a variant lacks one of {', '.join(FIELDS)}")
        else:
            return variants
    raise failure


def _json_values(text: str) -> Iterator[Any]:
    """The JSON objects and lists that stand in a text, outermost first."""
    decoder = json.JSONDecoder(strict=False)  # models put line breaks into strings
    position = 0
    while match := re.compile(r"[{\[]").search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
            yield value
        except json.JSONDecodeError as error:
            if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
                return  # cut short; what comes after lies inside
            position = match.end()
        except RecursionError:
            return


def _entries(value: Any, prompt: Prompt) -> list | None:
    """The descriptions in a JSON value, if it has the shape of an answer."""
    if isinstance(value, dict) and isinstance(value.get("variants"), list):
        return value["variants"]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return value
    if isinstance(value, dict) and prompt.n == 1 and "caption" in value:
        return [value]
    return None
