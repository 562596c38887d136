"""Where and when: an open raster or a file name goes in; footprints, ground sample distance and
acquisition date come out. Coordinates are WGS 84, longitude before latitude, in degrees.
"""

from __future__ import annotations

import re
from pathlib import PurePath

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine, from_gcps
from rasterio.warp import transform as to_other_crs

METRES_PER_DEGREE = 111_320.0  # of latitude
_DATE_TAG = re.compile(r"acqui|sensing|product_start|date_?time", re.IGNORECASE)
_DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)[-_:.]?(0[1-9]|1[0-2])[-_:.]?(0[1-9]|[12]\d|3[01])(?!\d)"
)


def georeference(raster: DatasetReader) -> tuple[CRS, Affine] | None:
    """Coordinate system and pixel-to-map transformation, from ground control points where the file
    has only these (Sentinel-1); None where it has neither."""
    if raster.crs and not raster.transform.is_identity:
        return raster.crs, raster.transform
    points, crs = raster.gcps
    return (crs, from_gcps(points)) if points and crs else None


def ground_sample_distance(raster: DatasetReader) -> float | None:
    """Metres a pixel, in the middle of the raster; None where it is not known."""
    where = georeference(raster)
    if where is None:
        return None
    crs, transform = where
    size = abs(transform.determinant) ** 0.5
    if crs.is_geographic:
        latitude = (transform * (raster.width / 2, raster.height / 2))[1]
        return size * METRES_PER_DEGREE * np.cos(np.radians(latitude)) ** 0.5
    return size * crs.linear_units_factor[1] if crs.is_projected else None


def footprints(raster: DatasetReader, windows: np.ndarray) -> np.ndarray | None:
    """Corners of windows on the ground.

    Args:
        raster: the open file.
        windows: ``(n, 4)``: column, row, width, height.

    Returns:
        ``(n, 4, 2)``: longitude and latitude of the corners, anticlockwise from the lower left;
        None where the file has no usable coordinates.
    """
    where = georeference(raster)
    if where is None:
        return None
    crs, transform = where
    column, row, width, height = np.asarray(windows, float).T
    columns = np.stack([column, column + width, column + width, column], axis=1)
    rows = np.stack([row + height, row + height, row, row], axis=1)
    xs, ys = transform * (columns.ravel(), rows.ravel())
    try:
        lon, lat = (np.array(v) for v in to_other_crs(crs, CRS.from_epsg(4326), xs, ys))
    except (CRSError, RasterioError):
        return None
    corners = np.stack([lon, lat], axis=1).reshape(-1, 4, 2)
    if not np.isfinite(corners).all() or np.abs(corners[..., 1]).max() > 90:
        return None
    over = np.ptp(corners[..., 0], axis=1) > 180  # across the date line
    corners[over, :, 0] %= 360
    return corners


def acquired(tags: dict[str, str], filename: str) -> str:
    """Acquisition date, ``2021-06-01``, from a file's tags or else its name; "" for none. A plain
    DATETIME tag comes last: many programs write there when they made the file."""
    told = [value for name, value in tags.items() if _DATE_TAG.search(name)]
    plain = tags.get("TIFFTAG_DATETIME", "")
    for text in [*(v for v in told if v != plain), PurePath(filename).stem, plain]:
        if match := _DATE.search(text):
            return "-".join(match.groups())
    return ""
