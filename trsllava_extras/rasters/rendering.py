"""From numbers to a picture: bands of an open raster go in, ``(H, W, 3) uint8`` comes out.

Pixels without data (nodata, masks, not-a-number) take no part in the stretch and are white.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from PIL import Image
from rasterio.io import DatasetReader
from rasterio.windows import Window
from scipy import ndimage

from trsllava_extras.rasters.bands import INDICES, data_bands, surface_scale
from trsllava_extras.rasters.opening import nodata_of
from trsllava_utils.files import InputError
from trsllava_utils.images import Rendering

SIDE = 4096  # the longest side of a picture that is read whole, in pixels
TOGETHER, PER_BAND = "together", "per-band"
STRIP = 256  # rows that are read together
PERCENTILES = np.arange(101)
_DECIBELS = (0.0, 15.0)  # range of VV / VH
# Haze adds to blue, then to green, in dark places and in bright ones. In two Landsat scenes of
# Level 1 blue's darkest percentile lies above red's by 0.23 and 0.25 of the range; of the sample's
# 210 photographs, which have no haze, two are above 0.1. With all of it taken away, seas turn grey.
_HAZE, _HAZE_TAKEN = 0.1, 0.7
_ALIKE = 10  # bands whose brightest values differ more are no colours


def check(rendering: Rendering) -> None:
    """Raise InputError where a rendering is not one.

    ``bands`` shown as red, green, blue: numbers from 1 or names, "4,3,2" or "B4,B3,B2"; two are
    shown as radar (both and their ratio in decibels); empty: what the file says, else the first
    three. ``stretch``, the values shown as black and white: for each band by itself percentiles
    "2-98" (second number from 50 to 100) or "per-band", the same; values "0-3000", "minmax", "none"
    (the range of the type); empty or "together": "none" for 8 bits, one range for red, green and
    blue, so that colours stay what they are, surface reflectance of known products from 0 to 1 by
    the curve of sRGB, else "2-98". ``false_colour``, a second picture for the captioner: bands,
    "ndvi" or "ndwi"; empty: near infrared, red, green where these are known; "none".
    """
    parts = [part.strip() for part in rendering.bands.split(",")]
    if rendering.bands and (len(parts) not in (2, 3) or not all(parts) or "0" in parts):
        raise InputError(
            f"bands={rendering.bands!r}: give three bands by number from 1 or by name, such as "
            "'4,3,2', two for radar, or nothing"
        )
    if rendering.stretch not in ("", "none", TOGETHER, PER_BAND):
        parse_stretch(rendering.stretch)
    wanted = rendering.false_colour
    is_named = wanted in ("", "none", *INDICES)
    if not is_named and len(list(filter(str.strip, wanted.split(",")))) != 3:
        raise InputError(f"false_colour={wanted!r}: give three bands, ndvi, ndwi, none or nothing")


def render(
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
        stretch: see :func:`check`; "together" is for colours, empty the same as "per-band".
        max_side: blocks of pixels are averaged while reading, until the longer side is less than
            twice as long, in pixels; the caller scales the rest.
        percentiles: ``(bands of the file, 101)``, those of a whole scene; None: of this picture.

    Returns:
        ``(H, W, 3) uint8``, and ``(H, W) bool``: where there is no data.
    """
    step = _step(window, max_side)
    kinds = [kind.name for kind in raster.colorinterp]
    inverted = raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if kinds[0] == "palette" and not (inverted and raster.dtypes[0] != "uint8"):
        numbers = _strided(raster, [1], window, step)[0]
        colours = raster.colormap(1)
        table = np.zeros((max(colours) + 1, 4), np.uint8)
        table[list(colours)] = list(colours.values())
        rgba = table[numbers.filled(0).clip(0, len(table) - 1)]
        return _finished(rgba[..., :3].copy(), np.ma.getmaskarray(numbers) | (rgba[..., 3] == 0))
    if kinds[:4] == ["cyan", "magenta", "yellow", "black"]:
        inks = _strided(raster, [1, 2, 3, 4], window, step).data
        image = Image.fromarray(np.ascontiguousarray(np.moveaxis(inks, 0, -1)), "CMYK")
        return np.array(image.convert("RGB")), np.zeros(inks.shape[1:], bool)
    values = read_values(raster, bands, window, step)
    if zeros_may_be_blank(raster, bands):
        values[:, _collar(values)] = np.nan
    blank = np.isnan(values).all(axis=0)
    known = None if percentiles is None else percentiles[[b - 1 for b in bands]]
    if len(bands) == 2:
        return _finished(_radar(values, known, stretch), blank)
    dtype, bits = raster.dtypes[bands[0] - 1], raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    if dtype == "uint8" and stretch in ("", TOGETHER, PER_BAND):
        stretch = f"0-{2 ** int(bits) - 1}" if bits else "none"
    scale = surface_scale(raster, bands) if stretch == TOGETHER else ""
    if scale and np.nanmax(values, initial=0) > parse_stretch(scale)[0]:  # else they were changed
        shown = _stretched(values, _limits(values, known, scale, dtype), as_camera=True)
    else:
        shown = _stretched(values, _limits(values, known, stretch, dtype))
    shown = 255 - shown if inverted else shown
    return _finished(np.broadcast_to(shown, (*shown.shape[:2], 3)).copy(), blank)


def index_picture(
    raster: DatasetReader, bands: list[int], window: Window, max_side: int
) -> np.ndarray:
    """The normalised difference of two bands, from -1 (brown) over 0 (white) to 1 (green):
    NDVI (Rouse et al. 1974) of near infrared and red, NDWI (McFeeters 1996, doi:
    10.1080/01431169608948714) of green and near infrared."""
    import matplotlib

    step = _step(window, max_side)
    a, b = (
        values * raster.scales[band - 1] + raster.offsets[band - 1]
        for values, band in zip(read_values(raster, bands, window, step), bands, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        index = (a - b) / (a + b)
    colours = matplotlib.colormaps["BrBG"](np.nan_to_num(index) / 2 + 0.5)
    return _finished((colours[..., :3] * 255).astype(np.uint8), ~np.isfinite(index))[0]


def _step(window: Window, max_side: int) -> int:
    return max(1, int(max(window.width, window.height) // max_side))


def read_values(raster: DatasetReader, bands: list[int], window: Window, step: int) -> np.ndarray:
    """``(bands, H, W)`` in float32, or float64 where that would lose digits; not-a-number where
    there is no data. Every ``step`` x ``step`` pixels are one, their mean. Reads strips, so that
    memory does not grow with the file."""
    if step == 1:
        return _filled(raster, bands, window)
    strips = []
    for strip in _strips(window, step):
        values = _filled(raster, bands, strip)
        rest = (-values.shape[1] % step, -values.shape[2] % step)  # of blocks at the edge
        values = np.pad(values, ((0, 0), (0, rest[0]), (0, rest[1])), constant_values=np.nan)
        known = np.isfinite(values)
        sums = (_blocks(np.where(known, values, 0), step), _blocks(known.astype(np.float32), step))
        with np.errstate(invalid="ignore"):  # 0 / 0: no data
            strips.append(sums[0] / sums[1])
    return np.concatenate(strips, axis=1)


def _strips(window: Window, step: int) -> Iterator[Window]:
    """A window cut into strips of whole steps, so that memory does not grow with the file."""
    rows = max(1, STRIP // step) * step
    for top in range(0, int(window.height), rows):
        height = min(rows, int(window.height) - top)
        yield Window(window.col_off, window.row_off + top, window.width, height)


def _strided(
    raster: DatasetReader, bands: list[int], window: Window, step: int
) -> np.ma.MaskedArray:
    """Every ``step``-th pixel of a window, as stored."""
    strips = (raster.read(bands, window=s, masked=True) for s in _strips(window, step))
    return np.ma.concatenate([strip[:, ::step, ::step] for strip in strips], axis=1)


def _blocks(values: np.ndarray, step: int) -> np.ndarray:
    """Sums over ``step`` x ``step`` pixels."""
    bands, height, width = values.shape
    rows = values.reshape(bands, height // step, step, width).sum(axis=2)
    return rows.reshape(bands, height // step, width // step, step).sum(axis=3)


def _filled(raster: DatasetReader, bands: list[int], window: Window) -> np.ndarray:
    """``(bands, H, W)``, as :func:`read_values` gives it, without the mean."""
    stored = raster.read(bands, window=window)
    values = np.abs(stored) if np.iscomplexobj(stored) else stored
    values = values.astype(np.result_type(values.dtype, np.float32))
    flags = {flag.name for band in bands for flag in raster.mask_flag_enums[band - 1]}
    missing = np.zeros(stored.shape, bool)
    for plane, raw, band in zip(missing, stored, bands, strict=True):
        nodata = nodata_of(raster, band)
        if nodata is not None and not np.isnan(nodata):
            if raw.dtype.kind in "iu":
                plane |= raw == (int(nodata) if float(nodata).is_integer() else nodata)
            else:  # writers round it: to float32, or to some digits
                plane |= np.isclose(raw, nodata, rtol=1e-6, atol=0)
    # of whole numbers, nodata counts where all bands have it: one alone may really be so bright
    values[missing if stored.dtype.kind == "f" else missing & missing.all(axis=0)] = np.nan
    if "per_dataset" in flags:
        kinds = {raster.colorinterp[number - 1].name for number in data_bands(raster)}
        if "alpha" not in kinds:  # else it is data, and no mask
            values[:, raster.read_masks(bands[0], window=window) == 0] = np.nan
    if stored.dtype.kind in "fc":
        values[np.isinf(values)] = np.nan
    return values


def zeros_may_be_blank(raster: DatasetReader, bands: list[int]) -> bool:
    """Whether zeros at the edge are no data though the file does not say so, as in partial tiles of
    Sentinel-2: of measurements in colour or without sign. (A sea of height 0 is data.)"""
    told = {flag.name for band in bands for flag in raster.mask_flag_enums[band - 1]}
    kinds = {raster.dtypes[band - 1] for band in bands}
    is_measured = len(bands) >= 3 or kinds <= {"uint16", "uint32"}
    return told == {"all_valid"} and is_measured and "uint8" not in kinds


def _collar(values: np.ndarray) -> np.ndarray:
    """``(H, W) bool``: pixels of zeros that hang together with the edge."""
    zeros = (values == 0).all(axis=0)
    inside = zeros.copy()
    inside[[0, -1]] = inside[:, [0, -1]] = False
    if (inside == zeros).all():  # most often
        return np.zeros_like(zeros)
    pieces, _ = ndimage.label(zeros)
    at_edge = np.unique(pieces[zeros & ~inside])
    return np.isin(pieces, at_edge)


def band_percentiles(values: np.ndarray) -> np.ndarray:
    """``(bands, n)`` values -> ``(bands, 101)``; bands without data have not-a-number."""
    out = np.full((len(values), len(PERCENTILES)), np.nan)
    for row, band in zip(out, values, strict=True):
        finite = band[np.isfinite(band)]
        if finite.size:
            row[:] = np.percentile(finite, PERCENTILES)
    return out


def _limits(
    values: np.ndarray, percentiles: np.ndarray | None, stretch: str, dtype: str
) -> np.ndarray:
    """``(bands, 2)``: the values shown as black and as white."""
    if stretch == TOGETHER:
        if percentiles is None:
            return _colour_limits(values.reshape(3, -1))
        middles = PERCENTILES[:-1] + 0.5  # each stands for one hundredth of the values
        return _colour_limits(np.array([np.interp(middles, PERCENTILES, p) for p in percentiles]))
    stretch = "2-98" if stretch in ("", PER_BAND) else stretch
    if stretch == "none":
        top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
        return np.tile(np.float64([0, top]), (len(values), 1))
    low, high = parse_stretch(stretch)
    if not is_percentile(low, high):
        return np.tile([low, high], (len(values), 1))
    if percentiles is not None:
        return np.array([np.interp((low, high), PERCENTILES, row) for row in percentiles])
    finite = (band[np.isfinite(band)] for band in values)
    return np.array([np.percentile(b, (low, high)) if b.size else (0, 1) for b in finite])


def _colour_limits(values: np.ndarray) -> np.ndarray:
    """``(3, n)`` values of red, green and blue, or percentiles of them -> ``(3, 2)``: one range for
    all, so that colours stay what they are. Where the darkest values show haze, most of it is taken
    away; each has its own range where they are no colours of one picture."""
    bands = [band[np.isfinite(band)] for band in values]
    bands = [band if band.size else np.zeros(1) for band in bands]
    dark, bright = np.array([np.percentile(band, (1, 98)) for band in bands]).T
    if bright.max() > _ALIKE * bright.min() > 0:
        return np.array([np.percentile(band, (2, 98)) for band in bands])
    low, high = np.percentile(np.concatenate(bands), (2, 98))
    is_ordered = dark[2] > dark[1] > dark[0] and bright[2] > bright[0]
    if not is_ordered or dark[2] - dark[0] <= _HAZE * (high - low):
        return np.tile((low, high), (3, 1))
    haze = _HAZE_TAKEN * (dark - dark[0])
    clear = np.concatenate([band - cast for band, cast in zip(bands, haze, strict=True)])
    return haze[:, None] + np.percentile(clear, (2, 98))


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


def _stretched(values: np.ndarray, limits: np.ndarray, as_camera: bool = False) -> np.ndarray:
    """``(bands, H, W)`` -> ``(H, W, bands) uint8``, in proportion or by the curve of sRGB (IEC
    61966-2-1), as cameras store light."""
    low, high = np.nan_to_num(limits).astype(values.dtype).T[..., None, None]
    scaled = values - low
    scaled *= 255 / np.where(high > low, high - low, 1)
    np.clip(scaled, 0, 255, out=scaled)
    scaled[np.isnan(scaled)] = 0
    if as_camera:
        light = scaled / 255
        bright = 1.055 * np.power(light, 1 / 2.4) - 0.055
        scaled = 255 * np.where(light <= 0.0031308, 12.92 * light, bright)
    return np.moveaxis(scaled.astype(np.uint8), 0, -1)


def _radar(values: np.ndarray, percentiles: np.ndarray | None, stretch: str) -> np.ndarray:
    """Two polarisations and their ratio, in decibels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.nanmedian(values if percentiles is None else percentiles[:, 50])
        if not middle < 0:  # else they are decibels already
            values = 10 * np.log10(values)
            percentiles = None if percentiles is None else 10 * np.log10(percentiles)
        values[~np.isfinite(values)] = np.nan
        limits = _limits(values, percentiles, stretch, "float32")
    both = np.concatenate([values, values[:1] - values[1:]])
    return _stretched(both, np.vstack([limits, _DECIBELS]))


def _finished(shown: np.ndarray, blank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shown[blank] = 255
    return shown, blank
