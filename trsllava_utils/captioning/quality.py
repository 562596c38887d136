"""The quality gate: what a caption must be, whoever wrote it; and captions in numbers.

Small vision-language models loop, refuse, answer in another language or repeat their instructions;
such text would be embedded and ranked like any other. :func:`check` refuses a record that shows it.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd

from trsllava_utils.artefacts import InputError
from trsllava_utils.captioning.prompts import LIMITS, ReplyError
from trsllava_utils.captioning.records import FIELDS, Record, Variant

NEAR_DUPLICATE = 0.8  # Jaccard similarity of word pairs from which two variants are near-duplicates
LOOP_RATIO = 0.25  # compressed to original size; normal captions stay above 0.4
TOO_LONG = 1.25  # times what was asked for
CLEAR_MARGIN = 20.0  # difference of log-likelihoods; whole records differ by hundreds
COPIED_WORDS = 8  # a run of so many words of the prompt is copied, not coincidence
SCENE_WORDS = """airport apron baseball beach bridge church coast commercial court desert estate
farm farmland field forest freeway golf harbor harbour highway housing industrial intersection
lake marina meadow motorway mountain neighborhood neighbourhood overpass park parking playground
pond port railway residential resort river runway school scrub scrubland sea shore stadium station
storage suburb tennis terminal viaduct village wood woodland"""

_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai\b|i('m| am) (unable|not able)|"
    r"i (cannot|can't|can not|won't)|(cannot|can't|unable to) (see|view|assist|help|provide|"
    r"access|process|describe|analy[sz]e)|no image (was|is|has been) (provided|attached|given))",
    re.IGNORECASE,
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
        ReplyError: with the first reason found: "no words", "too short", "too long", "refusal",
            "loop", "copied from the prompt", "wrong language", or "equal variants".
    """
    for n, variant in enumerate(variants, 1):
        for field, text in variant.fields.items():
            if fault := _fault(field, text, prompt_text):
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


def measure(records: Iterable[Record]) -> pd.DataFrame:
    """Captions in numbers, one row for each field and one for all ("joined").

    Columns: ``texts, distinct, words (median), words (95 %), vocabulary, near-duplicates (%)``
    (pairs of variants of an image, row "joined" only) and ``at the limit (%)`` (texts as long as
    the schema allows: they were probably cut).
    """
    records = list(records)
    table = {}
    for field in (*FIELDS, "joined"):
        variants = [v for record in records for v in record.variants]
        texts = [v.text() if field == "joined" else getattr(v, field) for v in variants]
        texts = [text for text in texts if text]
        if not texts:
            continue
        tokens = [words(text) for text in texts]
        lengths = [len(t) for t in tokens]
        limit = LIMITS.get(field, np.inf)
        table[field] = {
            "texts": len(texts),
            "distinct": len(set(texts)),
            "words (median)": float(np.median(lengths)),
            "words (95 %)": float(np.percentile(lengths, 95)),
            "vocabulary": len({word for t in tokens for word in t}),
            "at the limit (%)": 100 * float(np.mean([len(t) >= limit for t in texts])),
        }
    pairs = [s for record in records for s in similarities(record.variants)]
    if pairs:
        share = 100 * float(np.mean(np.asarray(pairs) >= NEAR_DUPLICATE))
        table["joined"]["near-duplicates (%)"] = share
    return pd.DataFrame.from_dict(table, orient="index").round(1)


def agreement(rows: pd.DataFrame, vectors: np.ndarray) -> pd.DataFrame:
    """Variants in numbers: does each say what the others say, and what scene it is?

    Args:
        rows: a text corpus, a row per variant; vectors: ``(n, dim) float32`` unit rows.

    Returns:
        By captioner (``source``) and variant, from 1: ``texts``, ``cosine to the others`` (to the
        mean of the image's other variants) and ``names a scene (%)`` (:data:`SCENE_WORDS`).
    """
    image = rows.groupby(["image_id", "source"], sort=False).ngroup().to_numpy()
    sums = np.zeros((image.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, image, vectors)
    others = sums[image] - vectors
    length = np.linalg.norm(others, axis=1)
    cosine = (vectors * others).sum(axis=1) / np.where(length > 1e-6, length, np.nan)
    named = rows["text"].str.contains(rf"\b(?:{'|'.join(SCENE_WORDS.split())})s?\b", case=False)
    table = rows.assign(variant=rows["variant"] + 1, cosine=cosine, named=named)
    each = table.groupby(["source", "variant"])
    return pd.DataFrame(
        {
            "texts": each.size(),
            "cosine to the others": each["cosine"].mean().round(3),
            "names a scene (%)": (100 * each["named"].mean()).round(1),
        }
    )
