"""Where: an open raster goes in; footprints and ground sample distance come out. Coordinates are
WGS 84, longitude before latitude, in degrees. A footprint that crosses 180° goes on beyond it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import GCPTransformer, RPCTransformer, from_gcps, xy
from rasterio.warp import transform as to_other_crs

from trsllava_utils.files import InputError, read_text

Steps = tuple[CRS, np.ndarray, np.ndarray | None]
Ground = Callable[[np.ndarray, np.ndarray], np.ndarray]
PIECES = 16  # that an edge is cut into
_STRAIGHT = 0.005  # edges that bend less, of the footprint's size, are straight
_GRID = 10  # points, from which on control points are a grid, and no four corners
_POLAR = 89  # degrees of latitude
_NEARLY = 0.01  # a map whose metres differ less from those on the ground is as good


def georeference(raster: DatasetReader) -> tuple[CRS, Ground] | None:
    """Coordinate system, and a function from rows and columns (of pixels' corners) to ``(2, n)``
    x and y in it; None where the file has neither. From the file's transformation, else from its
    ground control points (Sentinel-1) or its rational polynomials, at their mean height."""
    if (crs := raster.crs or _crs_beside(raster)) and not raster.transform.is_identity:
        transform = raster.transform
        return crs, lambda rows, columns: np.array(xy(transform, rows, columns, offset="ul"))
    points, crs = raster.gcps
    if len(points) >= 3 and crs and abs(from_gcps(points).determinant) > 1e-20:  # else a line
        if crs.is_geographic:  # on both sides of 180°
            first = points[0].x
            near = ((p, p.x + 360 * round((first - p.x) / 360)) for p in points)
            points = [GroundControlPoint(p.row, p.col, x, p.y) for p, x in near]
        return crs, _with(GCPTransformer(points, tps=len(points) >= _GRID))
    if rpcs := raster.rpcs:
        return CRS.from_epsg(4326), _with(RPCTransformer(rpcs, rpc_height=rpcs.height_off))
    return None


def _crs_beside(raster: DatasetReader) -> CRS | None:
    """The coordinate system in the file .prj, which belongs to a world file."""
    path = Path(raster.name).with_suffix(".prj")
    if raster.transform.is_identity or not path.is_file():
        return None
    try:
        return CRS.from_wkt(read_text(path))
    except (CRSError, InputError):
        return None


def _with(transformer: GCPTransformer | RPCTransformer) -> Ground:
    return lambda rows, columns: np.array(transformer.xy(rows, columns, offset="ul"))


def steps(raster: DatasetReader) -> Steps | None:
    """What one step to the next column, and one to the next row, is in the middle of a raster.

    Returns:
        The coordinate system; ``(2, 2)``: columns and rows, in x and y of the map; and the same in
        metres to the east and to the north, None for a map of another planet or a local one. None
        where the place is not known.
    """
    where = georeference(raster)
    if where is None:
        return None
    crs, ground = where
    wide, high = max(1.0, raster.width / 100), max(1.0, raster.height / 100)
    rows = raster.height / 2 + np.array([0, 0, high])
    columns = raster.width / 2 + np.array([0, wide, 0])
    points = ground(rows, columns)
    if not np.isfinite(points).all():
        return None
    length = np.array([[wide], [high]])
    own = (points[:, 1:] - points[:, :1]).T / length
    degrees = points if crs.is_geographic else to_degrees(crs, *points)
    if degrees is None:
        return crs, own, None
    from pyproj import Geod

    (lon, *lons), (lat, *lats) = degrees
    angles, _, distances = Geod(ellps="WGS84").inv([lon, lon], [lat, lat], lons, lats)
    metres = np.stack([np.sin(np.radians(angles)), np.cos(np.radians(angles))], axis=1)
    metres *= np.reshape(distances, (2, 1)) / length
    if abs(lat) > _POLAR:  # there is no north: the map's own axes
        metres = own * abs(np.linalg.det(metres) / np.linalg.det(own)) ** 0.5
    return crs, own, metres


def ground_sample_distance(found: Steps | None) -> float | None:
    """Metres a pixel on the ground, of what :func:`steps` gives; None where it is not known."""
    if found is None:
        return None
    crs, own, metres = found
    side = abs(np.linalg.det(own)) ** 0.5 * crs.linear_units_factor[1] if crs.is_projected else 0
    measured = 0 if metres is None else abs(np.linalg.det(metres)) ** 0.5
    is_nominal = side and (not measured or abs(measured / side - 1) < _NEARLY)
    return float(f"{side if is_nominal else measured:.9g}") or None


def footprints(raster: DatasetReader, windows: np.ndarray) -> list[np.ndarray | None]:
    """Outlines of windows on the ground.

    Args:
        raster: the open file.
        windows: ``(n, 4)``: column, row, width, height.

    Returns:
        For each window ``(k, 2)``: longitude and latitude of its corners, anticlockwise, and of
        points between them where its edges are bent; around a pole the outline and the pole itself,
        over 360°. None where the place is not known.
    """
    where = georeference(raster)
    if where is None:
        return [None] * len(windows)
    crs, ground = where
    column, row, width, height = np.asarray(windows, float).T[..., None]
    way = np.arange(PIECES) / PIECES
    flat, full = np.zeros(PIECES), np.ones(PIECES)
    columns = column + width * np.r_[way, full, 1 - way, flat]
    rows = row + height * (1 - np.r_[flat, way, full, 1 - way])
    points = ground(rows.ravel(), columns.ravel())
    degrees = to_degrees(crs, *points)
    if degrees is None or np.abs(degrees[1]).max() > 90:
        return [None] * len(windows)
    return [_outline(ring) for ring in np.array(degrees).T.reshape(len(windows), -1, 2)]


def _outline(ring: np.ndarray) -> np.ndarray:
    """Points along the four edges of a window -> its outline, see :func:`footprints`."""
    ring = np.column_stack([np.unwrap(ring[:, 0], period=360), ring[:, 1]])
    closed = np.vstack([ring, ring[:1]])
    around = np.unwrap(closed[:, 0], period=360)[-1] - ring[0, 0]
    if abs(around) > 180:  # the pole is inside
        ring = np.vstack([ring, ring[0] + (around, 0)])
        pole = np.copysign(90.0, ring[:, 1].mean())
        return _ordered(np.vstack([ring, [ring[-1, 0], pole], [ring[0, 0], pole]]))
    corners = closed[::PIECES]
    way = (np.arange(PIECES) / PIECES)[:, None]
    straight = np.vstack([a + (b - a) * way for a, b in pairwise(corners)])
    size = np.linalg.norm(np.ptp(ring, axis=0))
    is_bent = np.abs(ring - straight).max() > _STRAIGHT * size
    return _ordered(ring if is_bent else corners[:4])


def _ordered(ring: np.ndarray) -> np.ndarray:
    """A ring anticlockwise, its first longitude in the west below 180°."""
    x, y = ring.T
    is_clockwise = np.dot(x, np.roll(y, -1)) < np.dot(np.roll(x, -1), y)
    ring = ring[::-1] if is_clockwise else ring
    return ring - (360 * np.floor((ring[:, 0].min() + 180) / 360), 0)


def to_degrees(crs: CRS, xs: np.ndarray, ys: np.ndarray) -> np.ndarray | None:
    """Points on a map -> ``(2, n)``: longitude and latitude; None for a map of another planet, or
    points that lie outside it."""
    try:
        degrees = np.array(to_other_crs(crs, CRS.from_epsg(4326), xs, ys)[:2])
    except (CRSError, RasterioError, CPLE_BaseError):
        return None
    return degrees if np.isfinite(degrees).all() else None
