"""A canvas for overhead scenes: textured ground, shapes with shadows, trees, cars, boats.

Units are pixels of a 640 x 640 working square; the scene is turned by any angle, cropped to 448 and halved to 224.
Everything random comes from one seeded generator, so that a seed gives the same picture everywhere.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

SIZE, CROP, OUT = 640, 448, 224
Colour = tuple[float, float, float]

GRASS, DRY_GRASS, WOOD = (98, 118, 66), (134, 132, 84), (46, 68, 40)
SOIL, SAND, WATER, DEEP = (148, 122, 92), (205, 186, 146), (58, 88, 96), (38, 68, 92)
ASPHALT, CONCRETE = (108, 108, 110), (172, 168, 160)
ROOFS = [
    (158, 88, 68),
    (136, 120, 108),
    (186, 184, 180),
    (110, 104, 104),
    (176, 112, 82),
    (88, 98, 118),
]
CARS = [(228, 228, 226), (40, 42, 46), (150, 38, 36), (60, 82, 130), (178, 180, 184)]


def _box(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """The smallest box of rows and columns that holds ``mask``, widened by ``margin``."""
    spans = []
    for axis in (1, 0):
        hit = np.flatnonzero(mask.any(axis=axis))
        low, high = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, 0)
        spans.append(slice(max(0, low - margin), min(SIZE, high + margin)))
    return spans[0], spans[1]


class Canvas:
    """An RGB float image ``(640, 640, 3)`` and the brushes to draw on it."""

    def __init__(self, seed: int, ground: Colour, roughness: float = 9) -> None:
        self.rng = np.random.default_rng(seed)
        self.image = np.zeros((SIZE, SIZE, 3))
        self._grain: dict[tuple[int, ...], np.ndarray] = {}
        self.sun = self.rng.uniform(0, 2 * math.pi)
        self.fill(np.ones((SIZE, SIZE), bool), ground, roughness)

    def noise(self, scales: tuple[int, ...] = (4, 16, 64)) -> np.ndarray:
        """Smooth noise of mean 0 and deviation about 1, ``(640, 640)``; a scale is a feature size in pixels."""
        total = np.zeros((SIZE, SIZE))
        for scale in scales:
            n = SIZE // scale + 3
            coarse = Image.fromarray(self.rng.standard_normal((n, n)).astype(np.float32))
            smooth = np.asarray(coarse.resize((n * scale, n * scale), Image.Resampling.BILINEAR))
            total += smooth[scale : scale + SIZE, scale : scale + SIZE]
        return total / math.sqrt(len(scales)) * 1.3

    def fill(
        self,
        mask: np.ndarray,
        colour: Colour,
        roughness: float = 6,
        scales: tuple[int, ...] = (4, 16, 64),
    ) -> None:
        """Lay a textured colour over ``mask`` (bool or 0–1 float)."""
        jitter = np.asarray(colour) + self.rng.normal(0, 4, 3)
        box = _box(mask)
        if scales not in self._grain:
            self._grain[scales] = self.noise(scales)
        shift = self.rng.integers(0, SIZE, 2)  # another part of the same grain for every shape
        ys, xs = ((np.arange(b.start, b.stop) + d) % SIZE for b, d in zip(box, shift, strict=True))
        layer = jitter + self._grain[scales][np.ix_(ys, xs)][..., None] * roughness
        alpha = mask[box].astype(float)[..., None]
        self.image[box] = self.image[box] * (1 - alpha) + layer * alpha

    def mask(self, kind: str, points, width: int = 0) -> np.ndarray:
        """A bool mask of a "polygon", "ellipse" (bounding box) or "line"."""
        plane = Image.new("1", (SIZE, SIZE))
        draw = ImageDraw.Draw(plane)
        flat = [tuple(map(float, p)) for p in points]
        if kind == "line":
            draw.line(flat, fill=1, width=max(1, width), joint="curve")
        else:
            getattr(draw, kind)(flat, fill=1)
        return np.asarray(plane)

    def shade(self, mask: np.ndarray, height: float, strength: float = 0.5) -> None:
        """The shadow that something of ``height`` pixels standing on ``mask`` throws away from the sun."""
        box = _box(mask, round(height) + 4)
        standing = mask[box]
        shadow = np.zeros_like(standing)
        for t in np.linspace(0, height, max(2, int(height))):
            shadow |= np.roll(
                standing, (round(t * math.sin(self.sun)), round(t * math.cos(self.sun))), (0, 1)
            )
        soft = ndimage.gaussian_filter((shadow & ~standing).astype(float), 0.8)
        self.image[box] *= (1 - strength * soft)[..., None]

    def rectangle(
        self, x: float, y: float, w: float, h: float, angle: float = 0
    ) -> list[tuple[float, float]]:
        """Corners of a rectangle about its centre, turned by ``angle`` (radians)."""
        c, s = math.cos(angle), math.sin(angle)
        return [
            (x + c * u - s * v, y + s * u + c * v)
            for u, v in ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
        ]

    def building(self, x: float, y: float, w: float, h: float, angle: float = 0, colour: Colour | None = None,
                 height: float = 9, ridge: bool = False) -> None:  # fmt: skip
        """A roof with its shadow; with ``ridge`` one side lies in half-light."""
        colour = colour or ROOFS[self.rng.integers(len(ROOFS))]
        mask = self.mask("polygon", self.rectangle(x, y, w, h, angle))
        self.shade(mask, height)
        self.fill(mask, colour, 4)
        if ridge:
            c, s = math.cos(angle), math.sin(angle)
            half = self.mask(
                "polygon", self.rectangle(x - s * h / 4, y + c * h / 4, w, h / 2, angle)
            )
            self.image[half] *= 0.8
        elif w * h > 900:  # plant on a flat roof
            for _ in range(int(self.rng.integers(1, 4))):
                u, v = self.rng.uniform(-0.35, 0.35, 2)
                c, s = math.cos(angle), math.sin(angle)
                self.fill(
                    self.mask(
                        "polygon",
                        self.rectangle(
                            x + c * u * w - s * v * h, y + s * u * w + c * v * h, 7, 5, angle
                        ),
                    ),
                    (205, 205, 205),
                    2,
                )

    def road(
        self, points, width: float = 22, colour: Colour = ASPHALT, marked: bool = True
    ) -> np.ndarray:
        """A road along ``points``; returns its mask."""
        mask = self.mask("line", points, width)
        self.fill(self.mask("line", points, width + 6), CONCRETE, 5)
        self.fill(mask, colour, 4)
        if marked:
            for a, b in itertools.pairwise(points):
                a, b = np.asarray(a, float), np.asarray(b, float)
                for t in np.arange(0, 1, 18 / max(np.linalg.norm(b - a), 18)):
                    p = a + (b - a) * t
                    q = p + (b - a) / max(np.linalg.norm(b - a), 1) * 9
                    self.fill(self.mask("line", [p, q], 2), (222, 220, 208), 2)
        return mask

    def trees(
        self,
        n: int,
        where: np.ndarray | None = None,
        size: tuple[float, float] = (5, 12),
        colour: Colour = WOOD,
    ) -> None:
        """``n`` crowns, lit from the sun's side, inside ``where`` (bool mask; anywhere by default)."""
        spots = np.argwhere(where) if where is not None else None
        if spots is not None and len(spots) == 0:
            return
        for _ in range(n):
            y, x = (
                self.rng.uniform(0, SIZE, 2)
                if spots is None
                else spots[self.rng.integers(len(spots))]
            )
            r = self.rng.uniform(*size)
            tone = np.asarray(colour) * self.rng.uniform(0.8, 1.25)
            off = np.array([math.sin(self.sun), math.cos(self.sun)]) * r * 0.55
            self._disc(y + off[0], x + off[1], r, None)
            self._disc(y, x, r, tone)
            self._disc(y - off[0] * 0.5, x - off[1] * 0.5, r * 0.55, tone * 1.22)

    def _disc(self, y: float, x: float, r: float, tone: np.ndarray | None) -> None:
        y0, y1, x0, x1 = (
            int(np.clip(v, 0, SIZE)) for v in (y - r - 1, y + r + 2, x - r - 1, x + r + 2)
        )
        if y0 >= y1 or x0 >= x1:
            return
        yy, xx = np.mgrid[y0:y1, x0:x1]
        wobble = self.rng.normal(0, 0.8, yy.shape)
        inside = np.hypot(yy - y, xx - x) + wobble < r
        patch = self.image[y0:y1, x0:x1]
        patch[inside] = (
            patch[inside] * 0.55
            if tone is None
            else tone + self.rng.normal(0, 6, (int(inside.sum()), 1))
        )

    def car(self, x: float, y: float, angle: float, scale: float = 1) -> None:
        colour = CARS[self.rng.integers(len(CARS))]
        body = self.mask("polygon", self.rectangle(x, y, 12 * scale, 6 * scale, angle))
        self.shade(body, 2, 0.4)
        self.fill(body, colour, 2)
        self.fill(
            self.mask("polygon", self.rectangle(x, y, 5 * scale, 5 * scale, angle)),
            tuple(np.asarray(colour) * 0.7),
            2,
        )

    def boat(self, x: float, y: float, angle: float, length: float = 30) -> None:
        c, s = math.cos(angle), math.sin(angle)
        hull = [(0.5, 0), (0.28, 0.17), (-0.5, 0.17), (-0.5, -0.17), (0.28, -0.17)]

        def place(f: float) -> list[tuple[float, float]]:
            return [
                (x + length * (c * u - s * v) * f, y + length * (s * u + c * v) * f)
                for u, v in hull
            ]

        self.shade(self.mask("polygon", place(1)), 3, 0.4)
        self.fill(self.mask("polygon", place(1)), (232, 232, 230), 4)
        self.fill(self.mask("polygon", place(0.5)), (150, 140, 128), 4)

    def plane(self, x: float, y: float, angle: float, span: float = 60) -> None:
        c, s = math.cos(angle), math.sin(angle)
        outline = [
            (0.5, 0),
            (0.42, 0.05),
            (0.12, 0.06),
            (-0.1, 0.5),
            (-0.2, 0.5),
            (-0.08, 0.06),
            (-0.36, 0.05),
            (-0.46, 0.18),
            (-0.52, 0.18),
            (-0.46, 0),
        ]
        outline += [(u, -v) for u, v in reversed(outline)]
        mask = self.mask(
            "polygon",
            [(x + span * (c * u - s * v), y + span * (s * u + c * v)) for u, v in outline],
        )
        self.shade(mask, 5)
        self.fill(mask, (236, 236, 238), 3)

    def wave(self, level: float, swing: float) -> np.ndarray:
        """A smooth random height for every column, ``(640,)``: shorelines and river banks."""
        x = np.arange(SIZE)
        phases, freqs = self.rng.uniform(0, 6.28, 3), self.rng.uniform(0.004, 0.02, 3)
        return level + swing * sum(
            np.sin(x * f + p) / (i + 1) for i, (f, p) in enumerate(zip(freqs, phases, strict=True))
        )

    def finish(self, turn: bool = True) -> Image.Image:
        """Sensor blur and grain, turn, crop, halve."""
        soft = ndimage.gaussian_filter(self.image, (0.7, 0.7, 0))
        gain = self.rng.uniform(0.88, 1.1)
        soft = soft * gain + self.rng.normal(0, 3, (SIZE, SIZE, 1)) + self.rng.uniform(0, 8)
        picture = Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8))
        if turn:
            picture = picture.rotate(float(self.rng.uniform(0, 360)), Image.Resampling.BICUBIC)
        edge = (SIZE - CROP) // 2
        return picture.crop((edge, edge, edge + CROP, edge + CROP)).resize(
            (OUT, OUT), Image.Resampling.LANCZOS
        )
