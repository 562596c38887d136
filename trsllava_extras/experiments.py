"""Experiments: sources go in and are varied — split, settings, encoder, variants, captioner,
gallery — and tables come out.

Settings are chosen on the *validation* split; test queries play no part in the choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from trsllava_extras.breakdown import by_gallery_size
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.methods import Method
from trsllava_utils.ranking import rank_dataset, retrieve
from trsllava_utils.recall import KS, metrics
from trsllava_utils.sources import Sources


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
                    for m in best.candidates(step)
                ]
            except MissingError:
                break
            rows += [(rule, step, method.name, mr) for mr, method in tried]
            best = max(tried, key=lambda pair: pair[0])[1] if tried else best
        chosen[rule] = best.name
    return pd.DataFrame(rows, columns=["rule", "step", "method", "mR"]), chosen


def ablate(
    methods: Iterable[str], sources: Sources, encoders: Iterable[str], variants: Iterable[int]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """mR (percent) of every method x encoder x number of variants.

    Returns:
        Rows ``(method, encoder)``, a column for each number of variants that the captions have; and
        the reasons for what could not be run.
    """
    most = sources.captions.most_variants
    numbers = sorted({min(n, most) for n in variants})
    rows, missing = {}, {}
    for encoder in dict.fromkeys(encoders):
        for method in map(Method, dict.fromkeys(methods)):
            for n in numbers:
                varied = replace(sources, encoder=encoder, variants=n if n < most else 0)
                try:
                    ranks = rank_dataset(method.name, varied, top_k=1).ranks
                except MissingError as error:
                    missing[f"{method.label}, {encoder}"] = str(error)
                    break
                rows.setdefault((method.label, encoder), {})[n] = metrics(ranks)["mR"]
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="variants")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["method", "encoder"])
    return table, missing


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


def growing_gallery(method: str, sources: Sources) -> tuple[pd.DataFrame, int]:
    """Text-to-image recall as the gallery grows: from two images to the whole split, and
    beyond: captioned images of the other splits are added as distractors.

    Returns:
        ``images, R@1, R@5, R@10`` (percent), and the number of images of the split.
    """
    own, n = sources.gallery, len(sources.gallery)
    wider = sources.on("all")
    try:
        grown = len(wider.gallery) > n
        ranks = retrieve(method, wider, 1, queries=own)[0] if grown else None
    except MissingError:  # the method needs training captions, which are in the gallery now
        ranks = None
    if ranks is None:
        ranks = rank_dataset(method, sources).ranks
    largest = int(ranks.loc[ranks["direction"] == "t2i", "n_items"].iloc[0])
    sizes = sorted({*np.geomspace(min(2, largest), largest, 12).astype(int).tolist(), n, largest})
    recalls = {f"R@{k}": by_gallery_size(ranks, sizes, k)["recall"] for k in KS}
    return pd.DataFrame({"images": sizes, **recalls}), n
