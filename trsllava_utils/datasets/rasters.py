"""Rasters through rasterio (GDAL): an open file goes in, pictures ``(H, W, 3) uint8`` come out.

What the file says of its bands is believed: names (Red, B04, VV …) first, then colour
interpretation, then their order. Pixels without data (nodata, masks, not-a-number) take no part in
the stretch and are white.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from PIL import Image
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from trsllava_utils.artefacts import InputError

RASTER_SUFFIXES = {".tif", ".tiff", ".jp2", ".j2k", ".img", ".vrt"}
SIDE = 4096  # the longest side of a picture that is read whole, in pixels
STRIP = 256  # rows that are read together
PERCENTILES = np.arange(101)
_DRIVERS = {  # first bytes of a file -> GDAL's driver; GDAL itself would try those of networks too
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\xffO\xffQ": "JP2OpenJPEG",
    b"EHFA_HEADER_TAG": "HFA",
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
}
_NAMES = {  # words of a band's description -> what it holds; the codes are those of Sentinel-2
    **dict.fromkeys(("red", "b4", "b04"), "red"),
    **dict.fromkeys(("green", "b3", "b03"), "green"),
    **dict.fromkeys(("blue", "b2", "b02"), "blue"),
    **dict.fromkeys(("nir", "nir1", "nir08", "infrared", "b8", "b08", "b8a"), "nir"),
    **{name: name for name in ("vv", "vh", "hh", "hv")},
}
_OTHERS = {"edge", "rededge", "coastal", "i", "swir", "shortwave", "thermal", "quality", "qa"}
_INDICES = {"ndvi": ("nir", "red"), "ndwi": ("green", "nir")}  # (a - b) / (a + b)
_DECIBELS = (0.0, 15.0)  # range of VV / VH

# a chip without coordinates is nothing to warn of
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open a raster. The pages of a TIFF that has several of one size are its bands.

    A virtual raster (VRT) is opened only where the file is called so; ``files.py`` looks at what
    those refer to.

    Raises:
        InputError: it is not a raster that can be read.
    """
    driver, is_virtual = driver_of(path), Path(path).suffix.lower() == ".vrt"
    if not driver or (driver == "VRT") != is_virtual:
        raise unreadable(path, ValueError("no raster"))
    options = {"GDAL_CACHEMAX": 128, "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none"}
    try:
        with rasterio.Env(**options, GDAL_VRT_ENABLE_PYTHON="NO"):
            with rasterio.open(path, driver=driver) as raster:
                pages = raster.subdatasets if raster.driver == "GTiff" else []
                if raster.count > 1 or len(pages) < 2:
                    yield raster
                    return
                stack = _stack(raster, pages)
            with rasterio.open(stack) as raster:
                yield raster
    except (OSError, RasterioError, CPLE_BaseError) as error:
        raise unreadable(path, error) from error


def driver_of(path: str | Path) -> str:
    """GDAL's driver for a file, by its first bytes; "" for none that is used here."""
    with open(path, "rb") as file:
        head = file.read(4096)
    for magic, driver in _DRIVERS.items():
        if head.startswith(magic):
            return driver
    if b"<VRTDataset" in head:
        return "VRT"
    return "ENVI" if head and Path(path).with_suffix(".hdr").is_file() else ""


def unreadable(path: str | Path, error: Exception) -> InputError:
    """The error for a file that is no image, or half of one."""
    path = Path(path)
    empty = path.is_file() and path.stat().st_size == 0
    what = "is empty" if empty else "is not a readable image"
    return InputError(f"{path.name} {what} ({type(error).__name__}); replace or remove the file")


def _stack(first: DatasetReader, pages: list[str]) -> str:
    """A virtual raster whose bands are the pages of a TIFF."""
    kinds = {"int8": "Int8", "uint8": "Byte", "uint16": "UInt16", "int16": "Int16"}
    kinds |= {"uint32": "UInt32", "int32": "Int32", "float32": "Float32", "float64": "Float64"}
    kind, size = kinds.get(first.dtypes[0]), (first.width, first.height)
    bands = []
    for page in pages:
        with rasterio.open(page) as raster:
            if (raster.width, raster.height) != size or raster.dtypes[0] != first.dtypes[0]:
                continue  # a mask or a preview
        bands.append(
            f'<VRTRasterBand dataType="{kind}" band="{len(bands) + 1}"><SimpleSource>'
            f"<SourceFilename>{escape(page)}</SourceFilename><SourceBand>1</SourceBand>"
            "</SimpleSource></VRTRasterBand>"
        )
    sizes = f'rasterXSize="{size[0]}" rasterYSize="{size[1]}"'
    return f"<VRTDataset {sizes}>{''.join(bands)}</VRTDataset>"


def band_roles(raster: DatasetReader) -> dict[str, int]:
    """What bands hold, by their descriptions: ``{"red": 3, "nir": 4, …}``, numbers from 1."""
    roles: dict[str, int] = {}
    for number, description in enumerate(raster.descriptions, 1):
        words = set(re.findall(r"[a-z0-9]+", (description or "").lower()))
        landsat = {"b5": "nir", "b8": None} if "sr" in words else {}
        named = {landsat.get(word, _NAMES.get(word)) for word in words} - {None}
        if len(named) == 1 and not words & _OTHERS:
            roles.setdefault(named.pop(), number)
    return roles


def data_bands(raster: DatasetReader) -> list[int]:
    """The numbers of the bands that are no alpha; one that is named as data is none."""
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
    number = int(name) if name.isdigit() else roles.get(name.lower(), described.get(name.lower()))
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
    if false_colour == "none" or len(data) < 4:
        return None
    colours = dict(zip(("red", "green", "blue"), choose_bands(raster, ""), strict=False))
    roles = {**colours, **({"nir": 4} if len(data) == 4 else {}), **roles}
    needed = _INDICES.get(false_colour, ("nir", "red", "green"))
    if false_colour and false_colour not in _INDICES:
        try:
            numbers = [_number(raster, name.strip(), roles, "") for name in false_colour.split(",")]
        except InputError:
            return None
        return "false colour", numbers
    if any(name not in roles for name in needed):
        return None
    return false_colour.upper() or "false colour", [roles[name] for name in needed]


def picture(
    raster: DatasetReader,
    bands: list[int],
    *,
    window: Window,
    stretch: str = "",
    max_side: int = SIDE,
    percentiles: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Bands as a picture.

    Args:
        raster: the open file.
        bands: one, two (radar) or three.
        window: the part to read.
        stretch: see ``imagery.Rendering``.
        max_side: read a reduced picture, no side of which is twice as long.
        percentiles: ``(bands of the file, 101)``, those of a whole scene; None: of this picture.

    Returns:
        ``(H, W, 3) uint8``, and ``(H, W) bool``: where there is no data.
    """
    step = max(1, int(max(window.width, window.height) // max_side))
    kinds = [kind.name for kind in raster.colorinterp]
    inverted = raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if kinds[0] == "palette" and not (inverted and raster.dtypes[0] != "uint8"):
        numbers = raster.read(1, window=window, masked=True)[::step, ::step]
        colours = raster.colormap(1)
        table = np.zeros((max(colours) + 1, 4), np.uint8)
        table[list(colours)] = list(colours.values())
        rgba = table[numbers.filled(0).clip(0, len(table) - 1)]
        return _finished(rgba[..., :3].copy(), np.ma.getmaskarray(numbers) | (rgba[..., 3] == 0))
    if kinds[:4] == ["cyan", "magenta", "yellow", "black"]:
        inks = raster.read((1, 2, 3, 4), window=window)[:, ::step, ::step]
        image = Image.fromarray(np.ascontiguousarray(np.moveaxis(inks, 0, -1)), "CMYK")
        return np.array(image.convert("RGB")), np.zeros(inks.shape[1:], bool)
    values = read_values(raster, bands, window, step)
    blank = np.isnan(values).all(axis=0)
    known = None if percentiles is None else percentiles[[b - 1 for b in bands]]
    if len(bands) == 2:
        return _finished(_radar(values, known, stretch), blank)
    shown = _stretched(values, _limits(values, known, stretch, raster.dtypes[bands[0] - 1]))
    shown = 255 - shown if inverted else shown
    return _finished(np.broadcast_to(shown, (*shown.shape[:2], 3)).copy(), blank)


def index_picture(
    raster: DatasetReader, bands: list[int], window: Window, max_side: int
) -> np.ndarray:
    """The normalised difference of two bands, from -1 (brown) over 0 (white) to 1 (green):
    NDVI (Rouse et al. 1974) of near infrared and red, NDWI (McFeeters 1996, doi:
    10.1080/01431169608948714) of green and near infrared."""
    import matplotlib

    step = max(1, int(max(window.width, window.height) // max_side))
    a, b = (
        values * raster.scales[band - 1] + raster.offsets[band - 1]
        for values, band in zip(read_values(raster, bands, window, step), bands, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        index = (a - b) / (a + b)
    colours = matplotlib.colormaps["BrBG"](np.nan_to_num(index) / 2 + 0.5)
    return _finished((colours[..., :3] * 255).astype(np.uint8), ~np.isfinite(index))[0]


def read_values(raster: DatasetReader, bands: list[int], window: Window, step: int) -> np.ndarray:
    """``(bands, H, W) float32``, not-a-number where there is no data; every ``step`` x ``step``
    pixels are one, their mean. Reads strips, so that memory does not grow with the file."""
    if step == 1:
        return _filled(raster, bands, window)
    height, width = int(window.height) // step, int(window.width) // step
    out = np.empty((len(bands), height, width), np.float32)
    rows = max(1, STRIP // step)
    for top in range(0, height, rows):
        n = min(rows, height - top)
        strip = Window(window.col_off, window.row_off + top * step, width * step, n * step)
        values = _filled(raster, bands, strip)
        known = np.isfinite(values)
        sums = (_blocks(np.where(known, values, 0), step), _blocks(known.astype(np.float32), step))
        with np.errstate(invalid="ignore"):  # 0 / 0: no data
            out[:, top : top + n] = sums[0] / sums[1]
    return out


def _blocks(values: np.ndarray, step: int) -> np.ndarray:
    """Sums over ``step`` x ``step`` pixels."""
    bands, height, width = values.shape
    rows = values.reshape(bands, height // step, step, width).sum(axis=2)
    return rows.reshape(bands, height // step, width // step, step).sum(axis=3)


def _filled(raster: DatasetReader, bands: list[int], window: Window) -> np.ndarray:
    """``(bands, H, W) float32``, not-a-number where there is no data."""
    stored = raster.read(bands, window=window)
    values = (np.abs(stored) if np.iscomplexobj(stored) else stored).astype(np.float32)
    flags = {flag.name for band in bands for flag in raster.mask_flag_enums[band - 1]}
    for plane, raw, band in zip(values, stored, bands, strict=True):
        nodata = raster.nodatavals[band - 1]
        if nodata is not None and not np.isnan(nodata):
            is_whole = raw.dtype.kind in "iu" and float(nodata).is_integer()
            plane[raw == (int(nodata) if is_whole else nodata)] = np.nan
    alpha_is_data = "alpha" in [raster.colorinterp[n - 1].name for n in data_bands(raster)]
    if "per_dataset" in flags and not alpha_is_data:
        values[:, raster.read_masks(bands[0], window=window) == 0] = np.nan
    if stored.dtype.kind in "fc":
        values[np.isinf(values)] = np.nan
    return values


def band_percentiles(values: np.ndarray) -> np.ndarray:
    """``(bands, n)`` values -> ``(bands, 101)``; bands without data have not-a-number."""
    out = np.full((len(values), len(PERCENTILES)), np.nan, np.float32)
    for row, band in zip(out, values, strict=True):
        finite = band[np.isfinite(band)]
        if finite.size:
            row[:] = np.percentile(finite, PERCENTILES)
    return out


def _limits(
    values: np.ndarray, percentiles: np.ndarray | None, stretch: str, dtype: str
) -> np.ndarray:
    """``(bands, 2)``: the values shown as black and as white."""
    stretch = stretch or ("none" if dtype == "uint8" else "2-98")
    if stretch == "none":
        top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
        return np.tile(np.float32([0, top]), (len(values), 1))
    low, high = parse_stretch(stretch)
    if not is_percentile(low, high):
        return np.tile(np.float32([low, high]), (len(values), 1))
    if percentiles is not None:
        return np.array([np.interp((low, high), PERCENTILES, row) for row in percentiles])
    finite = (band[np.isfinite(band)] for band in values)
    return np.array([np.percentile(b, (low, high)) if b.size else (0, 1) for b in finite])


def parse_stretch(stretch: str) -> tuple[float, float]:
    """``"2-98"`` -> ``(2, 98)``.

    Raises:
        InputError: it is not two numbers, the smaller one first.
    """
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    match = re.fullmatch(f"{number}-{number}", "0-100" if stretch == "minmax" else stretch)
    if not match or float(match[1]) >= float(match[2]):
        raise InputError(
            f"stretch={stretch!r}: give percentiles (2-98), values (0-3000), minmax, none, or "
            "nothing for the default"
        )
    return float(match[1]), float(match[2])


def is_percentile(low: float, high: float) -> bool:
    """Whether two numbers are percentiles; otherwise they are values."""
    return low >= 0 and 50 <= high <= 100


def _stretched(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """``(bands, H, W)`` -> ``(H, W, bands) uint8``."""
    low, high = np.nan_to_num(limits).astype(np.float32).T[..., None, None]
    scaled = values - low
    scaled *= 255 / np.maximum(high - low, 1e-6)
    np.nan_to_num(np.clip(scaled, 0, 255, out=scaled), copy=False)
    return np.moveaxis(scaled.astype(np.uint8), 0, -1)


def _radar(values: np.ndarray, percentiles: np.ndarray | None, stretch: str) -> np.ndarray:
    """Two polarisations and their ratio, in decibels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if not np.nanmedian(values) < 0:  # else they are decibels already
            values = 10 * np.log10(values)
            percentiles = None if percentiles is None else 10 * np.log10(percentiles)
        values[~np.isfinite(values)] = np.nan
        limits = _limits(values, percentiles, stretch, "float32")
    both = np.concatenate([values, values[:1] - values[1:]])
    return _stretched(both, np.vstack([limits, _DECIBELS]))


def _finished(shown: np.ndarray, blank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shown[blank] = 255
    return shown, blank
