"""Getting a dataset: a name goes in, its folder comes out, laid out as the official download.

RSICD comes from a copy on the Hugging Face hub, Parquet with ``filename, captions, image``; the
images of RSITMD from a zip file there, its annotations from the repository of the same authors. Of
the others no public copy is known.
"""

from __future__ import annotations

import json
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from trsllava_utils.data import KNOWN
from trsllava_utils.files import (
    InputError,
    MissingError,
    atomic_path,
    check_choice,
    parse_json,
    progress,
    read_text,
    resolve_data_dir,
    shown,
    write_text,
)

HUB, REVISION = "arampacha/rsicd", "820466c8716e3ccdacde5cb2eb15a2f0f11ccdfe"
ON_HUB = {"train": "train", "val": "valid", "test": "test"}
IMAGES = {"train": 8734, "val": 1094, "test": 1093}
RSITMD, COMMIT = "lcrucial1f/MPS-CLIP_Data", "694ea6fe3dd506a5ef768bd94f4945777680b780"
RSITMD_TEXTS = f"https://raw.githubusercontent.com/Lcrucial1f/MPS-CLIP/{COMMIT}/data/finetune"
AUTHORS = "https://github.com/xiaoyuan1996/AMFMN"
ASK = {  # where the other datasets are to be had
    "ucm": "https://github.com/201528014227051/RSICD_optimal",
    "sydney": "https://github.com/201528014227051/RSICD_optimal",
}


def get(dataset: str, data_dir: str = "", split: str = "all") -> Path:
    """Fetch a dataset. Images and captions that are there already stay as they are, and an
    interrupted call goes on where it stopped.

    Args:
        dataset: "rsicd" or "rsitmd"; for the others the error says where to ask.
        data_dir: the folder that will hold the dataset's folder; empty: the repository's ``data/``.
        split: "train", "val", "test" or "all"; of RSITMD there is one file with all of them.

    Returns:
        The dataset's folder: ``RSICD_images/*.jpg`` and ``dataset_rsicd.json``; or ``images/`` and
        annotation files.

    Raises:
        InputError: unknown dataset or split, the copy is not what is expected, or a full disk.
        MissingError: no public copy, or no network.
    """
    check_choice("dataset", dataset, KNOWN)
    check_choice("split", split, (*ON_HUB, "all"))
    root = resolve_data_dir(data_dir) / dataset
    if dataset == "sample":
        raise InputError("sample comes with the project, in data/sample")
    if dataset in ASK:
        raise MissingError(
            f"no public copy of {KNOWN[dataset]} is known. Its authors say how to get it: "
            f"{ASK[dataset]}. Put it into {shown(root)} (see data/README.md#{dataset})"
        )
    if dataset == "rsitmd":
        return _rsitmd(root)
    path, folder = root / "dataset_rsicd.json", root / "RSICD_images"
    content = parse_json(read_text(path), shown(path)) if path.exists() else {"images": []}
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(
        isinstance(image, dict) and isinstance(image.get("filename"), str) for image in images
    ):
        raise InputError(
            f"{shown(path)} is damaged, or no annotation file of RSICD; move it away, run again"
        )
    known = {image["filename"]: image.get("split") for image in images}
    for name in ON_HUB if split == "all" else (split,):
        there = [n for n, of in known.items() if of == name and (folder / n).is_file()]
        if len(there) >= IMAGES[name]:
            continue
        captions = _unpack(folder, name, _download(name))
        images += [
            {"filename": n, "split": name, "sentences": [{"raw": text} for text in texts]}
            for n, texts in captions.items()
            if n not in known
        ]
        write_text(path, json.dumps(content, ensure_ascii=False))
    return root


def _rsitmd(root: Path) -> Path:
    """Pictures keep the folder of their split, if they have one; crops of them are left out."""
    path = _from_hub(RSITMD, "rsitmd.zip", None, "RSITMD")
    try:
        with zipfile.ZipFile(path) as packed:
            for entry in progress(packed.infolist(), desc="unpacking"):
                name = PurePosixPath(entry.filename)
                split = name.parent.name if name.parent.name in IMAGES else ""
                target = root / "images" / split / name.name
                is_crop = not {"subimages", "__MACOSX"}.isdisjoint(name.parts)
                if name.suffix == ".tif" and not is_crop and not target.is_file():
                    with atomic_path(target) as tmp:
                        tmp.write_bytes(packed.read(entry))
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, "RSITMD", error) from error
    if any(root.glob("dataset*.json")):  # the authors' own
        return root
    for name in [f"rsitmd_{split}.json" for split in IMAGES]:
        try:
            if not (root / name).exists():
                with urllib.request.urlopen(f"{RSITMD_TEXTS}/{name}", timeout=60) as there:
                    write_text(root / name, there.read().decode())
        except OSError as error:
            raise MissingError(
                f"cannot fetch {name} from {RSITMD_TEXTS}: {error}. Put the authors' "
                f"dataset_RSITMD.json ({AUTHORS}) into {shown(root)}"
            ) from error
    return root


def _download(split: str) -> Path:
    """The Parquet file of a split, in the hub's cache."""
    file = f"data/{ON_HUB[split]}-00000-of-00001.parquet"
    return _from_hub(HUB, file, REVISION, f"RSICD ({split})")


def _from_hub(repository: str, file: str, revision: str | None, what: str) -> Path:
    """A file of a dataset on the hub, in its cache."""
    from huggingface_hub import hf_hub_download, logging

    logging.set_verbosity_error()  # it tries again by itself; the sentence below is enough
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except Exception as error:  # OSError, or one of httpx, whose name depends on the hub's version
        reason = error
        while reason.__cause__:
            reason = reason.__cause__
        said = (str(reason) or type(reason).__name__)[:120]
        raise MissingError(
            f"cannot fetch {what} from https://huggingface.co/datasets/{repository}: "
            f"{said}. The same command goes on where it stopped"
        ) from error


def _damaged(path: Path, what: str, error: Exception) -> MissingError:
    """The error for a damaged download, which it removes from the cache."""
    path.resolve().unlink(missing_ok=True)
    return MissingError(
        f"the download of {what} was damaged and has been removed; run the same command again "
        f"({error})"
    )


def _unpack(folder: Path, split: str, path: Path) -> dict[str, list[str]]:
    """Write the images of a Parquet file that are not there; the captions by file name."""
    captions = {}
    try:
        for row in progress(_rows(path, split), total=IMAGES[split], desc=f"unpacking {split}"):
            image = folder / PurePosixPath(row["filename"]).name
            captions[image.name] = row["captions"]
            if not image.is_file():
                with atomic_path(image) as tmp:
                    tmp.write_bytes(row["image"]["bytes"])
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, f"RSICD ({split})", error) from error
    return captions


def _rows(path: Path, split: str) -> Iterator[dict]:
    """The rows of a Parquet file, a few in memory at a time."""
    columns = ["filename", "captions", "image"]
    with pq.ParquetFile(path) as table:
        rows, names = table.metadata.num_rows, table.schema_arrow.names
        if rows != IMAGES[split] or not set(columns) <= set(names):
            raise InputError(
                f"{path.name} of {HUB} holds {rows:,} rows with the columns {', '.join(names)}, "
                f"not the {IMAGES[split]:,} images of RSICD {split} with {', '.join(columns)}"
            )
        for batch in table.iter_batches(64, columns=columns):
            yield from batch.to_pylist()
