"""Reading overhead images as they come: a file goes in, an ``(H, W, 3) uint8`` RGB array comes out.

JPEG, PNG and ordinary TIFFs are read by Pillow; 16-bit, float and multi-band (Geo)TIFFs by
tifffile, with a 2–98 % percentile stretch of each band. Anything that cannot be read raises
:class:`InputError` with the file's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trsllava_utils.artefacts import InputError, atomic_path, file_stamp, fingerprint

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
MAX_PIXELS = 100_000_000
_PLAIN_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def read_image(path: str | Path, bands: str | Sequence[int] = "") -> np.ndarray:
    """Read an image file as RGB.

    Args:
        path: the image file.
        bands: three 1-based band numbers for red, green and blue, as ``"4,3,2"`` or a sequence;
            empty takes the first three (one band gives grey). Only multi-band rasters need it.

    Returns:
        ``(H, W, 3) uint8``. Transparent pixels are laid on white.

    Raises:
        InputError: if the file is empty, truncated, not an image, larger than 100 megapixels, or
            lacks a band.
    """
    path = Path(path)
    chosen = parse_bands(bands)
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see MAX_PIXELS
                image = Image.open(path)
            with image:
                _check_size(path, image.height, image.width)
                if image.mode in _PLAIN_MODES and not chosen and not _is_multiband(image):
                    return _rgb(image)
                if image.format != "TIFF":
                    return _stretch(np.atleast_3d(np.asarray(image)), chosen, path)
        except Image.DecompressionBombError as error:
            raise InputError(f"{path.name}: {error}; cut it into tiles first") from error
        except Image.UnidentifiedImageError:  # tifffile reads more kinds of TIFF, such as float64
            if path.suffix.lower() not in {".tif", ".tiff"}:
                raise
        return _stretch(_read_raster(path), chosen, path)
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        what = "is empty" if empty else "is not a readable image"
        raise InputError(
            f"{path.name} {what} ({type(error).__name__}); replace or remove the file"
        ) from error


def read_renderings(
    path: str | Path, bands: str = "", false_colour: str = "", max_side: int = 0
) -> dict[str, np.ndarray]:
    """The pictures of one image that a captioner gets to see.

    Args:
        path: the image file.
        bands: bands shown as red, green, blue; see :func:`read_image`.
        false_colour: bands of a second picture, such as ``"8,4,3"`` for near infrared, red, green
            of Sentinel-2; empty takes band 4 as near infrared where there are exactly four bands
            (NAIP, Gaofen, PlanetScope); "none" leaves it out. Images that lack the bands have no
            second picture.
        max_side: scale down until no side is longer (0: never), in pixels.

    Returns:
        ``{"true colour": (H, W, 3) uint8}``, and "false colour" where the bands allow it.
    """
    pictures = {"true colour": read_image(path, bands)}
    if false_colour != "none":
        second, count = parse_bands(false_colour), count_bands(path)
        if not second and count == 4:
            second = (4, *(parse_bands(bands) or (1, 2))[:2])
        if second and max(second) <= count:
            pictures["false colour"] = read_image(path, second)
    if not max_side:
        return pictures
    return {name: _scaled(picture, max_side) for name, picture in pictures.items()}


def thumbnail(path: str | Path, folder: Path, side: int = 192, bands: str = "") -> Path:
    """A small JPEG of an image, made once and kept in ``folder``.

    Args:
        path: the image file.
        folder: where thumbnails are kept.
        side: of the square it fits into, in pixels.
        bands: shown as red, green, blue; see :func:`read_image`.

    Raises:
        InputError: see :func:`read_image`.
    """
    name = fingerprint(str(path), *file_stamp(path), side, bands)
    target = folder / f"{name}.jpg"
    if not target.is_file():
        with atomic_path(target) as tmp:
            picture = Image.fromarray(_scaled(read_image(path, bands), side))
            picture.save(tmp, "JPEG", quality=80, optimize=True)
    return target


def count_bands(path: str | Path) -> int:
    """Bands of a multi-band TIFF; 3 for everything else (RGB, grey, palette, with alpha or not)."""
    if Path(path).suffix.lower() not in {".tif", ".tiff"}:
        return 3
    try:
        with Image.open(path) as image:
            if image.mode in _PLAIN_MODES and not _is_multiband(image):
                return 3
    except Image.UnidentifiedImageError:
        pass  # not a kind that Pillow knows: a raster
    count = _read_raster(Path(path)).shape[-1]
    return count if count > 3 else 3


def _scaled(picture: np.ndarray, max_side: int) -> np.ndarray:
    if max(picture.shape[:2]) <= max_side:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def parse_bands(bands: str | Sequence[int]) -> tuple[int, ...]:
    """``"4,3,2"`` -> ``(4, 3, 2)``; empty -> ``()``. Raises InputError unless there are three
    numbers from 1 up."""
    parts = [p for p in bands.split(",") if p.strip()] if isinstance(bands, str) else bands
    try:
        numbers = tuple(int(p) for p in parts)
    except ValueError:
        numbers = (0,)
    if numbers and (len(numbers) != 3 or min(numbers) < 1):
        raise InputError(
            f"bands={bands!r}: give three band numbers counted from 1, such as '4,3,2', or nothing"
        )
    return numbers


def _check_size(path: Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path.name} is {width} x {height} pixels, over the limit of {MAX_PIXELS // 10**6} "
            "megapixels; cut it into tiles first"
        )


def _is_multiband(image: Image.Image) -> bool:
    # Pillow shows a TIFF of four or more samples as RGB or RGBA; tag 277 is SamplesPerPixel, 338
    # ExtraSamples.
    tags = getattr(image, "tag_v2", {})
    unspecified_extra = 0 in tuple(np.atleast_1d(tags.get(338, (1,))))
    return tags.get(277, 1) > 4 or (tags.get(277, 1) == 4 and unspecified_extra)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def _read_raster(path: Path) -> np.ndarray:
    """A TIFF as ``(H, W, bands)``, whichever way its planes are laid out."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        shape = dict(zip(series.axes, series.shape, strict=True))
        _check_size(path, shape.get("Y", 1), shape.get("X", 1))
        array = series.asarray()
    while array.ndim > 3:
        array = array[0]
    if array.ndim == 2:
        return array[..., None]
    # bands are the axis tifffile calls S (samples), or else the shortest one
    axes = series.axes[-3:]
    axis = axes.index("S") if "S" in axes else int(np.argmin(array.shape))
    return np.moveaxis(array, axis, -1)


def _stretch(array: np.ndarray, bands: tuple[int, ...], path: Path) -> np.ndarray:
    """Percentile stretch of the chosen bands of ``(H, W, bands)`` to uint8; not-a-number counts
    as black."""
    count = array.shape[-1]
    bands = bands or ((1, 2, 3) if count >= 3 else (1, 1, 1))
    if max(bands) > count:
        raise InputError(
            f"{path.name} has {count} band(s), but bands={','.join(map(str, bands))} was asked for"
        )
    out = np.empty((*array.shape[:2], 3), np.uint8)
    for i, band in enumerate(bands):
        plane = array[..., band - 1].astype(np.float32)
        valid = plane[np.isfinite(plane)]
        low, high = np.percentile(valid, (2, 98)) if valid.size else (0.0, 1.0)
        scaled = (plane - low) / max(float(high - low), 1e-6)
        out[..., i] = np.nan_to_num(np.clip(scaled, 0, 1), nan=0.0) * 255
    return out
