"""The quality gate (``trsllava.gates``): what a caption must be, whoever wrote it.

Small vision-language models loop, refuse, answer in another language or repeat their instructions;
such text would be embedded and ranked like any other. :func:`check` refuses a record that shows it.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import combinations

from trsllava_utils.captioner import Settings
from trsllava_utils.files import InputError
from trsllava_utils.prompts import LANGUAGES, LIMITS, Prompt, ReplyError
from trsllava_utils.records import Variant

NEAR_DUPLICATE = 0.8  # Jaccard similarity of word pairs from which two variants are near-duplicates
LOOP_RATIO = 0.25  # compressed to original size; normal captions stay above 0.4
TOO_LONG = 1.25  # times what was asked for
CLEAR_MARGIN = 20.0  # difference of log-likelihoods; whole records differ by hundreds
COPIED_WORDS = 8  # a run of so many words of the prompt is copied, not coincidence

_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai\b|i('m| am) (unable|not able)|"
    r"i (cannot|can't|can not|won't)|(cannot|can't|unable to) (see|view|assist|help|provide|"
    r"access|process|describe|analy[sz]e)|no image (was|is|has been) (provided|attached|given))",
    re.IGNORECASE,
)
# C0, DEL, C1 apart from line feeds and tabs; characters that stand for bytes nobody could read
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd-\uffff]")
_OPEN = re.compile(r"[,;:(\[–—-]$")
_CLOSED = re.compile(r"[.!?…。！？؟।]['\"”’»«)\]」』]*$")  # how sentences of LANGUAGES end


def gate(settings: Settings) -> Callable[[list[Variant], Prompt], None]:
    """The gate of a run: :func:`check` in its language.

    Raises:
        InputError: no such language.
    """
    language_of("", settings.language)  # refuses unknown ones before anything is spent
    return lambda variants, prompt: check(
        variants, settings.language, prompt.rules, prompt.examples
    )


def check(
    variants: list[Variant],
    language: str = "en",
    prompt_text: str = "",
    examples: Iterable[str] = (),
) -> None:
    """Pass, or say why not.

    Args:
        variants: the captions of one image.
        language: two-letter code they must be in; "" does not check.
        prompt_text: what was asked; long runs of its words must not come back.
        examples: captions of other images that the prompt shows; at most half of the variants may
            be one of them, word for word.

    Raises:
        ReplyError: with the first reason found: "no words", "control characters", "too short",
            "too long", "refusal", "loop", "cut off", "copied from the prompt", "wrong language", or
            "equal variants".
    """
    for n, variant in enumerate(variants, 1):
        for field, text in variant.fields.items():
            in_sentences = variant.structured and field != "feature" and language in LANGUAGES
            cut = _OPEN.search(text) or (in_sentences and not _CLOSED.search(text))
            if fault := _fault(field, text, prompt_text) or "cut off" * bool(cut):
                raise ReplyError(fault, f"variant {n}, {field}: {text[:60]!r}")
        spoken = language_of(" ".join(variant.fields.values()), language)
        if spoken != language:
            raise ReplyError("wrong language", f"variant {n} is in {spoken!r}, not {language!r}")
    shown = {tuple(words(example)) for example in examples}
    copied = [v.caption for v in variants if tuple(words(v.caption)) in shown]
    if len(copied) > len(variants) / 2:
        raise ReplyError("copied from the prompt", f"{len(copied)} examples: {copied[0][:60]!r}")
    if len({tuple(words(v.text())) for v in variants}) < len(variants):
        raise ReplyError("equal variants", f"{variants[0].caption[:60]!r}")
    similar = sum(s >= NEAR_DUPLICATE for s in similarities(variants))
    if similar > len(variants) * (len(variants) - 1) / 4:
        raise ReplyError("equal variants", f"{similar} pairs of them hardly differ")


def _fault(field: str, text: str, prompt_text: str) -> str:
    """The first thing wrong with one text; "" if nothing is."""
    tokens = words(text)
    faults = {
        "no words": not any(token.isalpha() for token in tokens),
        "control characters": _CONTROL.search(text),
        "too long": len(text) > TOO_LONG * LIMITS[field],
        "too short": field != "feature" and len(text) < 10,
        "refusal": _REFUSAL.search(text.replace("’", "'")),
        "loop": _loops(text, tokens),
        "copied from the prompt": _prompt_runs(prompt_text) & _runs(tokens, COPIED_WORDS),
    }
    return next((name for name, present in faults.items() if present), "")


def words(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def _runs(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return set(zip(*(tokens[i:] for i in range(n)), strict=False))


def _loops(text: str, tokens: list[str]) -> bool:
    """Whether six words in a row come three times or, for languages without spaces, zlib compresses
    the text to a quarter. (Fewer would refuse honest lists: "trees all over the scene; roads all
    over the scene".)"""
    sixes = Counter(zip(*(tokens[i:] for i in range(6)), strict=False))
    pressed = len(zlib.compress(text.encode()))
    return max(sixes.values(), default=0) >= 3 or pressed < LOOP_RATIO * len(text.encode())


@cache
def _prompt_runs(prompt_text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(_runs(words(prompt_text), COPIED_WORDS))


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def language_of(text: str, expected: str) -> str:
    """The likeliest language of a text as a two-letter code (py3langid, 97 languages).

    The expected one is taken unless another is clearly likelier, by :data:`CLEAR_MARGIN`: a few
    words alone are easily misjudged. "" expects nothing and gives "".

    Raises:
        InputError: the expected language is not one of the 97.
    """
    if not expected:
        return ""
    identifier = _identifier()
    if expected not in identifier.labels:
        raise InputError(
            f"language={expected!r}: give a two-letter code of "
            f"{', '.join(sorted(identifier.labels))}; or nothing, which checks no language"
        )
    if identifier.classify(text)[0] == expected:
        return expected
    scores = dict(identifier.rank(text))
    best = max(scores, key=scores.__getitem__)
    return best if scores[best] - scores[expected] > CLEAR_MARGIN else expected


def similarities(variants: list[Variant]) -> list[float]:
    """Jaccard similarity of the word pairs of every two variants, 0 (nothing shared) to 1."""
    pairs = [_runs(words(v.text()), 2) for v in variants]
    return [len(a & b) / max(len(a | b), 1) for a, b in combinations(pairs, 2)]
