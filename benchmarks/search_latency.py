"""How long the search panel takes to answer: encoder, scoring, thumbnails and widgets together.

A gallery of 10,000 images (copies of the sample's pictures) with a caption each, all different. For
every method the panel is asked 20 queries and shows eight images for each; beside it stands the
encoder alone, which no panel can beat. Prints a table and writes ``search_latency.json``.

    python benchmarks/search_latency.py
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from trsllava_utils.datasets import load_dataset
from trsllava_utils.retrieval.sources import Sources
from trsllava_utils.search.panel import METHODS, Panel

IMAGES, QUERIES = 10_000, 20
WORDS = ("planes", "boats", "green trees", "red roofs", "a river", "a beach", "cars", "tanks")


def make_gallery(folder: Path) -> Sources:
    """10,000 images, each with a caption that no other has."""
    sample = load_dataset("sample", split="all")
    paths, texts = sample.images["path"].tolist(), sample.captions["text"].tolist()
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(IMAGES):
        name = f"{i}.jpg"
        os.link(paths[i % len(paths)], folder / "images" / name)
        lines.append({"image": name, "caption": f"{texts[i % len(texts)]} number {i}"})
    captions = folder / "captions.jsonl"
    captions.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return Sources(load_dataset(str(folder), str(folder / "data")), f"file:{captions}")


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    rows = {}
    data = Path(__file__).resolve().parent.parent / "data"  # on the disk of the pictures, to link
    with tempfile.TemporaryDirectory(dir=data) as folder:
        sources = make_gallery(Path(folder) / "gallery")
        queries = [f"{a} and {b}" for a in WORDS for b in WORDS if a < b][: QUERIES + 1]
        panel = Panel(sources, queries[0], list(METHODS), k=8)
        alone = [seconds(lambda q=q: sources.encode(q)) for q in queries[1:]]
        rows["encoder alone"] = alone
        for method in METHODS:
            panel.method.value = method
            panel.query.value = f"warm-up {method}"
            times = []
            for query in queries[1:]:
                times.append(seconds(lambda q=query: setattr(panel.query, "value", f"{q} here")))
                assert panel.found.query == f"{query} here"
            rows[method] = times
    table = {
        name: {
            "median_ms": 1000 * statistics.median(times),
            "slowest_ms": 1000 * max(times),
            "x_encoder": statistics.median(times) / statistics.median(rows["encoder alone"]),
        }
        for name, times in rows.items()
    }
    print(f"{IMAGES:,} images, {QUERIES} queries, eight images shown for each\n")
    print(f"{'':14s} {'median ms':>10s} {'slowest ms':>11s} {'x encoder':>10s}")
    for name, row in table.items():
        print(
            f"{name:14s} {row['median_ms']:10.0f} {row['slowest_ms']:11.0f} "
            f"{row['x_encoder']:10.1f}"
        )
    result = {"machine": platform.processor() or platform.machine(), "table": table}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
