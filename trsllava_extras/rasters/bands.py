"""Which bands of a raster are shown: an open file goes in, band numbers (from 1) come out.

What the file says of its bands is believed: names (Red, B04, VV …) first, then colour
interpretation, then their order.
"""

from __future__ import annotations

import re
from pathlib import Path

from rasterio.io import DatasetReader

from trsllava_utils.files import InputError

_NAMES = {  # words of a band's description -> what it holds
    "red": "red",
    "green": "green",
    "blue": "blue",
    **dict.fromkeys(("nir", "nir1", "nir08", "infrared"), "nir"),
    **{name: name for name in ("vv", "vh", "hh", "hv")},
}
_CODES = {  # the same by number, for each kind of satellite
    "sentinel-2": {"b2": "blue", "b3": "green", "b4": "red", "b8": "nir", "b8a": "nir"},
    "landsat-8": {"b2": "blue", "b3": "green", "b4": "red", "b5": "nir"},
    "landsat-7": {"b1": "blue", "b2": "green", "b3": "red", "b4": "nir"},
    "modis": {"b3": "blue", "b4": "green", "b1": "red", "b2": "nir"},
}
# words that make a red, green, blue or infrared another band; "i": Green I
_NOT_PLAIN = {"edge", "rededge", "coastal", "i", "swir", "shortwave", "thermal", "quality", "qa"}
INDICES = {"ndvi": ("nir", "red"), "ndwi": ("green", "nir")}  # (a - b) / (a + b)


def band_roles(raster: DatasetReader) -> dict[str, int]:
    """What bands hold, by their descriptions: ``{"red": 3, "nir": 4, …}``, numbers from 1."""
    described = [set(re.findall(r"[a-z0-9]+", (d or "").lower())) for d in raster.descriptions]
    described = [{re.sub(r"^b0+", "b", word) for word in words} for words in described]
    codes = _CODES[_satellite(set().union(*described))]
    roles: dict[str, int] = {}
    for number, words in enumerate(described, 1):
        named = {_NAMES.get(word, codes.get(word)) for word in words} - {None}
        if len(named) == 1 and not words & _NOT_PLAIN:
            roles.setdefault(named.pop(), number)
    return roles


def _satellite(words: set[str]) -> str:
    """Whose band numbers these are; Sentinel-2's where nothing tells."""
    if "refl" in words:
        return "modis"
    if "sr" in words:
        return "landsat-8" if "b6" in words or not {"b1", "b7"} <= words else "landsat-7"
    thermal = {"b10", "b11"} <= words and not words & {"b12", "b8a"}
    return "landsat-8" if thermal else "sentinel-2"


def data_bands(raster: DatasetReader) -> list[int]:
    """Numbers of the bands that hold data: all except alpha. A band marked as alpha still counts as
    data if its name says so (NIR, for example)."""
    named = band_roles(raster).values()
    kinds = enumerate((kind.name for kind in raster.colorinterp), 1)
    return [number for number, kind in kinds if kind != "alpha" or number in named]


def choose_bands(raster: DatasetReader, bands: str) -> list[int]:
    """Numbers of the bands that make the first picture: one (grey), two (radar) or three (colour).

    Args:
        raster: the open file.
        bands: what the user chose, numbers or names; files that are no multi-band rasters ignore
            it.

    Raises:
        InputError: the file has no such band.
    """
    data, roles = data_bands(raster), band_roles(raster)
    kinds = [kind.name for kind in raster.colorinterp]
    by_colour = [kinds.index(k) + 1 for k in ("red", "green", "blue") if k in kinds]
    is_multiband = len(data) > 3 or (len(data) > 1 and len(by_colour) < 3)
    if bands and is_multiband:
        return [_number(raster, name.strip(), roles, bands) for name in bands.split(",")]
    for names in (("red", "green", "blue"), ("vv", "vh"), ("hh", "hv")):
        if all(name in roles for name in names):
            return [roles[name] for name in names]
    if len(by_colour) == 3:
        return by_colour
    return data[:3] if len(data) >= 3 else data[:1]


def _number(raster: DatasetReader, name: str, roles: dict[str, int], bands: str) -> int:
    described = {(text or "").lower(): n for n, text in enumerate(raster.descriptions, 1)}
    number = int(name) if name.isdecimal() else roles.get(name.lower(), described.get(name.lower()))
    if number is None or not 1 <= number <= raster.count:
        names = ", ".join(text for text in raster.descriptions if text)
        raise InputError(
            f"{Path(raster.name).name} has {raster.count} band(s){': ' + names if names else ''}, "
            f"but bands={bands} was asked for"
        )
    return number


def further_picture(raster: DatasetReader, false_colour: str) -> tuple[str, list[int]] | None:
    """Name and bands of a second picture; None where the file lacks the bands.

    Args:
        raster: the open file.
        false_colour: bands shown as red, green, blue; "ndvi" or "ndwi"; empty: near infrared, red
            and green where they are known, with the fourth of four bands as near infrared (NAIP,
            Gaofen, PlanetScope); "none".
    """
    data, roles = data_bands(raster), band_roles(raster)
    if false_colour == "none" or len(data) < 3 or {"vv", "hh"} & roles.keys():
        return None
    colours = dict(zip(("red", "green", "blue"), choose_bands(raster, ""), strict=False))
    is_nameless = len(data) == 4 and not raster.descriptions[data[3] - 1]
    roles = {**colours, **({"nir": data[3]} if is_nameless else {}), **roles}
    needed = INDICES.get(false_colour, ("nir", "red", "green"))
    if false_colour and false_colour not in INDICES:
        try:
            numbers = [_number(raster, name.strip(), roles, "") for name in false_colour.split(",")]
        except InputError:
            return None
        return "false colour", numbers
    if any(name not in roles for name in needed):
        return None
    return false_colour.upper() or "false colour", [roles[name] for name in needed]
