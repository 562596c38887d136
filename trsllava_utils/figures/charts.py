"""Charts: tables of numbers go in, a matplotlib figure comes out (save it with
:func:`trsllava_utils.visualisation.save`).

Colours are Okabe and Ito's, which colour-blind readers can tell apart; what a colour says, a
marker, a hatch or a label says too. Every axis has a label and a unit.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trsllava_utils.figures.pictures import (
    BLUE,
    GREY,
    MARKERS,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
)
from trsllava_utils.retrieval.geometry import Geometry


def embedding_map(
    vectors: np.ndarray, labels: list[str], kinds: list[str], title: str, seed: int = 0
) -> Figure:
    """t-SNE of unit vectors: colour and marker by class (the commonest eight), filled by kind of
    text.

    Args:
        vectors: ``(n, dim) float32``; labels, kinds: class and kind ("human", "captioner") of
            each row.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) > 30:
        points = TSNE(
            2, metric="cosine", init="pca", perplexity=min(30, len(vectors) // 4), random_state=seed
        ).fit_transform(vectors)
    else:
        points = PCA(2).fit_transform(vectors)
    labels_array, kinds_array = np.asarray(labels), np.asarray(kinds)
    common = (
        pd.Series(labels_array[labels_array != ""])
        .value_counts()
        .sort_index()
        .sort_values(ascending=False, kind="stable")
        .index[:8]
    )
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2))
    axes[0].scatter(
        *points[~np.isin(labels_array, common)].T, s=6, color="#cccccc", label="other classes"
    )
    for label, colour, marker in zip(common, PALETTE, MARKERS, strict=False):
        axes[0].scatter(
            *points[labels_array == label].T,
            s=18,
            color=colour,
            marker=marker,
            alpha=0.75,
            label=label,
        )
    axes[0].legend(fontsize=10, markerscale=1.4, loc="best")
    axes[0].set_title("coloured by class (the eight commonest)")
    for kind, colour, marker in zip(dict.fromkeys(kinds), (BLUE, ORANGE), "o^", strict=False):
        axes[1].scatter(
            *points[kinds_array == kind].T, s=14, color=colour, marker=marker, alpha=0.6, label=kind
        )
    axes[1].legend()
    axes[1].set_title("coloured by who wrote the text")
    for ax in axes:
        ax.set(
            xlabel="t-SNE axis 1 (no unit)", ylabel="t-SNE axis 2 (no unit)", xticks=[], yticks=[]
        )
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def geometry(found: Geometry, title: str) -> Figure:
    """Alignment, uniformity, modality gap and hubness, a panel each."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.2))
    panels = (
        (axes[0, 0], found.pairs, "squared distance (0 equal … 4 opposite)", "Alignment: pairs"),
        (axes[0, 1], found.within, "squared distance (0 equal … 4 opposite)", "Uniformity"),
        (axes[1, 0], found.along, "position along the line from mean to mean", "Modality gap"),
    )
    for ax, samples, label, name in panels:
        low, high = (f(np.concatenate(list(samples.values()))) for f in (np.min, np.max))
        bins = np.linspace(low, max(high, low + 1e-6), 40)
        for (kind, values), colour, hatch in zip(
            samples.items(), (BLUE, ORANGE), ("", "///"), strict=True
        ):
            ax.hist(
                values, bins, density=True, color=colour, alpha=0.6, label=kind, hatch=hatch,
                edgecolor="white",
            )  # fmt: skip
            ax.axvline(np.mean(values), color=colour, linestyle="--", linewidth=1.2)
        ax.set(xlabel=label, ylabel="density", title=name, ylim=(0, 1.3 * ax.get_ylim()[1]))
        ax.legend(framealpha=0.8)
    ax, counts = axes[1, 1], np.sort(found.occurrences)[::-1]
    ax.plot(np.arange(1, len(counts) + 1), counts, color=PURPLE)
    ax.axhline(
        counts.mean(), color="black", linestyle="--", linewidth=1.2,
        label=f"no hubs: {counts.mean():.0f} each",
    )  # fmt: skip
    ax.set(
        xlabel="images, the most frequent first",
        ylabel=f"captions with it in their top {found.k}",
        title="Hubness",
        ylim=0,
    )
    ax.legend(frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def grid(table: pd.DataFrame, chosen: dict[str, str], title: str) -> Figure:
    """mR on the validation split for every setting tried, a row a rule; the chosen one filled and
    named.

    Args:
        table: columns ``rule, method, mR``; chosen: rule -> method.
    """
    rules = list(dict.fromkeys(table["rule"]))[::-1]
    figure, ax = plt.subplots(figsize=(8.5, 0.6 * len(rules) + 1.5))
    for y, rule in enumerate(rules):
        rows = table[table["rule"] == rule]
        ax.plot(rows["mR"], [y] * len(rows), "o", color=BLUE, markerfacecolor="white")
        best = rows[rows["method"] == chosen[rule]]["mR"].iloc[0]
        ax.plot(best, y, "D", color=RED)
        ax.annotate(
            chosen[rule], (best, y), (0, 7), textcoords="offset points", ha="right", fontsize=10
        )
    ax.set_yticks(range(len(rules)), rules)
    ax.set(xlabel="mR on the validation split (%)", title=title, ylim=(-0.5, len(rules) - 0.3))
    ax.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    return figure


def methods(results: dict[str, dict], reference: str, chance: float, title: str) -> Figure:
    """mR of every method with its 95 % interval, best on top; methods that look at the other test
    queries (marked † or ‡) are hollow."""
    names = sorted(results, key=lambda name: results[name]["mR"])
    figure, ax = plt.subplots(figsize=(8.5, 0.4 * len(names) + 1.6))
    for y, name in enumerate(names):
        value = results[name]["mR"]
        low, high = results[name]["interval"]["mR"]
        hollow = name[-1] in "†‡"
        ax.errorbar(
            value, y, xerr=[[max(0, value - low)], [max(0, high - value)]], capsize=3,
            color=RED if name == reference else BLUE, fmt="D" if name == reference else "o",
            markerfacecolor="white" if hollow else None,
        )  # fmt: skip
    ax.axvline(results[reference]["mR"], color=RED, linestyle=":", linewidth=1.2)
    ax.axvline(chance, color=GREY, linestyle="--", label=f"chance {chance:.1f} %")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="mR (%), 95 % bootstrap over images", title=title)
    ax.set_xlim(left=0)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    return figure


def recall_curves(curves: dict[str, pd.DataFrame], title: str) -> Figure:
    """R@K against K for each method, chance dashed; one panel a direction."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for ax, (direction, name) in zip(
        axes, (("t2i", "text-to-image"), ("i2t", "image-to-text")), strict=True
    ):
        for (method, curve), colour, marker in zip(curves.items(), PALETTE, MARKERS, strict=False):
            style = (
                {"linestyle": "--", "color": GREY}
                if method == "chance"
                else {"color": colour, "marker": marker, "markersize": 4}
            )
            ax.plot(curve["k"], curve[direction], label=method, **style)
        ax.set(xscale="log", xlabel="K (items looked at, log scale)", title=name, ylim=(0, 100))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("R@K (%)")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def label_recall(table: pd.DataFrame, title: str) -> Figure:
    """Recall by class: bars text-to-image, diamonds image-to-text, with the number of images."""
    figure, ax = plt.subplots(figsize=(8, max(2.5, 0.33 * len(table) + 1.2)))
    places = np.arange(len(table))[::-1]
    ax.barh(places, table["t2i"], color=BLUE, label="text-to-image")
    ax.plot(table["i2t"], places, "D", color=ORANGE, markeredgecolor="black", label="image-to-text")
    mean = np.average(table["t2i"], weights=table["captions"])
    ax.axvline(mean, color=RED, linestyle="--", label=f"all captions {mean:.1f} %")
    ax.set_yticks(places, [f"{r.label} ({r.images})" for r in table.itertuples()])
    ax.set(xlabel="R@10 (%)", xlim=(0, 103), title=title)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(1, 0))
    figure.tight_layout()
    return figure


def confusion(table: pd.DataFrame, title: str, most: int = 24) -> Figure:
    """Heat map of classes asked for (rows) and found at rank 1 (columns); of more than ``most``
    classes those that are confused most."""
    if len(table) > most:
        right = pd.Series(np.diag(table), table.index)
        names = sorted(right.nsmallest(most).index)
        table = table.loc[names, names]
    n = len(table)
    figure, ax = plt.subplots(figsize=(0.38 * n + 3.6, 0.36 * n + 2.8))
    image = ax.imshow(table, cmap="cividis", vmin=0, vmax=100)
    ax.set_xticks(range(n), table.columns, rotation=90, fontsize=10)
    ax.set_yticks(range(n), table.index, fontsize=10)
    for i, j in zip(*np.nonzero(table.to_numpy() >= 10), strict=True):
        value = table.iloc[i, j]
        ax.text(
            j, i, f"{value:.0f}", ha="center", va="center", fontsize=9,
            color="black" if value > 55 else "white",
        )  # fmt: skip
    ax.set(
        xlabel="class of the image at rank 1", ylabel="class of the caption's image", title=title
    )
    figure.colorbar(image, label="captions of the row (%)", shrink=0.8)
    figure.tight_layout()
    return figure


def strata(table: pd.DataFrame, label: str, title: str) -> Figure:
    """mR of methods by group of images, from easy to hard.

    Args:
        table: index the groups, column ``images``, then a column a method.
    """
    figure, ax = plt.subplots(figsize=(8, 4))
    x = np.arange(len(table))
    for name, colour, marker in zip(table.columns[1:], PALETTE, MARKERS, strict=False):
        ax.plot(x, table[name], color=colour, marker=marker, label=name)
    ticks = [f"{g}\n({n:.0f} images)" for g, n in zip(table.index, table["images"], strict=True)]
    ax.set_xticks(x, ticks)
    ax.set(xlabel=label, ylabel="mR (%)", title=title, ylim=0)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


def traits(table: pd.DataFrame, recalls: pd.Series, correlations: pd.DataFrame) -> Figure:
    """mR of images against what their captions are like: mean and standard error in up to five
    groups of equal size.

    Args:
        table: traits by image id; recalls: mR contribution by image id; correlations: of each
            trait with it (``correlation, p``).
    """
    names = list(correlations.index)
    figure, axes = plt.subplots(1, max(1, len(names)), figsize=(3.2 * max(1, len(names)), 3.6),
                                sharey=True, squeeze=False)  # fmt: skip
    highest = 1.0
    for ax, name in zip(axes[0], names, strict=False):
        known = table[name].reindex(recalls.index).dropna()
        groups = pd.qcut(known, 5, labels=False, duplicates="drop").fillna(0)
        if groups.max() == 0:  # most values are the least one
            groups = (known > known.min()).astype(int)
        means = known.groupby(groups).mean()
        found = recalls[known.index].groupby(groups).agg(["mean", "sem"]).fillna(0)
        ax.errorbar(means, found["mean"], yerr=found["sem"], color=BLUE, marker="o", capsize=3)
        highest = max(highest, (found["mean"] + found["sem"]).max())
        rho, p = correlations.loc[name]
        ax.set_xlabel(name)
        ax.set_title(f"Spearman {rho:+.2f}, p = {p:.2g}", fontsize=12)
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylim(0, 1.08 * highest)
    axes[0, 0].set_ylabel("mR (%)")
    figure.tight_layout()
    return figure


def lines(table: pd.DataFrame, x: str, label: str, title: str, log: bool = False) -> Figure:
    """Columns of a table against its column ``x``; columns ``<name> low`` and ``<name> high``, if
    there, shade the interval of ``<name>``. Percent."""
    figure, ax = plt.subplots(figsize=(7, 3.8))
    names = [c for c in table.columns if c != x and not c.endswith((" low", " high"))]
    for name, colour, marker in zip(names, PALETTE, MARKERS, strict=False):
        ax.plot(table[x], table[name], color=colour, marker=marker, markersize=4, label=name)
        if f"{name} low" in table:
            ax.fill_between(
                table[x], table[f"{name} low"], table[f"{name} high"], color=colour, alpha=0.2
            )
    ax.set(
        xlabel=label, ylabel="recall (%)", title=title, xscale="log" if log else "linear", ylim=0
    )
    if not log:
        ax.set_xticks(table[x])
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure
