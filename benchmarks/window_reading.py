"""Reading a raster of the size of a Sentinel-2 granule as windows, against reading it whole.

A made GeoTIFF: 10,980 x 10,980 pixels, four bands of 16 bits, Deflate, tiled, a corner empty.
Each side turns all of its windows of 1,024 pixels into pictures, in a process of its own: this
project from the file, and tifffile with the whole raster in memory. Pillow is tried, too. Prints a
table and writes ``window_reading.json``.

    python benchmarks/window_reading.py
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from rasterio.windows import Window

from trsllava_extras.rasters.scenes import grid
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT
from trsllava_utils.images import read_image

SIDE, TILE, TURNS = 10_980, 1024, 3


def make_granule(path: Path) -> None:
    """Photographs of the sample side by side, enlarged, as reflectances."""
    photographs = sorted((PROJECT_ROOT / "data/sample/images").glob("*.jpg"))[::10]
    part = SIDE // 20
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 4, "dtype": "uint16"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    where = {"crs": "EPSG:32632", "transform": from_origin(600_000, 5_300_040, 10, 10)}
    with rasterio.open(path, "w", nodata=0, **profile, **where) as raster:
        for number, name in enumerate(("Blue", "Green", "Red", "NIR"), 1):
            raster.set_band_description(number, name)
        for cell in range(400):
            row, column = divmod(cell, 20)
            with Image.open(photographs[cell % len(photographs)]) as image:
                rgb = np.asarray(image.convert("RGB").resize((part, part))).astype(np.uint16)
            bands = np.moveaxis(rgb * 11 + 200, -1, 0)[[2, 1, 0, 1]]
            bands = bands * 0 if row + column < 4 else bands
            raster.write(bands, window=Window(column * part, row * part, part, part))


def this_project(path: Path) -> int:
    with tempfile.TemporaryDirectory() as data:
        dataset = load_dataset(str(path.parent), data, tile=TILE)
        for image_id in dataset.images["image_id"]:
            read_image(dataset.file_of(image_id))
    return len(dataset.images)


def tifffile_whole(path: Path) -> int:
    import tifffile

    whole = tifffile.imread(path)
    sample = whole[::10, ::10, 2::-1]
    low, high = np.percentile(sample[(sample > 0).all(axis=-1)], (2, 98), axis=0)
    windows = grid(SIDE, SIDE, TILE, 0)
    for column, row, width, height in windows:
        part = whole[row : row + height, column : column + width, 2::-1].astype(np.float32)
        shown = (np.clip((part - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        shown[(part == 0).all(axis=-1)] = 255
    return len(windows)


def pillow_whole(path: Path) -> int:
    with Image.open(path) as image:
        image.load()
    return 1


SIDES = {
    "this project": this_project,
    "tifffile, whole": tifffile_whole,
    "Pillow, whole": pillow_whole,
}


def peak_memory() -> float:
    """Most memory that this process has had so far, in MB (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024


def measure(side: str, path: str) -> None:
    """One side, in this process; prints seconds, windows and the peak of memory."""
    Image.MAX_IMAGE_PIXELS = None
    before, start = peak_memory(), time.perf_counter()
    windows = SIDES[side](Path(path))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "windows": windows, "MB": peak_memory() - before}))


def main() -> None:
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "granule" / "granule.tif"
        path.parent.mkdir()
        make_granule(path)
        megabytes = path.stat().st_size / 2**20
        for side in [side for _ in range(TURNS) for side in SIDES]:
            words = [sys.executable, __file__, side, str(path)]
            out = subprocess.run(words, capture_output=True, text=True)
            told = (out.stderr.strip().splitlines() or ["?"])[-1]
            runs[side].append(json.loads(out.stdout) if not out.returncode else {"error": told})
    print(f"{SIDE} x {SIDE}, 4 x uint16, {megabytes:,.0f} MB on disk")
    for side, values in runs.items():
        good = [run for run in values if "error" not in run]
        if good:
            seconds = statistics.median(run["seconds"] for run in good)
            print(
                f"{side:16} {good[0]['windows']} windows, {seconds:6.1f} s, "
                f"{good[0]['windows'] / seconds:5.1f} / s, {good[0]['MB']:6,.0f} MB"
            )
        else:
            print(f"{side:16} {values[0]['error']}")
    text = json.dumps({"machine": platform.machine(), "runs": runs}, indent=2)
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
