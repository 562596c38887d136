"""Make the sample dataset: ``python data/sample/source/make_sample.py [FOLDER]`` writes images/ and dataset_sample.json.

Nine scenes of each of sixteen kinds from fixed seeds, five human-style captions each: synonyms, differing focus, some
vague, some shared by several images, as in RSICD. The captions are written from the scene description, not the pixels.
"""

from __future__ import annotations

import argparse
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from canvas import Canvas
from PIL import Image
from scenes import KINDS, Facts
from wording import captions

PER_KIND = 9
SPLITS = ["train", "train", "val", *["test"] * 6]


def scene(kind: str, number: int) -> tuple[Image.Image, Facts]:
    """The picture and the facts of one scene; the seed is the name."""
    draw, ground = KINDS[kind]
    canvas = Canvas(zlib.crc32(f"{kind}_{number}".encode()), ground)
    facts = draw(canvas)
    return canvas.finish(), facts


def main(folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    kinds, numbers = zip(*product(KINDS, range(1, PER_KIND + 1)), strict=True)
    entries = []
    with ProcessPoolExecutor() as pool:
        scenes = pool.map(scene, kinds, numbers)
        for kind, number, (picture, facts) in zip(kinds, numbers, scenes, strict=True):
            name = f"{kind}_{number}"
            picture.save(folder / "images" / f"{name}.jpg", quality=90)
            rng = np.random.default_rng(zlib.crc32(f"{name} words".encode()))
            sentences = [{"raw": text} for text in captions(kind, facts, rng)]
            entries.append(
                {
                    "filename": f"{name}.jpg",
                    "imgid": len(entries),
                    "split": SPLITS[number - 1],
                    "sentences": sentences,
                }
            )
    text = json.dumps({"images": entries, "dataset": "sample"}, indent=1) + "\n"
    (folder / "dataset_sample.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent
    )
    main(parser.parse_args().folder)
