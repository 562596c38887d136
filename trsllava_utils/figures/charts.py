"""Charts: tables of numbers go in, a matplotlib figure comes out (save it with ``pictures.save``).

Colour is never the only cue: markers, hatches and labels repeat it. Every axis has a unit.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trsllava_utils.evaluation.recall import TITLES
from trsllava_utils.figures.pictures import BLUE, GREY, ORANGE, PURPLE, RED
from trsllava_utils.retrieval.geometry import Geometry

BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend at the right of its axes


def embedding_map(vectors: np.ndarray, labels: list[str], kinds: list[str], title: str) -> Figure:
    """t-SNE of unit vectors: colour and marker by class (the commonest eight), and by kind of text.

    Args:
        vectors: ``(n, dim) float32``; labels, kinds: class and kind ("reference", "captioner") of
            each row.
    """
    points, classes, writers = _project(vectors), np.asarray(labels), np.asarray(kinds)
    counts = pd.Series(classes[classes != ""]).value_counts().sort_index()
    common = counts.sort_values(ascending=False, kind="stable").index[:8]
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 4.8))
    rest = points[~np.isin(classes, common)]
    left.plot(*rest.T, ".", markersize=3, color="#cccccc", label="other classes")
    left.set_prop_cycle(None)
    for name in common:
        left.plot(*points[classes == name].T, linestyle="", alpha=0.75, markersize=4, label=name)
    left.legend(fontsize=10, **BESIDE)
    left.set_title("coloured by class (the eight commonest)")
    for name in dict.fromkeys(kinds):
        right.plot(*points[writers == name].T, linestyle="", alpha=0.6, markersize=4, label=name)
    right.legend(**BESIDE)
    right.set_title("coloured by who wrote the text")
    for ax in (left, right):
        ax.set(xlabel="t-SNE axis 1 (no unit)", ylabel="t-SNE axis 2 (no unit)")
        ax.set(xticks=[], yticks=[])
    figure.suptitle(title)
    return figure


def _project(vectors: np.ndarray) -> np.ndarray:
    """Positions ``(n, 2)`` by t-SNE, or by PCA where there are too few points for it."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) <= 30:
        return PCA(2).fit_transform(vectors)
    settings = {"metric": "cosine", "init": "pca", "random_state": 0}
    return TSNE(2, perplexity=min(30, len(vectors) // 4), **settings).fit_transform(vectors)


def histograms(samples: dict[str, np.ndarray], label: str, title: str) -> Figure:
    """Two samples as overlaid histograms, their means dashed."""
    figure, ax = plt.subplots(figsize=(11, 3.4))
    _densities(ax, samples, label, title)
    return figure


def max_and_centroid(table: pd.DataFrame, own: str, title: str) -> Figure:
    """One query against the texts of some images, from top to bottom: each text a dot, with the
    maximum and the centroid of each image.

    Args:
        table: a row per text, ``image_id, cosine, centroid`` (the cosine of its image's centroid).
        own: the image that the query was written for.
    """
    images = table["image_id"].unique()[::-1]
    place = table["image_id"].map({image: y for y, image in enumerate(images)})
    figure, ax = plt.subplots(figsize=(10, 0.5 * len(images) + 1.6))
    ax.plot(table["cosine"], place, "o", color=GREY, markersize=5, label="one text")
    best = table.groupby(place)["cosine"].max()
    ax.plot(best, best.index, "^", color=RED, markersize=9, label="max")
    ax.plot(table["centroid"], place, "D", color=BLUE, markersize=8, label="centroid")
    ax.set_yticks(range(len(images)), [f"{i} (right)" if i == own else i for i in images])
    ax.set(xlabel="cosine to the query", ylim=(-0.6, len(images) - 0.4))
    ax.set_title(title, parse_math=False)
    ax.grid(axis="x")
    ax.legend(**BESIDE)
    return figure


def geometry(measured: Geometry, title: str) -> Figure:
    """Alignment, uniformity, modality gap and hubness, one panel each."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.2))
    squared = "squared distance (0 equal … 4 opposite)"
    _densities(axes[0, 0], measured.pairs, squared, "Alignment: pairs")
    _densities(axes[0, 1], measured.within, squared, "Uniformity")
    along = "position along the line from mean to mean"
    _densities(axes[1, 0], measured.along, along, "Modality gap")
    ax, counts = axes[1, 1], np.sort(measured.occurrences)[::-1]
    ax.plot(np.arange(1, len(counts) + 1), counts, color=PURPLE, marker="")
    label = f"no hubs: {counts.mean():.0f} each"
    ax.axhline(counts.mean(), color="black", linestyle="--", linewidth=1.2, label=label)
    ax.set(xlabel="images, the most frequent first", title="Hubness", ylim=0)
    ax.set_ylabel(f"captions with it in their top {measured.k}")
    ax.legend()
    figure.suptitle(title)
    return figure


def _densities(ax: Axes, samples: dict[str, np.ndarray], label: str, title: str) -> None:
    """Two overlaid histograms with their means."""
    low, high = (f(np.concatenate(list(samples.values()))) for f in (np.min, np.max))
    bins = np.linspace(low, max(high, low + 1e-6), 40)
    for (kind, values), colour, hatch in zip(
        samples.items(), (BLUE, ORANGE), ("", "///"), strict=True
    ):
        ax.hist(values, bins, density=True, color=colour, alpha=0.6, label=kind, hatch=hatch)
        ax.axvline(np.mean(values), color=colour, linestyle="--", linewidth=1.2)
    ax.set(xlabel=label, ylabel="density", title=title, ylim=(0, 1.4 * ax.get_ylim()[1]))
    ax.legend(frameon=True, ncols=2)


def grid(table: pd.DataFrame, chosen: dict[str, str], title: str) -> Figure:
    """mR on the validation split for every setting tried, a row per rule; the chosen one filled and
    named.

    Args:
        table: columns ``rule, method, mR``; chosen: rule -> method.
    """
    rules = list(dict.fromkeys(table["rule"]))[::-1]
    figure, ax = plt.subplots(figsize=(11, 0.6 * len(rules) + 1.5))
    for y, rule in enumerate(rules):
        rows = table[table["rule"] == rule]
        ax.plot(rows["mR"], [y] * len(rows), "o", color=BLUE, markerfacecolor="white")
        best = rows[rows["method"] == chosen[rule]]["mR"].iloc[0]
        ax.plot(best, y, "D", color=RED)
        label = {"textcoords": "offset points", "va": "center", "fontsize": 10}
        ax.annotate(chosen[rule], (best, y), (8, 0), **label)
    ax.margins(x=0.4)  # room for the names
    ax.set_yticks(range(len(rules)), rules)
    ax.set(xlabel="mR on the validation split (%)", title=title, ylim=(-0.5, len(rules) - 0.3))
    ax.grid(axis="x")
    return figure


def methods(results: dict[str, dict], baseline: str, chance: float, title: str) -> Figure:
    """mR of every method with its 95 % interval, best on top; methods that look at the other test
    queries (marked † or ‡) are hollow."""
    names = sorted(results, key=lambda name: results[name]["mR"])
    figure, ax = plt.subplots(figsize=(9.5, 0.4 * len(names) + 1.6))
    for y, name in enumerate(names):
        value = results[name]["mR"]
        low, high = results[name]["interval"]["mR"]
        style = {"color": RED, "fmt": "D"} if name == baseline else {"color": BLUE, "fmt": "o"}
        style |= {"markerfacecolor": "white"} if name[-1] in "†‡" else {}
        error = [[max(0, value - low)], [max(0, high - value)]]
        ax.errorbar(value, y, xerr=error, capsize=3, **style)
    ax.axvline(results[baseline]["mR"], color=RED, linestyle=":", linewidth=1.2)
    ax.axvline(chance, color=GREY, linestyle="--", label=f"chance {chance:.1f} %")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="mR (%), 95 % bootstrap over images", title=title)
    ax.set_xlim(left=0)
    ax.grid(axis="x")
    ax.legend(**BESIDE)
    return figure


def lines(table: pd.DataFrame, x: str, label: str, title: str, log: bool = False) -> Figure:
    """Columns of a table against its column ``x``; columns ``<name> low`` and ``<name> high``, if
    there, shade the interval of ``<name>``. Percent."""
    figure, ax = plt.subplots(figsize=(10, 4))
    for name in table.columns.drop(x):
        if name.endswith((" low", " high")):
            continue
        chance = {"color": GREY, "linestyle": "--", "marker": ""} if name == "chance" else {}
        ax.plot(table[x], table[name], label=name, **chance)
        if f"{name} low" in table:
            ax.fill_between(table[x], table[f"{name} low"], table[f"{name} high"], alpha=0.2)
    ax.grid()
    ax.set(xlabel=label, ylabel="recall (%)", title=title, ylim=0)
    if log:
        ax.set_xscale("log")
    else:
        ax.set_xticks(table[x])
    ax.legend(**BESIDE)
    return figure


def label_recall(table: pd.DataFrame, title: str) -> Figure:
    """Recall by class: bars text-to-image, diamonds image-to-text, with the number of images."""
    figure, ax = plt.subplots(figsize=(9, max(2.5, 0.33 * len(table) + 1.2)))
    places = np.arange(len(table))[::-1]
    ax.barh(places, table["t2i"], color=BLUE, label=TITLES["t2i"])
    ax.plot(table["i2t"], places, "D", color=ORANGE, markeredgecolor="black", label=TITLES["i2t"])
    mean = np.average(table["t2i"], weights=table["captions"])
    ax.axvline(mean, color=RED, linestyle="--", label=f"all captions {mean:.1f} %")
    ax.set_yticks(places, [f"{r.label} ({r.images})" for r in table.itertuples()])
    ax.set(xlabel="R@10 (%)", xlim=(0, 103), title=title)
    ax.legend(loc="lower left", bbox_to_anchor=(1, 0))
    return figure
