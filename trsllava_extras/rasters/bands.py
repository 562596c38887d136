"""Which bands of a raster are shown: an open file goes in, band numbers (from 1) come out.

What the file says of its bands is believed: names (Red, B04, VV …) first, then colour
interpretation, then their order.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
from rasterio.io import DatasetReader
from rasterio.windows import Window

from trsllava_utils.files import InputError

_NAMES = {  # words of a band's description -> what it holds
    **dict.fromkeys(("red", "rot", "rouge", "rojo", "rosso", "vermelho"), "red"),
    **dict.fromkeys(("green", "grün", "vert", "verde"), "green"),
    **dict.fromkeys(("blue", "blau", "bleu", "azul", "blu"), "blue"),
    **dict.fromkeys(("nir", "nir1", "nir08", "infrared", "infrarot", "infrarouge"), "nir"),
    **{name: name for name in ("vv", "vh", "hh", "hv")},
}
_LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir"}  # where they are all of a name
_CODES = {  # the same by number, for each kind of satellite
    "sentinel-2": {"b2": "blue", "b3": "green", "b4": "red", "b8": "nir", "b8a": "nir"},
    "landsat-8": {"b2": "blue", "b3": "green", "b4": "red", "b5": "nir"},
    "landsat-7": {"b1": "blue", "b2": "green", "b3": "red", "b4": "nir"},
    "modis": {"b3": "blue", "b4": "green", "b1": "red", "b2": "nir"},
}
_WAVELENGTHS = {"red": 660, "green": 560, "blue": 470, "nir": 850}  # nanometres
_NEAR = 45  # nanometres: a band further away holds something else
# names of files whose bands have none: PlanetScope and SkySat write an RGB tag over B, G, R, NIR
_ORDERS = {r"_3b_\w*analytic|_ssc\d+d\d\w*_analytic": ("blue", "green", "red", "nir")}
# words that make a red, green, blue or infrared another band; "i": Green I
_NOT_PLAIN = {"edge", "rededge", "coastal", "i", "swir", "shortwave", "thermal", "quality", "qa"}
# path and band names of products of surface reflectance -> reflectance = scale x value + offset
_SURFACE = (
    (r"msil2a|_l2a\b|/t\d\d[a-z]{3}_\d{8}t\d{6}_b\d\w_[126]0m\.", 1e-4, None),
    (r"/l[cet]0[4-9]_l2s[pr]_|/sr_b\d/sr_b\d/sr_b\d$", 2.75e-5, -0.2),  # Landsat Collection 2
    (r"/hls\.[sl]30\.|_3b_\w*analytic\w*_sr", 1e-4, 0),  # HLS, PlanetScope
)
INDICES = {"ndvi": ("nir", "red"), "ndwi": ("green", "nir")}  # (a - b) / (a + b)


def band_roles(raster: DatasetReader) -> dict[str, int]:
    """What bands hold, ``{"red": 3, "nir": 4, …}``, numbers from 1: by their descriptions, by the
    product that the file's name tells, or by their wavelengths."""
    described = [set(re.findall(r"[^\W_]+", (d or "").lower())) for d in raster.descriptions]
    described = [{re.sub(r"^b0+", "b", word) for word in words} for words in described]
    file = Path(raster.name).name.lower()
    codes = _CODES[_satellite(set().union(*described), file)]
    roles: dict[str, int] = {}
    for number, words in enumerate(described, 1):
        known = _LETTERS if len(words) == 1 else {}
        named = {_NAMES.get(w) or codes.get(w) or known.get(w) for w in words} - {None}
        if len(named) == 1 and not words & _NOT_PLAIN:
            roles.setdefault(named.pop(), number)
    order = next((order for form, order in _ORDERS.items() if re.search(form, file)), ())
    if not roles and len(order) == raster.count:
        return {name: number for number, name in enumerate(order, 1)}
    return _by_wavelength(raster) | roles


def _by_wavelength(raster: DatasetReader) -> dict[str, int]:
    """The bands nearest to red, green, blue and infrared."""
    known = {n: w for n in range(1, raster.count + 1) if (w := _wavelength(raster, n))}
    nearest = {
        name: min(known, key=lambda n: abs(known[n] - middle), default=0)
        for name, middle in _WAVELENGTHS.items()
    }
    return {
        name: n for name, n in nearest.items() if n and abs(known[n] - _WAVELENGTHS[name]) <= _NEAR
    }


def _wavelength(raster: DatasetReader, band: int) -> float:
    """In nanometres; 0 where it is not told."""
    tags = {name.lower(): text for name, text in raster.tags(band).items()}
    told = raster.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM") or tags.get("wavelength")
    if not told:
        unit = r"(nm|nanomet|um|µm|μm|micromet)"
        match = re.search(
            rf"(\d+(?:\.\d+)?)\s*{unit}", (raster.descriptions[band - 1] or "").lower()
        )
        told = match[1] if match else "0"
    try:
        number = float(told)
    except ValueError:
        return 0.0
    return number if number >= 100 else 1000 * number  # else micrometres


def _satellite(words: set[str], file: str) -> str:
    """Whose band numbers these are; Sentinel-2's where nothing tells."""
    if re.match("l[et]0[4-7]_", file):
        return "landsat-7"
    if "refl" in words:
        return "modis"
    if "sr" in words:
        return "landsat-8" if "b6" in words or not {"b1", "b7"} <= words else "landsat-7"
    thermal = {"b10", "b11"} <= words and not words & {"b12", "b8a"}
    return "landsat-8" if thermal else "sentinel-2"


def data_bands(raster: DatasetReader) -> list[int]:
    """Numbers of the bands that hold data: all except alpha. A band marked as alpha still counts as
    data if its name says so (NIR, for example), or if it has values as pictures have them: many
    programs mark the fourth of four bands so."""
    named = band_roles(raster).values()
    kinds = enumerate((kind.name for kind in raster.colorinterp), 1)
    return [n for n, kind in kinds if kind != "alpha" or n in named or _varies(raster, n)]


def _varies(raster: DatasetReader, band: int) -> bool:
    """Whether most values of a band, looked at in nine places, are neither 0 nor the largest of
    their type."""
    places = product(
        *((size * k // 4 for k in (1, 2, 3)) for size in (raster.width, raster.height))
    )
    looks = [raster.read(band, window=Window(column, row, 32, 32)) for column, row in places]
    values = np.concatenate([look.ravel() for look in looks])
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    return bool(((values != 0) & (values != top)).mean() > 0.5)


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


def are_colours(raster: DatasetReader, bands: list[int], wanted: str) -> bool:
    """Whether the bands that are shown are red, green and blue: as the file says, or as the user
    ``wanted`` them where the file says nothing."""
    is_own = not wanted or bands == choose_bands(raster, "")
    return len(bands) == 3 and (is_own or not _are_told(raster))


def is_stretched(raster: DatasetReader, wanted: str = "") -> bool:
    """Whether a raster has colours that are not of 8 bits, and the ``wanted`` bands are these."""
    bands = choose_bands(raster, wanted)
    return raster.dtypes[bands[0] - 1] != "uint8" and are_colours(raster, bands, wanted)


def surface_scale(raster: DatasetReader, bands: list[int]) -> str:
    """The stored values that are shown as black and white where bands are surface reflectance of a
    known product, reflectances of 0 and 1, so that its scenes compare; "" for others."""
    where = "" if raster.name.startswith("<") else Path(raster.name).as_posix().lower()
    names = "/".join((raster.descriptions[band - 1] or "").lower() for band in bands)
    told = next((how for form, *how in _SURFACE if re.search(form, f"{where}/{names}")), None)
    if not told or raster.dtypes[bands[0] - 1] not in ("uint16", "int16"):
        return ""
    scale, offset = told
    if raster.scales[bands[0] - 1] != 1:
        scale, offset = raster.scales[bands[0] - 1], raster.offsets[bands[0] - 1]
    elif offset is None:  # Sentinel-2: since processing baseline 04.00 it is in the values
        baseline, day = re.search(r"_n(\d{4})_", where), re.search(r"_(20\d{6})t\d{6}_", where)
        later = baseline[1] >= "0400" if baseline else bool(day) and day[1] >= "20220125"
        offset = -0.1 if later else 0
    return f"{round(-offset / scale)}-{round((1 - offset) / scale)}"


def is_guess(raster: DatasetReader) -> bool:
    """Whether nothing tells which of its many bands are red, green and blue."""
    return len(data_bands(raster)) > 3 and not _are_told(raster)


def _are_told(raster: DatasetReader) -> bool:
    """Whether the file says which of its bands are red, green and blue."""
    kinds, colours = {kind.name for kind in raster.colorinterp}, {"red", "green", "blue"}
    return colours <= kinds or colours <= {*band_roles(raster)}


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
