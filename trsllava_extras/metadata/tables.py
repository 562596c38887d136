"""Tables that lie beside images, as people write them: CSV, GeoJSON, (Geo)Parquet, STAC items."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_extras import stac
from trsllava_extras.layouts import is_geoparquet, read_csv
from trsllava_extras.metadata.shapes import joined
from trsllava_extras.rasters.dates import as_date
from trsllava_utils import annotations
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, first_few, parse_json, read_text, reading, shown
from trsllava_utils.folder import leads_out, match_names

_TABLES = ("*.csv", "*.tsv", "*.geojson", "*.json", "*.parquet", "*.geoparquet")
_STANDARD = ("date", "gsd", "label", "split", "lat", "lon")
_LAT, _LON = ("lat", "latitude"), ("lon", "lng", "long", "longitude")
ITEMS = "STAC items"  # in place of a table's name; an item is no list of all images
_DAY = r"\d{4}-\d\d-\d\d(?!\d)"
_UNKNOWN = ("", "-", "–", "—", "?", "unknown", "nan", "none", "null", "na", "n/a")


def add(table: pd.DataFrame, dataset: Dataset, problems: list[str]) -> pd.DataFrame:
    """A table of what is known of images with the columns of the tables beside them, which come
    first; ``problems`` gets sentences on what was left out."""
    found = stac.items(dataset.root) if dataset.root.is_dir() else []
    names = [*dataset.images["filename"], *(Path(path).name for path in dataset.images["path"])]
    beside = {dataset.root / ITEMS: lambda _: stac.table(found, names)} if found else {}
    for path, read in (beside | dict.fromkeys(tables_beside(dataset.root), _read)).items():
        try:
            with reading(path):
                own = _matched(read(path), dataset, path, problems)
                if own is None:
                    raise InputError(f"{shown(path)} names no image of the dataset")
                own = {name: _comparable(own[name], path, problems) for name in own.columns}
        except InputError as error:
            problems.append(f"{error}; it was left alone")
            continue
        for name, column in own.items():
            values = column.reindex(table.index)
            table[name] = values.where(values.notna(), table[name]) if name in table else values
    return table


def tables_beside(root: Path) -> list[Path]:
    """The tables in a dataset's folder that are neither caption files nor STAC."""
    found = annotations.find(root)
    captions = found[1] if found else []
    paths = sorted(p for pattern in _TABLES for p in root.glob(pattern) if p.is_file())
    paths = [p for p in paths if p not in captions and not leads_out(p, root)]
    paths = [p for p in paths if not p.name.startswith((".", "dataset"))]
    return [p for p in paths if p.suffix != ".json" or not stac.is_stac(p)]


def _read(path: Path) -> pd.DataFrame:
    """A table of text; one with places has a column ``geometry``.

    Raises:
        InputError: it cannot be read, or is no table.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return read_csv(path, dtype=str)
    if suffix in (".json", ".geojson"):
        content = parse_json(read_text(path), shown(path))
        if not isinstance(content, dict) or content.get("type") != "FeatureCollection":
            raise InputError(f"{shown(path)} holds neither captions nor GeoJSON features")
        return _features(content)
    return _in_wgs84(path) if is_geoparquet(path) else pd.read_parquet(path)


def _features(content: dict) -> pd.DataFrame:
    """The features of a GeoJSON file, one a row. A place that cannot be read becomes one that is
    none, so that it is told."""
    import geopandas
    import shapely

    features = content.get("features")
    features = [f for f in features if isinstance(f, dict)] if isinstance(features, list) else []
    rows, shapes = [], []
    for feature in features:
        own, shape = feature.get("properties"), None
        rows.append({k: feature[k] for k in ("id",) if k in feature} | (own if own else {}))
        with suppress(Exception):  # of whatever kind shapely raises
            shape = shapely.geometry.shape(feature["geometry"])
        shapes.append(shape)
    named = content.get("crs") or {"properties": {"name": "EPSG:4326"}}  # before RFC 7946
    table = geopandas.GeoSeries(shapes, crs=named["properties"]["name"]).to_crs(4326)
    places = [
        shapely.Point(999, 999) if feature.get("geometry") and not shape else shape
        for feature, shape in zip(features, table, strict=True)
    ]
    return pd.DataFrame(rows).assign(geometry=pd.Series(places, dtype=object))


def _in_wgs84(path: Path) -> pd.DataFrame:
    import geopandas

    table = geopandas.read_parquet(path)
    table = table if table.crs is None else table.to_crs(4326)
    return pd.DataFrame(table).rename(columns={table.geometry.name: "geometry"})


def _matched(
    table: pd.DataFrame, dataset: Dataset, path: Path, problems: list[str]
) -> pd.DataFrame | None:
    """The rows by image, without the column that names them; None if no column does."""
    table = table.rename(columns=lambda name: str(name).strip())
    table = table.rename(columns={c: c.lower() for c in table if c.lower() in _STANDARD})
    table = table.loc[:, ~table.columns.str.lower().duplicated() & (table.columns != "")]
    names = {c: _names(table[c]) for c in table.columns if c != "geometry"}
    every = dataset.whole[0] if dataset.whole else dataset.images
    rows_of = {c: _rows_of(told, every, dataset.root) for c, told in names.items() if told}

    def rank(column: str) -> tuple:  # a column that is called so comes before numbers that fit
        is_named = column.lower() in (*annotations.IMAGE_KEYS, "image_id", "file", "scene")
        return bool(rows_of[column]), is_named, len(rows_of[column]), table[column].dtype == object

    key = max(rows_of, key=rank, default=None)
    if key is None or not rows_of[key]:
        return None
    left_over = [] if path.name == ITEMS else _left_over(names[key], rows_of[key], dataset)
    problems += _add_places(table, path) + [f"{shown(path)}: {told}" for told in left_over]
    images = set(dataset.images["image_id"])
    here = {image: row for image, row in rows_of[key].items() if image in images}
    own = table.iloc[list(here.values())].set_axis(list(here), axis="index")
    columns = [c for c in own.columns if c not in (key, "image_id")]
    if path.suffix.lower() in (".csv", ".tsv") and "geometry" in columns:
        columns.remove("geometry")  # text
    return own[columns]


def _names(values: pd.Series) -> list[str]:
    """A column as names of images, "" for none; empty where it can hold none. Whole numbers with
    gaps are floats to pandas: 101.0 is 101."""
    if values.dtype.kind == "f":
        whole = values.dropna() % 1 == 0
        values = values.astype("Int64") if len(whole) and whole.all() else values
    if values.dtype.kind not in "OiU":
        return []
    return ["" if pd.isna(value) else str(value).strip() for value in values]


def _rows_of(names: list[str], images: pd.DataFrame, root: Path) -> dict[str, int]:
    """Image -> the first row whose value names it, or the scene that it is a window of."""
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if name:
            first.setdefault(name, row)
    scenes_of = [path.removeprefix(str(root)).lstrip("/\\") for path in images["path"]]
    rows: dict[str, int] = {}
    for filenames in (scenes_of, images["filename"].tolist()):
        named = {file: name for name, file in match_names(first, set(filenames))[0].items()}
        pairs = zip(images["image_id"], filenames, strict=True)
        rows |= {image_id: first[named[file]] for image_id, file in pairs if file in named}
    return rows


def _left_over(names: list[str], rows: dict[str, int], dataset: Dataset) -> list[str]:
    """Sentences on rows that match no image, and images without a row, of a table of several."""
    used = {names[row] for row in rows.values()}
    unmatched = [name for name in names if name not in used]
    again = sum(map(bool, names)) - len({*filter(None, names)})
    bare = [image for image in dataset.images["image_id"] if image not in rows]
    told = []
    if again:
        told.append(f"{again:,} rows name an image again; the first counts")
    if unmatched:
        some = first_few(name or "(no name)" for name in dict.fromkeys(unmatched))
        told.append(f"{len(unmatched):,} of {len(names):,} rows match no image: {some}")
    if bare and len(names) > 1:
        told.append(f"{len(bare):,} images have no row: {first_few(bare)}")
    return told


def _comparable(values: pd.Series, path: Path, problems: list[str]) -> pd.Series:
    """A column that filters can compare: dates as ``2021-06-01``, numbers as numbers where most
    values are, else text; what is neither is left out, with a sentence."""
    if values.name == "geometry":
        made, given = values.map(joined), values.map(lambda g: g is not None and not g.is_empty)
        if lost := int((given & made.isna()).sum()):
            problems.append(
                f"{shown(path)}: {lost:,} places are not in degrees, longitude before latitude "
                "(WGS 84, as GeoJSON has them); they were left out"
            )
        return made
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
        is_unsigned = pd.api.types.is_unsigned_integer_dtype(values)  # too large for SQLite
        made = values.astype(float) if is_unsigned else values
    elif pd.api.types.is_datetime64_any_dtype(values):
        made = values.dt.strftime("%Y-%m-%d %H:%M:%S").str.removesuffix(" 00:00:00")
    else:
        text = values.map(lambda v: None if pd.isna(v) else str(v).strip())
        values = text.where(~text.str.lower().isin(_UNKNOWN), None)
        made = _numbers(values)
        made = values if made is None else made
        if values.dropna().str.match(_DAY).all():  # of another name than "date"
            made = values.where(values.isna() | values.map(lambda v: bool(v and as_date(v[:10]))))
    if values.name == "gsd":
        made = pd.to_numeric(made, errors="coerce")
    if values.name == "date":
        text = made.map(lambda v: None if pd.isna(v) else str(v).removesuffix(".0"))
        made = text.map(lambda v: v and (as_date(v) or None))
    lost = values[values.notna() & made.isna()]
    if len(lost):
        is_day = values.name == "date" or re.match(_DAY, str(lost.iloc[0]))
        kind = "dates (write 2021-06-01)" if is_day else "numbers"
        problems.append(
            f"{shown(path)}, column {values.name}: {len(lost)} values are not {kind}, such as "
            f"{lost.iloc[0]!r}; they were left out"
        )
    return made


def _numbers(texts: pd.Series) -> pd.Series | None:
    """Numbers as people write them: 1,234.5, 1.234,5 and 12 %; also true and false. None where most
    are none, or one begins with 0 and is rather a name: 0010."""
    known = texts.dropna()
    if not len(known) or known.str.match(r"[+-]?0\d").any():
        return None
    if known.str.lower().isin(("true", "false")).all():
        return texts.map(lambda text: text and text.lower() == "true")
    is_english = known.str.contains(r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*%?$").any()
    has_commas = known.str.contains(r"\d,\d").any() and not is_english

    def plain(text: str | None) -> str | None:
        if text is None:
            return None
        text = re.sub(r"\s*%$|(?<=\d)[  '](?=\d{3})", "", text)
        if has_commas and ("," in text or re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+", text)):
            return text.replace(".", "").replace(",", ".")
        return text.replace(",", "")

    numbers = pd.to_numeric(texts.map(plain), errors="coerce")
    return numbers if numbers.notna().sum() > len(known) / 2 else None


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
