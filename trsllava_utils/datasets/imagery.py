"""Pictures: an image file, or a window of a scene, goes in; ``(H, W, 3) uint8`` RGB comes out.

Photographs (JPEG, PNG, BMP, WebP of 8 bits) are read by Pillow, upright; everything else by
rasterio (``rasters.py``). Anything that cannot be read raises :class:`InputError` with the file's
name.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from rasterio.windows import Window

from trsllava_utils.artefacts import InputError, cannot_read, file_sha256, fingerprint
from trsllava_utils.datasets import rasters
from trsllava_utils.datasets.bands import choose_bands, further_picture
from trsllava_utils.datasets.places import ground_sample_distance
from trsllava_utils.datasets.rendering import DEFAULT, SIDE, Rendering, index_picture, render

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
IMAGE_SUFFIXES = PHOTO_SUFFIXES | rasters.RASTER_SUFFIXES
MAX_PIXELS = 100_000_000  # of a photograph
_PHOTO_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


@dataclass(frozen=True)
class ImageFile:
    """Where the pixels of an image are.

    Attributes:
        path: the file.
        window: column, row, width and height of the part that is the image; None: all of it.
        percentiles: ``(bands, 101)``, of the whole scene, so that its windows look alike.
    """

    path: str
    window: tuple[int, int, int, int] | None = None
    percentiles: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def sha256(self) -> str:
        """Stands for the pixels: hash of the file, of those beside it that it is read with and, of
        a window, where it lies.

        Raises:
            InputError: a file cannot be read.
        """
        try:
            whole = _sha256(self.path, str(rasters.stamps(self.path)))
        except OSError as error:
            raise cannot_read(self.path, error) from error
        return fingerprint(whole, self.window) if self.window else whole


@lru_cache(maxsize=100_000)
def _sha256(path: str, stamp: str) -> str:
    hashes = [file_sha256(file) for file in (path, *rasters.companions(path))]
    return hashes[0] if len(hashes) == 1 else fingerprint(hashes)


@dataclass(frozen=True)
class Pictures:
    """What a captioner gets to see of one image.

    Attributes:
        by_name: ``(H, W, 3) uint8`` by what it shows: "true colour", "grey", "radar",
            "false colour", "NDVI", "NDWI"; the first is the one that people are shown.
        blank: share of pixels without data.
        scale: of the reduction; 4 means that one pixel shown covers 4 x 4 pixels of the file.
        gsd: ground sample distance, metres a pixel as shown; None where it is not known.
    """

    by_name: dict[str, np.ndarray]
    blank: float = 0.0
    scale: float = 1.0
    gsd: float | None = None


def read_image(
    file: ImageFile | str | Path, rendering: Rendering = DEFAULT, max_side: int = 0
) -> np.ndarray:
    """The first picture of :func:`read_pictures`."""
    return next(iter(read_pictures(file, rendering, max_side, first=True).by_name.values()))


def read_pictures(
    file: ImageFile | str | Path,
    rendering: Rendering = DEFAULT,
    max_side: int = 0,
    *,
    first: bool = False,
) -> Pictures:
    """Read an image file or a window.

    Args:
        file: the image.
        rendering: how multi-band files are shown.
        max_side: scale down until no side is longer (0: never), in pixels.
        first: leave out further pictures.

    Raises:
        InputError: the file is empty, truncated, not an image, a photograph larger than 100
            megapixels, or lacks a band.
    """
    file = file if isinstance(file, ImageFile) else ImageFile(str(file))
    try:
        photograph = _photograph(file.path)
        if photograph is not None:
            shown = _scaled(photograph, max_side)
            return Pictures({"true colour": shown}, scale=len(photograph) / len(shown))
        return _raster(file, rendering, max_side or SIDE, first)
    except InputError:
        raise
    except Exception as error:  # of whatever kind a decoder raises on a damaged file
        raise rasters.unreadable(file.path, error) from error


def _photograph(path: str) -> np.ndarray | None:
    """A photograph, upright, transparent pixels on white; None if the file is for rasterio."""
    if rasters.driver_of(path) not in ("PNG", "JPEG", ""):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see MAX_PIXELS
            image = Image.open(path, formats=_PHOTO_FORMATS)
    except Image.UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    with image:
        if ";16" in f"{image.mode} {image.tile}":
            return None
        if image.height * image.width > MAX_PIXELS:
            raise _too_large(path, f"{image.width} x {image.height} pixels")
        image = ImageOps.exif_transpose(image)
        if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(image.convert("RGB"))


def _too_large(path: str, size: str) -> InputError:
    return InputError(
        f"{Path(path).name}: {size}, over the limit of {MAX_PIXELS // 10**6} megapixels for "
        "photographs; cut it into tiles, or make it a GeoTIFF, which is read in windows"
    )


def _raster(file: ImageFile, rendering: Rendering, max_side: int, first: bool) -> Pictures:
    with rasters.open_raster(file.path) as raster:
        window = Window(*(file.window or (0, 0, raster.width, raster.height)))
        bands = choose_bands(raster, rendering.bands)
        how = {"window": window, "stretch": rendering.stretch, "max_side": max_side}
        how |= {"percentiles": file.percentiles}
        shown, blank = render(raster, bands, **how)
        name = {1: "grey", 2: "radar"}.get(len(bands), "true colour")
        pictures = {"true colour" if raster.colorinterp[0].name == "palette" else name: shown}
        turn = -1 if rasters.rows_run_north(raster) else 1
        further = None if first else further_picture(raster, rendering.false_colour)
        if further:
            name, bands = further
            if len(bands) == 2:
                pictures[name] = index_picture(raster, bands, window, max_side)
            else:
                pictures[name] = render(raster, bands, **how)[0]
        distance = ground_sample_distance(raster)
    pictures = {name: _scaled(shown[::turn], max_side) for name, shown in pictures.items()}
    scale = max(window.width, window.height) / max(next(iter(pictures.values())).shape[:2])
    return Pictures(pictures, float(blank.mean()), scale, distance and distance * scale)


def thumbnail(file: ImageFile, side: int = 192, rendering: Rendering = DEFAULT) -> bytes:
    """A small JPEG of an image, made once in a session.

    Args:
        file: the image.
        side: of the square it fits into, in pixels.
        rendering: how multi-band files are shown.

    Raises:
        InputError: see :func:`read_image`.
    """
    return _thumbnail(file, file.sha256, side, rendering)


@lru_cache(maxsize=4096)
def _thumbnail(file: ImageFile, sha256: str, side: int, rendering: Rendering) -> bytes:
    return jpeg(Image.fromarray(read_image(file, rendering, side)))


def jpeg(picture: Image.Image) -> bytes:
    """A picture as the content of a JPEG file."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80, optimize=True)
    return content.getvalue()


def in_scene(file: ImageFile, side: int = 384, rendering: Rendering = DEFAULT) -> Image.Image:
    """The whole scene of a window, the window framed."""
    scene = ImageFile(file.path, None, file.percentiles)
    picture = Image.open(io.BytesIO(thumbnail(scene, side, rendering)))
    with rasters.open_raster(file.path) as raster:
        scale = max(picture.size) / max(raster.width, raster.height)
        column, row, width, height = file.window
        row = raster.height - row - height if rasters.rows_run_north(raster) else row
    column, row, width, height = (n * scale for n in (column, row, width, height))
    frame = (column, row, column + width, row + height)
    ImageDraw.Draw(picture).rectangle(frame, outline="#D55E00", width=3)
    return picture


def _scaled(picture: np.ndarray, max_side: int) -> np.ndarray:
    if not max_side or max(picture.shape[:2]) <= max_side:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return np.asarray(image)
