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

from trsllava_utils.annotations import clean_text
from trsllava_utils.files import InputError

UNWANTED = 0.5  # weight of a minus: the best on the sample's validation images (notebook 03)
# Manning, Raghavan and Schütze, Introduction to Information Retrieval (2008), section 9.1.1
BETA, GAMMA = 0.75, 0.15
MOST = 1000.0  # the greatest weight
_WHOLE = re.compile(r'"[^"]*"|\[(?:[^\[\]]|\[[^\[\]]*\])*\]')  # + and - in these are plain text
# a minus before a bare number is none: "5 - 10 cars"
_SIGN = re.compile(r"(?:^|\s)(\+|[−-](?!\s*\d+(?:\s+(?![*×])|$)))\s*(?=\S)")
_WEIGHT = re.compile(r"(\d*\.\d+|\d+(?=\s*[*×]))(?:\s*[*×]\s*|\s+)(?=\S)")  # "2 cars" is words
_NEGATION = re.compile(
    r",?\s*\b(?<!or )(?:(?:and|but|with)\s+)?"
    r"(?:no(?! (?:more|less|fewer|doubt|longer))|not(?! (?:only|just|far|too|very))|without|"
    r"lacking|free of)\s+(?:(?:any|an?|the)\s+)?"
    r"(?P<words>[^,.;]+?)(?=\s*(?:[,.;]|\b(?:and|or|but|near|beside|next|in|on|at|with)\b|$))",
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
    def sentence(self) -> str:
        """The words, if it is a single sentence; else ""."""
        return self.parts[0].text if len(self.parts) == 1 else ""

    @property
    def words(self) -> str:
        """The words that are wanted; those of a negation are not."""
        wanted = (part.text for part in self.parts if part.weight > 0)
        return " ".join(_NEGATION.sub(" ", text) for text in wanted)

    @property
    def images(self) -> set[str]:
        """The images that it names."""
        return {part.image for part in self.parts if part.image}

    @property
    def notes(self) -> list[str]:
        """How it was read, where that may not be what was meant."""
        if self.suggestion:
            return [
                "an encoder does not read a negation: it looks for what you do not want; search "
                f"for “{self.suggestion}” instead"
            ]
        if len(self.parts) < 2:
            return []
        named = [
            f"{'−' if part.weight < 0 else '+'} {abs(part.weight):g} × {part.text or part.image}"
            for part in self.parts
        ]
        return [f"read as {' '.join(named)}; put a sentence with such signs in double quotes"]

    @property
    def suggestion(self) -> str:
        """A sentence with its negations as parts with a minus; "" if it has none."""
        if not self.sentence or self.text.startswith('"'):
            return ""
        unwanted = [match["words"].strip() for match in _NEGATION.finditer(self.sentence)]
        rest = " ".join(_NEGATION.sub(" ", self.sentence).split())
        rest = re.sub(r"^[\s,]*(?:(?:but|and)\s+)?|[\s,]+$", "", rest).replace(" ,", ",")
        return " - ".join([rest, *unwanted]) if unwanted and rest else ""


def parse_query(text: str, is_sentence: bool = False) -> Query:
    """Read a query.

    Args:
        text: see the head of this module. Signs count where a blank stands before them; what stands
            in double quotes is one sentence, whatever is in it.
        is_sentence: it is one sentence in any case (a caption of the dataset).

    Raises:
        InputError: nothing is wanted, a part is empty, or a weight is over 1,000.
    """
    text = text.strip()
    # quotes and brackets are blanked out, at the same length, so that signs in them are not found
    signs = [*_SIGN.finditer(_WHOLE.sub(lambda match: "x" * len(match[0]), text))]
    if is_sentence or not signs:
        return Query(text, (_part("", text),))
    ends = [sign.start() for sign in signs[1:]] + [len(text)]
    parts = [_part("+", text[: signs[0].start()])] if text[: signs[0].start()].strip() else []
    parts += [_part(s[1], text[s.end() : end]) for s, end in zip(signs, ends, strict=True)]
    if not any(part.weight > 0 for part in parts):
        raise InputError(f"query {text!r}: nothing in it is wanted; begin with what to look for")
    return Query(text, tuple(parts))


def _part(sign: str, words: str) -> Part:
    weight = 1.0 if sign in ("", "+") else -UNWANTED
    if sign and (match := _WEIGHT.match(words)):
        weight, words = math.copysign(float(match[1]), weight), words[match.end() :]
    words = words.strip()
    image = words[1:-1].strip() if words.startswith("[") and words.endswith("]") else ""
    words = words[1:-1].strip() if re.fullmatch(r'"[^"]+"', words) else words
    if not image and not re.search(r"\w", words.removeprefix("[")) and sign:
        raise InputError(f"{sign}: a part of the query is empty")
    if abs(weight) > MOST:
        raise InputError(f"{words!r}: its weight is {weight:g}; give at most {MOST:,.0f}")
    return Part(weight, image=image) if image else Part(weight, words)


def with_feedback(query: Query, right: Iterable[str], wrong: Iterable[str]) -> Query:
    """The query moved towards the images marked as right, and away from the wrong ones.

    Rocchio's formula (The SMART Retrieval System, 1971) on scores instead of vectors:
    :math:`s'(j) = s(q, j) + \\frac{\\beta}{|R|} \\sum_{r \\in R} s(r, j)
    - \\frac{\\gamma}{|W|} \\sum_{w \\in W} s(w, j)`, divided by the sum of its weights, which
    changes no order.
    """
    right, wrong = list(right), list(wrong)
    if not right and not wrong:
        return query
    total = sum(abs(part.weight) for part in query.parts)
    parts = [replace(part, weight=part.weight / total) for part in query.parts]
    parts += [Part(BETA / len(right), image=image) for image in right]
    parts += [Part(-GAMMA / len(wrong), image=image) for image in wrong]
    return replace(query, parts=tuple(parts))


def folded(text: str) -> str:
    """A caption for comparison: case, blanks and the full stop do not count."""
    return " ".join(clean_text(text).lower().rstrip(" .").split())


_VIEW = re.compile(
    r"^(an?|the)? ?([\w-]+ )?(aerial|satellite|overhead|top-down)? ?"
    r"(view|image|photo|photograph|picture|scene|shot) (of|showing|with) ",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"[,.;:()]| (with|in|on|near|at|beside|along|and|by|next|between|surrounded|that|which|where|"
    r"under|over|from|to|above|across|behind|around|of|lined|through|against|is|are|has|have) ",
    re.IGNORECASE,
)


def phrase(caption: str) -> str:
    """The few words at the front of a caption that say what it shows, as people type them: "A
    harbour" of "An aerial view of a harbour with boats"."""
    return " ".join(_ENDS.split(_VIEW.sub("", caption.strip()))[0].split()[:3])
