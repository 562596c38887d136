"""Places: where images were taken. A dataset goes in, latitudes and longitudes come out (WGS 84,
degrees), from its ``coordinates.csv`` or from the GeoTIFFs themselves.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

from trsllava_utils.artefacts import InputError, file_stamp, fingerprint, keep, shown
from trsllava_utils.datasets.annotations import PLACES
from trsllava_utils.datasets.dataset import Dataset

_NAMES = {
    "image": ("image", "filename", "file_name", "image_id", "name"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "long", "longitude"),
}


def locate(dataset: Dataset) -> pd.DataFrame:
    """The places that are known.

    ``coordinates.csv`` in the dataset's folder comes first (columns image, lat, lon); images that
    it does not name are looked up in their GeoTIFF tags, once, and remembered.

    Returns:
        Indexed by ``image_id``: ``lat, lon`` in degrees; empty where nothing is known.

    Raises:
        InputError: ``coordinates.csv`` cannot be used; the message names the line.
    """
    named = _from_csv(dataset, dataset.root / PLACES)
    tiffs = dataset.with_pixels
    tiffs = tiffs[tiffs["path"].str.lower().str.endswith((".tif", ".tiff"))]
    tiffs = tiffs[~tiffs["image_id"].isin(named.index)]
    places = pd.concat([named, _from_tiffs(dataset, tiffs)]) if len(tiffs) else named
    return places.reindex(dataset.images["image_id"]).dropna()


def _from_csv(dataset: Dataset, path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame({"lat": [], "lon": []})
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except ValueError as error:
        raise InputError(f"{shown(path)} cannot be read: {str(error).splitlines()[0]}") from error
    given = {c.strip().lower(): c for c in table.columns}
    columns = {k: next((given[n] for n in ns if n in given), None) for k, ns in _NAMES.items()}
    if None in columns.values():
        raise InputError(
            f"{shown(path)}: expected the columns image, lat, lon; found {', '.join(table.columns)}"
        )
    degrees = table[[columns["lat"], columns["lon"]]].apply(pd.to_numeric, errors="coerce")
    degrees.columns = ["lat", "lon"]
    wrong = degrees.isna().any(axis=1) | (degrees.abs() > (90, 360)).any(axis=1)
    if wrong.any():
        line = int(wrong.idxmax()) + 2
        raise InputError(
            f"{shown(path)}, line {line}: {', '.join(table.iloc[line - 2])}: expected a latitude "
            "(-90 to 90) and a longitude (-360 to 360) in degrees"
        )
    ids = dataset.images["image_id"]
    names = dict(zip(dataset.images["filename"], ids, strict=True)) | dict(
        zip(ids, ids, strict=True)
    )
    degrees["lon"] = (degrees["lon"] + 180) % 360 - 180
    degrees.index = table[columns["image"]].str.strip().map(names)
    return degrees[degrees.index.notna() & ~degrees.index.duplicated()]


def _from_tiffs(dataset: Dataset, tiffs: pd.DataFrame) -> pd.DataFrame:
    """Places from the TIFF tags, read once and kept on disk."""
    stats = [(row.image_id, *file_stamp(row.path)) for row in tiffs.itertuples()]

    def make() -> dict[str, pd.DataFrame]:
        centres = {row.image_id: centre(row.path) for row in tiffs.itertuples()}
        known = {image_id: place for image_id, place in centres.items() if place}
        columns = {"orient": "index", "columns": ["lat", "lon"], "dtype": float}
        return {"places": pd.DataFrame.from_dict(known, **columns)}

    path = dataset.derived / "places" / dataset.split
    return keep(path, {"files": fingerprint(stats)}, make, ["places"])[0]["places"]


def centre(path: str | Path) -> tuple[float, float] | None:
    """Latitude and longitude of the middle of a GeoTIFF, in degrees.

    None for a file without geographic tags, or whose coordinate system has no EPSG number. Tags:
    OGC GeoTIFF 1.1 (19-008r4), section 7: a transformation, or a tie point and the pixel's size.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            tags = page.geotiff_tags if page.is_geotiff else {}
            row, column = page.imagelength / 2, page.imagewidth / 2
    except (
        OSError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
    ):  # a broken file: check_images reports it
        return None
    epsg = tags.get("ProjectedCSTypeGeoKey") or tags.get("GeographicTypeGeoKey")
    if "ModelTransformation" in tags:
        (a, b, _, x0), (d, e, _, y0) = tags["ModelTransformation"][:2]
        x, y = a * column + b * row + x0, d * column + e * row + y0
    elif "ModelTiepoint" in tags and "ModelPixelScale" in tags:
        at_column, at_row, _, x0, y0, _ = tags["ModelTiepoint"][:6]
        width, height = tags["ModelPixelScale"][:2]
        x, y = x0 + (column - at_column) * width, y0 - (row - at_row) * height
    else:
        return None
    return _to_wgs84(int(epsg or 0), float(x), float(y))


def _to_wgs84(epsg: int, x: float, y: float) -> tuple[float, float] | None:
    transformer = _transformer(epsg)
    if transformer is None:
        return None
    lon, lat = transformer.transform(x, y)
    return (lat, lon) if abs(lat) <= 90 and abs(lon) <= 180 else None


@cache
def _transformer(epsg: int):
    from pyproj import Transformer
    from pyproj.exceptions import CRSError

    try:
        return Transformer.from_crs(epsg, 4326, always_xy=True)
    except CRSError:  # no number, or one of the user's own (32767)
        return None
