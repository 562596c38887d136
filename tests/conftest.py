"""Small real objects: a dataset folder made of drawn images, and an encoder without weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw(path: Path, seed: int = 0, size: int = 64) -> Path:
    """A small picture of smooth random colours."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((size, size))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def nested(entries: list[tuple[str, str, list[str]]]) -> str:
    """(filename, split, captions) as the nested annotation JSON."""
    images = [
        {"filename": f, "split": s, "sentences": [{"raw": c} for c in cs]} for f, s, cs in entries
    ]
    return json.dumps({"images": images})


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder with an ``rsitmd`` of four test images and one for training."""
    root = tmp_path / "data" / "rsitmd"
    names = ["port_1.png", "river_2.png", "park_3.png", "beach_4.png"]
    for i, name in enumerate(names):
        draw(root / "images" / name, i)
    entries = [
        (n, "test", [f"a view of {n[:4]} {i}", f"{n[:4]} from above"]) for i, n in enumerate(names)
    ]
    entries.append(("train_5.png", "train", ["only for training"]))
    (root / "dataset_RSITMD.json").write_text(nested(entries), encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def static_encoder(tmp_path_factory) -> str:
    """Folder of a small, fast sentence-transformers model."""
    from tests.tiny_models import static_text

    return str(static_text(tmp_path_factory.mktemp("static")))


def write_captions(path: Path, dataset, every: int = 1) -> str:
    """Two structured variants of every n-th image, in the words of its third and fourth caption."""
    texts = dataset.captions.groupby("image_id")["text"].agg(list)
    labels = dataset.images.set_index("image_id")
    lines = []
    for image_id in dataset.images["image_id"][::every]:
        variants = [
            {"one_sentence": t, "feature": f"{labels['label'][image_id]} {n}", "caption": t}
            for n, t in enumerate(texts[image_id][2:4])
        ]
        image = labels["filename"][image_id]
        lines.append(json.dumps({"image": image, "model": "people", "variants": variants}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"file:{path}"


class HashEncoder:
    """Directions drawn from the hash of a text; counts what it is asked to encode."""

    def __init__(self, identity: str = "hash", dim: int = 16) -> None:
        self.identity, self.dim, self.seen = identity, dim, []

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        self.seen += texts
        seeds = [
            int(hashlib.sha256((self.identity + t).encode()).hexdigest()[:8], 16) for t in texts
        ]
        return np.stack([np.random.default_rng(s).standard_normal(self.dim) for s in seeds])
