"""Figures that several notebooks draw: images, captions and tables go in, a matplotlib figure comes
out; :func:`save` puts it into ``figures/<dataset>/``. Colours are in ``style.mplstyle``. Colour is
never the only cue: markers, hatches and labels repeat it.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, atomic_path
from trsllava_utils.images import read_image

HERE = Path(__file__).parent
LAND = HERE / "land.json"  # outlines of the continents: Natural Earth 1:110m, public domain
SHOWN_SIDE = 1024  # of a picture that is read to be drawn, in pixels
INLINE_SCALE = 0.73  # size of the copies inside notebooks
BLUE, ORANGE, GREEN, RED, GREY = "C0", "C1", "C2", "C3", "C7"
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend at the right of its axes

plt.style.use(HERE / "style.mplstyle")


class Picture(Image):
    """A picture with an alternative text, which is also its plain text."""

    def __repr__(self) -> str:
        return self.alt


def save(figure: Figure, dataset: Dataset, name: str) -> Picture:
    """Save as ``figures/<dataset>/<name>.png``, or as it is where the name ends in ``.jpg``, which
    photographs do with a sixth of the bytes.

    Returns:
        The picture for the notebook, smaller, with an alternative text for those who cannot see it.
    """
    kind = "jpeg" if name.endswith(".jpg") else "png"
    path = dataset.figures / (name if kind == "jpeg" else f"{name}.png")
    drawn, small = png(figure), io.BytesIO()
    picture = PIL.Image.open(io.BytesIO(drawn)).convert("RGB")
    with atomic_path(path) as tmp:
        if kind == "jpeg":
            picture.save(tmp, kind, quality=85)
        else:
            tmp.write_bytes(drawn)
    size = [round(n * INLINE_SCALE) for n in picture.size]
    picture.resize(size, reducing_gap=3).save(small, kind, optimize=True, quality=80)
    return Picture(data=small.getvalue(), format=kind, alt=describe(figure))


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file; the figure is closed."""
    drawn = io.BytesIO()
    fast = {"compress_level": 3}  # half the time of the default, files 5 % larger
    figure.savefig(drawn, format="png", metadata={"Software": None}, pil_kwargs=fast)
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
    ax: Axes, dataset: Dataset, image_id: str, *, title: str = "", colour: str = "black"
) -> None:
    """Draw one image of the dataset; a grey box that says so where there are no readable pixels."""
    file = dataset.file_of(image_id)
    try:
        picture = read_image(file, dataset.rendering, SHOWN_SIDE) if file else None
    except InputError:
        picture = None
    if picture is None:
        picture = np.full((8, 8, 3), 235, np.uint8)
        text = {"ha": "center", "va": "center", "transform": ax.transAxes, "color": GREY}
        ax.text(0.5, 0.5, "no pixels\non disk", **text)
    ax.imshow(picture)
    ax.axis("on")
    ax.set(xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set(visible=True, color=colour, linewidth=3 if colour != "black" else 0.6)
    ax.set_title(title, fontsize=10.5, color=colour, parse_math=False)


def _wrapped(image_id: str) -> str:
    return "\n".join(textwrap.wrap(image_id, 20))


def image_grid(dataset: Dataset, image_ids: list[str], columns: int = 6) -> Figure:
    """Images with their ids."""
    rows = max(1, -(-len(image_ids) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.15 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image_id in zip(axes.flat, image_ids, strict=False):
        show_image(ax, dataset, image_id, title=_wrapped(image_id))
    return figure


def query_results(
    dataset: Dataset, results: list[tuple[str, str, pd.DataFrame]], title: str = ""
) -> Figure:
    """A row for each query: its words, then the images found.

    Args:
        results: ``(query text, its image_id or "", table with rank, image_id, score)``; hits are
            framed and marked.
    """
    k = max(len(table) for _, _, table in results)
    size, widths = (1.9 * (k + 1.5), 2.4 * len(results)), [1.6, *[1] * k]
    figure, axes = plt.subplots(
        len(results), k + 1, figsize=size, width_ratios=widths, squeeze=False
    )
    for row, (query, own, table) in zip(axes, results, strict=True):
        for ax in row:
            ax.axis("off")
        text = {"va": "center", "transform": row[0].transAxes, "parse_math": False}
        row[0].text(0, 0.5, textwrap.fill(query, 24), **text)
        for ax, item in zip(row[1:], table.itertuples(), strict=False):
            hit = bool(own) and item.image_id == own
            name = (
                f"{item.rank}. {_wrapped(item.image_id)}\n{item.score:.3f}{' ✓ hit' if hit else ''}"
            )
            colour = GREEN if hit else "black"
            show_image(ax, dataset, item.image_id, title=name, colour=colour)
    figure.suptitle(title)
    return figure


def _apart(points: np.ndarray, gap: float) -> np.ndarray:
    """Points ``(n, 2)`` moved until none is nearer than ``gap`` to another, each along a spiral
    around its place."""
    free: list[np.ndarray] = []
    for point in points:
        turns = np.arange(4 * len(points) + 1)
        angles, radii = turns * 2.4, 0.7 * gap * np.sqrt(turns)
        spiral = point + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        near = [np.linalg.norm(spiral - other, axis=1) < gap for other in free]
        free.append(spiral[np.argmin(np.any(near, axis=0))] if near else point)
    return np.array(free).reshape(-1, 2)


def place_map(table: pd.DataFrame, title: str, others: pd.DataFrame | None = None) -> Figure:
    """A map, drawn without a network: images found, numbered by rank, among the others. Numbers
    that would lie on one another are moved apart.

    Args:
        table: columns ``rank, lat, lon`` (degrees); rows without a place are left out.
        title: of the map.
        others: the places of the whole gallery, ``lat, lon``.
    """
    placed = table.dropna(subset=["lat", "lon"])
    others = None if others is None else others.dropna(subset=["lat", "lon"])
    everywhere = placed if others is None else pd.concat([placed, others])
    (south, north), (west, east) = (
        (everywhere[c].min(), everywhere[c].max()) for c in ("lat", "lon")
    )
    # a degree of longitude is shorter than one of latitude by the cosine of the latitude
    shorter = max(np.cos(np.radians((south + north) / 2)), 0.05)
    wide = 1.12 * max(east - west, 1.7 * (north - south) / shorter, 0.01)
    tall = wide * shorter / 1.7
    figure, ax = plt.subplots(figsize=(9, 5.5))
    for ring in json.loads(LAND.read_text()):
        ax.fill(*np.transpose(ring), facecolor="#eeece4", edgecolor="#b5b2a6", linewidth=0.7)
    ax.set_aspect(1 / shorter)
    ax.set_xlim((east + west - wide) / 2, (east + west + wide) / 2)
    ax.set_ylim((south + north - tall) / 2, (south + north + tall) / 2)
    if others is not None:
        label = f"all {len(others):,} images with a place"
        ax.plot(others["lon"], others["lat"], ".", color=GREY, label=label)
    label = f"found: {len(placed)} of {len(table)} have a place"
    scale = np.array([shorter, 1])  # so that near is the same in all directions
    free = _apart(placed[["lon", "lat"]].to_numpy() * scale, 0.03 * tall) / scale
    for (lon, lat), (true_lon, true_lat) in zip(
        free, placed[["lon", "lat"]].to_numpy(), strict=True
    ):
        ax.plot([lon, true_lon], [lat, true_lat], color=RED, linewidth=0.8, marker="")
    ax.plot(*free.T, "o", color=RED, markersize=13, label=label)
    number = {"ha": "center", "va": "center", "color": "white", "fontsize": 10}
    for rank, place in zip(placed["rank"], free, strict=True):
        ax.annotate(rank, place, **number)
    ax.set(xlabel="longitude (° east)", ylabel="latitude (° north)")
    ax.set_title(title, parse_math=False)  # a query may hold a $
    ax.grid()
    ax.ticklabel_format(useOffset=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figure


def densities(ax: Axes, samples: dict[str, np.ndarray], label: str, title: str) -> None:
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
