"""Five human-style captions of a scene from its facts: templates with synonyms, some of them vague."""

from __future__ import annotations

import numpy as np

SMALL = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def count(n: int, rng: np.random.Generator) -> str:
    """A number as people write it: exact when small, vague when not, sometimes vague anyway."""
    if n == 1:
        return "a"
    if n > 8:
        return str(rng.choice(["many", "lots of", "a lot of"]))
    return (
        SMALL[n]
        if rng.random() < 0.6
        else str(rng.choice(["several", "some"] if n < 5 else ["many", "several"]))
    )


# Per kind: templates; {n}, {near}, {colour} … are filled from the facts, "a|b|c" takes one at random.
TEMPLATES = {
    "airport": [
        "{n} planes are parked near {near} in an airport", "{n} white airplanes|aircraft|planes stand in a row beside a long terminal",
        "it is an airport with {n} planes and a runway", "the runway|airstrip lies next to an apron with {n} aircraft",
        "many planes are parked next to a long building in an airport", "an airport with grass|lawn around the runway",
    ],
    "beach": [
        "the blue sea washes a yellow beach with white waves", "a sandy beach lies between the sea|ocean and green trees",
        "white waves|surf roll onto the beach", "a piece of sand beach is near a piece of ocean",
        "beach with {umbrellas}, next to clear blue water", "many green trees are near a beach",
    ],
    "bridge": [
        "a bridge is over a river", "a straight bridge with {cars} crosses the green river", "the road|highway spans a wide river between {near}",
        "a bridge connects the two green banks of the river", "there is a bridge across the water with trees on both sides",
    ],
    "denseresidential": [
        "many houses are arranged neatly in a dense residential area", "rows of houses with red and grey roofs are close together",
        "a lot of buildings|houses with {near} form a crowded neighbourhood", "many buildings are in a dense residential area",
        "the residential area is divided by narrow|straight roads into blocks",
    ],
    "desert": [
        "it is a piece of yellow desert", "{ripples} run across the yellow sand of the desert", "a desert with dunes and no plants",
        "the bare|barren sand stretches out in soft waves", "there are some stripes on the desert|sand",
    ],
    "farmland": [
        "many pieces of farmland are together", "{colours} rectangular fields lie side by side", "a patchwork of crop fields|farmlands in different colours",
        "some pieces of {colours} farmland are neatly arranged", "the fields|plots are ploughed in parallel lines",
    ],
    "forest": [
        "many green trees are in a piece of forest", "a dense|thick forest covers the ground", "dark green tree crowns stand close together {gaps}",
        "it is a piece of green forest", "the woodland is full of lush trees",
    ],
    "industrial": [
        "many {colour} buildings are in an industrial area", "large factory|warehouse roofs in {colour} stand along a wide road",
        "rows of big rectangular buildings|workshops with {colour} roofs", "an industrial area with workshops and concrete yards",
        "several cars drive on the road through the factory area",
    ],
    "intersection": [
        "two roads cross at an intersection|a crossroads with zebra crossings", "{busy} cars are on the crossroads between buildings",
        "an intersection with buildings|houses at the four corners", "a crossroads with some cars on the road", "two wide streets meet at right angles",
    ],
    "parking": [
        "{full} cars are parked in a parking lot", "many cars are parked neatly in a parking lot|car park near {near}", "rows of colourful cars stand on grey asphalt",
        "a parking lot with white marking lines beside a large building", "{full} vehicles in the car park",
    ],
    "playground": [
        "a playground with a football field and red track is near {near}", "a green football|soccer field is surrounded by a red running track",
        "the oval sports ground {courts}", "a playground is next to some buildings and trees", "a stadium-like field with a lawn in the middle of a red oval track",
    ],
    "pond": [
        "a pond with {colour} water is near {near}", "a {colour} pond is surrounded by green trees and grass", "an irregular|a roundish lake lies in the meadow",
        "many green trees are around a pond", "the small lake|pond has a bare brown shore",
    ],
    "port": [
        "many boats are in a port", "{n} white boats are docked at the piers of the harbour|port|marina", "boats|yachts are moored neatly along the jetties in deep blue water",
        "a port with boats near {near} and some buildings", "lots of ships in the dark water beside a concrete quay",
    ],
    "river": [
        "many green trees are on two sides of a curved river", "a {colour} river winds through {near}", "the river|stream with sandy banks flows through the forest|woods",
        "a river is between two pieces of green forest", "a winding {colour} river",
    ],
    "sparseresidential": [
        "{n} house|houses with green lawn and trees", "{n} buildings stand apart in a sparse residential area", "a house is surrounded by many green trees",
        "a small road passes {n} scattered|isolated house with gardens", "a rural|quiet place with few houses among trees and grass",
    ],
    "storagetanks": [
        "{n} storage tanks are near {near}", "{n} white round|cylindrical tanks are arranged in rows", "some storage tanks are on the bare ground",
        "large circular oil tanks|storage tanks stand beside a road", "an oil depot with {n} tanks in neat rows",
    ],
}  # fmt: skip


def captions(kind: str, facts: dict, rng: np.random.Generator) -> list[str]:
    """Five captions; now and then one repeats another, as annotators do."""
    words = {k: v for k, v in facts.items() if isinstance(v, str)}
    words |= {
        "ripples": "narrow ripples" if facts.get("ripples") else "broad dunes",
        "umbrellas": "colourful umbrellas" if facts.get("umbrellas") else "few people",
        "gaps": "with a few clearings" if facts.get("gaps") else "without gaps",
        "busy": "many" if facts.get("busy") else "some",
        "full": "many" if facts.get("full") else "some",
        "cars": "several cars",
        "courts": "lies beside some courts"
        if facts.get("courts")
        else "is next to a long building",
    }
    order = rng.permutation(len(TEMPLATES[kind]))[:5].tolist()
    out = []
    for position, i in enumerate(order):
        if position == 4 and rng.random() < 0.25:
            out.append(out[0])
            continue
        text = TEMPLATES[kind][i]
        text = " ".join(_choose(word, rng) for word in text.split(" "))
        text = text.format(**{**words, "n": count(int(facts.get("n", 2)), rng)})
        text = (
            text.replace("a planes", "a plane")
            .replace("a houses", "a house")
            .replace("a buildings stand", "a building stands")
        )
        text = text.replace(" a white airplanes", " a white airplane")
        out.append(
            (text[0].upper() + text[1:] if rng.random() < 0.5 else text)
            + str(rng.choice([".", " ."]))
        )
    return out


def _choose(word: str, rng: np.random.Generator) -> str:
    stem, tail = (word[:-1], word[-1]) if word.endswith(",") else (word, "")
    return str(rng.choice(stem.split("|"))) + tail if "|" in stem else word
