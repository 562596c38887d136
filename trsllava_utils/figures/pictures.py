"""Pictures: images and captions go in, a matplotlib figure comes out, saved to
``figures/<dataset>/`` by :func:`save`. Charts of numbers are in ``charts.py``.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every axis has a label and
a unit.
"""

from __future__ import annotations

import io
import json
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from IPython.display import Image
from matplotlib.figure import Figure

from trsllava_utils.artefacts import InputError, atomic_path, shown
from trsllava_utils.captioning import quality
from trsllava_utils.captioning.records import FIELDS, Record
from trsllava_utils.datasets.dataset import Dataset
from trsllava_utils.datasets.imagery import read_image

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#777777",
)
PALETTE = [BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#000000", GREY]
MARKERS = "osD^vP*X"
LAND = Path(__file__).parent / "land.json"  # outlines: Natural Earth 1:110m, public domain
DPI, INLINE_DPI = 110, 80  # of the files, and of the copies inside notebooks
# Legible from the back of a lecture hall when a figure fills a slide.
plt.rcParams.update({"font.size": 12, "axes.titlesize": 13, "legend.fontsize": 11})


class Picture(Image):
    """A picture with an alternative text, which is also its plain text."""

    def __repr__(self) -> str:
        return self.alt


def save(figure: Figure, dataset: Dataset, name: str) -> Picture:
    """Save as ``figures/<dataset>/<name>.png``; returns the picture for the notebook, smaller, with
    an alternative text for those who cannot see it."""
    path = dataset.figures / f"{name}.png"
    drawn = png(figure)
    with atomic_path(path) as tmp:
        tmp.write_bytes(drawn)
    print("saved", shown(path))
    picture = PIL.Image.open(io.BytesIO(drawn)).convert("RGB")
    picture = picture.resize([round(n * INLINE_DPI / DPI) for n in picture.size], reducing_gap=3)
    encoded = {"png": io.BytesIO(), "jpeg": io.BytesIO()}
    picture.save(encoded["png"], "png")
    picture.save(encoded["jpeg"], "jpeg", quality=85)
    sizes = {kind: len(buffer.getvalue()) for kind, buffer in encoded.items()}
    kind = "jpeg" if sizes["jpeg"] < 0.7 * sizes["png"] else "png"  # photographs, charts
    return Picture(data=encoded[kind].getvalue(), format=kind, alt=describe(figure))


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file; it is closed then."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, bbox_inches="tight", format="png", metadata={"Software": None})
    plt.close(figure)
    return drawn.getvalue()


def describe(figure: Figure) -> str:
    """What a figure shows, in words: its titles, texts, axes and the names in its legends."""
    parts = [figure.get_suptitle()]
    for ax in figure.axes:
        title = ax.get_title() or ax.get_title(loc="left")
        texts = [t.get_text() for t in ax.texts] if not ax.axison else []
        axes = " against ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel())))
        legend = ax.get_legend()
        names = ", ".join(t.get_text() for t in legend.get_texts()) if legend else ""
        parts.append(": ".join(filter(None, (title, *texts, axes, names))))
    return " ".join(". ".join(filter(None, parts)).split())


def show_image(
    ax: plt.Axes,
    dataset: Dataset,
    image_id: str,
    title: str = "",
    colour: str = "black",
    bands: str = "",
) -> None:
    """Draw one image of the dataset; a grey box with a sentence where there are no readable
    pixels."""
    path = dataset.path_of(image_id)
    try:
        ax.imshow(read_image(path, bands) if path else np.full((8, 8, 3), 235, np.uint8))
    except InputError:
        path = ""
        ax.imshow(np.full((8, 8, 3), 235, np.uint8))
    if not path:
        ax.text(
            0.5,
            0.5,
            "no pixels\non disk",
            ha="center",
            va="center",
            transform=ax.transAxes,
            color=GREY,
        )
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set(color=colour, linewidth=3 if colour != "black" else 0.6)
    ax.set_title(title, fontsize=10.5, color=colour, parse_math=False)


def dataset_overview(dataset: Dataset) -> Figure:
    """Images per class, and words per human caption."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), gridspec_kw={"width_ratios": [1.5, 1]})
    counts = dataset.images["label"].replace("", "(no class)").value_counts().sort_values()
    axes[0].barh(counts.index, counts.to_numpy(), color=BLUE)
    axes[0].set(xlabel="images", title=f"{dataset.title} · {dataset.split}: images per class")
    axes[0].tick_params(axis="y", labelsize=11 if len(counts) <= 20 else 8)
    words = dataset.captions["text"].str.split().str.len()
    if len(words):
        axes[1].hist(words, bins=np.arange(0.5, words.max() + 1.5), color=ORANGE, edgecolor="white")
        axes[1].axvline(
            words.median(),
            color="black",
            linestyle="--",
            label=f"median {words.median():.0f} words",
        )
        axes[1].legend(frameon=False)
        axes[1].set_ylim(top=1.15 * axes[1].get_ylim()[1])
    axes[1].set(xlabel="words a caption", ylabel="human captions", title="Caption length")
    figure.tight_layout()
    return figure


def image_grid(dataset: Dataset, image_ids: list[str], columns: int = 6, bands: str = "") -> Figure:
    """Images with id and class."""
    rows = max(1, -(-len(image_ids) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.15 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image_id in zip(axes.flat, image_ids, strict=False):
        ax.axis("on")
        show_image(
            ax, dataset, image_id, textwrap.shorten(image_id, 20, placeholder="…"), bands=bands
        )
    figure.tight_layout()
    return figure


def caption_card(dataset: Dataset, image_id: str, record: Record, bands: str = "") -> Figure:
    """An image beside its variants."""
    blocks = []
    for n, v in enumerate(record.variants, 1):
        lines = [f"{n}  {v.one_sentence or v.caption}"]
        lines += [f"feature  {v.feature}", f"caption  {v.caption}"] if v.structured else []
        blocks.append(
            "\n".join(textwrap.fill(line, 104, subsequent_indent="     ") for line in lines)
        )
    text = "\n\n".join(blocks)
    height = max(3.2, 0.2 * (text.count("\n") + 3))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, height), gridspec_kw={"width_ratios": [1, 2.7]}
    )
    show_image(left, dataset, image_id, image_id, bands=bands)
    left.set_anchor("N")
    right.axis("off")
    right.text(
        0,
        1,
        text,
        va="top",
        fontsize=10.5,
        family="DejaVu Sans",
        parse_math=False,
        linespacing=1.25,
    )
    right.set_title(f"RSRT captions by {record.model}", loc="left")
    figure.tight_layout()
    return figure


def caption_distributions(records: list[Record], title: str) -> Figure:
    """Captions as a whole: words a field, vocabulary as images come in, likeness of the variants of
    an image, and the share of images that mention a kind of scene."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4))
    _lengths(axes[0, 0], records)
    seen: set[str] = set()
    growth = []
    for record in records:
        seen.update(*(quality.words(v.joined()) for v in record.variants))
        growth.append(len(seen))
    axes[0, 1].plot(range(1, len(growth) + 1), growth, color=BLUE)
    axes[0, 1].set(xlabel="images", ylabel="distinct words", title="Vocabulary", ylim=0, xlim=0)
    alike = np.array([s for record in records for s in quality.similarities(record.variants)])
    axes[1, 0].hist(alike, bins=np.linspace(0, 1, 41), color=GREEN, edgecolor="white")
    limit = quality.NEAR_DUPLICATE
    axes[1, 0].axvline(limit, color=RED, linestyle="--", label=f"near-duplicates: above {limit}")
    axes[1, 0].legend(frameon=False, loc="upper left")
    axes[1, 0].set_ylim(0, 1.2 * axes[1, 0].get_ylim()[1])
    share = f": {100 * np.mean(alike >= limit):.1f} % near-duplicates" if len(alike) else ""
    axes[1, 0].set(
        xlabel="Jaccard similarity of word pairs (0 nothing shared, 1 equal)",
        ylabel="pairs of variants",
        title=f"Variants of an image{share}",
        xlim=(0, 1),
    )
    scenes = quality.scene_words(records)[:14][::-1]
    axes[1, 1].barh(scenes.index, scenes.to_numpy(), color=PURPLE)
    axes[1, 1].set(xlabel="images whose captions say it (%)", title="Scene words", xlim=(0, 100))
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def _lengths(ax: plt.Axes, records: list[Record]) -> None:
    """Histogram of words for each field there is."""
    variants = [v for record in records for v in record.variants]
    lengths = {f: [len(quality.words(getattr(v, f) or "")) for v in variants] for f in FIELDS}
    lengths = {field: n for field, n in lengths.items() if any(n)}
    bins = np.linspace(0, max(map(max, lengths.values())) + 1, 40)
    for (field, n), colour in zip(lengths.items(), PALETTE, strict=False):
        label = f"{field}, median {np.median(n):.0f}"
        ax.hist(n, bins, histtype="stepfilled", alpha=0.35, color=colour)
        ax.hist(n, bins, histtype="step", linewidth=1.6, color=colour, label=label)
    ax.legend(frameon=False)
    ax.set(xlabel="words", ylabel="texts", title="Length of the fields")
    ax.set_ylim(top=1.5 * ax.get_ylim()[1])


def compare_captions(
    dataset: Dataset, image_ids: list[str], sides: dict[str, dict[str, Record]], bands: str = ""
) -> Figure:
    """The same images as several captioners put them: a row an image, a column a captioner.

    Args:
        dataset: whose images.
        image_ids: which of them.
        sides: records by image id, by the captioner's name.
        bands: shown as red, green, blue.
    """
    width = 124 // len(sides)
    texts = {
        (i, name): _wrapped(records[i], width) for i in image_ids for name, records in sides.items()
    }
    lines = [max(texts[i, name].count("\n") + 1 for name in sides) for i in image_ids]
    heights = [max(1.9, 0.19 * n + 0.4) for n in lines]
    figure, axes = plt.subplots(
        len(image_ids),
        1 + len(sides),
        figsize=(1.6 + 0.088 * width * len(sides), sum(heights)),
        gridspec_kw={
            "height_ratios": heights,
            "width_ratios": [1.6] + [0.088 * width] * len(sides),
        },
        squeeze=False,
    )
    for row, image_id in zip(axes, image_ids, strict=True):
        show_image(row[0], dataset, image_id, image_id, bands=bands)
        row[0].set_anchor("N")
        for ax, name in zip(row[1:], sides, strict=True):
            ax.axis("off")
            ax.text(0, 1, texts[image_id, name], va="top", fontsize=10, linespacing=1.25)
            ax.set_title(name if image_id == image_ids[0] else "", fontsize=10, loc="left")
    figure.tight_layout()
    return figure


def _wrapped(record: Record, width: int) -> str:
    """The first structured variant, or the plain captions, in lines."""
    first = record.variants[0]
    fields = [getattr(first, f) for f in FIELDS] if first.structured else []
    texts = fields or [variant.caption for variant in record.variants]
    return "\n".join(line for t in texts for line in textwrap.wrap(f"· {t}", width))


def query_gallery(
    dataset: Dataset, results: list[tuple[str, str, pd.DataFrame]], title: str = "", bands: str = ""
) -> Figure:
    """Rows of query, its own image and what was found.

    Args:
        results: ``(query text, its image_id or "", table with rank, image_id, score)``; hits are
            framed and marked.
    """
    k = max(len(table) for _, _, table in results)
    figure, axes = plt.subplots(
        len(results),
        k + 1,
        figsize=(1.9 * (k + 1.5), 2.4 * len(results)),
        squeeze=False,
        gridspec_kw={"width_ratios": [1.6, *[1] * k]},
    )
    for row, (query, own, table) in zip(axes, results, strict=True):
        for ax in row:
            ax.axis("off")
        row[0].text(
            0,
            0.5,
            textwrap.fill(query, 24),
            va="center",
            fontsize=12,
            transform=row[0].transAxes,
            parse_math=False,
        )
        for ax, item in zip(row[1:], table.itertuples(), strict=False):
            ax.axis("on")
            hit = bool(own) and item.image_id == own
            name = f"{item.rank}. {textwrap.shorten(item.image_id, 20, placeholder='…')}"
            name += f"\n{item.score:.3f}{' ✓ hit' if hit else ''}"
            show_image(ax, dataset, item.image_id, name, GREEN if hit else "black", bands)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def place_map(table: pd.DataFrame, title: str, others: pd.DataFrame | None = None) -> Figure:
    """A map, drawn without a network: images found, numbered by rank, among the others.

    Args:
        table: columns ``rank, lat, lon`` (degrees); rows without a place are left out.
        title: of the map.
        others: the places of the whole gallery, ``lat, lon``.
    """
    found = table.dropna(subset=["lat", "lon"])
    everywhere = found if others is None else pd.concat([found, others])
    (south, north), (west, east) = (
        (everywhere[c].min(), everywhere[c].max()) for c in ("lat", "lon")
    )
    # a degree of longitude is shorter than one of latitude by the cosine of the latitude
    shorter = max(np.cos(np.radians((south + north) / 2)), 0.05)
    wide = 1.12 * max(east - west, 1.7 * (north - south) / shorter, 0.01)
    figure, ax = plt.subplots(figsize=(9, 5.5))
    for ring in json.loads(LAND.read_text()):
        ax.fill(*np.transpose(ring), facecolor="#eeece4", edgecolor="#b5b2a6", linewidth=0.7)
    ax.set_aspect(1 / shorter)
    ax.set_xlim((east + west - wide) / 2, (east + west + wide) / 2)
    tall = wide * shorter / 1.7
    ax.set_ylim((south + north - tall) / 2, (south + north + tall) / 2)
    if others is not None:
        label = f"all {len(others):,} images with a place"
        ax.plot(others["lon"], others["lat"], ".", color=GREY, markersize=5, label=label)
    label = f"found: {len(found)} of {len(table)} have a place"
    ax.plot(found["lon"], found["lat"], "o", color=RED, markersize=13, label=label)
    for row in found.itertuples():
        ax.annotate(
            row.rank, (row.lon, row.lat), ha="center", va="center", color="white", fontsize=10
        )
    ax.set(xlabel="longitude (° east)", ylabel="latitude (° north)")
    ax.set_title(title, parse_math=False)  # a query may hold a $
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.ticklabel_format(useOffset=False)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    figure.tight_layout()
    return figure
