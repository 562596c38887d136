"""Experiments: sources go in and are varied (rule, settings, captioner, who asks, what counts as
right), and tables come out.

Settings are chosen on the *validation* split; test queries play no part in the choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from trsllava_extras.methods import Method, steps
from trsllava_extras.statistics import contributions
from trsllava_utils.captioner import names_in
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.ranking import rank_relevant, retrieve, rule_of
from trsllava_utils.rankings import Rankings, rank_dataset
from trsllava_utils.recall import metrics
from trsllava_utils.scoring import blocks, one_each
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
    """The same sources on the validation split; images ask among all its reference captions, for
    the captions of a few described images are too few to choose by.

    Raises:
        MissingError: it is the split to be evaluated, the dataset has none, or the captioner has
            not described it.
    """
    dataset = sources.dataset
    if dataset.split not in ("train", "test"):
        raise MissingError(f"{dataset.title} ({dataset.split}) holds the validation split itself")
    try:
        varied = replace(sources.on("val"), all_references=True)
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


def choose_again(
    tried: Iterable[str], on_val: Sources, sources: Sources, resamples: int = 1000
) -> pd.DataFrame:
    """Draw the validation images anew, choose the best of all methods that were tried, and measure
    it on images of the split, drawn anew too.

    Args:
        tried: methods, as :func:`tune` lists them.
        on_val, sources: of the validation split, and of the split that is reported.
        resamples: number of draws (bootstrap over images, on both splits).

    Returns:
        One row per draw: ``method`` (chosen), ``mR`` (of the drawn images), ``whole`` (of all
        images), ``regret`` (of the latter, behind the best method that any draw chose), percent.
    """

    def of_each(methods: Iterable[str], where: Sources) -> pd.DataFrame:
        each = {m: contributions(rank_dataset(m, where, top_k=1).ranks) for m in methods}
        return pd.DataFrame({m: table["", "mR"] for m, table in each.items()})

    rng, there = np.random.default_rng(0), of_each(dict.fromkeys(tried), on_val)
    drawn = [rng.integers(len(there), size=len(there)) for _ in range(resamples)]
    chosen = [there.columns[there.to_numpy()[draw].mean(axis=0).argmax()] for draw in drawn]
    here = of_each(dict.fromkeys(chosen), sources)
    drawn = [rng.integers(len(here), size=len(here)) for _ in range(resamples)]
    mr = [here[m].to_numpy()[draw].mean() for m, draw in zip(chosen, drawn, strict=True)]
    whole = here.mean()[chosen].to_numpy()
    regret = here.mean().max() - whole
    return pd.DataFrame({"method": chosen, "mR": mr, "whole": whole, "regret": regret})


def equal_captions_merged(method: str, sources: Sources) -> pd.DataFrame:
    """Ranks by the *merged* protocol: equal captions are one text, and right is every image that
    has it (SkyScript, AAAI 2024). Columns ``direction, image_id, n_greater, n_tied,
    n_relevant_tied``; a text counts for the first image that has it."""
    rule, tables = rule_of(method), []
    both = rule.sides(sources, sources.gallery)
    side, owner = both.references.side, both.references.owner
    number, texts = pd.factorize(side.texts)
    first = np.flatnonzero(~pd.Series(number).duplicated())
    second = None if side.second is None else side.second[first]
    distinct = one_each(texts, side.vectors[first], second, side.mean)
    pairs = np.unique(np.stack([number, owner]), axis=1)  # of a text and an image that has it
    images, asking = both.images.side, both.image_queries.side
    for direction, queries, items, bank, (asked, right) in (
        ("t2i", distinct, images, both.bank, pairs),
        ("i2t", asking, distinct, both.image_bank, pairs[::-1]),
    ):
        score = rule.scorer(items, bank)(queries)
        image = both.images.ids[owner[first] if direction == "t2i" else np.arange(queries.n)]
        for block in blocks(queries.n, items.n):
            mine = (asked >= block.start) & (asked < block.stop)
            numbers = rank_relevant(score(block), asked[mine] - block.start, right[mine])
            about = {"direction": direction, "image_id": image[block]}
            tables.append(pd.DataFrame({**about, **numbers}))
    return pd.concat(tables, ignore_index=True)


def asked_with(captioner: str, sources: Sources) -> Sources:
    """The same, with another captioner's whole texts in place of the reference captions: each asks
    for its own image.

    Raises:
        InputError: the captioner describes the gallery too, and would find its own words.
        MissingError: there are no captions by it.
    """
    asking = replace(sources, captioner=captioner, query_captioner="")
    if same := {*names_in(asking.captioner)} & {*names_in(sources.captioner)}:
        raise InputError(f"{', '.join(same)} would find its own words; ask with another captioner")
    captions = asking.captions.corpus("plain")
    captions["variant"] = captions.groupby("image_id").cumcount()
    return replace(sources, dataset=replace(sources.dataset, captions=captions))
