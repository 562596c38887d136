"""The captioner ``pixels``: rules of thumb on colour and texture, without weights.

It sees only the ``(H, W, 3) uint8`` array: no file name, no label. It is the baseline that a
vision-language model has to beat, and it is often wrong.
"""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from trsllava_utils.captioner import Question, Reply, Settings
from trsllava_utils.files import InputError
from trsllava_utils.records import Variant

MODEL = "pixels@3"  # change it whenever the wording changes
SIDE = 96  # pictures are described at this size, in pixels
COVERS = {  # what the ground is taken for, in two wordings
    "water": ("water", "a body of water"),
    "trees": ("green trees", "dense trees"),
    "grass": ("green grass", "lawns and meadows"),
    "sand": ("yellow sand", "bright bare ground"),
    "soil": ("bare soil", "brown ground"),
    "roofs": ("roofs of buildings", "buildings"),
    "pavement": ("grey pavement", "roads and paved ground"),
}
# scene -> a sentence, and what speaks for it and against it: shares of the ground, and roughness
SCENES = {
    "harbour": ("many boats are docked in a harbour", {"water": 1, "rough": 0.9, "trees": -1}),
    "beach": ("a sandy beach lies beside the sea", {"water": 0.8, "sand": 1.3, "rough": -0.6}),
    "river": ("a river flows between green banks", {"water": 1, "trees": 0.8, "rough": -0.5}),
    "forest": ("many green trees form a dense forest", {"trees": 1.3, "roofs": -1}),
    "meadow": ("a smooth green meadow with a few trees", {"grass": 1.3, "rough": -0.6}),
    "farmland": (
        "farmland with straight rows of crops",
        {"soil": 0.8, "grass": 0.6, "rough": -0.2},
    ),
    "desert": ("yellow desert with ripples of sand", {"sand": 1.3, "rough": -0.8}),
    "bare land": ("dry bare land with small bushes", {"soil": 1.2, "water": -0.5}),
    "runway": ("a grey runway of an airport", {"pavement": 1.2, "rough": -0.8, "trees": -0.3}),
    "parking lot": ("many cars are parked in a parking lot", {"pavement": 0.7, "rough": 0.7}),
    "industrial area": ("large flat roofs in an industrial area", {"roofs": 1.4, "pavement": 0.3}),
    "residential area": (
        "many houses stand in a residential area",
        {"rough": 0.9, "trees": 0.3, "roofs": 0.6, "water": -1},
    ),
}


class PixelCaptioner:
    """Captioner ``pixels``; see :class:`~trsllava_utils.captioner.Captioner`."""

    prompt_text = ""
    batch_size, concurrency, attempts = 1, 2, 1  # deterministic: a retry is useless

    def __init__(self, name: str = "pixels", settings: Settings | None = None) -> None:
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
        replies = []
        for question in questions:
            texts = variants(next(iter(question.pictures.values())), self._settings.n)
            described = [variant.model_dump() for variant in texts]
            answer = {"variants": described}
            if self._settings.prompt != "rsrt":
                answer = {"caption": described[0]["caption"]}
            replies.append(Reply(json.dumps(answer), MODEL))
        return replies


def ground(picture: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """``(H, W, 3) uint8`` -> a mask ``(SIDE, SIDE)`` for each cover, every pixel in one of them;
    and the roughness, the mean step in lightness from pixel to pixel, 0 to 1."""
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    red, green, blue = np.moveaxis(np.asarray(small, np.float32) / 255, -1, 0)
    light = (red + green + blue) / 3
    steps = np.abs(np.diff(light, axis=0, append=light[-1:])) + np.abs(
        np.diff(light, axis=1, append=light[:, -1:])
    )
    rough = np.asarray(Image.fromarray(steps).resize((12, 12)).resize((SIDE, SIDE)))
    leafy, warm = green - (red + blue) / 2, red - blue
    rules = {  # the first that holds
        "water": (rough < 0.07) & ((warm < -0.05) | (light < 0.25)) & (leafy < 0.03),
        "trees": (leafy > 0.015) & (light < 0.38),
        "grass": leafy > 0.015,
        "roofs": (light > 0.75) | (warm > 0.3) | (warm < -0.12),
        "sand": (warm > 0.08) & (light > 0.55),
        "soil": warm > 0.08,
        "pavement": np.ones_like(light, bool),
    }
    masks, taken = {}, np.zeros_like(light, bool)
    for name, mask in rules.items():
        masks[name] = mask & ~taken
        taken |= mask
    return masks, float(steps.mean())


def place(mask: np.ndarray) -> str:
    """Where a mask lies on a 3 x 3 grid, north up; "" if it is nearly everywhere."""
    rows = np.array_split(mask, 3)
    cells = np.array([[c.mean() for c in np.array_split(row, 3, axis=1)] for row in rows])
    if (cells > 0.5 * cells.max()).sum() >= 6:
        return "all over the scene"
    row, column = np.unravel_index(cells.argmax(), cells.shape)
    names = (("north", "", "south")[row], ("west", "", "east")[column])
    return f"in the {'-'.join(filter(None, names)) or 'centre'}"


def variants(picture: np.ndarray, n: int = 5) -> list[Variant]:
    """``n`` variants that differ in focus: scene, layout, second guess, ground, surroundings."""
    masks, rough = ground(picture)
    seen = {**{name: float(mask.mean()) for name, mask in masks.items()}, "rough": 6 * rough}
    scores = {s: sum(w * seen[k] for k, w in weights.items()) for s, (_, weights) in SCENES.items()}
    first, second = sorted(scores, key=lambda scene: -scores[scene])[:2]
    main, other = SCENES[first][0], SCENES[second][0]
    covers = sorted(COVERS, key=lambda name: -seen[name])
    layout = ", ".join(f"{COVERS[c][1]} {place(masks[c])}" for c in covers[:3])
    around, beside = (COVERS[c][0] for c in covers[:2])
    said = [
        (main, f"This overhead image shows that {main}. Around it there is {around} and {beside}."),
        (f"{main}, seen from above", f"The layout from above: {layout}. It may be a {first}."),
        (f"{main}, or {other}", f"The scene looks like a {first}, perhaps a {second}: {other}."),
        (f"{main}, with {around}", f"Most of the ground is {around}, the rest {beside}: {main}."),
        (f"{main}, near {beside}", f"In this {first} {main}, next to {beside}."),
    ]
    listed = [(c, place(masks[c])) for c in covers if seen[c] > 0.05]
    features = ["; ".join(f"{COVERS[c][i]} {where}" for c, where in listed) for i in (0, 1)]
    return [
        Variant(one_sentence=f"{s[0].upper()}{s[1:]}.", feature=features[i % 2], caption=caption)
        for i, (s, caption) in enumerate(said[:n])
    ]
