"""How much of a server's capacity captioning uses: many requests in flight against one at a time.

A local server of the OpenAI protocol answers every request after 200 ms, however many there are, as
a batching inference server roughly does. Two sides caption the same images with it in one run: this
project with ``concurrency=32`` (pictures read and scaled, answers checked, every record on disk
before it is counted), and the plain loop that asks for one image after the other and keeps the
answers in memory. The ideal is concurrency / latency = 160 images per second.

Run: ``python benchmarks/captioning_throughput.py`` prints a table and writes a JSON file beside it.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from PIL import Image

from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.data import load_dataset
from trsllava_utils.prompts import make_prompt

LATENCY = 0.2  # seconds
CONCURRENCY = 32
IMAGES, LOOP_IMAGES = 1600, 40
SERVER = Path(__file__).parent.parent / "tests" / "openai_server.py"


def draw_images(folder: Path, count: int) -> None:
    """Pictures of 224 × 224 pixels, as RSICD's, of smooth random colours."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
        small.resize((224, 224)).save(folder / f"scene_{i}.jpg", quality=90)


def one_at_a_time(paths: list[str]) -> float:
    """Images per second of the plain loop."""
    url_of_server = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    client, prompt, answers = httpx.Client(timeout=60), make_prompt(Settings()), {}
    start = time.perf_counter()
    for path in paths:
        url = "data:image/jpeg;base64," + base64.b64encode(Path(path).read_bytes()).decode()
        content = [
            {"type": "text", "text": prompt.text},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        request = {"model": "vlm", "messages": [{"role": "user", "content": content}]}
        reply = client.post(url_of_server, json=request).json()
        answers[path] = json.loads(reply["choices"][0]["message"]["content"])
    return len(paths) / (time.perf_counter() - start)


def main() -> None:
    """Measure both sides, print, write."""
    command = [sys.executable, str(SERVER), "--latency", str(LATENCY)]
    with (
        tempfile.TemporaryDirectory() as tmp,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            os.environ |= {"OPENAI_BASE_URL": server.stdout.readline().strip()}
            os.environ.setdefault("OPENAI_API_KEY", "none")
            draw_images(Path(tmp) / "scenes", IMAGES)
            dataset = load_dataset(str(Path(tmp) / "scenes"), tmp)
            loop = one_at_a_time(list(dataset.images["path"][:LOOP_IMAGES]))
            settings = Settings(concurrency=CONCURRENCY)
            report = caption_dataset(dataset, "openai:vlm", settings).report
        finally:
            server.kill()
    rate, ideal = report.captioned / report.seconds, CONCURRENCY / LATENCY
    rows = {
        "one at a time": (1, loop, loop * LATENCY, 1.0),
        f"concurrency={CONCURRENCY}": (CONCURRENCY, rate, rate / ideal, rate / loop),
    }
    columns = ["in flight", "images / s", "of the ideal", "× one at a time"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    print(table.round(3).to_string())
    print(f"{report.captioned} of {IMAGES} images captioned, {report.usage['requests']} requests")
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    result = {"machine": machine, "latency_s": LATENCY, "images": IMAGES, **table.T.to_dict()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
