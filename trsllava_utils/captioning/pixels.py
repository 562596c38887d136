"""The embedded captioner ``pixels``: reads land cover, shapes and layout off the picture with
scikit-image.

It sees only the ``(H, W, 3) uint8`` array: no file name, no label, no learned weights.
:func:`observe` measures, ``pixels_wording.py`` puts it in words. It is modest on real imagery: it
tells water, trees, grass, sand, soil, roofs and pavement apart by colour and texture, finds lines,
circles and compact bright objects, and guesses the scene by a handful of rules.
"""

from __future__ import annotations

import json

import numpy as np
from scipy import ndimage
from skimage import color, feature, measure, morphology, transform

from trsllava_utils.artefacts import InputError
from trsllava_utils.captioning import pixels_wording
from trsllava_utils.captioning.captioner import Question, Reply, Settings
from trsllava_utils.captioning.pixels_wording import Observation
from trsllava_utils.captioning.records import Variant

MODEL = "pixels@d70d7d31"  # change it whenever the wording changes; a test checks this
SIDE = 224  # pictures are described at this size; a pixel below is a pixel of the resized picture
COVERS = ("water", "trees", "grass", "sand", "soil", "pavement", "roofs", "shadow")


class PixelCaptioner:
    """Captioner ``pixels``; see the module's first paragraph, and
    :class:`~trsllava_utils.captioning.captioner.Captioner`."""

    prompt_text = ""
    batch_size = 1
    attempts = 1  # deterministic: a retry is useless
    concurrency = 2  # scikit-image and SciPy let threads run side by side

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        if self._settings.language not in ("", "en"):
            raise InputError(
                f"language={self._settings.language!r}: the pixels captioner writes English only"
            )
        self.identity = {"model": MODEL}
        self.usage: dict[str, int] = {}
        self.notes: list[str] = []

    def describe(self, questions: list[Question]) -> list[Reply]:
        return [Reply(self._answer(q.pictures["true colour"]), MODEL) for q in questions]

    def _answer(self, image: np.ndarray) -> str:
        described = [v.model_dump() for v in self.variants(image)]
        if self._settings.prompt == "query":
            return json.dumps({"caption": described[0]["caption"]})
        return json.dumps({"variants": described})

    def variants(self, image: np.ndarray) -> list[Variant]:
        """``(H, W, 3) uint8`` -> variants."""
        return pixels_wording.variants(observe(image), self._settings.n)


def observe(image: np.ndarray) -> Observation:
    """Measure a picture ``(H, W, 3) uint8``; deterministic, about a tenth of a second."""
    rgb = transform.resize(image, (SIDE, SIDE), order=1, anti_aliasing=max(image.shape[:2]) > SIDE)
    rgb = np.clip(rgb, 0, 1).astype(np.float32)
    hsv, lab = color.rgb2hsv(rgb), color.rgb2lab(rgb)
    grey = lab[..., 0] / 100
    rough = local_contrast(grey, 2.5)
    masks = land_cover(rgb, hsv, lab, rough)
    cover = {name: float(mask.mean()) for name, mask in masks.items()}
    edges = feature.canny(grey, sigma=1.6, low_threshold=0.05, high_threshold=0.12)
    line_share, n_directions = straight_lines(edges)
    elongation, crossed, touches = water_shape(masks["water"])
    bright = (grey > 0.7) & (grey > ndimage.gaussian_filter(grey, 8) + 0.12) & (hsv[..., 1] < 0.22)
    boats, vehicles = small_objects(bright, masks["water"], masks["pavement"])
    roof_list = compact_regions(masks["roofs"], 40, 12000)
    rooftones = lab[masks["roofs"]]
    return Observation(
        cover=cover,
        where={name: compass(mask) for name, mask in masks.items()},
        tanks=count_discs(grey, edges, masks["trees"] | masks["water"]),
        roofs=len(roof_list),
        boats=boats,
        vehicles=vehicles,
        red_ring=ring(reddish(hsv), masks["grass"] | masks["trees"]),
        line_share=line_share,
        n_directions=n_directions,
        water_elongation=elongation,
        water_crossed=crossed,
        water_touches=touches,
        texture=float(rough.mean()),
        ripple=ripple(grey),
        field_plots=even_plots(lab),
        colours=dominant_colours(lab, hsv),
        roof_colour=colour_name(rooftones.mean(axis=0)) if len(rooftones) else "grey",
    )


def local_contrast(grey: np.ndarray, sigma: float) -> np.ndarray:
    """Local standard deviation of lightness in a Gaussian window."""
    mean = ndimage.gaussian_filter(grey, sigma)
    return np.sqrt(np.maximum(ndimage.gaussian_filter(grey**2, sigma) - mean**2, 0))


def land_cover(
    rgb: np.ndarray, hsv: np.ndarray, lab: np.ndarray, rough: np.ndarray
) -> dict[str, np.ndarray]:
    """One bool mask per cover type, ``(224, 224)``; every pixel belongs to exactly one.

    Thresholds are on CIELAB (L 0–100, a green–red, b blue–yellow) and local contrast.
    """
    soft = ndimage.gaussian_filter(lab, (1.2, 1.2, 0))
    light, a, b = soft[..., 0], soft[..., 1], soft[..., 2]
    smooth = ndimage.gaussian_filter(rough, 2) < 0.045
    green = (a < -4) & (b > 3)
    bluish = (b < -3) & (light < 72)
    deep = (b < -7) & (light < 45)
    dark_smooth = (light < 42) & smooth & (b < 8) & (a < 2)
    pale_smooth = (a < -3) & (b < 5) & smooth & (light < 75)
    water = (bluish & smooth) | dark_smooth | pale_smooth | deep
    water = morphology.remove_small_objects(
        ndimage.binary_opening(water, iterations=2), min_size=251
    )
    trees = ~water & green & ((light < 40) | ((rough > 0.045) & (light < 50)))
    grass = ~water & green & ~trees
    warm = ~water & ~green & (b > 11)
    red_roof = ~water & ((a > 13) & (light < 75))
    blue_roof = ~water & (b < -9)
    sand = warm & ~red_roof & (light > 62)
    soil = warm & ~red_roof & ~sand
    rest = ~(water | trees | grass | red_roof | blue_roof | sand | soil)
    shadow = rest & (light < 24)
    white_roof = rest & (light > 74)
    roofs = red_roof | blue_roof | white_roof
    pavement = rest & ~shadow & ~white_roof
    masks = (water, trees, grass, sand, soil, pavement, roofs, shadow)
    return dict(zip(COVERS, masks, strict=True))


def compass(mask: np.ndarray) -> str:
    """The place of a mask on a 3 x 3 grid, north up; "" if it covers most of the grid, or less than
    1 % of the picture."""
    if mask.mean() < 0.01:
        return ""
    rows = np.array_split(mask, 3)
    cells = np.array([[c.mean() for c in np.array_split(row, 3, axis=1)] for row in rows])
    if (cells > 0.5 * cells.max()).sum() >= 6:
        return ""
    row, col = np.unravel_index(cells.argmax(), cells.shape)
    name = (("north", "", "south")[row], ("west", "", "east")[col])
    return "-".join(n for n in name if n) or "centre"


def straight_lines(edges: np.ndarray) -> tuple[float, int]:
    """Share of edge pixels on long straight lines, and how many directions (of 12) those lines
    take."""
    segments = transform.probabilistic_hough_line(
        edges, threshold=20, line_length=45, line_gap=4, rng=0
    )
    if not segments:
        return 0.0, 0
    vectors = np.array([np.subtract(q, p) for p, q in segments], float)
    lengths = np.hypot(*vectors.T)
    bins = np.bincount(
        (np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])) % 180 // 15).astype(int), lengths, 12
    )
    return float(min(1, lengths.sum() / max(edges.sum(), 1))), int((bins > 0.12 * bins.sum()).sum())


def water_shape(water: np.ndarray) -> tuple[float, bool, int]:
    """Elongation of the largest water body, whether a strip splits the water in two, picture
    sides it touches."""
    regions = sorted(measure.regionprops(measure.label(water)), key=lambda r: -r.area)
    if not regions:
        return 0.0, False, 0
    largest = regions[0]
    skeleton = morphology.skeletonize(largest.image).sum()
    closed = measure.label(ndimage.binary_closing(np.pad(water, 12), iterations=10)[12:-12, 12:-12])
    crossed = len(regions) > 1 and regions[1].area > 0.25 * largest.area and (
        closed[tuple(regions[0].coords[0])] == closed[tuple(regions[1].coords[0])] != 0
    )  # fmt: skip
    r0, c0, r1, c1 = largest.bbox
    return (
        float(skeleton**2 / largest.area),
        bool(crossed),
        (r0 == 0) + (c0 == 0) + (r1 == SIDE) + (c1 == SIDE),
    )


def small_objects(bright: np.ndarray, water: np.ndarray, pavement: np.ndarray) -> tuple[int, int]:
    """Small bright things: (on or by water, on pavement)."""
    near_water = ndimage.binary_dilation(water, iterations=4)
    near_pavement = ndimage.binary_dilation(pavement, iterations=3)
    boats = vehicles = 0
    for region in measure.regionprops(measure.label(bright)):
        if 4 <= region.area <= 250:
            spot = tuple(np.round(region.centroid).astype(int))
            boats += bool(near_water[spot])
            vehicles += bool(near_pavement[spot] and not near_water[spot] and region.area <= 60)
    return boats, vehicles


def compact_regions(mask: np.ndarray, smallest: int, largest: int) -> list:
    """Connected regions of ``smallest`` to ``largest`` pixels that nearly fill their convex
    hull."""
    labels = measure.label(ndimage.binary_opening(mask))
    return [
        r for r in measure.regionprops(labels) if smallest <= r.area <= largest and r.solidity > 0.8
    ]


def count_discs(grey: np.ndarray, edges: np.ndarray, excluded: np.ndarray) -> int:
    """Bright round discs of 6–34 pixels radius with an edge around most of them."""
    radii = np.arange(6, 35, 2)
    votes = transform.hough_circle(edges, radii)
    _, xs, ys, rs = transform.hough_circle_peaks(
        votes, radii, min_xdistance=9, min_ydistance=9, threshold=0.5, total_num_peaks=30
    )  # fmt: skip
    yy, xx = np.mgrid[:SIDE, :SIDE]
    kept: list[tuple[int, int, int]] = []
    for x, y, r in zip(xs, ys, rs, strict=True):
        if any(np.hypot(x - u, y - v) < 0.9 * (r + s) for u, v, s in kept):
            continue
        distance = np.hypot(xx - x, yy - y)
        inside, outside = distance < 0.8 * r, (distance > 1.2 * r) & (distance < 1.6 * r)
        if (
            grey[inside].std() < 0.09
            and grey[inside].mean() > grey[outside].mean() + 0.06
            and excluded[inside].mean() < 0.3
        ):
            kept.append((x, y, r))
    return len(kept)


def reddish(hsv: np.ndarray) -> np.ndarray:
    """Red to orange ground that is neither pale nor dark."""
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    return ((hue < 0.06) | (hue > 0.95)) & (saturation > 0.3) & (value > 0.3)


def ring(red: np.ndarray, green: np.ndarray) -> float:
    """Share of the picture that is green and enclosed by a large red region."""
    red = ndimage.binary_closing(red, iterations=2)
    labels = measure.label(red)
    best = 0.0
    for region in measure.regionprops(labels):
        if region.area > 250:
            hole = ndimage.binary_fill_holes(region.image) & ~region.image
            r0, c0, r1, c1 = region.bbox
            best = max(best, float((hole & green[r0:r1, c0:c1]).sum()) / red.size)
    return best


def ripple(grey: np.ndarray) -> float:
    """How strongly one spatial frequency of 4–30 cycles rules the picture, 0–1."""
    window = np.hanning(SIDE)
    flat = (grey - ndimage.gaussian_filter(grey, 25)) * np.outer(window, window)
    power = np.abs(np.fft.rfft2(flat)) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(SIDE) * SIDE, np.fft.rfftfreq(SIDE) * SIDE, indexing="ij")
    band = (np.hypot(fy, fx) > 4) & (np.hypot(fy, fx) < 30)
    total = power[band].sum()
    return float(np.sort(power[band])[-12:].sum() / total) if total > 0 else 0.0


def even_plots(lab: np.ndarray) -> int:
    """Number of large even-toned rectangular regions: fields."""
    soft = ndimage.gaussian_filter(lab, (3, 3, 0))
    gradient = np.sqrt(
        sum(ndimage.sobel(soft[..., i], axis) ** 2 for i in range(3) for axis in (0, 1))
    )
    flat = ndimage.binary_erosion(gradient < 10, iterations=2)
    return sum(
        r.area > 700 and r.extent > 0.45 and r.solidity > 0.85
        for r in measure.regionprops(measure.label(flat))
    )


def dominant_colours(lab: np.ndarray, hsv: np.ndarray) -> tuple[str, str]:
    """The two commonest colour names on a coarse grid."""
    cells = transform.resize(lab, (16, 16), order=1, anti_aliasing=True).reshape(-1, 3)
    names, counts = np.unique([colour_name(c) for c in cells], return_counts=True)
    order = names[np.argsort(-counts, kind="stable")]
    return str(order[0]), str(order[min(1, len(order) - 1)])


def colour_name(lab: np.ndarray) -> str:
    """An everyday name of a CIELAB colour."""
    light, a, b = lab
    if np.hypot(a, b) < 8:
        return "white" if light > 78 else "grey" if light > 38 else "dark grey"
    if a < -3 and b > 2:
        return "dark green" if light < 38 else "green" if light < 65 else "light green"
    if b < -3:
        return "dark blue" if light < 40 else "blue"
    if a > 18:
        return "red"
    return "yellow" if light > 68 else "light brown" if light > 52 else "brown"
