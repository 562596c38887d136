"""Rasters as rasterio (GDAL) opens them: a file goes in, an open dataset comes out. Only files of
known kinds are opened, each by its own driver: left to itself, GDAL would open paths and web
addresses that are written inside a file, or in files beside it.
"""

from __future__ import annotations

import os
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from secrets import token_hex
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader, MemoryFile

from trsllava_utils.files import InputError, file_stamp
from trsllava_utils.folder import name_as_text
from trsllava_utils.images import image_suffixes, unreadable

RASTER_SUFFIXES = {".tif", ".tiff", ".jp2", ".j2k", ".img", ".vrt"}
ORIENTATION, NODATA = 274, 42113  # tags of a TIFF
SETTINGS = {"GDAL_CACHEMAX": 128, "GDAL_VRT_ENABLE_PYTHON": "NO"}  # of GDAL
NEAR = {"CPL_VSIL_CURL_ALLOWED_FILENAME": "none"}  # of the files of GDAL's network drivers
FAR = {  # for files elsewhere: nothing but the file is asked for
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif,.tiff,.jp2,.j2k",
    "GDAL_HTTP_TIMEOUT": 60,
    "GDAL_HTTP_MAX_RETRY": 3,
}
MOST_BYTES = 4096  # of a pixel with all its bands; 1,024 bands of float32
_VRT_TAGS = """VRTDataset SRS GeoTransform Metadata MDI VRTRasterBand NoDataValue ColorInterp
Description Offset Scale UnitType SimpleSource ComplexSource SourceFilename SourceBand
SourceProperties SrcRect DstRect NODATA ColorTable Entry BlockXSize BlockYSize MaskBand GCPList GCP
UseMaskBand CategoryNames Category"""
_VRT_ATTRIBUTES = """rasterXSize rasterYSize dataAxisToSRSAxisMapping coordinateEpoch domain
format key dataType band blockXSize blockYSize resampling relativeToVRT shared RasterXSize
RasterYSize DataType BlockXSize BlockYSize xOff yOff xSize ySize c1 c2 c3 c4 Projection Id Pixel
Line X Y Z Info"""
_NONE = ElementTree.Element("none")
_STATISTICS = """PAMDataset PAMRasterBand Metadata MDI Histograms HistItem HistMin HistMax
BucketCount IncludeOutOfRange Approximate HistCounts"""
_OPENED = (".ovr", ".msk", ".aux", ".rrd")  # beside a raster: GDAL opens them, whatever they hold
_OF_PRODUCT = re.compile(r"_(SR_|ST_)?B\d\w*$|_R\d+C\d+$")  # what bands and tiles add to its name
_DRIVERS = {  # first bytes of a file -> GDAL's driver
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

# a chip without coordinates is nothing to warn of
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open a raster. The pages of a TIFF that has several of one size are its bands.

    A virtual raster (VRT) is opened only where the file is called so, and as this module reads it;
    :func:`refused` looks at what those refer to.

    Raises:
        InputError: it is not a raster that can be read, or a file beside it leads elsewhere.
    """
    driver = driver_of(path)
    if not driver or (driver == "VRT") != (Path(path).suffix.lower() == ".vrt"):
        raise unreadable(path, ValueError("no raster"))
    try:
        with ExitStack() as opened:
            tree = virtual_raster(Path(path)) if driver == "VRT" else _NONE
            sources = _sources(tree, Path(path).parent)
            is_far = any(str(source).startswith("/vsi") for source in sources)
            opened.enter_context(rasterio.Env(**SETTINGS, **(FAR if is_far else NEAR)))
            for file in (Path(path), *([] if is_far else sources)):
                if astray := led_astray(file):
                    raise InputError(
                        f"{Path(path).name} is not opened: {astray} beside "
                        f"{file.name} may lead to other files; remove it"
                    )
            is_text = name_as_text(str(path)) == str(path)  # else GDAL cannot take the name
            source = path if is_text else opened.enter_context(open(path, "rb"))
            if driver == "VRT":
                source = opened.enter_context(_as_read(tree, Path(path))).name
            raster = opened.enter_context(rasterio.open(source, driver=driver))
            # bytes of a pixel; numpy has no complex whole numbers
            kinds = (kind.replace("complex_int16", "complex64") for kind in raster.dtypes)
            each = sum(np.dtype(kind).itemsize for kind in kinds)
            if driver == "ENVI" and os.path.getsize(path) < raster.width * raster.height * each:
                raise unreadable(path, ValueError("truncated"))
            if each > MOST_BYTES:
                raise unreadable(path, ValueError(f"{raster.count:,} bands"))
            if driver == "GTiff" and raster.count == 1 and len(raster.subdatasets) > 1 and is_text:
                raster = opened.enter_context(_pages(raster, path))
            yield raster
    except InputError:
        raise
    except Exception as error:  # of whatever kind GDAL, or who works with the raster, raises
        raise unreadable(path, error) from error


def tiff_tag(raster: DatasetReader, number: int) -> Any:
    """A tag of a TIFF as it is written; None where there is none."""
    if raster.driver != "GTiff" or not Path(raster.name).is_file():
        return None
    return _tiff_tags(raster.name, file_stamp(raster.name)).get(number)


@lru_cache(maxsize=64)
def _tiff_tags(path: str, stamp: tuple) -> dict[int, Any]:
    with open(path, "rb") as file:
        head = file.read(8)
        head += file.read(8) if 43 in head[2:4] else b""  # BigTIFF
        try:
            tags = ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return {number: tags[number] for number in (ORIENTATION, NODATA) if number in tags}
        except Exception:  # whatever a damaged header leads to
            return {}


def nodata_of(raster: DatasetReader, band: int) -> float | None:
    """What the file declares; GDAL takes a text that is no number, such as "none", for 0."""
    nodata = raster.nodatavals[band - 1]
    if nodata == 0 and (text := tiff_tag(raster, NODATA)):
        try:
            float(text)
        except ValueError:
            return None
    return nodata


def driver_of(path: str | Path) -> str:
    """GDAL's driver for a file, by its first bytes; "" for none that is used here."""
    with open(path, "rb") as file:
        head = file.read(4096)
    for magic, driver in _DRIVERS.items():
        if head.startswith(magic):
            return driver
    if b"<VRTDataset" in head:
        return "VRT"
    is_envi = head and Path(path).suffix.lower() == ".img"
    return "ENVI" if is_envi and any(p.suffix == ".hdr" for p in companions(path)) else ""


def companions(path: str | Path) -> list[Path]:
    """The files that an image is read from beside its own: world file, header, mask, the metadata
    of its product, and what a virtual raster refers to."""
    path = Path(path)
    stem = _OF_PRODUCT.sub("", path.stem)
    names = [f"{path.name}{end}" for end in (".msk", ".aux.xml", ".hdr", "w")]
    names += [f"{path.stem}{end}" for end in (".hdr", ".prj", ".wld", f"{path.suffix}w")]
    names += [f"{path.stem}{path.suffix[:2]}{path.suffix[-1:]}w"]  # .tfw, .jgw, .pgw
    if path.suffix.lower() in RASTER_SUFFIXES:
        ends = (".IMD", ".RPB", ".XML", "_RPC.TXT", "_metadata.xml")
        names += [f"{path.stem}{end}" for end in ends] + [f"{stem}_MTL.txt", f"{stem}_MTL.xml"]
        names += [stem.replace("IMG_", kind, 1) + ".XML" for kind in ("DIM_", "RPC_")]
    beside = [path.with_name(name) for name in dict.fromkeys(names)]
    if path.suffix.lower() == ".vrt":
        beside += _sources(virtual_raster(path), path.parent)
    there = (file for file in beside if file.is_file())
    own = (file for file in there if not (file.is_symlink() and _is_elsewhere(file, path)))
    return [file for file in own if not _is_statistics(file)]


def _sources(tree: ElementTree.Element, folder: Path) -> list[Path]:
    """What a virtual raster in that folder refers to."""
    return [folder / (source.text or "").strip() for source in tree.iter("SourceFilename")]


def _as_read(tree: ElementTree.Element, path: Path) -> MemoryFile:
    """A virtual raster as it was read and checked here, with full paths, in memory: GDAL's own
    reader takes other parts of a file for its content. Its name tells the product."""
    for source in tree.iter("SourceFilename"):
        text = (source.text or "").strip()
        source.text = text if text.startswith("/vsi") else str(path.parent / text)
        source.attrib.pop("relativeToVRT", None)
    folder = f"{token_hex(8)}/{str(path.parent).strip('/')}"
    return MemoryFile(ElementTree.tostring(tree), dirname=folder, filename=path.name)


def led_astray(path: Path) -> str:
    """The name of a file beside a raster, or its own, by which GDAL would open files elsewhere, or
    addresses on the web; "" for none. Overviews and masks are opened by any driver, a virtual
    raster among them; metadata name overviews, and some formats further files. Masks, overviews and
    metadata of the plain kind are used."""
    if name_as_text(str(path)) != str(path):  # GDAL gets its content, and sees no other file
        return ""
    with suppress(OSError):
        return _led_astray(path, file_stamp(path), file_stamp(path.parent))
    return ""


@lru_cache(maxsize=4096)
def _led_astray(path: Path, _: tuple, of_folder: tuple) -> str:
    names, stem = _helpers(path.parent, of_folder), path.stem.lower()
    beside = names[bisect_left(names, (stem, "")) :]
    beside = takewhile(lambda pair: pair[0].startswith(stem), beside)
    files = [path.with_name(name) for low, name in beside if low[len(stem) :][:1] in (".", "_")]
    rasters = [file for file in files if file.suffix.lower() in _OPENED]
    odd = [file for file in files if _is_elsewhere(file, path)]  # those are not looked into
    odd = odd or [file for file in rasters if driver_of(file) not in ("GTiff", "HFA")]
    odd = odd or [f for f in files if f.name.lower().endswith(".aux.xml") and not _is_plain(f)]
    if odd:
        return odd[0].name
    # none of them misleads GDAL, so they can be opened
    return next(filter(None, map(_names_others, [*rasters, path])), "")


def _is_elsewhere(file: Path, beside: Path) -> bool:
    """Whether a file, its links followed, lies in another folder than the one that it is beside."""
    folders = os.path.realpath(beside.parent), os.path.dirname(os.path.realpath(beside))
    return os.path.dirname(os.path.realpath(file)) not in folders


def _names_others(path: Path) -> str:
    """The first file elsewhere that GDAL counts to a raster, or the raster itself where its
    metadata name overviews elsewhere; "" for none, or for what is no raster that is used here."""
    driver = driver_of(path)
    if driver in ("", "VRT", "PNG", "JPEG"):
        return ""
    with suppress(rasterio.errors.RasterioError), ExitStack() as opened:
        opened.enter_context(rasterio.Env(**SETTINGS, **NEAR))
        with rasterio.open(path, driver=driver) as raster:
            told = raster.tags(ns="OVERVIEWS").values()
            if not all(re.fullmatch(r":::BASE:::[^/\\]+", text) for text in told):
                return path.name
            others = (Path(file) for file in raster.files)
            return next((file.name for file in others if _is_elsewhere(file, path)), "")
    return ""


@lru_cache(maxsize=64)
def _helpers(folder: Path, _: tuple) -> list[tuple[str, str]]:
    """Names of all files in a folder that GDAL might open unasked, and of links, in small letters
    and as they are, sorted."""
    with os.scandir(folder) as entries:
        there = [(e.name.lower(), e.name) for e in entries
                 if e.name.lower().endswith((*_OPENED, ".aux.xml")) or e.is_symlink()]  # fmt: skip
    images = tuple(image_suffixes())
    return sorted(pair for pair in there if not pair[0].endswith(images))


def _is_plain(path: Path) -> bool:
    """Whether auxiliary metadata name no file but one in their own folder. What cannot be read
    here is not plain, for GDAL may read it."""
    if (tree := virtual_raster(path)).tag == "none":
        return False
    for element in tree.iter():
        text = (element.text or "").strip()
        named = element.get("key") == "OVERVIEW_FILE" or element.tag == "SourceFilename"
        inside = re.fullmatch(r":::BASE:::[^/\\]+", text) and text.endswith(_OPENED)
        if "/vsi" in text or (named and not inside):
            return False
    return True


def _is_statistics(path: Path) -> bool:
    """Whether a file of metadata holds statistics alone. Programs that look at a raster write it
    (QGIS, gdalinfo); it is no other image for that."""
    if not path.name.endswith(".aux.xml"):
        return False
    told = [*virtual_raster(path).iter()]
    keys = [element.get("key", "") for element in told if element.tag == "MDI"]
    is_bare = {element.tag for element in told} <= {*_STATISTICS.split()}
    return is_bare and all(key.startswith("STATISTICS_") for key in keys)


def virtual_raster(path: Path) -> ElementTree.Element:
    """The XML of a virtual raster or its like; an empty element, called "none", if it is none."""
    try:
        return ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError, LookupError, OSError):
        return _NONE


def refused(path: Path, root: Path) -> str:
    """Why a file in the folder ``root`` is not opened; "" for one that is."""
    if path.suffix.lower() != ".vrt":
        return ""
    try:
        return _refused_vrt(path, root)
    except (OSError, RuntimeError, ValueError) as error:  # of the paths in it
        return f"cannot be read ({type(error).__name__})"


def _refused_vrt(path: Path, root: Path) -> str:
    """Why a virtual raster is not opened; "" for one that only puts together rasters of the
    folder, in the plainest way."""
    for element in virtual_raster(path).iter():
        odd = [name for name in element.attrib if name not in _VRT_ATTRIBUTES.split()]
        is_overview = element.get("domain", "").upper() == "OVERVIEWS"
        if element.tag not in _VRT_TAGS.split() or odd or is_overview:
            return f"holds <{' '.join([element.tag, *odd])}>, which is not read here"
        if element.tag != "SourceFilename":
            continue
        text = (element.text or "").strip()
        source = (path.parent / text).resolve()
        is_resolved = element.get("relativeToVRT") == "1" or text.startswith("/")
        inside = is_resolved and source.is_file() and source.is_relative_to(root)
        if not inside or driver_of(source) not in ("GTiff", "JP2OpenJPEG", "HFA", "PNG", "JPEG"):
            return f"refers to {text}, which is no raster inside the folder"
        if astray := led_astray(source):
            return f"refers to {text}, and {astray} beside that may lead to other files"
    return ""


def _pages(first: DatasetReader, path: str | Path) -> DatasetReader:
    """The pages of a TIFF as the bands of a virtual raster; the first page alone where it is a
    palette or of single bits, as documents have them."""
    like, kind = (first.width, first.height, first.dtypes), dtype_rev.get(first.dtypes[0])
    pages = [f"GTIFF_DIR:{n}:{path}" for n in range(1, len(first.subdatasets) + 1)]
    if not kind or first.colorinterp[0].name == "palette":
        return rasterio.open(pages[0], driver="GTiff")
    bands = []
    for page in pages:
        with rasterio.open(page, driver="GTiff") as raster:
            if (raster.width, raster.height, raster.dtypes) != like:
                continue  # a mask or a preview
            nodata = "" if raster.nodata is None else f"<NoDataValue>{raster.nodata}</NoDataValue>"
        bands.append(
            f'<VRTRasterBand dataType="{typename_fwd[kind]}" band="{len(bands) + 1}">{nodata}'
            f"<SimpleSource><SourceFilename>{escape(page)}</SourceFilename><SourceBand>1</SourceBand>"
            "</SimpleSource></VRTRasterBand>"
        )
    sizes = f'rasterXSize="{first.width}" rasterYSize="{first.height}"'
    return rasterio.open(f"<VRTDataset {sizes}>{place_of(first)}{''.join(bands)}</VRTDataset>")


def place_of(raster: DatasetReader) -> str:
    """The part of a virtual raster that says where it is."""
    points, crs = raster.gcps
    if points and crs:
        given = (f'Pixel="{p.col}" Line="{p.row}" X="{p.x}" Y="{p.y}"' for p in points)
        told = "".join(f"<GCP {place}/>" for place in given)
        return f"<GCPList Projection={quoteattr(crs.to_wkt())}>{told}</GCPList>"
    srs = f"<SRS>{escape(raster.crs.to_wkt())}</SRS>" if raster.crs else ""
    place = ", ".join(map(str, raster.transform.to_gdal()))
    return f"{srs}<GeoTransform>{place}</GeoTransform>"
