"""Kill -9 at random instants of the whole way, from captioning in shards to a gallery. Afterwards
the same call makes what an uninterrupted one makes, byte by byte, and leaves nothing lying about.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import captions_file, draw, nested
from trsllava_extras.gallery.gallery import Gallery
from trsllava_extras.results import results_path, write_results
from trsllava_extras.shards import caption_shard
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.data import load_dataset
from trsllava_utils.files import read_json
from trsllava_utils.rankings import rank_dataset
from trsllava_utils.recall import metrics
from trsllava_utils.sources import Sources

SERVER = multiprocessing.get_context("forkserver")
LOADED_ONCE = ["trsllava_extras.pixels", "sentence_transformers", "py3langid.langid"]
SERVER.set_forkserver_preload(["tests.faults.test_kills", *LOADED_ONCE])


def whole_way(folder: str, encoder: str) -> None:
    """Every stage that writes."""
    ds = load_dataset("rsitmd", folder)
    whole = captions_file(ds, "pixels")
    if not (whole and whole.path.exists()):
        for part in ("1/2", "2/2"):
            caption_shard(ds, "pixels", Settings(variants=2), shard=part)
    caption_dataset(ds, "pixels", Settings(variants=2))
    sources = Sources(ds, "pixels", encoder)
    made = rank_dataset("max", sources)
    result = {"max": metrics(made.ranks)}
    path = results_path(ds.derived, sources.setting)
    write_results(path, result, made.ranks, dataset="rsitmd", inputs=made.identity)
    gallery = Gallery(f"{folder}/gallery", encoder)
    gallery.add(sources.captions.corpus(), texts_each=10)
    gallery.embed()


def dataset(folder: Path) -> Path:
    names = [f"port_{n}.png" for n in range(24)]
    for n, name in enumerate(names):
        draw(folder / "rsitmd" / "images" / name, n)
    entries = [(name, "test", [f"view {n} of a port", f"port {n}"]) for n, name in enumerate(names)]
    (folder / "rsitmd" / "dataset_RSITMD.json").write_text(nested(entries))
    return folder


def outcome(folder: Path) -> dict[str, object]:
    """What all files say, by name."""
    seen: dict[str, object] = {}
    for path in sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and not p.name.endswith(".lock") and ".tmp-" not in p.name
    ):
        name = path.relative_to(folder).as_posix()
        if re.fullmatch(
            r"pixels\.[\w.-]+\.jsonl", path.name
        ):  # in the order in which images were finished
            seen[name] = sorted(path.read_text().splitlines())
        elif re.fullmatch(
            r"pixels\.\w+\.json", path.name
        ):  # the example is the reply that came first
            seen[name] = {**read_json(path), "example": ""}
        elif path.suffix == ".parquet":
            seen[name] = pd.read_parquet(path).to_json()
        else:
            seen[name] = path.read_bytes()
    return seen


def kills(tmp_path: Path, encoder: str, n: int, seed: int) -> None:
    rng, folder = random.Random(seed), dataset(tmp_path / "killed")
    warm = SERVER.Process(target=int)
    warm.start()
    warm.join()
    started = time.perf_counter()
    whole = SERVER.Process(target=whole_way, args=(str(dataset(tmp_path / "whole")), encoder))
    whole.start()
    whole.join()
    longest = time.perf_counter() - started
    for _ in range(n):
        process = SERVER.Process(target=whole_way, args=(str(folder), encoder))
        process.start()
        process.join(rng.uniform(0.02, longest))
        process.kill()
        process.join()
    last = SERVER.Process(target=whole_way, args=(str(folder), encoder))
    last.start()
    last.join()
    assert whole.exitcode == last.exitcode == 0
    expected, made = outcome(tmp_path / "whole"), outcome(folder)
    assert made.keys() == expected.keys()
    for name, content in expected.items():
        assert made[name] == content, name
    assert any("part-" in name for name in made)


@pytest.mark.fault("Kills")
def test_kills_at_random_instants(tmp_path, static_encoder):
    kills(tmp_path, static_encoder, 8, seed=0)


@pytest.mark.slow
@pytest.mark.fault("Kills")
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_hundred_kills(tmp_path, static_encoder, seed):
    kills(tmp_path, static_encoder, 10, seed)
