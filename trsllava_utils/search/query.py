"""A query as text: a sentence, or weighted parts, ``storage tanks + 0.5 river - houses``.

A part is words, or the id of an image in square brackets, which stands for all that its captioner
says of it: ``[beach90] + umbrellas`` is *more like beach90, but with umbrellas*. With weights
:math:`w_i` of the parts :math:`q_i`, the score of image :math:`j` is

.. math:: s(j) = \\sum_i w_i s(q_i, j) \\big/ \\sum_i |w_i|.

Relevance feedback is a query of this form too (:func:`with_feedback`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from trsllava_utils.artefacts import InputError

UNWANTED = 0.5  # weight of a minus: the best on the sample's validation images (notebook 03)
# Manning, Raghavan and Schütze, Introduction to Information Retrieval (2008), section 9.1.1
BETA, GAMMA = 0.75, 0.15
_SIGN = re.compile(r"(?:^|\s)([+−-])\s*(?=\S)(?![^\[]*\])")  # none inside [ ]
_WEIGHT = re.compile(r"(\d*\.\d+|\d+(?=\s*[*×]))(?:\s*[*×]\s*|\s+)(?=\S)")  # "2 cars" is words
_NEGATION = re.compile(
    r",?\s*\b(?:(?:and|but|with)\s+)?(?:no|not|without|lacking|free of)\s+(?:(?:any|an?|the)\s+)?"
    r"(?P<words>[^,.;]+?)(?=\s*(?:[,.;]|\bbut\b|$))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Part:
    """One part of a query."""

    weight: float
    text: str = ""  # its words, or
    image: str = ""  # the id of an image


@dataclass(frozen=True)
class Query:
    """A query in parts. ``text`` is what was typed."""

    text: str
    parts: tuple[Part, ...]

    @property
    def words(self) -> str:
        """The words that are wanted; those of a negation are not."""
        wanted = (part.text for part in self.parts if part.weight > 0)
        return " ".join(_NEGATION.sub("", text) for text in wanted)

    @property
    def images(self) -> set[str]:
        """The images that it names."""
        return {part.image for part in self.parts if part.image}

    @property
    def suggestion(self) -> str:
        """The query with its negations as parts with a minus; "" if it has none."""
        if len(self.parts) != 1:
            return ""
        first = self.parts[0].text
        unwanted = [match["words"].strip() for match in _NEGATION.finditer(first)]
        rest = _NEGATION.sub("", first).strip()
        return " - ".join([rest, *unwanted]) if unwanted and rest else ""


def parse_query(text: str, is_sentence: bool = False) -> Query:
    """Read a query.

    Args:
        text: see the head of this module. Signs count where a blank stands before them. What stands
            in double quotes is one sentence, whatever is in it.
        is_sentence: it is one sentence in any case (a caption of the dataset).

    Raises:
        InputError: no part is wanted, or one is empty.
    """
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == '"':
        return Query(text, (Part(1.0, text[1:-1]),))
    pieces = _SIGN.split(text)
    if is_sentence or len(pieces) == 1:
        return Query(text, (_part("", text),))
    first = [("+", pieces[0])] if pieces[0].strip() else []
    signed = first + list(zip(pieces[1::2], pieces[2::2], strict=True))
    parts = tuple(_part(*piece) for piece in signed)
    if not any(part.weight > 0 for part in parts):
        raise InputError(f"query {text!r}: nothing in it is wanted; begin with what to look for")
    return Query(text, parts)


def _part(sign: str, words: str) -> Part:
    weight = 1.0 if sign in ("", "+") else -UNWANTED
    if sign and (match := _WEIGHT.match(words)):
        weight, words = math.copysign(float(match[1]), weight), words[match.end() :]
    words = words.strip()
    image = words[1:-1].strip() if words.startswith("[") and words.endswith("]") else ""
    return Part(weight, image=image) if image else Part(weight, words)


def with_feedback(query: Query, right: Iterable[str], wrong: Iterable[str]) -> Query:
    """The query moved towards the images marked as right, and away from the wrong ones.

    Rocchio's formula (The SMART Retrieval System, 1971) on scores instead of vectors:
    :math:`s'(j) = s(q, j) + \\frac{\\beta}{|R|} \\sum_{r \\in R} s(r, j)
    - \\frac{\\gamma}{|W|} \\sum_{w \\in W} s(w, j)`.
    """
    right, wrong = list(right), list(wrong)
    parts = [Part(BETA / len(right), image=image) for image in right]
    parts += [Part(-GAMMA / len(wrong), image=image) for image in wrong]
    return replace(query, parts=(*query.parts, *parts))
