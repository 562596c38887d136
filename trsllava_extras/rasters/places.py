"""Where: an open raster goes in; footprints and ground sample distance come out. Coordinates are
WGS 84, longitude before latitude, in degrees.
"""

from __future__ import annotations

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine, from_gcps, xy
from rasterio.warp import transform as to_other_crs

METRES_PER_DEGREE = 111_320.0  # of latitude
EARTH_RADIUS, WEB_MERCATOR = 6_378_137.0, 3857  # metres; EPSG number


def georeference(raster: DatasetReader) -> tuple[CRS, Affine] | None:
    """Coordinate system and pixel-to-map transformation, from ground control points where the file
    has only these (Sentinel-1); None where it has neither."""
    if raster.crs and not raster.transform.is_identity:
        return raster.crs, raster.transform
    points, crs = raster.gcps
    if len(points) < 3 or not crs:
        return None
    transform = from_gcps(points)
    return (crs, transform) if abs(transform.determinant) > 1e-20 else None  # else they are a line


def ground_sample_distance(raster: DatasetReader) -> float | None:
    """Metres a pixel, in the middle of the raster; None where it is not known."""
    where = georeference(raster)
    if where is None:
        return None
    crs, transform = where
    size = abs(transform.determinant) ** 0.5
    y = float(xy(transform, raster.height / 2, raster.width / 2, offset="ul")[1])
    if crs.is_geographic:
        return size * METRES_PER_DEGREE * np.cos(np.radians(y)) ** 0.5
    if crs.to_epsg() == WEB_MERCATOR:  # its metres are longer than those on the ground
        return size / np.cosh(y / EARTH_RADIUS)
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
    xs, ys = xy(transform, rows.ravel(), columns.ravel(), offset="ul")
    degrees = to_degrees(crs, xs, ys)
    if degrees is None or np.abs(degrees[1]).max() > 90:
        return None
    corners = degrees.T.reshape(-1, 4, 2)
    if not crs.is_geographic:
        crosses_date_line = np.ptp(corners[..., 0], axis=1) > 180
        corners[crosses_date_line, :, 0] %= 360
    corners[corners[..., 0].min(axis=1) >= 180, :, 0] -= 360
    return corners


def to_degrees(crs: CRS, xs: np.ndarray, ys: np.ndarray) -> np.ndarray | None:
    """Points on a map -> ``(2, n)``: longitude and latitude; None for a map of another planet, or
    points that lie outside it."""
    try:
        degrees = np.array(to_other_crs(crs, CRS.from_epsg(4326), xs, ys)[:2])
    except (CRSError, RasterioError, CPLE_BaseError):
        return None
    return degrees if np.isfinite(degrees).all() else None
