"""Where and when photographs were taken: by the camera's notes (EXIF), or by a world file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import ExifTags, Image

from trsllava_extras.rasters import places
from trsllava_extras.rasters.dates import acquired
from trsllava_extras.rasters.opening import companions, open_raster
from trsllava_extras.rasters.scenes import Photograph, look_at
from trsllava_utils.files import InputError
from trsllava_utils.images import PHOTO_SUFFIXES

VERSION = 1


def photographs(images: pd.DataFrame, derived: Path) -> pd.DataFrame:
    """What the photographs among a dataset's images say, by path: the columns ``date``, ``gsd`` and
    ``footprint`` of :func:`~trsllava_extras.rasters.scenes.scan`; a place alone is two numbers.
    Kept in ``derived/photographs.json``."""
    paths = images.loc[images["path"] != "", "path"].drop_duplicates()
    paths = [path for path in paths if Path(path).suffix.lower() in PHOTO_SUFFIXES]
    return look_at(paths, derived / "photographs.json", _look, Photograph, VERSION)


def _look(path: Path) -> dict:
    row = {"date": "", "gsd": None, "footprint": None, "footprints": None}
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            when = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal, "")
            tags = {"DateTimeOriginal": when, "TIFFTAG_DATETIME": exif.get(306, "")}
            row["date"] = acquired({name: str(text) for name, text in tags.items()}, path.name)
            row["footprint"] = _where(exif.get_ifd(ExifTags.IFD.GPSInfo))
        if companions(path):
            with open_raster(path) as raster:
                found = places.footprints(raster, [(0, 0, raster.width, raster.height)])[0]
                if found is not None:
                    row["gsd"] = places.ground_sample_distance(places.steps(raster))
                    row["footprint"] = found.ravel().tolist()
    except (InputError, OSError, SyntaxError, ValueError):
        pass  # no photograph, or a damaged one: others say so
    return row


def _where(gps: dict) -> list[float] | None:
    """Longitude and latitude of the camera; None where it does not know."""
    try:
        lat, lon = (sum(float(n) / 60**i for i, n in enumerate(gps[tag])) for tag in (2, 4))
        lat, lon = lat * (-1 if gps[1] == "S" else 1), lon * (-1 if gps[3] == "W" else 1)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return [lon, lat] if (lat or lon) and abs(lat) <= 90 and abs(lon) <= 180 else None
