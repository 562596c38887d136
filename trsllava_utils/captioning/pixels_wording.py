"""Words for what the ``pixels`` captioner measured: a guess of the scene, then five variants of RSRT
text."""

from __future__ import annotations

from dataclasses import dataclass

from trsllava_utils.captioning.records import Variant

COVER_WORDS = {
    "water": ("water", "a body of water", "the water surface"),
    "trees": ("green trees", "dense trees", "tree crowns"),
    "grass": ("green grass", "lawns and meadows", "green vegetation"),
    "sand": ("yellow sand", "bare sand", "bright sandy ground"),
    "soil": ("bare soil", "brown ground", "bare land"),
    "pavement": ("grey pavement", "asphalt and concrete", "paved ground"),
    "roofs": ("roofs of buildings", "buildings", "roofs"),
    "shadow": ("dark shadows", "shadows", "shaded ground"),
}
# scene -> (one sentence, the same in other words, what speaks for and against it). The weights were
# set by hand, by a look at training and validation images of the sample; nothing is fitted.
SCENES = {
    "harbour": ("many boats are docked in a harbour", "white boats lie in rows at the piers of a port", {"water": 1.3, "rough": 0.6, "objects": 0.3, "trees": -1, "grass": -1, "soil": -1, "lines": -0.3}),
    "beach": ("a sandy beach lies beside the sea with white waves", "waves of the ocean wash a pale beach", {"water": 0.9, "sand": 0.9, "grass": 0.5, "rough": -0.8, "trees": -1, "lines": -1}),
    "river": ("a river flows between green banks", "a dark river with trees on both sides", {"water": 1.0, "trees": 1.0, "rough": -0.3, "lines": -0.3}),
    "pond": ("a pond with dark water among trees and meadows", "a small lake with a curved shore", {"water": 1.2, "grass": 0.8, "rough": -0.8, "lines": -0.5}),
    "bridge": ("a bridge crosses over a river", "a road on a bridge spans the water", {"water": 0.8, "lines": 0.8, "pavement": 0.3, "rough": -0.3}),
    "forest": ("many green trees form a dense forest", "a dark green forest covers the ground", {"trees": 1.2, "shadow": 1.6, "objects": -2, "count of roofs": -2}),
    "meadow": ("a smooth green meadow with a few trees", "a green lawn, as on a golf course", {"trees": 0.8, "grass": 1.2, "rough": -1.2, "objects": -1}),
    "farmland": ("farmland with straight rows of crops", "fields with parallel furrows lie side by side", {"soil": 0.6, "grass": 0.5, "lines": 0.9, "objects": -0.5, "count of roofs": -0.5}),
    "desert": ("yellow desert with ripples of sand", "bare sand dunes without plants", {"sand": 1.3, "soil": 0.4, "rough": -0.8, "lines": -0.3}),
    "bare land": ("dry bare land with small bushes", "brown ground with scattered shrubs", {"soil": 1.2, "sand": 0.5, "lines": -0.8, "count of roofs": -1}),
    "runway": ("a grey runway of an airport with white marks", "planes stand on the pale concrete of an airport", {"pavement": 0.9, "lines": 0.4, "objects": -0.8, "rough": -0.4}),
    "road": ("a wide road with cars and green verges", "roads cross at an intersection", {"pavement": 0.6, "lines": 0.9, "grass": 0.3}),
    "parking lot": ("many cars are parked in rows in a parking lot", "a car park full of vehicles", {"pavement": 0.4, "objects": 1.3, "soil": -0.5, "sand": -0.3, "water": -0.5}),
    "playground": ("a playground with a green football field and a red track", "a sports field beside some buildings", {"grass": 0.9, "roofs": 0.9, "trees": -0.5, "water": -0.5}),
    "industrial area": ("large buildings with flat white roofs in an industrial area", "long roofs of warehouses and factories", {"roofs": 1.6, "pavement": 0.5}),
    "dense residential area": ("many houses stand close together in a dense residential area", "rows of houses with small roofs along narrow streets", {"count of roofs": 1.0, "rough": 0.3, "objects": 0.2, "water": -1.5}),
    "sparse residential area": ("a house with a lawn and trees in a sparse residential area", "a few houses among trees beside a small road", {"trees": 0.6, "grass": 0.6, "soil": 0.4, "count of roofs": 0.6, "rough": 0.2}),
}  # fmt: skip


@dataclass(frozen=True)
class Observation:
    """What was measured on one picture."""

    cover: dict[str, float]  # share of the picture by cover type; sums to 1
    where: dict[str, str]  # compass place of each cover type; see compass()
    roofs: int  # roof-like regions
    objects: int  # small bright things: cars, boats, planes
    lines: float  # share of the edge pixels on long straight lines
    texture: float  # mean local contrast, 0 to 1
    colours: tuple[str, str]  # the two commonest


def scene_scores(o: Observation) -> dict[str, float]:
    """How well each scene fits: a weighted sum of what was measured, each from 0 to 1."""
    counts = {"count of roofs": o.roofs / 30, "objects": o.objects / 200}
    seen = {**counts, "lines": o.lines, "rough": o.texture / 0.1}
    seen = {**o.cover, **{name: min(value, 1) for name, value in seen.items()}}
    return {
        scene: sum(weight * seen[name] for name, weight in weights.items())
        for scene, (_, _, weights) in SCENES.items()
    }


def variants(o: Observation, n: int = 5) -> list[Variant]:
    """``n`` variants that differ in focus: scene, layout, second guess, colours, surroundings."""
    scores = scene_scores(o)
    first, second = sorted(scores, key=lambda scene: -scores[scene])[:2]
    main, again, _ = SCENES[first]
    other = SCENES[second][0]
    covers = sorted((c for c in o.cover if c != "shadow"), key=lambda c: -o.cover[c])
    ground, beside = (COVER_WORDS[c][0] for c in covers[:2])
    colours = " and ".join(o.colours)
    layout = ", ".join(f"{COVER_WORDS[c][1]} {_place(o.where[c])}" for c in covers[:3])
    said = [
        (main, f"This overhead image shows {main}. Around it there is {ground} and {beside}."),
        (again, f"{_start(again)}. The layout from above: {layout}."),
        (f"{main}, or {other}", f"The scene looks like {_a(first)}, perhaps {_a(second)}: {other}."),
        (f"{main}, mostly {colours}", f"The dominant colours are {colours}. {_start(again)}."),
        (f"{again}, near {beside}", f"{_start(main)}, next to {beside}. There is {ground} {_place(o.where[covers[0]])}."),
    ]  # fmt: skip
    return [
        Variant(one_sentence=_start(sentence) + ".", feature=_features(o, i), caption=caption)
        for i, (sentence, caption) in enumerate(said[:n])
    ]


def _features(o: Observation, wording: int) -> str:
    """The visible things with their places, ``;``-separated."""
    covers = sorted((c for c in o.cover if o.cover[c] > 0.05), key=lambda c: -o.cover[c])
    parts = [f"{COVER_WORDS[c][wording % 3]} {_place(o.where[c])}" for c in covers[:4]]
    parts += [f"{_number(o.roofs)} roofs"] * (o.roofs > 0)
    parts += [f"{_number(o.objects)} small bright objects"] * (o.objects > 0)
    parts += ["long straight lines"] * (o.lines > 0.25)
    return "; ".join(parts[::-1] if wording % 2 else parts)


def _number(n: int) -> str:
    return "a few" if n < 5 else "several" if n < 12 else "many"


def _place(where: str) -> str:
    return f"in the {where}" if where else "all over the scene"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]
