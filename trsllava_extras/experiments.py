"""Experiments: sources go in and are varied (rule, settings, captioner), and tables come out.

Settings are chosen on the *validation* split; test queries play no part in the choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from trsllava_extras.methods import Method, steps
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.ranking import retrieve
from trsllava_utils.rankings import Rankings, rank_dataset
from trsllava_utils.recall import metrics
from trsllava_utils.sources import Sources


def rank_methods(
    methods: Iterable[str], sources: Sources, top_k: int = 10
) -> tuple[dict[str, Rankings], dict[str, str]]:
    """:func:`rank_dataset` for several methods.

    Returns:
        Rankings by the label of the method, and the reason for every method that draws on something
        that is not there.
    """
    done, missing = {}, {}
    for method in dict.fromkeys(methods):
        parsed = Method(method)
        try:
            done[parsed.label] = rank_dataset(method, sources, top_k)
        except MissingError as error:
            missing[parsed.label] = str(error)
    return done, missing


def validation(sources: Sources) -> Sources:
    """The same sources on the validation split.

    Raises:
        MissingError: it is the split to be evaluated, the dataset has none, or the captioner has
            not described it.
    """
    dataset = sources.dataset
    if dataset.split not in ("train", "test"):
        raise MissingError(f"{dataset.title} ({dataset.split}) holds the validation split itself")
    try:
        varied = sources.on("val")
        len(varied.gallery)  # raises where captions are missing
        return varied
    except InputError as error:  # no such split, or no image with both kinds of caption
        raise MissingError(str(error)) from error


def tune(methods: Iterable[str], sources: Sources) -> tuple[pd.DataFrame, dict[str, str]]:
    """Try every setting of every step that has a grid and no settings written out; one step after
    the other, each with the best of the steps before it.

    Args:
        methods: the rules.
        sources: of the validation split.

    Returns:
        All that was tried, ``rule, step, method, mR`` (percent), and the best method of each rule
        by mR, the first of equals; a rule with nothing to choose, or that draws on something that
        is not there, stays as it is.
    """
    rows, chosen = [], {}
    for rule in dict.fromkeys(methods):
        best = Method(rule)
        for step in list(best.steps):
            try:
                tried = [
                    (metrics(rank_dataset(m.name, sources, top_k=1).ranks)["mR"], m)
                    for m in candidates(best, step)
                ]
            except MissingError:
                break
            rows += [(rule, step, method.name, mr) for mr, method in tried]
            best = max(tried, key=lambda pair: pair[0])[1] if tried else best
        chosen[rule] = best.name
    return pd.DataFrame(rows, columns=["rule", "step", "method", "mR"]), chosen


def candidates(method: Method, step: str) -> list[Method]:
    """The method with every setting of the grid of ``step``; nothing if the step's settings are
    written out or it has no grid."""
    grid = () if method.is_given(step) else steps()[step].grid
    return [Method("+".join({**method.written, step: step + s}.values())) for s in grid]


def compare_captioners(
    captioners: Iterable[str], sources: Sources, methods: Iterable[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Several captioners on the *same* images, those that all of them describe, by each method;
    beside them the reference captions of these images as descriptions (method ``reference``).

    Args:
        captioners: to compare with that of ``sources``.
        sources: what the methods draw on.
        methods: scoring rules that look at a captioner.

    Returns:
        Ranks by captioner and method ("rsrt, max"), the captioner of ``sources`` first, and the
        reasons for captioners that are left out: no captions, or none of the same images.
    """
    several, missing, common = [sources], {}, set(sources.gallery)
    for name in dict.fromkeys(captioners):
        other = replace(sources, captioner=name)
        try:
            shared = common & set(other.gallery)
        except (InputError, MissingError) as error:
            missing[name] = str(error)
            continue
        if not shared:
            missing[name] = "describes none of the images that the others describe"
        elif other.captioner != sources.captioner:
            several, common = [*several, other], shared
    common = sorted(common)
    ranks = {
        f"{one.described_by}, {Method(method).label}": retrieve(method, one, 1, common)[0]
        for one in several
        for method in dict.fromkeys(methods)
    }
    ranks[Method("reference").label] = retrieve("reference", sources, 1, common)[0]
    return ranks, missing
