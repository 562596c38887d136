"""STAC, the catalogues of satellite data (stacspec.org): items on disk become images, each of one
file or of several, and rows of what is known of them; images found become items.

Only files inside the dataset's folder are opened, unless the user allows remote ones.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
import rasterio
from rasterio.dtypes import dtype_rev, typename_fwd

from trsllava_extras.rasters.opening import (
    FAR,
    NEAR,
    RASTER_SUFFIXES,
    driver_of,
    led_astray,
    place_of,
)
from trsllava_utils.files import InputError, first_few, parse_json, read_once, read_text, write_text

_COLOURS = ("red", "green", "blue", "nir", "nir08", "vv", "vh", "hh", "hv")
_CODES = {"b02": "blue", "b03": "green", "b04": "red", "b08": "nir"}  # Sentinel-2
_ONE, _SEVERAL = "one file", "several files"
_NO_DATA = {"thumbnail", "overview", "metadata"}  # roles
_DAY = {"start": "00:00:00", "end": "23:59:59"}
_KNOWN = {  # names of properties -> of columns
    "datetime": "date",
    "start_datetime": "date",
    "acquired": "date",  # Planet
    "eo:cloud_cover": "cloud",
    "cloud_cover": "cloud",
}


def items(root: Path) -> list[dict]:
    """The items below a folder: GeoJSON features in its files and in those of the folders in it,
    alone or in collections, and what static catalogues there link to. Each has its file as
    "self"."""
    found, seen = [], set()
    waiting = sorted([*root.glob("*.json"), *root.glob("*/*.json")], reverse=True)
    waiting = [path for path in waiting if not path.name.startswith(("dataset", "captions"))]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            continue
        seen.add(path)
        try:
            content = parse_json(read_text(path)) if is_stac(path) else None
        except InputError:
            continue  # who reads it for something else says so
        if isinstance(content, dict):
            features = [content] if content.get("type") == "Feature" else content.get("features")
            features = features if isinstance(features, list) else []
            found += [{**f, "self": path} for f in features if isinstance(f, dict) and f.get("id")]
            links = content.get("links")
            for link in links if isinstance(links, list) else ():
                if isinstance(link, dict) and link.get("rel") in ("item", "child"):
                    waiting.append(path.parent / str(link.get("href")))
    return found


@read_once
def is_stac(path: Path) -> bool:
    """Whether a JSON file is an item, a collection or a catalogue, or a single feature as Planet
    delivers it."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    return b'"stac_version"' in head or (
        bool(re.search(rb'"type"\s*:\s*"Feature"', head)) and (b'"FeatureCollection"' not in head)
    )


def table(found: list[dict], filenames: list[str]) -> pd.DataFrame:
    """What items say of images: a column ``image`` that names them, ``geometry``, and their
    properties that are one value."""
    import shapely

    by_stem = {PurePosixPath(name).stem: name for name in filenames}
    rows = []
    for item in found:
        properties = item.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        row = {k: v for k, v in properties.items() if isinstance(v, str | int | float)}
        for name, column in _KNOWN.items():
            if name in row:
                row.setdefault(column, row.pop(name))
        name = str(item["id"])
        files = [PurePosixPath(unquote(urlparse(href).path)).stem for _, href, _ in _assets(item)]
        begun = (stem for stem in by_stem if stem.startswith(name))
        own = next((stem for stem in chain([name], files, begun) if stem in by_stem), "")
        row["image"] = by_stem.get(own, name)
        try:
            row["geometry"] = shapely.geometry.shape(item["geometry"])
        except (KeyError, TypeError, AttributeError, ValueError, shapely.errors.ShapelyError):
            row["geometry"] = None
        rows.append(row)
    return pd.DataFrame(rows)


def _assets(item: dict, also_previews: bool = False) -> Iterator[tuple[str, str, dict]]:
    """Key, address and description of the assets that are pictures."""
    assets = item.get("assets")
    for key, asset in assets.items() if isinstance(assets, dict) else ():
        if isinstance(asset, dict) and isinstance(asset.get("href"), str):
            roles = asset.get("roles")
            is_preview = _NO_DATA.intersection(roles if isinstance(roles, list) else ())
            if also_previews or not is_preview:
                yield str(key), asset["href"], asset


def images(
    plain: pd.DataFrame, root: Path, derived: Path, problems: list[str], remote: bool
) -> pd.DataFrame:
    """The images of a folder, with those that items make of several files: such an image is a
    virtual raster in ``derived/stac``, and the files that it is made of are no images of their own.

    Args:
        plain: one row an image, see ``Dataset.images``.
        root: the folder; derived: of what is made.
        problems: gets a sentence on items without a picture.
        remote: whether files elsewhere (https, s3) are read too.
    """
    made: dict[str, str] = {}
    parts, told = set(), defaultdict(list)
    for item in items(root):
        files = {key: _place(href, item["self"].parent, root) for key, href, _ in _assets(item)}
        files = {key: path for key, path in files.items() if path}
        target = derived / "stac" / (re.sub(r"[^\w.@-]", "_", str(item["id"])) + ".vrt")
        bands = list(_bands(item, files))
        what = "an id that came before"
        if not (bands and target.name in made):
            what = _compose(item, files, bands, target, remote)
        told[what].append(str(item["id"]))
        if what == _SEVERAL:
            made[target.name] = str(target)
            hrefs = (href for _, href, _ in _assets(item, also_previews=True))
            parts |= {str(_beside(href, item["self"].parent)) for href in hrefs}
    for what in sorted(told.keys() - {_ONE, _SEVERAL}):
        problems.append(f"{len(told[what]):,} STAC items: {what} ({first_few(told[what])})")
    if not made:
        return plain
    kept = plain[~plain["path"].map(lambda path: str(Path(path).resolve())).isin(parts)]
    new = pd.DataFrame({"filename": list(made), "path": list(made.values())})
    new = new.assign(image_id=new["filename"].str.removesuffix(".vrt"), split="", window=None)
    return pd.concat([kept, new[kept.columns]], ignore_index=True)


def _compose(
    item: dict, files: dict[str, str], bands: list[tuple], target: Path, remote: bool
) -> str:
    """Make the virtual raster of an item whose picture is in several files, or elsewhere; what the
    item is, in words."""
    is_far = any(path.startswith("/vsi") for _, path, *_ in bands)
    if not files:
        return "no picture that can be read"
    if not is_far and len({path for _, path, *_ in bands}) < 2:
        return _ONE
    if is_far and not remote and not target.is_file():  # else it was allowed once
        return "elsewhere, -p remote yes reads them"
    sources = [item["self"], *(path for path in files.values() if not path.startswith("/vsi"))]
    try:
        if not target.is_file() or max(map(_written, sources)) >= _written(target):
            with rasterio.Env(**(FAR if is_far else NEAR)):
                write_text(target, _virtual(bands))
    except (rasterio.errors.RasterioError, OSError, KeyError) as error:
        return f"a file that cannot be read, {type(error).__name__}"
    return _SEVERAL


def _written(path: str | Path) -> int:
    return os.stat(path).st_mtime_ns


def _place(href: str, folder: Path, root: Path) -> str:
    """The address as GDAL opens it; "" for what is not opened. A file of the same name beside the
    item comes first: products are delivered with the items of their web site."""
    try:
        address = urlparse(href)
    except ValueError:  # it is none
        return ""
    if PurePosixPath(address.path).suffix.lower() not in RASTER_SUFFIXES - {".vrt"}:
        return ""
    path = _beside(href, folder)
    if path.is_file() and path.is_relative_to(root.resolve()):
        return str(path) if driver_of(path) in ("GTiff", "JP2OpenJPEG", "HFA") else ""
    if address.scheme == "s3":
        return f"/vsis3/{address.netloc}{address.path}"
    return f"/vsicurl/{href}" if address.scheme in ("http", "https") else ""


def _beside(href: str, folder: Path) -> Path:
    address = urlparse(href)
    path = PurePosixPath(unquote(address.path))
    return (folder / (path.name if address.scheme not in ("", "file") else path)).resolve()


def _bands(item: dict, pictures: dict[str, str]) -> Iterator[tuple[str, str, int, dict]]:
    """The bands that are shown: name, file, number in it, and what is said of its values."""
    found: dict[str, tuple[str, int, dict]] = {}
    properties = item.get("properties")
    known = properties.get("eo:bands") if isinstance(properties, dict) else None
    known = known if isinstance(known, list) else []  # before STAC 0.8 assets have their numbers
    for key, _, asset in _assets(item):
        told = [asset.get(name) for name in ("bands", "eo:bands")]
        bands = next((b for b in told if isinstance(b, list) and b), [{"name": key}])
        bands = [known[b] if isinstance(b, int) and b < len(known) else b for b in bands]
        values = asset.get("raster:bands")
        values = values if isinstance(values, list) else []
        for number, band in enumerate(bands if key in pictures else (), 1):
            band = band if isinstance(band, dict) else {}
            names = [band.get(n) for n in ("eo:common_name", "common_name", "name")] + [key]
            names = [str(name).lower() for name in names if name]
            names += [_CODES[name] for name in names if name in _CODES]
            name = next((name for name in names if name in _COLOURS), "")
            about = values[number - 1] if number <= len(values) else asset | band
            is_single = len(bands) == 1  # before the same in a picture made for looking at
            if name and (name not in found or is_single):
                found[name] = (pictures[key], number, about if isinstance(about, dict) else {})
    if {"red", "green", "blue"} <= found.keys() or {"vv", "hh"} & found.keys():
        yield from ((name, *found[name]) for name in _COLOURS if name in found)
    elif pictures.get("visual", "").startswith("/vsi"):  # by custom in this order
        yield from ((name, pictures["visual"], n, {}) for n, name in enumerate(_COLOURS[:3], 1))


def _virtual(bands: list[tuple[str, str, int, dict]]) -> str:
    """A virtual raster of bands from several files, as large as the first."""
    parts: list[str] = []
    for number, (name, path, source, about) in enumerate(bands, 1):
        # of a file elsewhere nothing is known but its name; GDAL would open whatever it finds
        kind = "JP2OpenJPEG" if path.lower().endswith(("jp2", "j2k")) else "GTiff"
        if not path.startswith("/vsi") and (astray := led_astray(Path(path))):
            raise OSError(f"{astray} beside {path} may lead to other files")
        kind = kind if path.startswith("/vsi") else driver_of(path)
        with rasterio.open(path, driver=kind) as raster:
            size = raster.width, raster.height
            if number == 1:
                like, where = size, place_of(raster)
            kind = typename_fwd[dtype_rev[raster.dtypes[source - 1]]]
            nodata = about.get("nodata", raster.nodatavals[source - 1])
        nodata = np.nan if nodata == "nan" else nodata
        values = {"NoDataValue": nodata, "Offset": _value(about, "offset")}
        values["Scale"] = _value(about, "scale")
        told = "".join(f"<{k}>{v}</{k}>" for k, v in values.items() if isinstance(v, int | float))
        whole = '<{} xOff="0" yOff="0" xSize="{}" ySize="{}"/>'
        parts.append(
            f'<VRTRasterBand dataType="{kind}" band="{number}"><Description>{name}</Description>'
            f"{told}<SimpleSource><SourceFilename>{escape(path)}</SourceFilename>"
            f"<SourceBand>{source}</SourceBand>{whole.format('SrcRect', *size)}"
            f"{whole.format('DstRect', *like)}</SimpleSource></VRTRasterBand>"
        )
    sizes = f'rasterXSize="{like[0]}" rasterYSize="{like[1]}"'
    return f"<VRTDataset {sizes}>{where}{''.join(parts)}</VRTDataset>"


def _value(about: dict, name: str) -> Any:
    return about.get(name, about.get(f"raster:{name}"))


def collection(table: pd.DataFrame, captions: dict[str, list[dict]]) -> dict:
    """Images as a STAC item collection, which is GeoJSON too.

    Args:
        table: one row an image: ``image_id, date, path, geometry`` and any properties. Of images
            without a date there can be no item.
        captions: variants by image.

    Raises:
        InputError: no image has a date.
    """
    import pystac
    import shapely

    from trsllava_extras.metadata.shapes import for_files

    dated = table[table["date"].notna()] if "date" in table else table[:0]
    if dated.empty:
        raise InputError("STAC items need a date, and none is known of these images")
    made = []
    for row in dated.to_dict("records"):
        place = for_files(row["geometry"]) if row["geometry"] else None
        told = {k: v for k, v in row.items() if k not in ("geometry", "path") and pd.notna(v)}
        told = {k: v.item() if hasattr(v, "item") else v for k, v in told.items()}
        day = {f"{end}_datetime": f"{row['date']}T{time}Z" for end, time in _DAY.items()}
        item = pystac.Item(
            row["image_id"],
            geometry=place and shapely.geometry.mapping(place),
            bbox=place and list(place.bounds),
            datetime=None,
            properties={**told, **day, "captions": captions[row["image_id"]]},
        )
        if row["path"]:
            item.add_asset("image", pystac.Asset(row["path"], roles=["data"]))
        made.append(item)
    return pystac.ItemCollection(made).to_dict()
