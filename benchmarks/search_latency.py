"""How long the search panel takes from Enter to the gallery.

A gallery of 10,000 images (copies of the sample's pictures) with a caption each, all different. For
every method the panel is asked 20 queries and shows eight images for each: in Python (encoder,
scoring, thumbnails), and in a real JupyterLab in Chromium, from the key to the pictures drawn.
Beside it stands the encoder alone, which no panel can beat. Prints a table and writes
``search_latency.json``.

    python benchmarks/search_latency.py
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from trsllava_extras.panel.panel import METHODS, Panel
from trsllava_utils.data import load_dataset
from trsllava_utils.sources import Sources

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
from tests.jupyterlab import CHROMIUM, FLAGS, jupyterlab  # noqa: E402

IMAGES, QUERIES = 10_000, 20
WORDS = ("planes", "boats", "green trees", "red roofs", "a river", "a beach", "cars", "tanks")


def make_gallery(folder: Path) -> None:
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


def open_gallery(folder: Path) -> Sources:
    dataset = load_dataset(str(folder), str(folder / "data"))
    return Sources(dataset, f"file:{folder / 'captions.jsonl'}")


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


CELL = """
import sys; sys.path[:0] = ["{root}"]
from pathlib import Path
from benchmarks.search_latency import open_gallery
from trsllava_utils.search import search_panel
search_panel(open_gallery(Path("{folder}")), "warm-up")
"""
# In the page: fill in a query, press Enter, and wait until the pictures found for it are drawn.
ASK = """
(words) => new Promise((done) => {
  const input = document.querySelector(".trsllava input[type=search]");
  const status = document.querySelector(".trsllava .status");
  input.value = words;
  const start = performance.now();
  const look = new MutationObserver(() => {
    if (!status.textContent.startsWith(words)) return;
    look.disconnect();
    const pictures = [...document.querySelectorAll(".trsllava .tile img")];
    Promise.all(pictures.map((picture) => picture.decode())).then(() =>
      requestAnimationFrame(() => done((performance.now() - start) / 1000)));
  });
  look.observe(status, { childList: true, subtree: true });
  input.form.requestSubmit(); // what Enter does
})
"""


def in_browser(folder: Path, queries: list[str]) -> dict[str, list[float]]:
    """Seconds from Enter to the pictures, by method."""
    from playwright.sync_api import sync_playwright

    home = folder / "lab"
    (home / "notebooks").mkdir(parents=True)
    cell = nbformat.v4.new_code_cell(CELL.format(root=ROOT, folder=folder / "gallery"))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
    nbformat.write(notebook, home / "notebooks" / "panel.ipynb")
    rows: dict[str, list[float]] = {}
    with jupyterlab(home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(f"{address}/lab/tree/panel.ipynb?token=secret")
        page.get_by_text("| Idle").wait_for(timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.locator(".trsllava .tiles li").first.wait_for(timeout=300_000)
        for method in METHODS:
            page.locator(".trsllava select").first.select_option(method)
            page.wait_for_timeout(3000)
            page.evaluate(ASK, f"warm-up of {method}")
            rows[method] = [page.evaluate(ASK, f"{query} there") for query in queries]
        browser.close()
    return rows


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    rows = {}
    with tempfile.TemporaryDirectory(dir=ROOT / "data") as folder:  # on the disk of the pictures
        make_gallery(Path(folder) / "gallery")
        sources = open_gallery(Path(folder) / "gallery")
        queries = [f"{a} and {b}" for a in WORDS for b in WORDS if a < b][:QUERIES]
        panel = Panel(sources, {"query": "warm-up", "k": 8})
        rows["encoder alone"] = [seconds(lambda q=q: sources.encode(q)) for q in queries]
        for method in METHODS:
            panel.search(method=method, query=f"warm-up {method}")
            rows[method] = [seconds(lambda q=q: panel.search(query=f"{q} here")) for q in queries]
            assert panel.found.query.text == f"{queries[-1]} here"
        if CHROMIUM:
            browser = in_browser(Path(folder), queries)
            rows |= {f"{method}, in the browser": times for method, times in browser.items()}
    table = {
        name: {
            "median_ms": 1000 * statistics.median(times),
            "slowest_ms": 1000 * max(times),
            "x_encoder": statistics.median(times) / statistics.median(rows["encoder alone"]),
        }
        for name, times in rows.items()
    }
    print(f"{IMAGES:,} images, {QUERIES} queries, eight images shown for each\n")
    print(f"{'':28s} {'median ms':>10s} {'slowest ms':>11s} {'x encoder':>10s}")
    for name, row in table.items():
        print(
            f"{name:28s} {row['median_ms']:10.0f} {row['slowest_ms']:11.0f} "
            f"{row['x_encoder']:10.1f}"
        )
    result = {"machine": platform.processor() or platform.machine(), "table": table}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
