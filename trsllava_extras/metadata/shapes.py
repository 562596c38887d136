"""Places as shapes (shapely), WGS 84, longitude before latitude. One that crosses 180° goes on
beyond it here, and is cut there in files (RFC 7946).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import shapely

AROUND = 359.9  # degrees that a shape around a pole covers, at least


def footprints(rasters: pd.DataFrame) -> dict[tuple, shapely.Polygon]:
    """The known ones, by path and window (None: the whole raster)."""
    import shapely

    rings = {(path, None): whole for path, whole in rasters["footprint"].items()}
    for path, raster in rasters[rasters["footprints"].notna()].iterrows():
        windows = np.reshape(raster["windows"], (-1, 4)).tolist()
        pairs = zip(windows, raster["footprints"], strict=True)
        rings |= {(path, tuple(window)): ring for window, ring in pairs}
    known = {p: np.reshape(r, (-1, 2)) for p, r in rings.items() if isinstance(r, list)}
    return {p: shapely.Polygon(r) if len(r) > 1 else shapely.Point(r[0]) for p, r in known.items()}


def joined(shape: shapely.Geometry | None) -> shapely.Geometry | None:
    """A shape from a file, in one piece where it is cut at 180°, or jumps across; None where it is
    empty or not in degrees."""
    import shapely

    if shape is None or shape.is_empty or not shapely.box(-360, -90, 360, 90).contains(shape):
        return None
    parts = [_without_jump(part) for part in shapely.get_parts(shape)]
    west, _, east, _ = shapely.bounds(parts).T
    if west.min() <= -180 and east.max() >= 180 and len(parts) > 1:
        turns = np.where((west <= -180) & (east < 0), 360, 0)
        return shapely.union_all([_moved(p, t) for p, t in zip(parts, turns, strict=True)])
    return parts[0] if len(parts) == 1 else shape


def _moved(shape: shapely.Geometry, degrees: float) -> shapely.Geometry:
    import shapely

    return shapely.transform(shape, lambda points: points + np.array([degrees, 0]))


def _without_jump(part: shapely.Geometry) -> shapely.Geometry:
    """A polygon whose points lie on both sides of 180°; one around the world stays."""
    import shapely

    jumps = np.abs(np.diff(shapely.get_coordinates(part)[:, 0]))
    if part.geom_type != "Polygon" or not ((jumps > 180) & (jumps < 359)).any():
        return part
    return shapely.transform(part, lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]]))


def middles(shapes: np.ndarray) -> np.ndarray:
    """``(n,)`` shapes -> ``(n, 2)``: longitude and latitude of their middles, not-a-number for
    none."""
    import shapely

    points = shapely.get_coordinates(shapely.centroid(shapes)) if len(shapes) else np.empty((0, 2))
    out = np.full((len(shapes), 2), np.nan)
    out[~shapely.is_missing(shapes)] = points
    west, south, east, north = shapely.bounds(shapes).T
    for n in np.flatnonzero((east - west > AROUND) & ((north >= 90) != (south <= -90))):
        lon, lat = np.radians(shapely.get_coordinates(shapes[n])).T
        points = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
        edge = np.unique(np.round(points, 9).T[np.abs(lat) < np.pi / 2], axis=0)  # without the pole
        x, y, z = edge.mean(axis=0)
        out[n] = np.degrees([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))])
    out[:, 0] = (out[:, 0] + 180) % 360 - 180
    return out


def for_files(shape: shapely.Geometry) -> shapely.Geometry:
    """A shape as RFC 7946 has it: cut at 180°, outer rings anticlockwise."""
    import shapely

    west, _, east, _ = shape.bounds
    if west < -180 or east > 180:
        world = shapely.box(-180, -90, 180, 90)
        turns = (_moved(shape, degrees) for degrees in (-360, 0, 360))
        shape = shapely.union_all([shapely.intersection(turn, world) for turn in turns])
    return shapely.orient_polygons(shape)


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """Places given as points become geometry, and geometry has a middle: ``lat``, ``lon``."""
    has_points = "lat" in table and "lon" in table
    if not has_points and table["geometry"].isna().all():
        return table
    import shapely

    if has_points:
        given = table[["lat", "lon"]].notna().all(axis=1)
        points = shapely.points(table.loc[given, ["lon", "lat"]].to_numpy(float))
        table.loc[given, "geometry"] = pd.Series(list(points), table.index[given], dtype=object)
    if table["geometry"].notna().any():
        middle = middles(table["geometry"].to_numpy(dtype=object))
        table["lon"], table["lat"] = middle.T
    return table
