"""Small real objects: a dataset folder made of drawn images, and an encoder without weights."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.openai_server import Server
from trsllava_extras.servers import client as openai_api
from trsllava_utils.data import load_dataset
from trsllava_utils.encoders import load_encoder
from trsllava_utils.files import PROJECT_ROOT
from trsllava_utils.vectors import Embeddings


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


@pytest.fixture(autouse=True)
def nothing_from_this_machine(monkeypatch, tmp_path_factory):
    """No server and no model of the user's is taken where a test names no captioner."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("trsllava_extras.choice.CACHE", tmp_path_factory.mktemp("hub"))


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


KEY = "sk-this-is-a-secret-0123456789"


def scenes(folder: Path, count: int):
    """A dataset of ``count`` drawn images."""
    for i in range(count):
        draw(folder / "scenes" / f"scene_{i}.png", i, size=32)
    return load_dataset(str(folder / "scenes"), str(folder))


@pytest.fixture
def serve(monkeypatch):
    """Start a server and point the environment to it."""
    running = []

    def start(*args, **options) -> Server:
        running.append(Server(*args, **options).__enter__())
        monkeypatch.setenv("OPENAI_BASE_URL", running[-1].url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def impatient(monkeypatch):
    """Back-off in hundredths of seconds."""
    monkeypatch.setattr(openai_api, "FIRST_WAIT", 0.01)


WORDS = "river port runway forest road roof pool boat lake bridge church beach tank crop"


def captions(n_images: int, seed: int = 0, start: int = 0) -> pd.DataFrame:
    """One to four captions per image, some of them equal."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "image_id": f"image{i:05d}",
            "source": "made",
            "variant": v,
            "field": "full",
            "text": "a " + " near a ".join(rng.choice(WORDS.split(), rng.integers(2, 6))),
        }
        for i in range(start, start + n_images)
        for v in range(rng.integers(1, 5))
    ]
    return pd.DataFrame(rows)


def questions(corpus: pd.DataFrame, encoder: str, n: int = 40) -> Embeddings:
    """Queries in the words of some captions, and one whose image is nowhere."""
    rows = corpus.drop_duplicates("image_id").iloc[:: max(1, len(corpus) // n)].head(n)
    rows = pd.concat([rows, rows[:1].assign(image_id="elsewhere")], ignore_index=True)
    rows["text"] = [" ".join(reversed(t.split()[1:])) for t in rows["text"]]
    vectors = load_encoder(encoder).encode(rows["text"].tolist(), "query")
    return Embeddings(rows, vectors, Path(), 0)


def embeddings(image_ids: list[str], vectors: np.ndarray) -> Embeddings:
    rows = pd.DataFrame({"image_id": image_ids, "source": "s", "field": "caption"})
    rows["variant"] = rows.groupby("image_id").cumcount()
    rows["text"] = [f"text {i}" for i in range(len(rows))]
    vectors = np.asarray(vectors, np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(rows, vectors, Path("none.safetensors"), 0)


def sources(joined: Embeddings, reference: Embeddings) -> SimpleNamespace:
    """What retrieval needs of ``Sources``, made of vectors."""
    return SimpleNamespace(
        joined=joined,
        reference=reference,
        embed_captions=lambda texts: joined,
        embed_reference=lambda: reference,
        asked_about=lambda images: images,
        gallery=sorted(set(joined.rows["image_id"]) & set(reference.rows["image_id"])),
        query_captioner="",
        scheduler="",
    )


def random_sources(
    seed: int, images: int = 12, variants: int = 3, captions: int = 2, dim: int = 8, levels: int = 0
) -> SimpleNamespace:
    """Random vectors; with ``levels``, of so few different coordinates that many scores tie."""
    rng = np.random.default_rng(seed)
    ids = [f"i{n:02d}" for n in range(images)]

    def draw(n):
        x = rng.normal(size=(n, dim)) if not levels else rng.integers(1, levels + 1, (n, dim))
        return embeddings([i for i in ids for _ in range(n // images)], x)

    return sources(draw(images * variants), draw(images * captions))


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
        self.identity = self.name = identity
        self.dim, self.seen, self.precision, self.control = dim, [], "float32", []

    def too_long(self, texts: list[str]) -> list[bool]:
        return [len(t) > 100 for t in texts]

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        self.seen += texts
        seeds = [
            int(hashlib.sha256((self.identity + t).encode()).hexdigest()[:8], 16) for t in texts
        ]
        return np.stack([np.random.default_rng(s).standard_normal(self.dim) for s in seeds])


def captions_file(dataset, captioner: str):
    """The file of the settings that the captioner was last run with."""
    from trsllava_utils.caption_file import newest_file
    from trsllava_utils.captioner import captioner_id
    from trsllava_utils.captions import folder_of

    return newest_file(folder_of(dataset), captioner_id(captioner))


def functions(stem: str, *names: str) -> SimpleNamespace:
    """What the imports of a notebook and its cells that define these functions give."""
    notebook = nbformat.read(PROJECT_ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    scope: dict = {}
    (imports,) = (source for source in code if "parameters.check(globals())" in source)
    exec(imports.partition("parameters.check")[0], scope)
    for source in code:
        if any(f"def {name}(" in source for name in names):
            tree = ast.parse(source)
            last = max(n for n, node in enumerate(tree.body) if isinstance(node, ast.FunctionDef))
            tree.body = tree.body[: last + 1]  # without what is done with them
            exec(compile(tree, stem, "exec"), scope)
    return SimpleNamespace(**scope)
