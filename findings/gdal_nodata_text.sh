#!/usr/bin/env bash
# GDAL takes a nodata text that is no number for the value 0.
#
# rasterio 1.4.4 (with its GDAL 3.10). Writers put the word "none" into the TIFF tag GDAL_NODATA
# (42113), where they mean that every value counts. One would expect no nodata value, or an error.
# Seen instead:
#
#   the tag's text   nodata   mask of a pixel that is 0
#   (no tag)         None     valid
#   none             0.0      no data
#   n/a              0.0      no data
#   nan              None     valid     (of whole numbers)
#
# So shadows, water and the first class of a map are holes, in every program that uses GDAL.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    rasterio==1.4.4 tifffile==2025.5.10 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import rasterio
import tifffile

values = np.array([[0, 7], [7, 7]], np.uint8)
seen = {}
for text in ("", "none", "n/a", "nan"):
    tag = [(42113, "s", 0, text, True)] if text else []
    tifffile.imwrite("a.tif", values, extratags=tag)
    with rasterio.open("a.tif") as raster:
        seen[text or "(no tag)"] = str(raster.nodata), bool(raster.read_masks(1)[0, 0])
print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
for text, (nodata, is_valid) in seen.items():
    print(f"{text:10} {nodata:6} {'valid' if is_valid else 'no data'}")
assert seen == {
    "(no tag)": ("None", True),
    "none": ("0.0", False),
    "n/a": ("0.0", False),
    "nan": ("None", True),
}
PY
