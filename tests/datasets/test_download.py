"""``get``: RSICD and RSITMD from a stand-in for the Hugging Face hub on this machine."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import hf_hub_download
from PIL import Image

from tests.conftest import draw
from tests.openai_server import LocalServer
from trsllava_extras import download
from trsllava_extras.download import get
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError, MissingError

ZIP = f"/datasets/{download.RSITMD}/resolve/main/rsitmd.zip"
FILE = f"/datasets/{download.HUB}/resolve/{download.REVISION}/data/test-00000-of-00001.parquet"


def parquet(rows: int, **renamed: str) -> bytes:
    """A test split as the hub has it, 27 MB for all 1,093 images."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(picture, "jpeg")
    picture, noise = picture.getvalue(), np.random.default_rng(0)  # noise does not compress
    images = [{"bytes": picture + noise.bytes(25_000), "path": None} for _ in range(rows)]
    table = pd.DataFrame(
        {
            "filename": [f"rsicd_images/park_{i}.jpg" for i in range(rows)],
            "captions": [[f"a park with {i} trees .", "a green park ."] for i in range(rows)],
            "image": images,
        }
    )
    out = io.BytesIO()
    table.rename(columns=renamed).to_parquet(out)
    return out.getvalue()


class Hub(LocalServer):
    """Serves one file, and others beside it; the first answer to a GET breaks off in the middle."""

    def __init__(self, content: bytes, path: str = FILE, **beside: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.ranges = content, []
        self.files = {path: content} | {f"/{name}.json": text for name, text in beside.items()}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", download.REVISION)
        self.send_header("Content-Length", str(len(content) - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            broken = not self.server.ranges and not self.path.endswith(".json")
            self.server.ranges.append(first)
            self.wfile.write(content[first : len(content) // 2 if broken else None])
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


def fetch(hub: Hub | None, folder: Path) -> subprocess.CompletedProcess:
    """The command, with a cache of its own; without a hub nobody answers."""
    address = hub.url if hub else "http://127.0.0.1:9"
    own = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}
    words = ["-m", "trsllava_utils", "get", "rsicd", "--split", "test", "-p", "data_dir"]
    return subprocess.run(
        [sys.executable, *words, str(folder)],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env={**os.environ, **own, "TQDM_DISABLE": "1"},
    )


def test_a_broken_download_is_resumed_and_laid_out_as_the_official_one(tmp_path):
    with Hub(parquet(download.IMAGES["test"])) as hub:
        out = fetch(hub, tmp_path)
    assert out.returncode == 0, out.stderr
    assert "rsicd (test) is in" in out.stdout and 0 < hub.ranges[1] < len(hub.content)
    dataset = load_dataset("rsicd", str(tmp_path))
    assert len(dataset.with_pixels) == 1093 and not dataset.problems
    assert dataset.captions["text"].iloc[0] == "a park with 0 trees ."
    assert set(dataset.images["label"]) == {"park"}
    root = tmp_path / "rsicd"
    annotations = (root / "dataset_rsicd.json").read_text()
    first = json.loads(annotations)["images"][0]
    assert first["filename"] == "park_0.jpg" and first["split"] == "test"
    assert first["sentences"] == [{"raw": "a park with 0 trees ."}, {"raw": "a green park ."}]
    (root / "RSICD_images" / "park_5.jpg").unlink()  # a run cut off while it unpacked
    (root / "dataset_rsicd.json").unlink()
    assert fetch(None, tmp_path).returncode == 0  # from the cache
    assert len(list((root / "RSICD_images").iterdir())) == 1093
    assert (root / "dataset_rsicd.json").read_text() == annotations


def test_without_a_network_one_sentence(tmp_path):
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    words = [
        sys.executable,
        *["-m", "trsllava_utils", "get", "rsicd", "--split", "val", "-p", "data_dir"],
    ]
    out = subprocess.run(
        [*words, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env={**os.environ, **env},
    )
    assert out.returncode == 1 and len(out.stderr.strip().splitlines()) == 1
    assert "error: cannot fetch RSICD (val)" in out.stderr
    assert "The same command goes on where it stopped" in out.stderr
    assert not (tmp_path / "rsicd").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (parquet(7), "7 rows .* not the 1,093 images of RSICD test"),
        (parquet(1093, captions="text"), "columns filename, text, image"),
    ],
    ids=["rows", "columns"],
)
def test_a_copy_that_is_not_rsicd_is_refused(content, message, tmp_path, monkeypatch):
    path = tmp_path / "test.parquet"
    path.write_bytes(content)
    monkeypatch.setattr(download, "_download", lambda split: path)
    with pytest.raises(InputError, match=message):
        get("rsicd", str(tmp_path), "test")
    assert not (tmp_path / "rsicd").exists()


def test_entries_of_the_official_file_stay_and_a_damaged_one_stops(tmp_path, monkeypatch):
    path = tmp_path / "test.parquet"
    path.write_bytes(parquet(1093))
    monkeypatch.setattr(download, "_download", lambda split: path)
    annotations = tmp_path / "rsicd" / "dataset_rsicd.json"
    annotations.parent.mkdir()
    entry = {"filename": "park_3.jpg", "split": "test", "sentences": [{"raw": "official"}]}
    annotations.write_text(json.dumps({"images": [entry], "licence": "mine"}))
    mine = draw(tmp_path / "rsicd" / "RSICD_images" / "park_7.jpg").read_bytes()
    get("rsicd", str(tmp_path), "test")
    value = json.loads(annotations.read_text())
    assert value["images"][0] == entry and len(value["images"]) == 1093
    assert value["licence"] == "mine"
    assert (tmp_path / "rsicd" / "RSICD_images" / "park_7.jpg").read_bytes() == mine
    monkeypatch.delattr(download, "_download")  # all is there: nothing is fetched
    get("rsicd", str(tmp_path), "test")
    for text in ('{"images": [', '{"images": {}}', '{"images": ["park_3.jpg"]}', "[]"):
        annotations.write_text(text)
        with pytest.raises(InputError, match=r"damaged, or no annotation file|broken JSON"):
            get("rsicd", str(tmp_path), "test")
        assert annotations.read_text() == text


def test_a_damaged_download_is_removed(tmp_path, monkeypatch):
    content = parquet(1093)
    for number, damaged in enumerate(
        (content[:-100], content[:5000] + bytes(90_000) + content[95_000:])
    ):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(damaged)
        monkeypatch.setattr(download, "_download", lambda split, path=path: path)
        with pytest.raises(MissingError, match="damaged and has been removed"):
            get("rsicd", str(tmp_path), "test")
        assert not path.exists()


def test_where_to_ask_for_the_others():
    with pytest.raises(MissingError, match=r"UCM-captions is known.*RSICD_optimal"):
        get("ucm")
    with pytest.raises(InputError, match="comes with the project"):
        get("sample")
    with pytest.raises(InputError, match="unknown split 'valid'"):
        get("rsicd", split="valid")


def zipped(names: list[str]) -> bytes:
    """A zip file with a picture of each name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for n, name in enumerate(names):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (n, 0, 0)).save(picture, "tiff")
            packed.writestr(name, picture.getvalue())
    return out.getvalue()


PLACES = [("train/park_1.tif", "train"), ("val/park_2.tif", "val"), ("test/park_3.tif", "test")]
ROWS = {
    f"rsitmd_{split}": json.dumps([{"image": name, "caption": [f"a park {name}", "a green park"]}])
    for name, split in PLACES
}


@pytest.mark.parametrize("folder", ["rsitmd/images", "rsitmd", "."])
def test_rsitmd_is_unpacked_whatever_its_folders(folder, tmp_path, monkeypatch):
    """Folder trees that the project's code can read; the hub itself was not reached."""
    names = [f"{folder}/{name}" for name, _ in PLACES]
    others = ["rsitmd/subimages/train/park_1_0.tif", "__MACOSX/park_9.tif", "../../park_8.tif"]
    texts = {name: text.encode() for name, text in ROWS.items()}
    with Hub(zipped([*names, *others]), ZIP, **texts) as hub:
        monkeypatch.setattr(download, "RSITMD_TEXTS", hub.url)
        hub_download = functools.partial(hf_hub_download, endpoint=hub.url, cache_dir=tmp_path)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", hub_download)
        root = get("rsitmd", str(tmp_path / "data"))
    there = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    pictures = ["images/park_8.tif", *(f"images/{name}" for name, _ in PLACES)]
    assert there == sorted([*pictures, *(f"{name}.json" for name in ROWS)])
    test = load_dataset("rsitmd", str(tmp_path / "data"))
    assert test.split_sizes == {"train": 1, "val": 1, "test": 1} and len(test.with_pixels) == 1
    assert test.captions["text"].tolist() == ["a park test/park_3.tif", "a green park"]


def test_a_damaged_zip_is_removed_and_missing_texts_are_named(tmp_path, monkeypatch):
    path = tmp_path / "rsitmd.zip"
    monkeypatch.setattr(download, "_from_hub", lambda *_: path)
    path.write_bytes(zipped(["park_1.tif"])[:-30])
    with pytest.raises(MissingError, match="RSITMD was damaged and has been removed"):
        get("rsitmd", str(tmp_path))
    assert not path.exists()
    path.write_bytes(zipped(["park_1.tif"]))
    monkeypatch.setattr(download, "RSITMD_TEXTS", "http://127.0.0.1:9")
    with pytest.raises(MissingError, match=r"cannot fetch rsitmd_train.json .*dataset_RSITMD.json"):
        get("rsitmd", str(tmp_path))
    assert (tmp_path / "rsitmd" / "images" / "park_1.tif").is_file()
    (tmp_path / "rsitmd" / "dataset_RSITMD.json").write_text("[]")  # the authors' own: enough
    assert get("rsitmd", str(tmp_path)) == tmp_path / "rsitmd"
