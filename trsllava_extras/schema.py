"""The JSON schema of an answer, for models that can be bound to one."""

from __future__ import annotations

from typing import Any

from trsllava_utils.captioner import SINGLE
from trsllava_utils.prompts import Prompt
from trsllava_utils.records import FIELDS


def schema(prompt: Prompt, counted: bool = True) -> dict[str, Any]:
    """The schema of the answer to a prompt, with or without the number of variants, which some
    servers refuse. Lengths are no part of it: some grammars then forbid escapes, so that the
    caption ends at the first quotation mark."""
    fields = FIELDS if prompt.kind == "rsrt" else ("caption",)
    variant = _object({field: {"type": "string"} for field in fields})
    if prompt.kind in SINGLE:
        return variant
    limits = {"minItems": prompt.n, "maxItems": prompt.n} if counted else {}
    return _object({"variants": {"type": "array", "items": variant, **limits}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
