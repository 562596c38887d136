"""Images: a file, or a window of a scene, goes in; ``(H, W, 3) uint8`` RGB comes out.

Photographs (JPEG, PNG, BMP, WebP of 8 bits) are read by Pillow, upright; other kinds by the plug-in
that knows them (``trsllava.readers``). What cannot be read raises :class:`InputError` with the
file's name.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from trsllava_utils import plugins
from trsllava_utils.files import InputError, file_sha256, file_stamp, fingerprint, reading

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
MAX_PIXELS = 100_000_000  # of a photograph
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


@dataclass(frozen=True)
class Rendering:
    """How multi-band files become pictures; what the three mean is for the plug-in that reads them.
    Photographs are shown as they are.

    Attributes:
        bands: shown as red, green, blue; empty: what the file says.
        stretch: the values shown as black and white; empty: the same for all colours.
        false_colour: a second picture for the captioner; empty: near infrared where it is known.
    """

    bands: str = ""
    stretch: str = ""
    false_colour: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "false_colour", self.false_colour.strip().lower())
        if any(vars(self).values()):
            for reader in _readers():
                reader.check(self)


DEFAULT = Rendering()


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
        with reading(self.path):
            files = (self.path, *companions(self.path))
            whole = _sha256(files, tuple(map(file_stamp, files)))
        return fingerprint(whole, self.window) if self.window else whole


@lru_cache(maxsize=100_000)
def _sha256(files: tuple, stamps: tuple) -> str:
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else fingerprint(hashes)


@dataclass(frozen=True)
class View:
    """What a captioner gets to see of one image.

    Attributes:
        by_name: ``(H, W, 3) uint8`` by what it shows: "true colour", "grey", "radar", …; the first
            is the one that people are shown.
        blank: share of pixels without data.
        scale: of the reduction; 4 means that one pixel shown covers 4 x 4 pixels of the file.
        gsd: ground sample distance, metres a pixel as shown; None where it is not known.
        notes: sentences on what the colours mean, for the model.
    """

    by_name: dict[str, np.ndarray]
    blank: float = 0.0
    scale: float = 1.0
    gsd: float | None = None
    notes: tuple[str, ...] = ()


def _readers() -> list[Any]:
    """Modules or objects with ``suffixes``, ``check(rendering)`` and ``refused(path, root)``, which
    say what is wrong, ``companions(path)``, files that are read with another, ``read(file,
    rendering, max_side, first) -> View``, and for datasets (``data.py``) ``windows(…)`` and
    ``named(rendering, images, rasters)``."""
    return list(plugins.load_all("readers").values())


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that are images. Plain TIFFs are read without any plug-in too."""
    others = [set(reader.suffixes) for reader in _readers()]
    return frozenset(PHOTO_SUFFIXES.union(*others or [{".tif", ".tiff"}]))


def reader_of(path: str | Path) -> Any:
    """The plug-in for files of this name; None where there is none."""
    suffix = Path(path).suffix.lower()
    return next((reader for reader in _readers() if suffix in reader.suffixes), None)


def companions(path: str | Path) -> list[Path]:
    """The files that an image is read from beside its own: headers, masks, metadata."""
    reader = reader_of(path)
    return reader.companions(Path(path)) if reader else []


def read_image(
    file: ImageFile | str | Path, rendering: Rendering = DEFAULT, max_side: int = 0
) -> np.ndarray:
    """The first picture of :func:`view`.

    >>> read_image("data/sample/images/harbor90.jpg").shape
    (256, 256, 3)
    """
    return next(iter(view(file, rendering, max_side, first=True).by_name.values()))


def view(
    file: ImageFile | str | Path,
    rendering: Rendering = DEFAULT,
    max_side: int = 0,
    *,
    first: bool = False,
) -> View:
    """Read an image file, or a window of a raster (photographs have none).

    Args:
        file: the image.
        rendering: how multi-band files are shown.
        max_side: scale down until no side is longer (0: never), in pixels.
        first: leave out further pictures.

    Raises:
        InputError: the file is empty, truncated, not an image, or a photograph larger than 100
            megapixels.
    """
    file = file if isinstance(file, ImageFile) else ImageFile(str(file))
    readers = _readers()
    try:
        photograph = _photograph(file.path, () if readers else ("TIFF",))
        if photograph is not None:
            shown = scaled(photograph, max_side)
            return View({"true colour": shown}, scale=len(photograph) / len(shown))
        if not readers:
            raise ValueError("no plug-in reads it")
        return (reader_of(file.path) or readers[0]).read(file, rendering, max_side, first)
    except InputError:
        raise
    except Exception as error:  # of whatever kind a decoder raises on a damaged file
        raise unreadable(file.path, error) from error


def unreadable(path: str | Path, error: Exception) -> InputError:
    """The error for a file that is no image, or half of one."""
    path = Path(path)
    empty = path.is_file() and path.stat().st_size == 0
    what = "is empty" if empty else "is not a readable image"
    return InputError(f"{path.name} {what} ({type(error).__name__}); replace or remove the file")


def _photograph(path: str, more_formats: tuple[str, ...]) -> np.ndarray | None:
    """A photograph, upright, transparent pixels on white; None if the file is for a plug-in."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see MAX_PIXELS
            image = Image.open(path, formats=_FORMATS + more_formats)
    except Image.UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    with image:
        if image.mode in ("I", "F") or ";16" in f"{image.mode} {image.tile}":
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


def scaled(picture: np.ndarray, max_side: int) -> np.ndarray:
    """``(H, W, 3)`` reduced until no side is longer than ``max_side`` (0: as it is)."""
    if not max_side or max(picture.shape[:2]) <= max_side:
        return picture
    image = Image.fromarray(picture)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return np.asarray(image)
