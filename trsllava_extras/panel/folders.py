"""Results as files for other tools: links to the images, an image folder as Hugging Face's
``datasets`` reads it, captions as COCO has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd

from trsllava_extras.pages import jpeg
from trsllava_extras.tags import BETWEEN
from trsllava_utils.files import InputError, cannot_write, first_few, shown, slug, write_text
from trsllava_utils.images import PHOTO_SUFFIXES, ImageFile, read_image
from trsllava_utils.records import Record
from trsllava_utils.sources import Sources


def save_files(table: pd.DataFrame, sources: Sources, folder: Path) -> Path:
    """Links to the files of a result, numbered by rank; nothing that is there is written over."""

    def put(file: ImageFile, target: Path) -> None:
        with suppress(OSError):  # Windows forbids links, some disks cannot hold them
            target.symlink_to(Path(file.path).resolve())
        if not target.exists():
            shutil.copy2(file.path, target)

    _fill(table, sources, folder, put, lambda file: not file.window)
    return folder


def save_imagefolder(table: pd.DataFrame, sources: Sources, folder: Path) -> Path:
    """Copies of the images beside ``metadata.jsonl``: ``datasets.load_dataset("imagefolder", …)``
    reads them with the columns ``image_id, text, captions, label, tags``. Windows and rasters are
    JPEG files, as the captioner saw them."""

    def put(file: ImageFile, target: Path) -> None:
        shutil.copyfile(file.path, target)

    def is_photograph(file: ImageFile) -> bool:
        return not file.window and Path(file.path).suffix.lower() in PHOTO_SUFFIXES

    lines = []
    names = _fill(table, sources, folder, put, is_photograph)
    for name, row in zip(names, table.to_dict("records"), strict=True):
        captions = sentences(sources.captions.records[row["image_id"]])
        about = {"file_name": name, "image_id": row["image_id"], "text": captions[0]}
        about |= {"captions": captions, "label": row["label"], "tags": _tags(row)}
        lines.append(f"{json.dumps(about, ensure_ascii=False)}\n")
    return write_text(folder / "metadata.jsonl", "".join(lines)).parent


def _fill(
    table: pd.DataFrame,
    sources: Sources,
    folder: Path,
    put: Callable[[ImageFile, Path], None],
    as_it_is: Callable[[ImageFile], bool],
) -> list[str]:
    """Put each file that may be taken ``as_it_is`` into an empty folder, of others the picture;
    their names there."""
    dataset, width = sources.dataset, len(str(len(table)))
    files = {image_id: dataset.file_of(image_id) for image_id in table["image_id"]}
    gone = [i for i, file in files.items() if not file or not Path(file.path).is_file()]
    if gone:
        raise InputError(f"no files on disk of {first_few(gone)}; nothing was saved")
    put_there = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{shown(folder)} is not empty; choose another folder")
        for rank, (image_id, file) in zip(table["rank"], files.items(), strict=True):
            suffix = Path(file.path).suffix.lower() if as_it_is(file) else ".jpg"
            target = folder / f"{rank:0{width}d}_{slug(image_id)}{suffix}"
            if as_it_is(file):
                put(file, target)
            else:
                target.write_bytes(jpeg(read_image(file, dataset.rendering)))
            put_there.append(target.name)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return put_there


def coco(table: pd.DataFrame, sources: Sources, query: str) -> str:
    """COCO captions: each variant is an annotation; file names are those in the dataset's folder.
    Images have ``tags`` and a ``label`` beside what COCO asks for."""
    names = sources.dataset.images.set_index("image_id")["filename"]
    images, annotations = [], []
    for number, row in enumerate(table.to_dict("records"), 1):
        record = sources.captions.records[row["image_id"]]
        about = {"id": number, "file_name": names[row["image_id"]], "image_id": row["image_id"]}
        if file := sources.dataset.file_of(row["image_id"]):
            height, width = read_image(file, sources.dataset.rendering).shape[:2]
            about |= {"width": width, "height": height}
        images.append(about | {"label": row["label"], "tags": _tags(row)})
        for text in sentences(record):
            annotation = {"id": len(annotations) + 1, "image_id": number, "caption": text}
            annotations.append(annotation)
    about = {"description": f"{sources.dataset.title}: {query}", "version": "1.0"}
    told = {"info": about, "licenses": [], "images": images, "annotations": annotations}
    return json.dumps(told, ensure_ascii=False)


def sentences(record: Record) -> list[str]:
    """One sentence of each variant, as people caption images."""
    return list(dict.fromkeys(v.one_sentence or v.caption for v in record.variants))


def _tags(row: dict) -> list[str]:
    tags = row.get("tag")
    return tags.split(BETWEEN) if isinstance(tags, str) and tags else []
