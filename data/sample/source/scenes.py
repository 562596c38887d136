"""Sixteen kinds of overhead scene. Each function draws one on a canvas and returns the facts its captions may use."""

from __future__ import annotations

import math

import numpy as np
from canvas import (
    ASPHALT,
    CONCRETE,
    DEEP,
    DRY_GRASS,
    GRASS,
    SAND,
    SIZE,
    SOIL,
    WATER,
    Canvas,
)  # fmt: skip

MID = SIZE / 2
Facts = dict[str, object]
YY, XX = np.mgrid[:SIZE, :SIZE]


def airport(c: Canvas) -> Facts:
    y = c.rng.uniform(225, 300)
    c.fill(np.abs(YY - y) < 26, ASPHALT, 4)
    for x in range(0, SIZE, 42):
        c.fill(c.mask("polygon", c.rectangle(x, y, 22, 3)), (230, 230, 225), 2)
    apron = (y + 55 < YY) & (y + 190 > YY)
    c.fill(apron, CONCRETE, 6)
    c.fill(c.mask("line", [(MID, y), (MID + c.rng.uniform(-80, 80), y + 90)], 22), ASPHALT, 4)
    c.building(
        MID + c.rng.uniform(-60, 60),
        y + 178,
        c.rng.uniform(200, 320),
        34,
        height=16,
        colour=(190, 190, 192),
    )
    n = int(c.rng.integers(2, 8))
    first = MID - (n - 1) * 31
    for i in range(n):
        c.plane(
            first + i * 62,
            y + 120 + c.rng.uniform(-4, 4),
            math.pi / 2 + c.rng.normal(0, 0.05),
            c.rng.uniform(44, 58),
        )
    return {"n": n, "near": c.rng.choice(["a runway", "the terminal"])}


def port(c: Canvas) -> Facts:
    c.fill(YY > 0, DEEP, 4, (3, 6, 90))
    quay = c.rng.uniform(190, 240)
    c.fill(quay > YY, CONCRETE, 7)
    for x in np.arange(120, 560, c.rng.uniform(70, 110)):
        c.building(x, quay - 65, 52, c.rng.uniform(25, 45), height=10)
    n = 0
    for x in np.arange(140, 520, c.rng.uniform(88, 120)):
        c.fill(c.mask("line", [(x, quay), (x, quay + 230)], 8), (160, 152, 140), 4)
        for y in np.arange(quay + 25, quay + 225, 21):
            for side in (-1, 1):
                if c.rng.random() < 0.72:
                    c.boat(x + side * 22, y, 0 if side > 0 else math.pi, c.rng.uniform(24, 34))
                    n += 1
    return {"n": n, "near": "the wharf"}


def storagetanks(c: Canvas) -> Facts:
    c.fill(c.noise((90,)) > 0.3, SOIL, 6)
    rows, cols = int(c.rng.integers(2, 4)), int(c.rng.integers(2, 5))
    r = c.rng.uniform(28, 46)
    for i in range(rows):
        for j in range(cols):
            x, y = MID + (j - (cols - 1) / 2) * r * 2.7, MID + (i - (rows - 1) / 2) * r * 2.7
            c.fill(
                c.mask("ellipse", [(x - r * 1.25, y - r * 1.25), (x + r * 1.25, y + r * 1.25)]),
                CONCRETE,
                4,
            )
            tank = c.mask("ellipse", [(x - r, y - r), (x + r, y + r)])
            c.shade(tank, 16)
            c.fill(tank, (224, 224, 220), 4)
            inner = c.mask("ellipse", [(x - r * 0.82, y - r * 0.82), (x + r * 0.82, y + r * 0.82)])
            c.fill(inner, (206, 206, 204), 3)
    c.road([(0, MID + rows * r * 1.6), (SIZE, MID + rows * r * 1.6)], 18)
    return {"n": rows * cols, "colour": "white", "near": "a road"}


def bridge(c: Canvas) -> Facts:
    top, bottom = c.wave(180, 25), c.wave(460, 25)
    c.trees(220, (top > YY) | (bottom < YY))
    c.fill((top < YY) & (bottom > YY), WATER, 4, (4, 9, 80))
    x = c.rng.uniform(260, 380)
    deck = c.mask("line", [(x, 0), (x, SIZE)], 34)
    c.shade(deck & (top - 10 < YY) & (bottom + 10 > YY), 12)
    c.road([(x, 0), (x, SIZE)], 28)
    for y in c.rng.uniform(100, 540, int(c.rng.integers(3, 9))):
        c.car(x + c.rng.choice([-7, 7]), y, math.pi / 2, 0.9)
    return {"near": c.rng.choice(["trees", "green banks"])}


def playground(c: Canvas) -> Facts:
    track, field = (166, 74, 58), (84, 132, 62)
    for inset, colour in ((0, track), (34, field)):
        w, h = 340 - 2 * inset, 190 - 2 * inset
        box = c.mask("polygon", c.rectangle(MID, MID, w - h, h))
        for side in (-1, 1):
            x = MID + side * (w - h) / 2
            box = box | c.mask("ellipse", [(x - h / 2, MID - h / 2), (x + h / 2, MID + h / 2)])
        c.fill(box, colour, 4)
    for inset in (7, 14, 21, 28):
        w, h = 340 - 2 * inset, 190 - 2 * inset
        for side in (-1, 1):
            c.fill(
                c.mask(
                    "line",
                    [
                        (MID - (w - h) / 2, MID + side * h / 2),
                        (MID + (w - h) / 2, MID + side * h / 2),
                    ],
                    1,
                ),
                (225, 200, 190),
                1,
            )
    c.fill(c.mask("line", [(MID, MID - 60), (MID, MID + 60)], 2), (230, 235, 225), 1)
    courts = int(c.rng.integers(0, 4))
    for i in range(courts):
        c.fill(
            c.mask("polygon", c.rectangle(200 + i * 90, MID + 150, 74, 44)),
            (70, 120, 96) if i % 2 else (176, 92, 72),
            3,
        )
        c.fill(
            c.mask("line", [(200 + i * 90, MID + 130), (200 + i * 90, MID + 170)], 2),
            (235, 235, 230),
            1,
        )
    c.building(MID, MID - 140, 240, 44, height=14)
    c.trees(50, YY > MID + 185)
    return {"courts": courts, "near": "a long building"}


def farmland(c: Canvas) -> Facts:
    tones = [
        (104, 130, 62),
        (140, 140, 78),
        (164, 138, 94),
        (84, 110, 56),
        (176, 160, 104),
        (124, 96, 70),
    ]
    step_x, step_y = c.rng.uniform(120, 220), c.rng.uniform(80, 150)
    used = set()
    for y in np.arange(0, SIZE, step_y):
        for x in np.arange(0, SIZE, step_x):
            k = int(c.rng.integers(len(tones)))
            used.add(k)
            plot = (x + 2 < XX) & (x + step_x - 2 > XX) & (y + 2 < YY) & (y + step_y - 2 > YY)
            c.fill(plot, tones[k], 5)
            stripes = (YY if c.rng.random() < 0.5 else XX) % int(c.rng.integers(7, 12)) < 3
            c.image[plot & stripes] *= 0.9
    if c.rng.random() < 0.5:
        c.road([(0, step_y), (SIZE, step_y)], 12, SOIL, marked=False)
    return {
        "colours": "green" if len(used & {0, 3}) >= len(used) / 2 else "green and brown",
        "near": "a dirt road",
    }


def forest(c: Canvas) -> Facts:
    gap = c.noise((120,)) > c.rng.uniform(0.9, 1.8)
    c.trees(2600, ~gap, (8, 16))
    return {"gaps": bool(gap[96:-96, 96:-96].mean() > 0.03), "near": "bare patches"}


def denseresidential(c: Canvas) -> Facts:
    angle = 0
    for y in np.arange(40, SIZE, 62):
        for x in np.arange(20, SIZE, 46):
            c.building(
                x + c.rng.normal(0, 3),
                y + c.rng.normal(0, 3),
                c.rng.uniform(28, 40),
                c.rng.uniform(24, 40),
                angle,
                height=7,
                ridge=True,
            )
    for y in np.arange(71, SIZE, 124):
        c.road([(0, y), (SIZE, y)], 14, marked=False)
    c.road([(MID, 0), (MID, SIZE)], 16, marked=False)
    c.trees(130, None, (4, 8))
    return {"near": c.rng.choice(["narrow roads", "some trees"])}


def sparseresidential(c: Canvas) -> Facts:
    c.trees(320, c.noise((70,)) > 0.4, (7, 14))
    road = [
        (0, c.rng.uniform(250, 400)),
        (MID, c.rng.uniform(280, 360)),
        (SIZE, c.rng.uniform(250, 400)),
    ]
    c.road(road, 14, (140, 134, 126), marked=False)
    n = int(c.rng.integers(1, 5))
    for i in range(n):
        x, y = MID + (i - (n - 1) / 2) * 95, MID + (-1) ** i * c.rng.uniform(48, 90)
        c.building(
            x,
            y,
            c.rng.uniform(38, 56),
            c.rng.uniform(28, 40),
            c.rng.uniform(0, 3),
            height=9,
            ridge=True,
        )
        if c.rng.random() < 0.4:
            c.fill(c.mask("ellipse", [(x + 30, y + 20), (x + 50, y + 32)]), (90, 190, 205), 3)
    return {"n": n, "near": "lawns and trees"}


def river(c: Canvas) -> Facts:
    middle, width = c.wave(MID, 70), c.rng.uniform(50, 130)
    c.trees(700, (np.abs(YY - middle) > width / 2 + 6) & (c.noise((60,)) > -0.3), (6, 13))
    c.fill(np.abs(YY - middle) < width / 2 + 8, SAND, 6)
    colour = c.rng.choice(["green", "muddy"])
    c.fill(
        np.abs(YY - middle) < width / 2,
        WATER if colour == "green" else (118, 104, 78),
        4,
        (4, 9, 80),
    )
    return {"colour": colour, "near": "dense trees"}


def parking(c: Canvas) -> Facts:
    c.fill(YY > 0, ASPHALT, 5)
    full = c.rng.uniform(0.35, 0.95)
    n = 0
    for y in np.arange(130, 520, 46):
        c.fill(c.mask("line", [(90, y), (550, y)], 2), (225, 225, 220), 1)
        for x in np.arange(96, 548, 14):
            c.fill(c.mask("line", [(x - 7, y - 11), (x - 7, y + 11)], 1), (215, 215, 210), 1)
            for side in (-1, 1):
                if c.rng.random() < full * 0.8:
                    c.car(x, y + side * 8, math.pi / 2, 1)
                    n += 1
    c.building(MID, 70, 460, 62, height=14)
    return {"full": full > 0.6, "near": "a building"}


def beach(c: Canvas) -> Facts:
    shore = c.wave(MID - 10, 26)
    c.fill(shore + 110 > YY, SAND, 6)
    for depth, colour in ((0, (128, 168, 168)), (30, (74, 132, 150)), (90, (44, 98, 132))):
        c.fill(shore - depth > YY, colour, 4, (5, 12, 70))
    for d in (2, 16):
        c.fill(ndimage_soft(np.abs(YY - shore + d + 4 * np.sin(XX / 23)) < 3), (240, 242, 238), 5)
    n = int(c.rng.integers(0, 12))
    for _ in range(n):
        x = int(c.rng.uniform(100, 540))
        y = shore[x] + c.rng.uniform(35, 90)
        c.fill(
            c.mask("ellipse", [(x - 5, y - 5), (x + 5, y + 5)]),
            ((200, 60, 50), (240, 240, 235), (60, 90, 170))[c.rng.integers(3)],
            3,
        )
    c.trees(160, shore + 125 < YY)
    return {"umbrellas": n > 4, "near": "green trees"}


def ndimage_soft(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(mask.astype(float), 1.2)


def desert(c: Canvas) -> Facts:
    c.fill(YY > 0, (206, 170, 118), 3, (4, 40, 120))
    warp = c.noise((80, 160)) * 34
    period = c.rng.uniform(26, 60)
    dune = np.sin((YY + warp) / period * 6.28 / 2)
    c.image *= (1 + 0.11 * dune)[..., None]
    return {"ripples": period < 42, "near": "dunes"}


def industrial(c: Canvas) -> Facts:
    c.fill(YY > 0, CONCRETE, 7)
    n = 0
    blue = c.rng.random() < 0.5
    for y in (150, 290, 430, 560):
        x = 60.0
        while x < 600:
            w = c.rng.uniform(90, 190)
            roof = (72, 112, 168) if blue and c.rng.random() < 0.7 else (196, 196, 194)
            c.building(x + w / 2, y, w - 14, c.rng.uniform(74, 96), colour=roof, height=13)
            n += 1
            x += w
    c.road([(0, 360), (SIZE, 360)], 22)
    for x in c.rng.uniform(100, 540, 9):
        c.car(x, 360 + c.rng.choice([-6, 6]), 0, 1.2)
    return {"colour": "blue" if blue else "white", "near": "wide roads"}


def pond(c: Canvas) -> Facts:
    bumpy = (
        np.hypot((XX - MID) * c.rng.uniform(0.8, 1.2), (YY - MID) * c.rng.uniform(0.9, 1.6))
        + c.noise((110,)) * 22
    )
    r = c.rng.uniform(95, 150)
    c.trees(260, (bumpy > r + 20) & (c.noise((60,)) > 0.2), (7, 13))
    c.fill(bumpy < r + 9, SOIL, 6)
    colour = c.rng.choice(["dark green", "blue"])
    c.fill(bumpy < r, (52, 74, 58) if colour == "dark green" else (52, 90, 120), 3, (4, 9, 80))
    return {"colour": colour, "near": "meadows"}


def intersection(c: Canvas) -> Facts:
    for x, y in ((180, 180), (460, 180), (180, 460), (460, 460)):
        for dx in (-42, 42):
            c.building(x + dx, y + c.rng.uniform(-12, 12), 62, c.rng.uniform(60, 100), height=14)
    c.trees(90, (np.abs(XX - MID) > 45) & (np.abs(YY - MID) > 45), (5, 9))
    c.road([(0, MID), (SIZE, MID)], 52)
    c.road([(MID, 0), (MID, SIZE)], 52)
    c.fill(c.mask("polygon", c.rectangle(MID, MID, 56, 56)), ASPHALT, 3)
    for side in (-1, 1):
        for t in range(-24, 25, 7):
            c.fill(
                c.mask("polygon", c.rectangle(MID + side * 40, MID + t, 14, 3)), (230, 230, 225), 2
            )
            c.fill(
                c.mask("polygon", c.rectangle(MID + t, MID + side * 40, 3, 14)), (230, 230, 225), 2
            )
    n = int(c.rng.integers(4, 14))
    for _ in range(n):
        far, lane = c.rng.uniform(70, 220) * c.rng.choice([-1, 1]), c.rng.choice([-13, 13])
        if c.rng.random() < 0.5:
            c.car(MID + far, MID + lane, 0, 1.2)
        else:
            c.car(MID + lane, MID + far, math.pi / 2, 1.2)
    return {"busy": n > 8, "near": "buildings"}


# kind -> (function, ground colour)
KINDS = {
    "airport": (airport, GRASS), "beach": (beach, GRASS), "bridge": (bridge, GRASS),
    "denseresidential": (denseresidential, (120, 116, 100)), "desert": (desert, SAND), "farmland": (farmland, DRY_GRASS),
    "forest": (forest, (58, 78, 46)), "industrial": (industrial, CONCRETE), "intersection": (intersection, DRY_GRASS),
    "parking": (parking, GRASS), "playground": (playground, GRASS), "pond": (pond, GRASS), "port": (port, DEEP),
    "river": (river, GRASS), "sparseresidential": (sparseresidential, GRASS), "storagetanks": (storagetanks, DRY_GRASS),
}  # fmt: skip
