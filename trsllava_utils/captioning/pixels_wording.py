"""Words for what the ``pixels`` captioner measured: a guess of the scene, then five variants of RSRT
text."""

from __future__ import annotations

from dataclasses import dataclass

from trsllava_utils.captioning.records import Variant

NUMBERS = ["no", "one", "two", "three", "four", "five", "six"]
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

# scene -> (one sentence, the same in other words, the looks of it)
SCENES = {
    "storage tanks": ("{tanks} round storage tanks stand on the ground near a road", "{tanks} white circular tanks are arranged in rows at an oil depot", "large cylindrical storage tanks"),
    "playground": ("a playground with a green football field and a red running track", "a sports ground: an oval red track around a soccer field, near some buildings", "a red oval track around a green field"),
    "harbour": ("many boats are docked in a port with blue water", "white boats are moored along the piers of a harbour", "rows of boats along piers"),
    "bridge": ("a straight bridge crosses over the river", "a road bridge spans the water between two green banks", "a bridge over the water"),
    "beach": ("a sandy beach lies beside the blue sea with white waves", "waves of the ocean wash the yellow beach", "a strip of beach between sea and land"),
    "river": ("a winding river flows with green trees on both sides", "a curved river runs between green banks", "a long curved river"),
    "pond": ("a pond with green water is surrounded by trees and grass", "a small lake lies among meadows and trees", "a closed pond with a curved shore"),
    "forest": ("many green trees are in a piece of dense forest", "a dark green forest covers the ground", "closed tree crowns"),
    "desert": ("a piece of yellow desert with ripples of sand", "bare sand dunes stretch out without plants", "soft waves of sand"),
    "bare land": ("a piece of brown bare land with few plants", "bare ground with scattered stones and soil", "bare brown soil"),
    "mountain": ("a rugged mountain with ridges and valleys", "steep mountains with dark folds", "mountain ridges and folds"),
    "meadow": ("a piece of green meadow", "a flat green grassland", "even green grass"),
    "farmland": ("many pieces of rectangular farmland lie side by side", "a patchwork of green and brown crop fields", "rectangular fields in rows"),
    "airport": ("white planes are parked near a runway in an airport", "an airport with aircraft on a concrete apron beside the terminal", "aircraft on paved ground"),
    "parking lot": ("many cars are parked in rows in a parking lot", "a car park full of vehicles with white lines", "rows of parked cars"),
    "industrial area": ("many large buildings are in an industrial area beside a road", "long {roof_colour} factory and warehouse roofs stand in rows", "large rectangular {roof_colour} roofs"),
    "dense residential area": ("many houses are arranged neatly in a dense residential area", "rows of houses with {roof_colour} roofs stand close together along narrow roads", "small roofs close together"),
    "sparse residential area": ("a few houses with green lawns and trees in a sparse residential area", "scattered houses beside a small road among many trees", "few roofs among trees and grass"),
    "intersection": ("two roads cross at an intersection among buildings", "a crossroads with cars on wide roads", "crossing roads"),
    "commercial area": ("many tall buildings and roads are in a commercial city centre", "large buildings with shadows stand along busy streets", "big buildings and streets"),
}  # fmt: skip


@dataclass(frozen=True)
class Observation:
    """What was measured on one picture."""

    cover: dict[str, float]  # share of the picture by cover type; sums to 1
    where: dict[str, str]  # compass place of each cover type; see compass()
    tanks: int  # objects found
    roofs: int
    boats: int
    vehicles: int
    red_ring: float  # share of the picture that is green and enclosed by reddish ground
    line_share: float  # share of edge pixels on long straight lines
    n_directions: int  # directions (of 12) that the long lines take
    water_elongation: float  # length over width of the largest water body
    water_crossed: bool  # whether a narrow strip of another cover splits the water
    water_touches: int  # picture sides that the largest water body touches
    texture: float  # mean local contrast, 0 to 1
    ripple: float  # how regular its stripes are, 0 to 1
    field_plots: int  # large even-toned plots
    colours: tuple[str, str]  # the two commonest
    roof_colour: str


def scene_scores(o: Observation) -> dict[str, float]:
    """How well each scene fits, in points: rules of thumb on what was measured."""
    c = o.cover
    built, green, bare = c["roofs"] + c["pavement"], c["trees"] + c["grass"], c["sand"] + c["soil"]
    wet = c["water"]
    busy, calm = max(0.0, o.texture - 0.06), max(0.0, 0.045 - o.texture)
    crowd = max(0, min(o.vehicles, 150) - 40) / 70
    return {
        "storage tanks": (0.45 * min(o.tanks, 5) if o.tanks > 1 else 0) - 12 * busy - 3 * wet - 1.5 * c["trees"],
        "playground": 26 * o.red_ring + (0.6 if o.red_ring > 0.015 else 0),
        "harbour": min(o.boats, 25) / 12 * min(1, 4 * wet) + 1.2 * min(wet, 0.5) + 5 * busy * (wet > 0.15) - 2 * c["sand"] - 20 * calm,
        "bridge": (1.1 if o.water_crossed else 0) + 1.2 * min(wet, 0.5) + 0.6 * o.line_share * (wet > 0.15) - 1.5 * c["sand"],
        "beach": 5 * min(wet, 0.3) * min(1, 4 * (c["sand"] + 0.5 * c["roofs"] + 0.5 * c["soil"])) + (0.6 if o.water_touches == 3 else 0) - 12 * busy - 2 * o.line_share * (c["sand"] < 0.1),
        "river": (1.7 * min(wet, 0.3) + min(o.water_elongation, 15) / 14 if wet > 0.03 and 1 < o.water_touches < 4 else 0) + 0.9 * green - 1.2 * built - c["sand"] - o.line_share,
        "pond": (1.6 if 0.06 < wet < 0.6 and o.water_touches == 0 else 0.9 if wet > 0.06 and o.water_touches <= 1 else 0) + 0.3 * green - 8 * busy,
        "forest": 2.0 * c["trees"] - 50 * max(0.0, 0.035 - o.texture) - 4 * built - 3 * wet - 2 * bare,
        "desert": 2.0 * c["sand"] + 0.6 * o.ripple + 5 * calm - 3 * green - 2 * c["roofs"] - 20 * busy,
        "bare land": 1.6 * (c["soil"] + 0.8 * c["sand"]) + 0.9 * c["pavement"] * (o.texture < 0.04) + 10 * calm - 2 * green - 2 * c["roofs"] - 3 * wet,
        "mountain": 1.2 * (c["shadow"] + c["soil"] + 0.5 * c["trees"]) + 8 * busy - 3 * o.line_share - 0.05 * min(o.roofs, 20) - 2.5 * c["roofs"] - 0.6 * c["pavement"] - 2 * wet,
        "meadow": 1.5 * green - 35 * max(0.0, o.texture - 0.022) - 3 * built - o.line_share,
        "farmland": 0.17 * min(o.field_plots, 9) + 0.9 * (green + c["soil"]) * (o.texture < 0.05) + 0.8 * o.line_share * green - 2.2 * built - 2 * wet,
        "airport": 1.6 * min(c["pavement"], 0.6) + 0.6 * c["grass"] + 0.4 * (2 <= o.vehicles + o.tanks <= 40) - 7 * busy - 1.5 * wet - 2.5 * c["trees"] - 1.5 * bare - 0.03 * min(o.roofs, 20),
        "parking lot": 1.0 * c["pavement"] + min(crowd, 1.3) * (o.texture > 0.07) - 1.2 * green - 1.5 * wet - 0.03 * min(o.roofs, 20) - 1.2 * c["roofs"],
        "industrial area": 1.3 * built + 2.6 * max(0, c["roofs"] - 0.15) + 0.3 * o.line_share - 1.5 * green - 2 * wet - 4 * busy - 2 * bare,
        "dense residential area": 0.05 * min(o.roofs, 35) + 5 * busy + 0.6 * built - 1.5 * wet - 0.8 * c["grass"] - 2 * max(0, c["roofs"] - 0.25) - 3 * c["shadow"],
        "sparse residential area": (0.6 if 1 <= o.roofs <= 9 else 0) + 1.1 * green + 0.8 * c["shadow"] - 2.5 * max(0, built - 0.2) - 3 * wet - 3 * c["sand"],
        "intersection": 0.8 * c["pavement"] + 1.1 * o.line_share + (0.2 if 2 <= o.n_directions <= 3 else 0) + 0.02 * min(o.roofs, 15) + 0.4 * (0.2 < green < 0.5) - 3 * wet - 1.2 * c["roofs"],
        "commercial area": 0.8 * built + 2.5 * c["shadow"] + 9 * max(0.0, o.texture - 0.09) - 1.0 * green - 2 * wet,
    }  # fmt: skip


def number(n: int) -> str:
    """A count in words."""
    return NUMBERS[n] if n < len(NUMBERS) else "several" if n < 10 else "many"


def place(where: str) -> str:
    """Where a cover lies, in words."""
    return f"in the {where}" if where else "all over the scene"


def features(o: Observation, scene: str, wording: int) -> str:
    """The visible things with their places, ``;``-separated."""
    covers = sorted(
        (c for c in o.cover if o.cover[c] > 0.06 and c != "shadow"), key=lambda c: -o.cover[c]
    )
    parts = [f"{COVER_WORDS[c][wording % 3]} {place(o.where[c])}" for c in covers[:4]]
    for n, one, many in ((o.tanks, "round structure", "round structures"), (o.roofs, "roof", "roofs"), (o.boats, "bright boat-like object on the water", "bright boat-like objects on the water"),
                         (o.vehicles, "small bright vehicle-like object", "small bright vehicle-like objects")):  # fmt: skip
        if n:
            parts.append(f"{number(n)} {one if n == 1 else many}")
    if o.line_share > 0.25:
        parts.append(
            "long straight lines" + (" that cross" if o.n_directions > 1 else " in one direction")
        )
    if o.red_ring > 0.01:
        parts.append("reddish ground around a green field")
    looks = SCENES[scene][2].format(tanks=number(o.tanks), roof_colour=o.roof_colour)
    return "; ".join([looks, *parts] if wording % 2 == 0 else [*parts, looks])


def variants(o: Observation, n: int = 5) -> list[Variant]:
    """``n`` variants that differ in focus: scene, layout, second guess, colours, surroundings."""
    scores = scene_scores(o)
    first, second = sorted(scores, key=lambda s: -scores[s])[:2]
    fill = {"tanks": number(o.tanks) if o.tanks > 1 else "some", "roof_colour": o.roof_colour}
    main, again, looks = (t.format(**fill) for t in SCENES[first])
    other = SCENES[second][0].format(**fill)
    covers = sorted((c for c in o.cover if c != "shadow"), key=lambda c: -o.cover[c])
    ground, beside = (COVER_WORDS[c][0] for c in covers[:2])
    lay = ", ".join(
        f"{COVER_WORDS[c][1]} {place(o.where[c])}" for c in covers[:3] if o.cover[c] > 0.04
    )
    said = [
        (main, f"This overhead image shows {main}. Around it there is {ground} and {beside}."),
        (again, f"{_start(again)}. The layout from above: {lay}."),
        (f"{main}, or {other}", f"The scene looks like {_a(first)}, perhaps {_a(second)}: {other}."),
        (f"{looks} with {ground}, mostly {o.colours[0]} and {o.colours[1]}", f"The dominant colours are {o.colours[0]} and {o.colours[1]}. {_start(looks)} can be seen with {ground}."),
        (f"{again}, near {beside}", f"{_start(main)}, next to {beside}. {_start(place(o.where[covers[0]]))} there is {ground}."),
    ]  # fmt: skip
    return [
        Variant(one_sentence=_start(sentence) + ".", feature=features(o, first, i), caption=caption)
        for i, (sentence, caption) in enumerate(said[:n])
    ]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]
