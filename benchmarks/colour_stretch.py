"""How far colours move when numbers become pictures: 60 photographs of the sample, disguised as
rasters, are read as the project reads them, each band by itself and all together.

    python benchmarks/colour_stretch.py

Prints, for each disguise, the hue error of pixels that have a colour (saturation x value over
0.08): the median over an image's pixels, in degrees, as mean and median over the images.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from matplotlib.colors import rgb_to_hsv
from rasterio.errors import NotGeoreferencedWarning

from trsllava_utils import load_dataset, read_image
from trsllava_utils.images import Rendering

IMAGES, COLOURED = 60, 0.08
HAZE = np.array([40, 150, 420])[:, None, None]  # in red, green, blue; reflectance x 10,000
DISGUISES = {
    "reflectance": lambda bands: (bands * 11 + 200).astype(np.uint16),
    "12 bits": lambda bands: np.round(bands * 9.6).astype(np.uint16),
    "float": lambda bands: (bands * 11 + 200).astype(np.float32) / 10_000,
    "reflectance with haze": lambda bands: (bands * 11 + 200 + HAZE).astype(np.uint16),
}


def write(path: Path, bands: np.ndarray) -> Path:
    """``(3, H, W)`` as a GeoTIFF that says nothing of its bands."""
    count, height, width = bands.shape
    how = {"driver": "GTiff", "width": width, "height": height, "count": count}
    with rasterio.open(path, "w", dtype=bands.dtype, **how) as raster:
        raster.write(bands)
    return path


def hue_error(shown: np.ndarray, true: np.ndarray) -> float:
    """Degrees; not-a-number for a photograph without colours."""
    (hue, saturation, value), seen = (
        np.moveaxis(rgb_to_hsv(p / 255), -1, 0) for p in (true, shown)
    )
    apart = np.abs(seen[0] - hue)[saturation * value > COLOURED]
    return float(np.median(np.minimum(apart, 1 - apart))) * 360 if apart.size > 200 else np.nan


def main() -> None:
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    ds = load_dataset("sample", split="all")
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        for image_id in ds.sample(IMAGES)["image_id"]:
            true = read_image(ds.file_of(image_id))
            for name, disguise in DISGUISES.items():
                path = write(Path(folder) / "a.tif", disguise(np.moveaxis(true.astype(int), -1, 0)))
                for stretch in ("per-band", "together"):
                    shown = read_image(path, Rendering(stretch=stretch))
                    errors.append((name, stretch, hue_error(shown, true)))
    table = pd.DataFrame(errors, columns=["disguise", "stretch", "hue error"])
    how = {"index": "disguise", "columns": "stretch", "values": "hue error", "sort": False}
    print(table.pivot_table(aggfunc=["mean", "median"], **how).round(1).to_string())


if __name__ == "__main__":
    main()
