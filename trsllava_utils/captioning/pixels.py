"""The embedded captioner ``pixels``: reads land cover, colours and lines off the picture with
scikit-image.

It sees only the ``(H, W, 3) uint8`` array: no file name, no label, no learned weights.
:func:`observe` measures, ``pixels_wording.py`` puts it in words. It is a baseline: it tells water,
trees, grass, sand, soil, roofs and pavement apart by colour and texture, and guesses the scene from
their shares, which is often wrong.
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

MODEL = "pixels@2"  # change it whenever the wording changes; a test checks this
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
        if self._settings.prompt == "style":
            raise InputError(
                "prompt='style': pixels has words of its own; name a vision-language model, "
                "-p captioner transformers:MODEL or openai:MODEL"
            )
        self.identity = {"model": MODEL}
        self.usage: dict[str, int] = {}
        self.notes: list[str] = []

    def describe(self, questions: list[Question]) -> list[Reply]:
        return [Reply(self._answer(next(iter(q.pictures.values()))), MODEL) for q in questions]

    def _answer(self, image: np.ndarray) -> str:
        described = [v.model_dump() for v in self.variants(image)]
        if self._settings.prompt != "rsrt":
            return json.dumps({"caption": described[0]["caption"]})
        return json.dumps({"variants": described})

    def variants(self, image: np.ndarray) -> list[Variant]:
        """``(H, W, 3) uint8`` -> variants."""
        return pixels_wording.variants(observe(image), self._settings.n)


def observe(image: np.ndarray) -> Observation:
    """Measure a picture ``(H, W, 3) uint8``; deterministic."""
    rgb = transform.resize(image, (SIDE, SIDE), order=1, anti_aliasing=max(image.shape[:2]) > SIDE)
    lab = color.rgb2lab(np.clip(rgb, 0, 1).astype(np.float32))
    grey = lab[..., 0] / 100
    rough = local_contrast(grey, 2.5)
    masks = land_cover(lab, rough)
    bright = (grey > 0.6) & (grey > ndimage.gaussian_filter(grey, 8) + 0.12)
    return Observation(
        cover={name: float(mask.mean()) for name, mask in masks.items()},
        where={name: compass(mask) for name, mask in masks.items()},
        roofs=count_regions(ndimage.binary_opening(masks["roofs"]), 40, 12000),
        objects=count_regions(bright, 4, 250),
        lines=straight_lines(grey),
        texture=float(rough.mean()),
        colours=dominant_colours(lab),
    )


def local_contrast(grey: np.ndarray, sigma: float) -> np.ndarray:
    """Local standard deviation of lightness in a Gaussian window."""
    mean = ndimage.gaussian_filter(grey, sigma)
    return np.sqrt(np.maximum(ndimage.gaussian_filter(grey**2, sigma) - mean**2, 0))


def land_cover(lab: np.ndarray, rough: np.ndarray) -> dict[str, np.ndarray]:
    """One bool mask per cover type, ``(224, 224)``; every pixel belongs to exactly one.

    Thresholds are on CIELAB (L 0–100, a green–red, b blue–yellow) and local contrast.
    """
    soft = ndimage.gaussian_filter(lab, (1.2, 1.2, 0))
    light, a, b = soft[..., 0], soft[..., 1], soft[..., 2]
    smooth = ndimage.gaussian_filter(rough, 2) < 0.045
    green = (a < -4) & (b > 3)
    bluish = (b < -3) & (light < 72) & smooth
    dark_smooth = (light < 42) & smooth & (b < 8) & (a < 2)
    pale_smooth = (a < -3) & (b < 5) & smooth & (light < 75)
    water = bluish | dark_smooth | pale_smooth | ((b < -7) & (light < 45))
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
    pavement = rest & ~shadow & ~white_roof
    roofs = red_roof | blue_roof | white_roof
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


def count_regions(mask: np.ndarray, smallest: int, largest: int) -> int:
    """Connected regions of ``smallest`` to ``largest`` pixels."""
    sizes = np.bincount(measure.label(mask).ravel())[1:]
    return int(((sizes >= smallest) & (sizes <= largest)).sum())


def straight_lines(grey: np.ndarray) -> float:
    """Share of the edge pixels that lie on long straight lines, 0 to 1."""
    edges = feature.canny(grey, sigma=1.6, low_threshold=0.05, high_threshold=0.12)
    found = transform.probabilistic_hough_line(
        edges, threshold=20, line_length=45, line_gap=4, rng=0
    )
    length = sum(np.hypot(*np.subtract(start, end)) for start, end in found)
    return float(min(1, length / max(edges.sum(), 1)))


def dominant_colours(lab: np.ndarray) -> tuple[str, str]:
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
