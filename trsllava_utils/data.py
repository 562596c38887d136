"""Datasets: a name or a folder goes in, a checked :class:`Dataset` comes out: a table of images and
one of texts.

Knows the sample set, RSITMD, RSICD, UCM-captions and Sydney-captions, and any folder of images.
Reference captions come out as a text corpus, one row per caption: ``image_id, source, variant,
field, text``. Everything odd is listed in ``Dataset.problems``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils import annotations, plugins
from trsllava_utils.annotations import Annotation
from trsllava_utils.files import (
    PROJECT_ROOT,
    MissingError,
    check_choice,
    fingerprint,
    resolve_data_dir,
    shown,
    slug,
    user_path,
)
from trsllava_utils.folder import list_images
from trsllava_utils.images import DEFAULT, ImageFile, Rendering, image_suffixes
from trsllava_utils.parameters import TILE, check
from trsllava_utils.tables import tables

# name -> title; the cards with licences, sizes and layouts are in data/README.md
KNOWN = {
    "sample": "Sample (UC Merced)",
    "rsitmd": "RSITMD",
    "rsicd": "RSICD",
    "ucm": "UCM-captions",
    "sydney": "Sydney-captions",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of one dataset.

    Attributes:
        name: short name, also the folder name of its artefacts.
        title: name as printed.
        split: the split ("all" for a folder without splits).
        root: the folder it was read from.
        derived: the folder its artefacts go to.
        figures: the folder its figures go to.
        images: one row per image: ``image_id, filename, split, label, path, window`` (path is ""
            where there are no pixels; a window of a scene is ``(column, row, width, height)`` and
            its file name ``scene@row_column.tif``; None for a whole file).
        captions: reference captions as a text corpus (may be empty).
        problems: what was found odd on loading, one sentence each.
        split_sizes: images per split in the whole dataset.
        tiling: tile and overlap of the windows; empty for the default, or without windows.
        rasters: what is known of raster files, by path; filled where files may be scenes.
        rendering: how multi-band files are shown.
        whole: images and captions of all splits.
    """

    name: str
    title: str
    split: str
    root: Path
    derived: Path
    figures: Path
    images: pd.DataFrame
    captions: pd.DataFrame
    problems: tuple[str, ...]
    split_sizes: dict[str, int]
    tiling: dict[str, int] = field(default_factory=dict)
    rasters: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    rendering: Rendering = DEFAULT
    whole: tuple[pd.DataFrame, pd.DataFrame] = field(default=(), repr=False)
    _others: dict[str, Dataset] = field(default_factory=dict, init=False, repr=False)  # see on

    @property
    def with_pixels(self) -> pd.DataFrame:
        """The rows of ``images`` whose file is on disk."""
        return self.images[self.images["path"] != ""]

    def file_of(self, image_id: str) -> ImageFile | None:
        """Where the pixels of ``image_id`` are; None if they are not on disk."""
        path, window = self._places.get(image_id, ("", None))
        if window is None:
            return ImageFile(path) if path else None
        percentiles = np.reshape(self.rasters["percentiles"][path], (-1, 101))
        return ImageFile(path, window, percentiles)

    @cached_property
    def _places(self) -> dict[str, tuple[str, tuple | None]]:
        columns = (self.images[name] for name in ("image_id", "path", "window"))
        return {image_id: (path, window) for image_id, path, window in zip(*columns, strict=True)}

    def sample(self, n: int, seed: int = 0) -> pd.DataFrame:
        """``n`` images with pixels, spread over the classes, the same ones every time."""
        shuffled = self.with_pixels.sample(frac=1, random_state=seed)
        order = shuffled.groupby("label").cumcount().sort_values(kind="stable").index
        return shuffled.loc[order].head(n)

    def on(self, split: str) -> Dataset:
        """Another split of it ("all": every image), taken from memory; whatever ``limit`` was, with
        all its images, and with the problems of the split that was loaded.

        Raises:
            InputError: it has no such split.
        """
        if split not in self._others:
            images, captions = self.whole
            images, split, _ = _choose_split(images, split, self.title)
            captions = captions[captions["image_id"].isin(images["image_id"])]
            tables = {"images": _reset(images), "captions": _reset(captions)}
            self._others[split] = replace(self, split=split, **tables)
        return self._others[split]


def load_dataset(
    dataset: str,
    data_dir: str = "",
    split: str = "test",
    limit: int = 0,
    *,
    tile: int = TILE,
    overlap: int = 0,
    rendering: Rendering = DEFAULT,
    figures_dir: str = "",
    remote: bool = False,
) -> Dataset:
    """Load one split of a dataset.

    >>> load_dataset("sample").images["image_id"].head(2).tolist()
    ['agricultural83', 'agricultural84']

    Args:
        dataset: "sample", "rsitmd", "rsicd", "ucm", "sydney", or the path of a folder of images.
        data_dir: folder that holds one folder per dataset; empty means the repository's ``data/``.
        split: "train", "val", "test" or "all". A folder without splits is always "all".
        limit: keep only the first ``limit`` images (0: all of them), for a quick look.
        tile: a raster with a longer side, in pixels, is taken as windows of this side (0: never).
            Where annotations name images, these stay whole, and windows are those they name.
        overlap: of neighbouring windows, in pixels.
        rendering: how multi-band files are shown.
        figures_dir: folder for the figures; empty means the repository's ``figures/``.
        remote: whether files that a catalogue names elsewhere (https, s3) are read.

    Raises:
        InputError: unknown dataset or split, or annotations that cannot be read.
        MissingError: the dataset is not on disk.
    """
    check(dataset=dataset, data_dir=data_dir, split=split, limit=limit, figures_dir=figures_dir)
    name, title, root, home = _locate(dataset, data_dir)
    records, files, problems = _read(name, title, root)
    for adopt in plugins.load_all("homes").values():
        adopt(root, files, home)
    images, captions = tables(records, files, problems)
    rasters, plain = pd.DataFrame(), images
    for reader in plugins.load_all("readers").values():
        plain = images if records is None else tables(None, files, [])[0]
        how = {"root": root, "tile": tile, "overlap": overlap, "remote": remote}
        how["annotated"] = records is not None
        images, rasters = reader.windows(images, plain, home / "derived", problems, **how)
        rendering = reader.named(rendering, images, rasters)
    if images.empty:
        kinds = ", ".join(sorted(image_suffixes()))
        raise MissingError(f"{shown(root)} holds no images ({kinds}). {' '.join(problems[:3])}")
    label_of = plugins.find("labels", "names")
    images["label"] = label_of(images["filename"], name, root) if label_of else ""
    whole = _reset(images)[["image_id", "filename", "split", "label", "path", "window"]], captions
    images, split, sizes = _choose_split(whole[0], split, dataset)
    images = _reset(images.head(limit) if limit else images)
    captions = _reset(captions[captions["image_id"].isin(images["image_id"])])
    if without := int((images["path"] == "").sum()):
        problems.append(
            f"{without:,} of {len(images):,} images of this split have no file on disk: retrieval "
            "from imported captions works; captioning and showing images need the files"
        )
    figures = user_path(figures_dir) if figures_dir else PROJECT_ROOT / "figures"
    is_default = (tile, overlap) == (TILE, 0) or images["window"].isna().all()
    tiling = {} if is_default else {"tile": tile, "overlap": overlap}
    how = {"tiling": tiling, "rasters": rasters, "rendering": rendering, "whole": whole}
    folders = root, home / "derived", figures / name
    return Dataset(name, title, split, *folders, images, captions, tuple(problems), sizes, **how)


def _reset(table: pd.DataFrame) -> pd.DataFrame:
    return table.reset_index(drop=True)


def _locate(dataset: str, data_dir: str) -> tuple[str, str, Path, Path]:
    """Name and title of a dataset, the folder to read it from, and the folder of its artefacts."""
    data = resolve_data_dir(data_dir)
    if dataset in KNOWN:
        root = data / dataset
        if dataset == "sample" and not (root / "dataset_sample.json").is_file():
            root = PROJECT_ROOT / "data" / "sample"
        return dataset, KNOWN[dataset], root, data / dataset
    is_path = os.sep in dataset or dataset.startswith(("~", ".")) or user_path(dataset).is_dir()
    if not is_path:
        hint = "A folder of your own is given by its path: -p dataset /path/to/folder."
        check_choice("dataset", dataset, KNOWN, hint)
    root = user_path(dataset)
    if not root.is_dir():
        raise MissingError(
            f"{dataset} is not a folder; pass a folder of images, or one of: {', '.join(KNOWN)}"
        )
    name = f"{slug(root.name)}-{fingerprint(str(root))[:6]}"  # two archives may share a name
    return name, root.name, root, data / name


def _read(
    name: str, title: str, root: Path
) -> tuple[list[Annotation] | None, dict[str, Path], list[str]]:
    """Annotations (None for a plain folder of images), image files by relative name, problems."""
    found = annotations.find(root) if root.is_dir() else None
    files, problems = list_images(root)
    if found:
        return annotations.read(*found, problems) or None, files, problems
    if name in KNOWN:
        raise MissingError(
            f"{name}: no annotations found in {shown(root)}. Get {title} (python -m "
            f"trsllava_utils get {name}; see data/README.md#{name}) or pass -p data_dir DIR, the "
            "folder that holds it."
        )
    return None, files, problems


def _choose_split(
    images: pd.DataFrame, split: str, dataset: str
) -> tuple[pd.DataFrame, str, dict[str, int]]:
    """The images of a split, its name, and the sizes of all splits."""
    sizes = {s: int(n) for s, n in images["split"].value_counts().items()}
    split = annotations.SPLIT_NAMES.get(split.lower(), split)
    if set(sizes) == {""}:
        return images.assign(split="all"), "all", {"all": len(images)}
    check_choice(f"split of {dataset}", split, [*sizes, "all"])
    return images if split == "all" else images[images["split"] == split], split, sizes
