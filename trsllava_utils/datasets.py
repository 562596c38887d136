"""Datasets: a name or a folder goes in, a checked :class:`Dataset` comes out.

Knows the sample set, RSITMD, RSICD, UCM-captions and Sydney-captions, and any folder of images.
What lies on disk is recognised by its layout (see ``annotations.py``); everything odd that is found
is listed in ``Dataset.problems``. Human captions come out as a text corpus, one row a caption:
``image_id, source, variant, field, text``.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_utils import annotations
from trsllava_utils.artefacts import (
    PROJECT_ROOT,
    InputError,
    MissingError,
    check_choice,
    fingerprint,
    progress,
    resolve_data_dir,
    shown,
    slug,
)
from trsllava_utils.imagery import IMAGE_SUFFIXES, read_image

CORPUS_COLUMNS = ["image_id", "source", "variant", "field", "text"]
SPLITS = ("train", "val", "test")

# name -> (title, official size: images per split); the cards with licences and layouts are in
# data/README.md
KNOWN = {
    "sample": "Sample (rendered scenes)",
    "rsitmd": "RSITMD",
    "rsicd": "RSICD",
    "ucm": "UCM-captions",
    "sydney": "Sydney-captions",
}
_UCM_CLASSES = [
    "agricultural",
    "airplane",
    "baseballdiamond",
    "beach",
    "buildings",
    "chaparral",
    "denseresidential",
    "forest",
    "freeway",
    "golfcourse",
    "harbor",
    "intersection",
    "mediumresidential",
    "mobilehomepark",
    "overpass",
    "parkinglot",
    "river",
    "runway",
    "sparseresidential",
    "storagetanks",
    "tenniscourt",
]


@dataclass(frozen=True)
class Dataset:
    """One split of one dataset.

    Attributes:
        name: short name, also the folder name of its artefacts.
        title: name as printed.
        split: the split shown here ("all" for a folder without splits).
        root: the folder it was read from.
        derived: the folder its artefacts go to.
        figures: the folder its figures go to.
        images: one row an image: ``image_id, filename, split, label, path`` (path is "" where
            there are no pixels).
        captions: human captions as a text corpus (may be empty).
        problems: what was found odd on loading, one sentence each.
        split_sizes: images per split in the whole dataset.
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

    @property
    def with_pixels(self) -> pd.DataFrame:
        """The rows of ``images`` whose file is on disk."""
        return self.images[self.images["path"] != ""]

    def fingerprint(self) -> str:
        """Identity of ids and captions (not of the pixels), for manifests."""
        return fingerprint(self.images["image_id"].tolist(), self.captions["text"].tolist())

    def path_of(self, image_id: str) -> str:
        """The image file of ``image_id``; "" if it is not on disk."""
        return self._paths.get(image_id, "")

    @cached_property
    def _paths(self) -> dict[str, str]:
        return dict(zip(self.images["image_id"], self.images["path"], strict=True))

    def sample(self, n: int, seed: int = 0) -> pd.DataFrame:
        """``n`` images with pixels, spread over the classes, the same ones every time."""
        shuffled = self.with_pixels.sample(frac=1, random_state=seed)
        order = shuffled.groupby("label").cumcount().sort_values(kind="stable").index
        return shuffled.loc[order].head(n)


def load_dataset(dataset: str, data_dir: str = "", split: str = "test", limit: int = 0) -> Dataset:
    """Load one split of a dataset.

    Args:
        dataset: "sample", "rsitmd", "rsicd", "ucm", "sydney", or the path of a folder of images.
        data_dir: folder that holds one folder a dataset; empty means the repository's ``data/``.
        split: "train", "val", "test" or "all". A folder without splits is always "all".
        limit: keep only the first ``limit`` images (0: all of them), for a quick look.

    Raises:
        InputError: unknown dataset or split, or annotations that cannot be read.
        MissingError: the dataset is not on disk.
    """
    own_folder = dataset not in KNOWN and (
        os.sep in dataset or dataset.startswith(("~", ".")) or Path(dataset).is_dir()
    )
    if own_folder:
        root = Path(dataset).expanduser().resolve()
        if not root.is_dir():
            raise MissingError(
                f"{dataset} is not a folder; pass a folder of images, or one of: {', '.join(KNOWN)}"
            )
        # two archives may share a folder name
        name = f"{slug(root.name)}-{fingerprint(str(root))[:6]}"
        title, home = root.name, resolve_data_dir(data_dir) / name
    else:
        check_choice(
            "dataset",
            dataset,
            KNOWN,
            "A folder of your own is given by its path: -p dataset /path/to/folder.",
        )
        name, title = dataset, KNOWN[dataset]
        root = home = resolve_data_dir(data_dir) / dataset
        if name == "sample" and not (root / "dataset_sample.json").is_file():
            root = PROJECT_ROOT / "data" / "sample"

    check_choice("split", split, (*SPLITS, "all"))
    found = annotations.find(root) if root.is_dir() else None
    files = _image_files(root)
    if found is None and not (own_folder and files):
        if own_folder:
            raise MissingError(
                f"{shown(root)} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        raise MissingError(
            f"{dataset}: no annotations found in {shown(root)}. Get {title} (see "
            f"data/README.md#{dataset}) "
            "or pass -p data_dir DIR, the folder that holds it."
        )
    problems: list[str] = []
    records = annotations.read(found, problems) if found else []
    images, captions = _assemble(records, files, root, name, problems)
    sizes = {s: int(n) for s, n in images["split"].value_counts().items()}
    if set(sizes) == {""}:
        split, images, sizes = "all", images.assign(split="all"), {"all": len(images)}
    if split != "all":
        if split not in sizes:
            have = ", ".join(f"{s} ({n:,})" for s, n in sizes.items())
            raise InputError(
                f"{dataset} has no split {split!r} on disk; it has {have}. Pass -p split NAME."
            )
        images = images[images["split"] == split]
    if limit:
        images = images.head(limit)
    captions = captions[captions["image_id"].isin(set(images["image_id"]))]
    without = int((images["path"] == "").sum())
    if without:
        problems.append(
            f"{without:,} of {len(images):,} images of this split have no file on disk: retrieval "
            "from captions made "
            "elsewhere works, captioning and galleries need the pixels"
        )
    return Dataset(
        name,
        title,
        split,
        root,
        home / "derived",
        _figures_dir(name),
        images.reset_index(drop=True),
        captions.reset_index(drop=True),
        tuple(problems),
        sizes,
    )


def other_split(dataset: Dataset, split: str) -> Dataset:
    """Another split of the same dataset.

    Raises:
        InputError: it has no such split.
    """
    name = dataset.name if dataset.name in KNOWN else str(dataset.root)
    return load_dataset(name, str(dataset.derived.parent.parent), split)


def _figures_dir(name: str) -> Path:
    return PROJECT_ROOT / "figures" / name


def check_images(dataset: Dataset, bands: str = "") -> tuple[Dataset, pd.DataFrame]:
    """Open every image once.

    Returns:
        The dataset with unreadable files taken out of ``path`` and named in ``problems``, and a
        table ``image_id, width, height, kilobytes`` of the readable ones.
    """
    rows, broken = [], {}
    with_pixels = dataset.with_pixels
    for image_id, path in progress(
        zip(with_pixels["image_id"], with_pixels["path"], strict=True),
        total=len(with_pixels),
        desc="images",
    ):
        try:
            height, width = read_image(path, bands).shape[:2]
            rows.append((image_id, width, height, os.path.getsize(path) / 1024))
        except InputError as error:
            broken[image_id] = str(error)
    images = dataset.images.copy()
    images.loc[images["image_id"].isin(broken), "path"] = ""
    checked = replace(dataset, images=images, problems=(*dataset.problems, *broken.values()))
    return checked, pd.DataFrame(rows, columns=["image_id", "width", "height", "kilobytes"])


def clean_text(text: object) -> str:
    """NFC, stripped; "" for anything that is not text."""
    return unicodedata.normalize("NFC", text).strip() if isinstance(text, str) else ""


def _image_files(root: Path) -> dict[str, Path]:
    """Relative posix name -> file, for all images below ``root``; links that leave the folder are
    left out."""
    files = {}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(
            s
            for s in subfolders
            if s not in {"derived", "source"} and not s.startswith((".", "__"))
        )
        for name in sorted(names):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                path = Path(folder) / name
                if not path.is_symlink() or path.resolve().is_relative_to(Path(folder).resolve()):
                    files[path.relative_to(root).as_posix()] = path
        if Path(folder).resolve() in [
            p.resolve() for p in Path(folder).parents if p.is_relative_to(root)
        ]:
            subfolders.clear()  # a link back up
    return files


def _assemble(
    records: list[annotations.Annotation],
    files: dict[str, Path],
    root: Path,
    name: str,
    problems: list[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join annotations and files into the images table and the human text corpus."""
    by_name: dict[str, list[str]] = {}
    for relative in files:
        by_name.setdefault(Path(relative).name, []).append(relative)
        by_name.setdefault(Path(relative).stem, []).append(relative)
    if not records:  # a plain folder: every image file, named by its path inside the folder
        records = [annotations.Annotation(relative, "", []) for relative in files]
        stems = {r: Path(r).with_suffix("").as_posix() for r in files}
    else:
        stems = {}
    labels = _labels(root, name)
    images, captions, seen, ids = [], [], {}, set()
    empty = repeated = 0
    for record in records:
        filename = record.filename.replace("\\", "/")
        if (
            not Path(filename).name
            or filename.startswith(("/", "~"))
            or ".." in Path(filename).parts
            or ":" in filename
        ):
            problems.append(
                f"file name {record.filename!r} would leave the image folder; the entry was skipped"
            )
            continue
        if filename in seen:
            problems.append(
                f"{filename} is annotated more than once; captions joined, split "
                f"{seen[filename][1]!r} kept"
            )
            image_id = seen[filename][0]
        else:
            image_id = stems.get(filename, Path(filename).stem)
            if image_id in ids:
                problems.append(
                    f"{filename}: another image has the stem {image_id!r}; its id is its full name"
                )
                image_id = filename
            seen[filename] = (image_id, record.split)
            ids.add(image_id)
            candidates = by_name.get(Path(filename).name) or by_name.get(Path(filename).stem) or []
            path = files.get(filename) or (files[candidates[0]] if candidates else None)
            label = labels.get(Path(filename).name, "") or _label_from_name(Path(filename), name)
            images.append((image_id, filename, record.split, label, str(path or "")))
        texts = [clean_text(t) for t in record.captions]
        empty += sum(not t for t in texts)
        texts = [t for t in texts if t]
        repeated += len(texts) - len(set(texts))
        captions += [(image_id, t) for t in texts]
    table = pd.DataFrame(images, columns=["image_id", "filename", "split", "label", "path"])
    if table.empty:
        raise InputError(f"{shown(root)}: the annotations name no usable image")
    corpus = pd.DataFrame(captions, columns=["image_id", "text"], dtype=str)
    corpus = corpus.assign(
        source="human", field="caption", variant=corpus.groupby("image_id").cumcount().astype(int)
    )
    if captions and empty:
        problems.append(f"{empty:,} empty captions were left out")
    if repeated:
        problems.append(
            f"{repeated:,} captions repeat another caption of the same image (kept: the protocol "
            "counts them)"
        )
    bare = len(table) - corpus["image_id"].nunique()
    if captions and bare:
        problems.append(f"{bare:,} images have no caption")
    return table, corpus[CORPUS_COLUMNS]


def _labels(root: Path, name: str) -> dict[str, str]:
    """File name -> class, from RSICD's ``txtclasses_rsicd/<Class>.txt`` where that folder
    exists."""
    labels = {}
    for path in sorted(root.glob("txtclasses*/*.txt")):
        for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            if line.strip():
                labels[line.strip()] = path.stem.lower()
    return labels


def _label_from_name(filename: Path, name: str) -> str:
    if name == "ucm" and filename.stem.isdigit() and 1 <= int(filename.stem) <= 2100:
        return _UCM_CLASSES[(int(filename.stem) - 1) // 100]
    match = re.fullmatch(r"([A-Za-z][A-Za-z_-]*?)[_-]?\d+", filename.stem)
    if match:
        return match[1].lower()
    parent = filename.parent.name
    return parent.lower() if parent not in {"", "images", "imgs", *SPLITS} else ""


def statistics(dataset: Dataset) -> pd.Series:
    """The dataset in numbers: images, captions, words a caption, repeats, classes."""
    words = dataset.captions["text"].str.split().str.len()
    texts = dataset.captions["text"]
    return pd.Series(
        {
            "images": len(dataset.images),
            "images with pixels": len(dataset.with_pixels),
            "classes": dataset.images["label"].replace("", np.nan).nunique(),
            "human captions": len(texts),
            "distinct captions": texts.nunique(),
            "captions shared by several images": sum(
                n > 1
                for n in Counter(
                    dataset.captions.drop_duplicates(["image_id", "text"])["text"]
                ).values()
            ),
            "words a caption (median)": float(words.median()) if len(words) else 0.0,
        },
        name=f"{dataset.title} · {dataset.split}",
    )
