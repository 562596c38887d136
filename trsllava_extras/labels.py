"""Classes of images (``trsllava.labels``), as file names, folders and RSICD's lists tell them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from trsllava_utils.data import KNOWN
from trsllava_utils.files import read_text
from trsllava_utils.folder import leads_out

_UCM_CLASSES = """agricultural airplane baseballdiamond beach buildings chaparral denseresidential
forest freeway golfcourse harbor intersection mediumresidential mobilehomepark overpass parkinglot
river runway sparseresidential storagetanks tenniscourt"""
_NO_CLASSES = """train val validation test data img imgs image images photo photos picture pictures
tif tiff tiffs tile tiles chip chips patch patches scene scenes raster rasters source raw jpg jpeg
png rgb download downloads"""
# folders of products: SAFE, Planet's orders, Landsat scenes, dates
_PRODUCT = re.compile(
    r"\.safe$|\d{6}|^(granule|img_data|measurement|annotation|r[126]0m|psscene|skysat\w*|order)$"
)


def labels(filenames: Iterable[str], dataset: str, root: Path) -> list[str]:
    """The class of each image; "" where none is told."""
    told, names = _labels_on_disk(root), map(PurePosixPath, filenames)
    return [told.get(name.name) or _label_from_name(name, dataset) for name in names]


def _labels_on_disk(root: Path) -> dict[str, str]:
    """File name -> class, from RSICD's ``txtclasses*/<Class>.txt``."""
    labels = {}
    lists = sorted(path for path in root.glob("txtclasses*/*.txt") if path.is_file())
    for path in (path for path in lists if not leads_out(path, root)):
        for line in read_text(path).splitlines():
            if line.strip():
                labels[line.strip()] = path.stem.lower()
    return labels


def _label_from_name(filename: PurePosixPath, name: str) -> str:
    """The class: of a known dataset by its file names, of a folder of one's own by the folder that
    the file lies in, or the one above where that says nothing (forest/images); "" where that is no
    class."""
    if name == "ucm" and filename.stem.isdigit() and 1 <= int(filename.stem) <= 2100:
        return _UCM_CLASSES.split()[(int(filename.stem) - 1) // 100]
    match = re.fullmatch(r"([A-Za-z][A-Za-z_-]*?)[_-]?\d+", filename.stem)
    if match and name in KNOWN:
        return match[1].lower()
    if filename.parent.parent.name == "snapshots":  # a commit of the hub
        return ""
    for folder in filename.parents[:-1]:
        parent = folder.name.lower()
        words = parent.rstrip("0123456789_-")
        if _PRODUCT.search(parent) or _PRODUCT.search(words):
            return ""
        if words not in _NO_CLASSES.split():
            return parent if re.search("[a-z]{2}", words) else ""
    return ""
