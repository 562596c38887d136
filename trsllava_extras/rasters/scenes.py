"""Scenes: rasters go in, a table of what they are comes out; one larger than a tile is searched as
windows, each an image of its own, read straight from the file.

The table is kept in ``derived/rasters-TILE-OVERLAP.json``; a file is looked at again only when it
changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError, model_validator
from rasterio.io import DatasetReader
from rasterio.windows import Window

from trsllava_extras.cluster import in_threads
from trsllava_extras.rasters import places
from trsllava_extras.rasters.bands import is_guess, is_stretched
from trsllava_extras.rasters.dates import acquired
from trsllava_extras.rasters.opening import RASTER_SUFFIXES, companions, open_raster
from trsllava_extras.rasters.rendering import band_percentiles, read_values, zeros_may_be_blank
from trsllava_utils.files import InputError, file_stamp, progress, read_json, write_json
from trsllava_utils.parameters import check

WINDOW_NAME = r"@\d+_\d+"
SAMPLE = 1024  # pixels a side that the percentiles of a scene are taken from
SAVE_EACH, CHUNK = 60, 16  # seconds; files
VERSION = 4


class Photograph(BaseModel, extra="forbid", strict=True):
    """What is kept of a photograph, see :func:`scan`."""

    key: list
    gsd: FiniteFloat | None
    date: str
    footprint: list[FiniteFloat] | None
    footprints: list[list[FiniteFloat] | None] | None

    @model_validator(mode="after")
    def _places_are_points_or_rings(self) -> Photograph:
        for ring in (self.footprint, *(self.footprints or ())):
            if ring is not None and (len(ring) % 2 or len(ring) in (0, 4)):
                raise ValueError(f"{len(ring)} numbers are no place")
        return self


class Scene(Photograph):
    """What is kept of a raster."""

    windows: list[NonNegativeInt] | None
    percentiles: list[float] | None
    left_out: int
    problem: str
    guess: bool
    stretched: bool

    @model_validator(mode="after")
    def _windows_have_four_numbers_and_a_place(self) -> Scene:
        windows, percentiles = self.windows or [], self.percentiles or []
        if len(windows) != 4 * len(self.footprints or []) or len(percentiles) % 101:
            raise ValueError("windows, places and percentiles do not fit together")
        if bool(windows) != bool(percentiles):
            raise ValueError("windows without percentiles")
        return self


def check_tile(tile: int, overlap: int) -> None:
    """Raises InputError for sizes that make no windows."""
    check(tile=tile, overlap=overlap)
    if tile and not 32 <= tile <= 65_536:
        raise InputError(f"tile={tile}: give 32 to 65,536 pixels, or 0 for no windows")
    if not 0 <= overlap <= tile // 2:
        raise InputError(f"overlap={overlap}: give 0 to {tile // 2} pixels, half of tile={tile}")


def scan(images: pd.DataFrame, derived: Path, tile: int = 0, overlap: int = 0) -> pd.DataFrame:
    """Read size, place, date, windows and percentiles of the rasters among a dataset's images.

    Args:
        images: with a column ``path``.
        derived: the folder that the table is kept in.
        tile: side of a window in pixels; 0: no windows.
        overlap: of neighbouring windows, in pixels.

    Returns:
        Indexed by path: ``gsd`` (metres), ``date``, ``footprint`` (longitude and
        latitude of each corner, in one list; None where the place is not known), ``windows`` (4
        numbers each, see ``ImageFile``; none for an image that is no larger than a tile),
        ``footprints`` (a list for each window), ``percentiles`` (101 a band),
        ``left_out`` (windows without data), ``problem`` ("" for a file that can be read), ``guess``
        (whether nothing tells which bands are the colours), ``stretched`` (whether it has colours
        that are not of 8 bits). Empty where no image is a raster.
    """
    paths = images.loc[images["path"] != "", "path"].drop_duplicates()
    paths = [path for path in paths if Path(path).suffix.lower() in RASTER_SUFFIXES]
    store = derived / f"rasters-{tile}-{overlap}.json"
    version = VERSION, tile, overlap
    return look_at(paths, store, lambda path: _look(path, tile, overlap), Scene, *version)


def look_at(
    paths: list[str],
    store: Path,
    look: Callable[[Path], dict],
    kind: type[BaseModel],
    *version: int,
) -> pd.DataFrame:
    """What ``look`` says of files, one row of this kind each, kept in ``store``; a file is looked
    at again when it changes, or one that it is read with, or ``version``; and when its row is
    damaged."""
    keys = {path: _key(path, *version) for path in paths}
    kept = read_json(store).get("rows") if paths else {}
    kept = kept if isinstance(kept, dict) else {}
    rows = {path: row for path, row in kept.items() if _is_whole(row, kind, keys.get(path))}
    todo = [path for path in paths if path not in rows]
    saved = time.monotonic()

    def looked_at(path: str) -> tuple[str, dict]:
        return path, {"key": keys[path], **look(Path(path))}

    bar = progress(total=len(todo), desc="looking at files", unit="file", delay=2)
    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        rows |= in_threads(looked_at, chunk)
        bar.update(len(chunk))
        if chunk[-1] is todo[-1] or time.monotonic() - saved > SAVE_EACH:
            write_json(store, {"rows": rows}, indent=None)
            saved = time.monotonic()
    bar.close()
    return pd.DataFrame.from_dict({path: rows[path] for path in paths}, orient="index")


def _is_whole(row: Any, kind: type[BaseModel], key: list | None) -> bool:
    """Whether it is a row of this kind, and of the file as it is now."""
    with suppress(ValidationError):
        return kind.model_validate(row).key == key
    return False


def _key(path: str, *version: int) -> list:
    """Changes when a file has to be looked at again."""
    try:
        return [*map(list, map(file_stamp, (path, *companions(path)))), *version]
    except OSError:  # it has just gone
        return []


_UNKNOWN = dict.fromkeys(("gsd", "footprint", "windows", "footprints", "percentiles"))
_UNKNOWN |= {"date": "", "problem": "", "left_out": 0, "guess": False, "stretched": False}


def take_windows(images: pd.DataFrame, rasters: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Images with scenes taken apart into their windows, and without rasters that cannot be read;
    ``problems`` gets a sentence on those."""
    rows, empty = [], 0
    known = rasters.to_dict("index")
    if guesses := sum(raster["guess"] for raster in known.values()):
        problems.append(
            f"{guesses:,} rasters do not say what their bands hold: the first three are shown as "
            "red, green and blue, unless -p bands names others"
        )
    for image in images.to_dict("records"):
        raster = known.get(image["path"], {"problem": "", "windows": None})
        if raster["problem"]:
            problems.append(f"{raster['problem']}; it was left out")
        elif raster["windows"] is None:
            rows.append(image)
        else:
            empty += int(raster["left_out"])
            name = PurePosixPath(image["filename"])
            for window in np.reshape(raster["windows"], (-1, 4)).astype(int).tolist():
                at = f"@{window[1]}_{window[0]}"
                filename = str(name.with_name(f"{name.stem}{at}{name.suffix}"))
                named = {"image_id": f"{image['image_id']}{at}", "filename": filename}
                rows.append({**image, **named, "window": tuple(window)})
    if empty:
        problems.append(f"{empty:,} windows without data were left out")
    table = pd.DataFrame(rows, columns=images.columns, dtype=object)
    again = table["filename"].duplicated(keep=False) & table["window"].isna()
    for name in table.loc[again, "filename"]:
        problems.append(f"{name} has the name of a window of a scene; it was left out")
    return table[~again]


def _look(path: Path, tile: int, overlap: int) -> dict:
    try:
        with open_raster(path) as raster:
            whole = [(0, 0, raster.width, raster.height)]
            tags = raster.tags() | raster.tags(ns="IMAGERY") | raster.tags(ns="ENVI")
            row = {
                "gsd": places.ground_sample_distance(places.steps(raster)),
                "date": acquired(tags, path.name),
                "footprint": _flat(places.footprints(raster, np.array(whole))[0]),
                "guess": is_guess(raster),
                "stretched": is_stretched(raster),
            }
            is_photograph = raster.driver in ("JPEG", "PNG")  # whatever it is called
            if tile and max(raster.width, raster.height) > tile and not is_photograph:
                row |= _windows(raster, grid(raster.width, raster.height, tile, overlap))
            return _UNKNOWN | row
    except InputError as error:
        return _UNKNOWN | {"problem": str(error)}


def grid(width: int, height: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Windows that cover a raster, row by row; the last ones are moved back to lie inside it."""

    def starts(size: int) -> list[int]:
        last = max(size - tile, 0)
        return [*range(0, last, tile - overlap), last]

    size = min(tile, width), min(tile, height)
    return [(column, row, *size) for row in starts(height) for column in starts(width)]


def _windows(raster: DatasetReader, windows: list[tuple[int, int, int, int]]) -> dict:
    """The windows with data in them, and percentiles of the whole scene. Reads every window once;
    one of zeros has no data, declared or not. Raises InputError where none has any."""
    kept, samples = [], []
    is_palette = raster.colorinterp[0].name == "palette"  # zero is a class like any other

    def has_data(values: np.ndarray) -> bool:
        return bool(np.any(np.isfinite(values) & ((values != 0) | is_palette)))

    bands = list(range(1, raster.count + 1))
    step = max(1, max(raster.width, raster.height) // SAMPLE)
    for window in windows:
        values = read_values(raster, bands, Window(*window), 1)
        sample = values[:, ::step, ::step]
        if has_data(sample) or has_data(values):  # most often the sample tells
            kept.append(window)
            samples.append(sample.reshape(len(bands), -1))
    if not kept:
        raise InputError(f"{Path(raster.name).name} holds no data")
    values = np.concatenate(samples, axis=1)
    if zeros_may_be_blank(raster, bands):
        values = values[:, (values != 0).any(axis=0)]
    return {
        "windows": [int(n) for window in kept for n in window],
        "footprints": [_flat(ring) for ring in places.footprints(raster, np.array(kept))],
        "percentiles": _flat(band_percentiles(values)),
        "left_out": len(windows) - len(kept),
    }


def _flat(numbers: np.ndarray | None) -> list[float] | None:
    return None if numbers is None else [float(n) for n in np.ravel(numbers)]
