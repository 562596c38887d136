"""Caption a part, search the whole: what is kept of mR if only a share of the images is described,
and every other image borrows the texts of the described image that looks most like it.

The described images are spread over the gallery (k-centre: always the one farthest from those
chosen) or drawn at random. How alike two pictures look is the distance of their colours, textures
and layouts, without weights; a CLIP may do better. Three draws each; the mean counts.

Run: ``python benchmarks/caption_share.py rsicd --split val --captioner file:captions.jsonl``
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from PIL import Image

from trsllava_utils import Sources, load_dataset, metrics, read_image
from trsllava_utils.ranking import NamedSide, rank_queries, sides
from trsllava_utils.scoring import Side, best_cosine, run_starts

SHARES, DRAWS = (0.1, 0.25, 0.5), 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("dataset", nargs="?", default="sample")
    options.add_argument("--split", default="all")
    options.add_argument("--captioner", default="rsrt")
    options.add_argument("--data-dir", default="")
    given = options.parse_args()
    dataset = load_dataset(given.dataset, given.data_dir, given.split)
    sources = Sources(dataset, given.captioner)
    both = sides(sources, sources.gallery)
    seen = np.stack([look(read_image(dataset.file_of(image))) for image in sources.gallery])
    seen = (seen - seen.mean(0)) / (seen.std(0) + 1e-6)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    distance = np.sqrt(np.maximum(2 - 2 * seen @ seen.T, 0))
    whole = mean_recall(both.references, both.images)
    print(f"{len(seen):,} images of {dataset.title} ({dataset.split}), mR {whole:.1f}\n")
    print("| share described | k-centre: mR | kept | at random: mR | kept |")
    print("| --- | --- | --- | --- | --- |")
    for share in SHARES:
        row = [f"{share:.0%}"]
        for choose in (spread, at_random):
            chosen = [choose(distance, round(share * len(seen)), seed) for seed in range(DRAWS)]
            borrowed = [borrow(both.images, distance, these) for these in chosen]
            kept = np.mean([mean_recall(both.references, images) for images in borrowed])
            row += [f"{kept:.1f}", f"{kept / whole:.0%}"]
        print("|", " | ".join(row), "|", flush=True)


def look(picture: np.ndarray) -> np.ndarray:
    """Colours (hue, saturation, value), texture (directions and sizes of steps) and layout."""
    image = Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)
    hsv = np.asarray(image.convert("HSV"))
    colours = [np.histogram(hsv[..., c], n, (0, 256))[0] / 4096 for c, n in enumerate((16, 8, 8))]
    light = np.asarray(image.convert("L"), np.float32) / 255
    down, right = np.diff(light, axis=0)[:, :-1], np.diff(light, axis=1)[:-1]
    size, angle = np.hypot(down, right), np.arctan2(down, right) % np.pi
    texture = [np.histogram(angle, 8, (0, np.pi), weights=size)[0], np.histogram(size, 8)[0]]
    layout = np.asarray(image.resize((4, 4), Image.Resampling.BOX), np.float32).ravel()
    return np.concatenate([*colours, *texture, layout])


def spread(distance: np.ndarray, k: int, seed: int) -> np.ndarray:
    """k-centre, greedily (Gonzalez, 1985)."""
    chosen = [int(np.random.default_rng(seed).integers(len(distance)))]
    while len(chosen) < k:
        chosen.append(int(distance[chosen].min(axis=0).argmax()))
    return np.array(chosen)


def at_random(distance: np.ndarray, k: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(distance), k, replace=False)


def borrow(images: NamedSide, distance: np.ndarray, chosen: np.ndarray) -> NamedSide:
    """Every image with the texts of the chosen image that looks most like it."""
    giver = chosen[distance[:, chosen].argmin(axis=1)]
    giver[chosen] = chosen
    ends = np.append(run_starts(images.side.groups), len(images.side.groups))
    texts = [np.arange(ends[g], ends[g + 1]) for g in giver]
    groups, rows = np.repeat(np.arange(len(giver)), [*map(len, texts)]), np.concatenate(texts)
    side = Side(images.side.texts[rows], groups, images.side.vectors[rows])
    return NamedSide(side, images.ids, images.owner)


def mean_recall(references: NamedSide, images: NamedSide) -> float:
    ranks = []
    for direction, queries, items in (("t2i", references, images), ("i2t", images, references)):
        score = best_cosine(queries.side, items.side)
        made = rank_queries(score, queries, items, queries.side.n, 1)[0]
        ranks.append(made.assign(direction=direction))
    return metrics(pd.concat(ranks))["mR"]


if __name__ == "__main__":
    main()
