"""What is known of images beside their captions: a dataset goes in, a table comes out (date, place,
ground sample distance, and any columns of the tables that lie beside the images), and filters on
it.
"""

from __future__ import annotations

import re
import sqlite3
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from trsllava_extras.layouts import parquet_columns
from trsllava_extras.rasters import scenes
from trsllava_extras.rasters.dates import acquired, as_date
from trsllava_utils import annotations
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, parse_json, read_text, reading, shown
from trsllava_utils.folder import match_names

if TYPE_CHECKING:
    import shapely

_TABLES = ("*.csv", "*.tsv", "*.geojson", "*.json", "*.parquet", "*.geoparquet")
_STANDARD = ("date", "gsd", "label", "split", "lat", "lon")
_TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]|$)")
_LAT, _LON = ("lat", "latitude"), ("lon", "lng", "long", "longitude")


def load_metadata(dataset: Dataset) -> tuple[pd.DataFrame, list[str]]:
    """All that is known of the images.

    Rasters say where they lie and how large a pixel is; date comes from their tags or a file name.
    Columns of ``metadata.csv``, GeoJSON, GeoParquet or any other table in the dataset's folder that
    names images come first; what it says of a scene holds for its windows. Columns ``lat`` and
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
    if len(rasters):
        for name in ("date", "gsd"):
            told = images["path"].map(rasters[name]).replace("", None).set_axis(table.index)
            table[name] = told.where(told.notna(), table[name])
        footprints = _footprints(rasters)
        places_of = zip(images["path"], images["window"], strict=True)
        table["geometry"] = [footprints.get(place) for place in places_of]
    for path in tables_beside(dataset.root):
        try:
            with reading(path):
                own = _matched(_read(path), dataset, path, problems)
                if own is None:
                    raise InputError(f"{shown(path)} names no image of the dataset")
                own = {name: _comparable(own[name], path, problems) for name in own.columns}
        except InputError as error:
            problems.append(f"{error}; it was left alone")
            continue
        for name, column in own.items():
            values = column.reindex(table.index)
            table[name] = values.where(values.notna(), table[name]) if name in table else values
    return _with_geometry(table).dropna(axis="columns", how="all"), problems


@lru_cache(maxsize=4)
def metadata_of(dataset: Dataset) -> pd.DataFrame:
    """The table of :func:`load_metadata`, read once for a dataset."""
    return load_metadata(dataset)[0]


def tables_beside(root: Path) -> list[Path]:
    """The tables in a dataset's folder that are no caption files."""
    found = annotations.find(root)
    captions = found[1] if found else []
    paths = sorted(p for pattern in _TABLES for p in root.glob(pattern) if p.is_file())
    return [p for p in paths if p not in captions and not p.name.startswith((".", "dataset"))]


def _footprints(rasters: pd.DataFrame) -> dict[tuple, shapely.Polygon]:
    """The known ones, by path and window (None: the whole raster)."""
    import shapely

    rings = {(path, None): whole for path, whole in rasters["footprint"].items()}
    for path, raster in rasters[rasters["footprints"].notna()].iterrows():
        windows = np.reshape(raster["windows"], (-1, 4)).tolist()
        pairs = zip(windows, raster["footprints"], strict=True)
        rings |= {(path, tuple(window)): ring for window, ring in pairs}
    known = {place: ring for place, ring in rings.items() if isinstance(ring, list)}
    return {place: shapely.Polygon(np.reshape(ring, (-1, 2))) for place, ring in known.items()}


def _read(path: Path) -> pd.DataFrame:
    """A table; one with places has a column ``geometry``.

    Raises:
        InputError: it cannot be read, or is no table.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return annotations.read_csv(path)
    if suffix in (".json", ".geojson"):
        content = parse_json(read_text(path), shown(path))
        if not isinstance(content, dict) or content.get("type") != "FeatureCollection":
            raise InputError(f"{shown(path)} holds neither captions nor GeoJSON features")
        return _in_wgs84(path)
    if "geometry" in parquet_columns(path):
        return _in_wgs84(path)
    return pd.read_parquet(path)


def _in_wgs84(path: Path) -> pd.DataFrame:
    import geopandas

    is_json = path.suffix.lower().endswith("json")
    table = geopandas.read_file(path) if is_json else geopandas.read_parquet(path)
    table = table if table.crs is None else table.to_crs(4326)
    return pd.DataFrame(table).rename(columns={table.geometry.name: "geometry"})


def _matched(
    table: pd.DataFrame, dataset: Dataset, path: Path, problems: list[str]
) -> pd.DataFrame | None:
    """The rows by image, without the column that names them; None if no column does."""
    table = table.rename(columns=lambda name: str(name).strip())
    table = table.rename(columns={c: c.lower() for c in table if c.lower() in _STANDARD})
    table = table.loc[:, ~table.columns.str.lower().duplicated()]
    columns = [c for c in table.columns if c != "geometry" and table[c].dtype.kind in "OiU"]
    rows_of = {column: _rows_of(table[column], dataset) for column in columns}

    def rank(column: str) -> tuple:  # a column that is called so comes before numbers that fit
        is_named = column.lower() in (*annotations.IMAGE_KEYS, "image_id", "file", "scene")
        return bool(rows_of[column]), is_named, len(rows_of[column]), table[column].dtype == object

    key = max(columns, key=rank, default=None)
    if key is None or not rows_of[key]:
        return None
    again = int(table[key].dropna().duplicated().sum())
    if again:
        problems.append(f"{shown(path)}: {again} rows name an image again; the first counts")
    problems += _add_places(table, path)
    own = table.iloc[list(rows_of[key].values())].set_axis(list(rows_of[key]), axis="index")
    columns = [c for c in own.columns if c not in (key, "image_id")]
    if path.suffix.lower() in (".csv", ".tsv") and "geometry" in columns:
        columns.remove("geometry")  # text
    return own[columns]


def _comparable(values: pd.Series, path: Path, problems: list[str]) -> pd.Series:
    """A column that filters can compare: dates as ``2021-06-01``, numbers as numbers where most
    values are, else text; what is neither is left out, with a sentence."""
    if values.name == "geometry":
        import shapely

        inside = shapely.box(-360, -90, 360, 90)
        return values.map(
            lambda g: g if g is not None and not g.is_empty and inside.contains(g) else None
        )
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
        is_unsigned = pd.api.types.is_unsigned_integer_dtype(values)  # too large for SQLite
        made = values.astype(float) if is_unsigned else values
    elif pd.api.types.is_datetime64_any_dtype(values):
        made = values.dt.strftime("%Y-%m-%d %H:%M:%S").str.removesuffix(" 00:00:00")
    else:
        numbers = pd.to_numeric(values, errors="coerce")
        mostly = numbers.notna().sum() > values.notna().sum() / 2
        made = numbers if mostly else values.where(values.isna(), values.astype(str))
    if values.name == "date":
        text = made.map(lambda v: None if pd.isna(v) else str(v).removesuffix(".0"))
        made = text.map(lambda v: v and (v if _TIME.match(v) else as_date(v) or None))
    lost = values[values.notna() & made.isna()]
    if len(lost):
        kind = "dates (write 2021-06-01)" if values.name == "date" else "numbers"
        problems.append(
            f"{shown(path)}, column {values.name}: {len(lost)} values are not {kind}, such as "
            f"{lost.iloc[0]!r}; they were left out"
        )
    return made


def _rows_of(values: pd.Series, dataset: Dataset) -> dict[str, int]:
    """Image -> the first row whose value names it, or the scene that it is a window of."""
    images, names = dataset.images, values.astype(str).str.strip().tolist()
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        first.setdefault(name, row)
    folder = str(dataset.root)
    scenes_of = [path.removeprefix(folder).lstrip("/\\") for path in images["path"]]
    rows: dict[str, int] = {}
    for filenames in (scenes_of, images["filename"].tolist()):
        named = {file: name for name, file in match_names(first, set(filenames))[0].items()}
        pairs = zip(images["image_id"], filenames, strict=True)
        rows |= {image_id: first[named[file]] for image_id, file in pairs if file in named}
    return rows


def _add_places(table: pd.DataFrame, path: Path) -> list[str]:
    """Make columns of degrees ``lat`` and ``lon``, and blank the pairs that are no place on Earth;
    a sentence on the first of them."""
    named = {c.lower(): c for c in table.columns}
    lat, lon = (next((named[n] for n in names if n in named), None) for names in (_LAT, _LON))
    if lat is None or lon is None:
        return []
    degrees = table[[lat, lon]].apply(pd.to_numeric, errors="coerce")
    given = table[[lat, lon]].notna().any(axis=1)
    wrong = given & (degrees.isna().any(axis=1) | (degrees.abs() > (90, 360)).any(axis=1))
    degrees[wrong] = np.nan
    table["lat"], table["lon"] = degrees[lat], (degrees[lon] + 180) % 360 - 180
    if not wrong.any():
        return []
    line = int(np.argmax(wrong)) + 2
    return [
        f"{shown(path)}, line {line}: expected a latitude (-90 to 90) and a longitude (-360 to 360)"
        f" in degrees; {int(wrong.sum())} rows have no place"
    ]


def _with_geometry(table: pd.DataFrame) -> pd.DataFrame:
    """Places given as points become geometry, and geometry has a middle."""
    has_points = "lat" in table and "lon" in table
    if not has_points and table["geometry"].isna().all():
        return table
    import shapely

    if has_points:
        given = table[["lat", "lon"]].notna().all(axis=1)
        points = shapely.points(table.loc[given, ["lon", "lat"]].to_numpy(float))
        table.loc[given, "geometry"] = pd.Series(list(points), table.index[given], dtype=object)
    if table["geometry"].notna().any():
        middle = shapely.centroid(table["geometry"].to_numpy(dtype=object))
        table["lat"], table["lon"] = shapely.get_y(middle), shapely.get_x(middle)
        table["lon"] = (table["lon"] + 180) % 360 - 180
    return table


def select(metadata: pd.DataFrame, where: str = "", bbox: str = "") -> set[str]:
    """Ids of the images that a filter lets through.

    Args:
        metadata: see :func:`load_metadata`.
        where: a condition on its columns as in SQL, ``date >= '2023-06-01' and cloud < 20``;
            images of which a column is not known are left out; empty: all.
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


def _where(metadata: pd.DataFrame, where: str) -> set[str]:
    """SQLite reads the condition: in memory, allowed to do nothing but select from one table."""
    table = metadata.drop(columns="geometry", errors="ignore").rename_axis("image_id").reset_index()
    allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)
    connection = sqlite3.connect(":memory:")
    try:
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
