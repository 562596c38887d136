"""Caption annotations as they come on disk: finds the file, reads it, and returns one
:class:`Annotation` an image.

Layouts (see ``data/README.md``): nested JSON ``{"images": [{"filename", "split", "sentences":
[{"raw"}]}]}``; a flat
JSON or JSONL list of ``{"image", "caption"}``; ``<split>_caps.txt`` + ``<split>_filename.txt``; CSV
``filename,title[,split]``; Parquet ``filename, captions[, split]``.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from trsllava_utils.artefacts import InputError, shown

PLACES = "coordinates.csv"  # says where images were taken, and nothing of what they show
SPLIT_NAMES = {
    "train": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
_FILE_KEYS = ("filename", "file_name", "image", "image_name", "name")
_TEXT_KEYS = ("captions", "caption", "title", "sentences", "text", "raw")


class Annotation(NamedTuple):
    """One image: its file name, its split ("" if none is given) and its captions."""

    filename: str
    split: str
    captions: list[str]


def find(root: Path) -> list[Path] | None:
    """The annotation files of the dataset in ``root``, best layout first; None if there are
    none."""
    for patterns in (
        ("dataset*.json",),
        ("*_caps.txt",),
        ("captions*.jsonl", "captions*.json"),
        ("*.csv",),
        ("*.parquet", "data/*.parquet"),
        ("*.json",),
    ):
        found = sorted(
            p
            for pattern in patterns
            for p in root.glob(pattern)
            if not p.name.startswith(".") and p.name != PLACES
        )
        if found:
            return (
                found[:1]
                if found[0].suffix == ".json" and found[0].name.startswith("dataset")
                else found
            )
    return None


def read(paths: list[Path], problems: list[str]) -> list[Annotation]:
    """Read annotation files of one layout.

    Raises:
        InputError: a file is broken or of a schema that is not known: which file, where, and what
            was expected.
    """
    records: list[Annotation] = []
    for path in paths:
        reader = {
            ".json": _read_json,
            ".jsonl": _read_jsonl,
            ".txt": _read_text_pair,
            ".csv": _read_table,
            ".parquet": _read_table,
        }
        records += reader[path.suffix.lower()](path)
    if not records:
        problems.append(f"{', '.join(p.name for p in paths)}: no annotation found in it")
    return records


def _grouped(records: list[Annotation]) -> list[Annotation]:
    """Join the rows of an image, for layouts of one caption a row."""
    merged: dict[tuple[str, str], list[str]] = {}
    for r in records:
        merged.setdefault((r.filename, r.split), []).extend(r.captions)
    return [Annotation(filename, split, captions) for (filename, split), captions in merged.items()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown(path)} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error


def _read_json(path: Path) -> list[Annotation]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{shown(path)} is broken JSON: {error.msg} at line {error.lineno}, column "
            f"{error.colno}; "
            "it may be a partial download, get it again"
        ) from error
    entries = content.get("images") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise InputError(
            f'{shown(path)}: expected {{"images": [...]}} or a list, found {_describe(content)}'
        )
    records = [_entry(e, path, f"entry {i}") for i, e in enumerate(entries)]
    return records if isinstance(content, dict) else _grouped(records)


def _read_jsonl(path: Path) -> list[Annotation]:
    records = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            try:
                records.append(_entry(json.loads(line), path, f"line {number}"))
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{shown(path)}, line {number}: broken JSON ({error.msg})"
                ) from error
    return _grouped(records)


def _entry(entry: Any, path: Path, where: str) -> Annotation:
    """One image of any JSON layout."""
    filename = (
        next((entry[k] for k in _FILE_KEYS if isinstance(entry.get(k), str)), None)
        if isinstance(entry, dict)
        else None
    )
    key = next((k for k in _TEXT_KEYS if k in entry), None) if filename else None
    if filename is None or key is None:
        raise InputError(
            f"{shown(path)}, {where}: expected an image name ({', '.join(_FILE_KEYS[:3])}) and "
            "captions "
            f"({', '.join(_TEXT_KEYS[:4])}), found {_describe(entry)}"
        )
    texts = entry[key] if isinstance(entry[key], list) else [entry[key]]
    texts = [t.get("raw", t.get("text", "")) if isinstance(t, dict) else t for t in texts]
    first = PurePosixPath(filename).parts[0] if "/" in filename else ""
    split = str(entry.get("split") or (first if first in SPLIT_NAMES else ""))
    return Annotation(
        filename,
        SPLIT_NAMES.get(split.lower(), split),
        [t if isinstance(t, str) else "" for t in texts],
    )


def _read_text_pair(path: Path) -> list[Annotation]:
    """``test_caps.txt`` + ``test_filename.txt``: one name a caption, or one name an image (then
    equal shares)."""
    split = path.name.removesuffix("_caps.txt")
    names_path = next(
        (
            p
            for p in (
                path.with_name(f"{split}_filename.txt"),
                path.with_name(f"{split}_filenames.txt"),
            )
            if p.is_file()
        ),
        None,
    )
    if names_path is None:
        raise InputError(
            f"{shown(path)} has no {split}_filename.txt beside it, the file names that go with "
            "its captions"
        )
    captions, names = (_text(p).rstrip("\n").split("\n") for p in (path, names_path))
    share, rest = divmod(len(captions), len(names))
    if rest or not share:
        raise InputError(
            f"{shown(path)} has {len(captions)} lines and {names_path.name} {len(names)}: neither "
            "equal nor a multiple"
        )
    split = SPLIT_NAMES.get(split, split)
    return [
        Annotation(name.strip(), split, [captions[i * share + j] for j in range(share)])
        for i, name in enumerate(names)
    ]


def _read_table(path: Path) -> list[Annotation]:
    try:
        if path.suffix.lower() == ".csv":
            table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
        else:
            import pyarrow.parquet as pq

            names = [
                n for n in pq.read_schema(path).names if n != "image"
            ]  # pixels inside Parquet are not read here
            table = pd.read_parquet(path, columns=names)
    except (ValueError, OSError) as error:
        raise InputError(f"{shown(path)} cannot be read: {str(error).splitlines()[0]}") from error
    default_split = next((s for s in SPLIT_NAMES if path.stem.lower().startswith(s)), "")
    records = []
    for i, row in enumerate(table.to_dict("records")):
        row = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()}
        record = _entry(row, path, f"row {i + 1}")
        records.append(record._replace(split=record.split or default_split))
    return _grouped(records)


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "an object with " + (", ".join(map(repr, list(value)[:6])) or "no keys")
    return f"{type(value).__name__} {str(value)[:40]!r}"
