"""Filters on the table of what is known of images: a condition as in SQL, a box of degrees."""

from __future__ import annotations

import re
import sqlite3

import numpy as np
import pandas as pd

from trsllava_extras.tags import BETWEEN
from trsllava_utils.files import InputError, first_few


def select(metadata: pd.DataFrame, where: str = "", bbox: str = "") -> set[str]:
    """Ids of the images that a filter lets through.

    Args:
        metadata: see :func:`load_metadata`.
        where: a condition on its columns as in SQL, ``date >= '2023-06-01' and cloud < 20``;
            images of which a column is not known are left out; ``tag = 'flooded'`` is asked of each
            tag of an image; empty: all.
        bbox: ``"west,south,east,north"`` in degrees; images whose footprint touches it; empty: all.

    Raises:
        InputError: the condition or the box cannot be understood; the columns are named.
    """
    ids = set(metadata.index)
    if where.strip():
        ids &= _where(metadata, where)
    if bbox.strip():
        ids &= _within(metadata, bbox)
    return ids


def what_there_is(metadata: pd.DataFrame, where: str = "", bbox: str = "", label: str = "") -> str:
    """What the columns of a condition hold, and where the images lie, as the end of a sentence."""
    bare = re.sub(r"'[^']*'", "", where) + (" label" if label else "")
    columns = [c for c in metadata if re.search(rf"(?<!\w){re.escape(c)}(?!\w)", bare, re.I)]
    told = ""
    for name in columns:
        values = metadata[name].dropna()
        if name == "tag" and values.dtype == object:
            values = values.str.split(BETWEEN).explode()
        values = sorted(set(values))
        if pd.api.types.is_numeric_dtype(metadata[name]) or name == "date":
            told += f"; {name} is {values[0]} to {values[-1]}"
        elif name != "geometry":
            told += f"; {name} is one of {first_few(map(str, values))}"
    if bbox.strip() and "geometry" in metadata:
        west, south = metadata[["lon", "lat"]].min()
        east, north = metadata[["lon", "lat"]].max()
        told += f"; they lie from {west:.4g} to {east:.4g} east, {south:.4g} to {north:.4g} north"
    return told


def _where(metadata: pd.DataFrame, where: str) -> set[str]:
    """SQLite reads the condition: in memory, allowed to do nothing but select from one table."""
    table = metadata.drop(columns="geometry", errors="ignore").rename_axis("image_id").reset_index()
    allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
    tag = table.get("tag", pd.Series(None, table.index, dtype=object))
    if tag.dtype == object:  # an image with several tags has a row for each
        table = table.assign(tag=tag.str.split(BETWEEN)).explode("tag")
    connection = sqlite3.connect(":memory:")
    try:
        _check_kinds(table, where)
        for name in re.findall(r'"([^"]*)"', re.sub(r"'[^']*'", "", where)):
            if name.lower() not in table.columns.str.lower():  # SQLite would take it for a text
                raise sqlite3.OperationalError(f"no such column: {name}")
        table.to_sql("metadata", connection, index=False)
        connection.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
        )
        rows = connection.execute(f"SELECT image_id FROM metadata WHERE ({where}\n)")
        return {image_id for (image_id,) in rows}
    except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
        raise InputError(
            f"where={where!r}: {error}. The columns are {', '.join(table.columns)}; write the "
            "condition as in SQL, such as \"date >= '2023-06-01' and cloud < 20\""
        ) from error
    finally:
        connection.close()


def _check_kinds(table: pd.DataFrame, where: str) -> None:
    """Raises InputError where text is compared with a number, which SQLite would do by letters."""
    bare = re.sub(r"'[^']*'", "''", where)
    for name in table.select_dtypes(exclude=["number", "bool"]).columns:
        compared = rf'(?<!\w)"?{re.escape(name)}"?\s*(?:[<>]=?|between)\s*[-+.\d]'
        if name != "date" and re.search(compared, bare, re.IGNORECASE):
            some = next(iter(table[name].dropna()), "")
            raise InputError(
                f"where={where!r}: {name} holds text, such as {some!r}; no number can be compared "
                "with it"
            )


def parse_bbox(bbox: str) -> tuple[float, float, float, float]:
    """``"west,south,east,north"`` in degrees -> four numbers.

    Raises:
        InputError: it is anything else.
    """
    try:
        west, south, east, north = (float(part) for part in bbox.split(","))
        if not (-90 <= south <= north <= 90 and -180 <= west <= 180 and -180 <= east <= 180):
            raise ValueError
        return west, south, east, north
    except ValueError:
        raise InputError(
            f"bbox={bbox!r}: give west,south,east,north in degrees, such as 11.4,48.0,11.8,48.3"
        ) from None


def _within(metadata: pd.DataFrame, bbox: str) -> set[str]:
    import shapely

    west, south, east, north = parse_bbox(bbox)
    if "geometry" not in metadata:
        raise InputError("bbox: no place is known of these images (see data/README.md#metadata)")
    east += 360 if west > east else 0  # across the date line
    shapes = metadata["geometry"].to_numpy(dtype=object)
    boxes = (shapely.box(west + turn, south, east + turn, north) for turn in (-360, 0, 360))
    inside = [shapely.intersects(shapes, box) for box in boxes]
    return set(metadata.index[np.logical_or.reduce(inside)])
