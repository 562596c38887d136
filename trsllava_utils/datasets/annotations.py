"""Annotation files: the layouts people meet go in, images with their captions come out.

Known layouts: nested JSON (``{"images": [{"filename", "split", "sentences": [{"raw"}]}]}``), COCO
captions, flat JSON lists and JSONL, pairs ``test_caps.txt`` + ``test_filename.txt``, CSV (also with
semicolons or tabs), Parquet, the tables of img2dataset. A table or JSON that holds no captions is
none of them; it may be metadata (``metadata.py``).
"""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from trsllava_utils.artefacts import InputError, read_text, reading, shown
from trsllava_utils.storage import parse_json, read_lines

SPLIT_NAMES = {name: name for name in ("train", "val", "test")}
SPLIT_NAMES |= {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}
_LAYOUTS = (  # the best first
    ("dataset*.json",),
    ("*_caps.txt",),
    ("captions*.jsonl", "captions*.json"),
    ("*.csv", "*.tsv"),
    ("*.parquet", "data/*.parquet"),
    ("*.json",),
)
NAMED_AS_CAPTIONS = ("dataset", "captions")
IMAGE_KEYS = ("filename", "file_name", "image", "image_name", "name", "key")
_TEXT_KEYS = ("captions", "caption", "title", "sentences", "text", "raw")


class Annotation(NamedTuple):
    """One image: its file name, its split ("" if none is given) and its captions."""

    filename: str
    split: str
    captions: list[str]


def find(root: Path) -> list[Path]:
    """The annotation files in ``root``, of the first layout that is there; of several
    ``dataset*.json`` only the first. Files that do not say by their name that they hold captions
    are looked into."""
    for patterns in _LAYOUTS:
        paths = sorted(path for pattern in patterns for path in root.glob(pattern))
        paths = [p for p in paths if p.is_file() and not p.name.startswith(".")]
        paths = [p for p in paths if _holds_captions(p)]
        if paths:
            return paths[:1] if patterns == _LAYOUTS[0] else paths
    return []


def _holds_captions(path: Path) -> bool:
    if path.name.startswith(NAMED_AS_CAPTIONS) or path.suffix == ".txt":
        return True
    try:
        with reading(path):
            if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
                keys = table_columns(path)
            else:
                entries = _entries(parse_json(read_text(path)))
                keys = list(entries[0]) if entries and isinstance(entries[0], dict) else []
    except InputError:
        return False
    if path.stem.lower() == "metadata":  # captions only as the hub has them there
        return "file_name" in keys and bool({"text", "caption"} & {*keys})
    return bool({*IMAGE_KEYS} & {*keys} and {*_TEXT_KEYS} & {*keys})


def read(paths: list[Path], problems: list[str]) -> list[Annotation]:
    """Read annotation files of one layout.

    Raises:
        InputError: a file is broken or of a schema that is not known: which file, where, and what
            was expected.
    """
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".txt": _read_text_pair}
    records = []
    for path in paths:
        with reading(path):
            records += readers.get(path.suffix.lower(), _read_table)(path)
    if not records:
        problems.append(f"{', '.join(p.name for p in paths)}: no annotation found in it")
    return records


def _grouped(records: list[Annotation]) -> list[Annotation]:
    """Join the rows of an image, for layouts of one caption per row."""
    merged: dict[tuple[str, str], list[str]] = {}
    for r in records:
        merged.setdefault((r.filename, r.split), []).extend(r.captions)
    return [Annotation(filename, split, captions) for (filename, split), captions in merged.items()]


def _entries(content: Any) -> list | None:
    """The images in a JSON value, with those of COCO given their captions; None if there is no list
    of images."""
    entries = content.get("images") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        return None
    coco = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(coco, list):
        texts: dict[Any, list[str]] = {}
        for annotation in coco:
            known = isinstance(annotation, dict) and "caption" in annotation
            if known and isinstance(annotation.get("image_id"), int | str):
                texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
        images = [entry for entry in entries if isinstance(entry, dict) and texts]
        return [{**image, "captions": texts.get(image.get("id"), [])} for image in images]
    return entries


def _read_json(path: Path) -> list[Annotation]:
    content = parse_json(read_text(path), shown(path))
    entries = _entries(content)
    if entries is None:
        raise InputError(
            f'{shown(path)}: expected {{"images": [...]}} or a list, found {_describe(content)}'
        )
    records = [_entry(e, path, f"entry {i}") for i, e in enumerate(entries)]
    if isinstance(content, dict) and "annotations" in content:
        records = [record._replace(split=record.split or _split_of(path)) for record in records]
    return records if isinstance(content, dict) else _grouped(records)


def _split_of(path: Path) -> str:
    """The split that a file is named after: ``captions_val2017.json``, ``test-00000.parquet``."""
    words = path.stem.lower().replace("-", "_").split("_")
    names = (SPLIT_NAMES.get(word.rstrip("0123456789"), "") for word in words)
    return next(filter(None, names), "")


def _read_jsonl(path: Path) -> list[Annotation]:
    entries = []
    for number, value, problem in read_lines(path):
        if problem:
            raise InputError(f"{shown(path)}, line {number}: {problem}")
        entries.append(_entry(value, path, f"line {number}"))
    return _grouped(entries)


def _entry(entry: Any, path: Path, where: str) -> Annotation:
    """One image of any JSON layout, or one row of a table."""
    known = entry if isinstance(entry, dict) else {}
    names = (known.get(key) for key in IMAGE_KEYS)
    names = (str(name) for name in names if isinstance(name, str | int) and name != "")
    filename = next(names, None)
    key = next((k for k in _TEXT_KEYS if k in known), None)
    if filename is None or key is None:
        raise InputError(
            f"{shown(path)}, {where}: expected an image name ({', '.join(IMAGE_KEYS[:3])}) and "
            f"captions ({', '.join(_TEXT_KEYS[:4])}), found {_describe(entry)}"
        )
    texts = entry[key] if isinstance(entry[key], list) else [entry[key]]
    texts = [t.get("raw", t.get("text", "")) if isinstance(t, dict) else t for t in texts]
    folder = "".join(PurePosixPath(filename).parts[:1]) if "/" in filename else ""
    split = str(entry.get("split") or (folder if folder in SPLIT_NAMES else ""))
    captions = [t if isinstance(t, str) else "" for t in texts]
    return Annotation(filename, SPLIT_NAMES.get(split.lower(), split), captions)


def _read_text_pair(path: Path) -> list[Annotation]:
    """``test_caps.txt`` + ``test_filename.txt``: one name per caption, or one name per image (then
    equal shares)."""
    split = path.name.removesuffix("_caps.txt")
    candidates = (path.with_name(f"{split}_filename{s}.txt") for s in ("", "s"))
    names_path = next((p for p in candidates if p.is_file()), None)
    if names_path is None:
        raise InputError(
            f"{shown(path)} has no {split}_filename.txt beside it, the file names that go with "
            "its captions"
        )
    captions, names = (read_text(p).rstrip("\r\n").split("\n") for p in (path, names_path))
    share, rest = divmod(len(captions), len(names))
    if rest or not share:
        raise InputError(
            f"{shown(path)} has {len(captions)} lines and {names_path.name} {len(names)}: neither "
            "equal nor a multiple"
        )
    split = SPLIT_NAMES.get(split, split)
    captions = [captions[i * share : (i + 1) * share] for i in range(len(names))]
    pairs = zip(names, captions, strict=True)
    return _grouped([Annotation(name.strip(), split, texts) for name, texts in pairs])


def table_columns(path: Path) -> list[str]:
    """The names of a table's columns, without reading the rest."""
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        return pq.read_schema(path).names
    return list(read_csv(path, nrows=0).columns)


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """A table of text with commas, semicolons or tabs between its columns.

    Raises:
        InputError: it cannot be read.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    with reading(path):
        return pd.read_csv(io.StringIO(text), sep=separator, **options)


def _read_table(path: Path) -> list[Annotation]:
    if path.suffix.lower() in (".csv", ".tsv"):
        table = read_csv(path, dtype=str, keep_default_na=False)
    else:
        # pixels inside Parquet are not read here
        columns = [name for name in table_columns(path) if name != "image"]
        table = pd.read_parquet(path, columns=columns)
    records = []
    for i, row in enumerate(table.to_dict("records"), 1):
        row = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()}
        record = _entry(row, path, f"row {i}")
        records.append(record._replace(split=record.split or _split_of(path)))
    return _grouped(records)


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "an object with " + (", ".join(map(repr, list(value)[:6])) or "no keys")
    return f"{type(value).__name__} {str(value)[:40]!r}"


def clean_text(text: object) -> str:
    """NFC, stripped, without halves of characters, which cannot be written; "" for anything that is
    not text."""
    if not isinstance(text, str):
        return ""
    return unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode()).strip()


def folded(text: str) -> str:
    """A caption for comparison: case, blanks and the full stop do not count."""
    return " ".join(clean_text(text).lower().rstrip(" .").split())
