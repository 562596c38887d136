"""The table of what is known of a dataset's images, put together: rasters, photographs, tables."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_extras.metadata import tables
from trsllava_extras.metadata.photographs import photographs
from trsllava_extras.metadata.shapes import footprints, with_places
from trsllava_extras.rasters import scenes
from trsllava_extras.rasters.dates import acquired
from trsllava_extras.tags import tags_of
from trsllava_utils.data import Dataset


def load_metadata(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    """All that is known of the images.

    Rasters, and photographs with a world file, say where they lie and how large a pixel is; other
    photographs where the camera was. The date comes from their tags or a file name. Columns of
    ``metadata.csv``, GeoJSON, GeoParquet, STAC items or any other table in the dataset's folder
    that names images come first; what it says of a scene holds for its windows. Columns ``lat`` and
    ``lon`` are places.

    Returns:
        Indexed by ``image_id``: ``label, split, date`` (text), ``gsd`` (metres), ``lat, lon``
        (degrees, WGS 84, the middle of the footprint), other columns, and ``geometry`` (shapely;
        None where nobody knows the place); columns of which nothing is known are left out. And
        sentences on what was left out.
    """
    images, problems = dataset.images, []
    table = images.set_index("image_id")[["label", "split"]].replace(["", "all"], None)
    files = images["path"].where(images["path"] != "", images["filename"])  # of windows, the scene
    table["date"] = [acquired({}, Path(file).name) or None for file in files]
    table["gsd"], table["geometry"] = np.nan, None
    rasters = dataset.rasters
    rasters = rasters if len(rasters) else scenes.scan(images, dataset.derived)
    for known in (rasters, photographs(images, dataset.derived)):
        if known.empty:
            continue
        for name in ("date", "gsd"):
            told = images["path"].map(known[name]).replace("", None).set_axis(table.index)
            table[name] = told.where(told.notna(), table[name])
        table["gsd"] = table["gsd"].astype(float)
        found = footprints(known)
        places_of = zip(images["path"], images["window"], strict=True)
        places = pd.Series([found.get(place) for place in places_of], table.index, dtype=object)
        table["geometry"] = places.where(places.notna(), table["geometry"])
    table = with_places(tables.add(table, dataset, problems))
    return table.dropna(axis="columns", how="all"), problems


def metadata_of(dataset: Dataset) -> pd.DataFrame:
    """The table of :func:`load_metadata`, read once for a dataset, and the column ``tag`` as it is
    now (see ``tags.py``), where an image has one."""
    table, tags = _read_once(dataset), tags_of(dataset)
    if tags.empty:
        return table
    told = tags.reindex(table.index)
    return table.assign(tag=told.where(told.notna(), table.get("tag")))


@lru_cache(maxsize=4)
def _read_once(dataset: Dataset) -> pd.DataFrame:
    return load_metadata(dataset)[0]
