"""The plug-in that reads rasters (``trsllava.readers``), see ``trsllava_utils/images.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from rasterio.windows import Window

from trsllava_extras import stac
from trsllava_extras.rasters import bands
from trsllava_extras.rasters.bands import are_colours, choose_bands, further_picture
from trsllava_extras.rasters.opening import RASTER_SUFFIXES, companions, open_raster, refused
from trsllava_extras.rasters.places import ground_sample_distance, steps
from trsllava_extras.rasters.rendering import SIDE, TOGETHER, check, index_picture, render
from trsllava_extras.rasters.scenes import WINDOW_NAME, check_tile, scan, take_windows
from trsllava_extras.rasters.upright import turn_of
from trsllava_utils.files import InputError
from trsllava_utils.folder import match_names
from trsllava_utils.images import ImageFile, Rendering, View, scaled

__all__ = ["check", "companions", "named", "read", "refused", "suffixes", "windows"]
suffixes = RASTER_SUFFIXES
_COLOURS = {  # what the model is told of pictures that are no photographs
    "radar": "It is a radar picture, no photograph. Red, green and blue are the two polarisations "
    "and their ratio, in decibels: smooth water and runways are dark, buildings and ships bright, "
    "vegetation in between. Describe what is there, not these colours.",
    "NDVI": "NDVI is a map of vegetation: green where it is dense, white where there is none, "
    "brown for water.",
    "NDWI": "NDWI is a map of water: green for water, brown for vegetation and dry land.",
}


def read(file: ImageFile, rendering: Rendering, max_side: int, first: bool) -> View:
    """A raster, or a window of it, as pictures."""
    max_side = max_side or SIDE
    with open_raster(file.path) as raster:
        window = Window(*(file.window or (0, 0, raster.width, raster.height)))
        numbers = choose_bands(raster, rendering.bands)
        how = {"window": window, "max_side": max_side, "percentiles": file.percentiles}
        each = "" if rendering.stretch == TOGETHER else rendering.stretch
        together = not each and are_colours(raster, numbers, rendering.bands)
        shown, blank = render(raster, numbers, stretch=TOGETHER if together else each, **how)
        if blank.all():
            raise InputError(f"{Path(file.path).name} holds no data")
        name = {1: "grey", 2: "radar"}.get(len(numbers), "true colour")
        pictures = {"true colour" if raster.colorinterp[0].name == "palette" else name: shown}
        found = steps(raster)
        turn = turn_of(raster, found)
        further = None if first else further_picture(raster, rendering.false_colour)
        if further:
            name, numbers = further
            if len(numbers) == 2:
                pictures[name] = index_picture(raster, numbers, window, max_side)
            else:
                pictures[name] = render(raster, numbers, stretch=each, **how)[0]
        distance = ground_sample_distance(found)
    pictures = {name: scaled(turn.picture(shown), max_side) for name, shown in pictures.items()}
    scale = max(window.width, window.height) / max(next(iter(pictures.values())).shape[:2])
    notes = tuple(_COLOURS[name] for name in pictures if name in _COLOURS)
    notes = () if "false colour" in pictures else notes
    return View(pictures, float(blank.mean()), scale, distance and distance * scale, notes)


def named(rendering: Rendering, images: pd.DataFrame, rasters: pd.DataFrame) -> Rendering:
    """A rendering that names the default of ``stretch`` where it makes a difference to an image:
    what is made of the pictures has it in its identity. Annotated files are all like the first."""
    if rendering.stretch:
        return rendering
    paths = images["path"][images["path"].map(lambda p: Path(p).suffix.lower() in suffixes)]
    is_known = len(rasters) and not rendering.bands
    first = (is_stretched(path, rendering.bands) for path in paths.head(1))
    known = rasters["stretched"] if is_known else first
    return replace(rendering, stretch=TOGETHER) if any(known) else rendering


def is_stretched(path: str, wanted: str) -> bool:
    """Whether the bands that are shown are colours, not of 8 bits; False for no raster."""
    if Path(path).suffix.lower() not in suffixes:
        return False
    try:
        with open_raster(path) as raster:
            return bands.is_stretched(raster, wanted)
    except (InputError, OSError):
        return False


def windows(
    images: pd.DataFrame,
    plain: pd.DataFrame,
    derived: Path,
    problems: list[str],
    *,
    root: Path,
    tile: int,
    overlap: int,
    remote: bool,
    annotated: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Images whose scenes are taken apart into windows, and what is known of the rasters.

    Args:
        images: of the dataset; plain: all its files as images. Where annotations name images, these
            stay whole, and windows are those that they name.
        derived: the folder that the table of rasters is kept in.
        problems: gets a sentence on what is odd.
        root: the dataset's folder; tile, overlap: of windows; remote: see :func:`stac.images`.
    """
    check_tile(tile, overlap)
    if not annotated:
        plain = stac.images(plain, root, derived, problems, remote)
    elif not images["filename"].str.contains(WINDOW_NAME).any():
        return images, pd.DataFrame()
    rasters = scan(plain, derived, tile, overlap)
    taken = take_windows(plain, rasters, problems)
    return (_name_windows(images, taken) if annotated else taken), rasters


def _name_windows(images: pd.DataFrame, windows: pd.DataFrame) -> pd.DataFrame:
    """Annotated images that have no file of their own but the name of a window become it."""
    windows = windows[windows["window"].notna()].set_index("filename")
    bare = images.loc[images["path"] == "", "filename"]
    matched = match_names(bare, windows.index)[0]
    is_window = images["filename"].isin(list(matched))
    found = windows.loc[images.loc[is_window, "filename"].map(matched)]
    for column in ("path", "window"):
        images.loc[is_window, column] = pd.Series(
            found[column].tolist(), images.index[is_window], dtype=object
        )
    return images
