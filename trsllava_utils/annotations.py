"""Annotation files: images with their captions, from the layouts that people meet.

Here: nested JSON (``{"images": [{"filename", "split", "sentences": [{"raw"}]}]}``), COCO captions,
flat JSON and JSONL. Tables, and more, are plug-ins (``trsllava.layouts``). A table or JSON without
captions is none of them; it may be metadata.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trsllava_utils import plugins
from trsllava_utils.files import InputError, parse_json, read_lines, read_text, reading, shown
from trsllava_utils.folder import leads_out

SPLIT_NAMES = {name: name for name in ("train", "val", "test")}
SPLIT_NAMES |= {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}
IMAGE_KEYS = ("filename", "file_name", "image", "image_name", "name", "key")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_TEXT_KEYS = ("captions", "caption", "title", "sentences", "text", "raw")


class Annotation(NamedTuple):
    """One image: its file name, its split ("" if none is given) and its captions."""

    filename: str
    split: str
    captions: list[str]


@dataclass(frozen=True)
class Layout:
    """A layout of annotations: the names of its files, how they are read, and what columns a file
    of another name must have."""

    place: int  # the layout with the smallest place that is there is read
    patterns: tuple[str, ...]  # below the dataset's folder
    read: Callable[[Path], list[Annotation]]
    keys: Callable[[Path], Iterable[str]]  # of the first entry; empty if it is no such file
    only_first: bool = False  # of several files


def find(root: Path) -> tuple[Layout, list[Path]] | None:
    """The annotation files in ``root``, of the first layout that is there. Files that do not say by
    their name that they hold captions are looked into."""
    for layout in sorted([*_LAYOUTS, *plugins.load_all("layouts").values()], key=lambda o: o.place):
        paths = sorted(path for pattern in layout.patterns for path in root.glob(pattern))
        paths = [p for p in paths if p.is_file() and not p.name.startswith(".")]
        paths = [p for p in paths if not leads_out(p, root) and _holds_captions(p, layout)]
        if paths:
            return layout, paths[:1] if layout.only_first else paths
    return None


def _holds_captions(path: Path, layout: Layout) -> bool:
    if path.name.startswith(("dataset", "captions")):
        return True
    try:
        with reading(path):
            keys = set(layout.keys(path))
    except InputError:
        return False
    if path.stem.lower() == "metadata":  # captions only as the hub has them there
        return "file_name" in keys and bool({"text", "caption"} & keys)
    return bool({*IMAGE_KEYS} & keys and {*_TEXT_KEYS} & keys)


def read(layout: Layout, paths: list[Path], problems: list[str]) -> list[Annotation]:
    """Read annotation files of one layout.

    Raises:
        InputError: a file is broken or of a schema that is not known: which file, where, and what
            was expected.
    """
    records = []
    for path in paths:
        with reading(path):
            records += layout.read(path)
    if not records:
        problems.append(f"{', '.join(p.name for p in paths)}: no annotation found in it")
    return records


def grouped(records: list[Annotation]) -> list[Annotation]:
    """Join the rows of an image, for layouts of one caption per row."""
    merged: dict[tuple[str, str], list[str]] = {}
    for r in records:
        merged.setdefault((r.filename, r.split), []).extend(r.captions)
    return [Annotation(filename, split, captions) for (filename, split), captions in merged.items()]


def entry_of(entry: Any, path: Path, where: str) -> Annotation:
    """One image of any JSON layout, or one row of a table."""
    known = entry if isinstance(entry, dict) else {}
    names = (known.get(key) for key in IMAGE_KEYS)
    filename = next((str(n) for n in names if isinstance(n, str | int) and n != ""), None)
    key = next((k for k in _TEXT_KEYS if k in known), None)
    if filename is None or key is None:
        raise InputError(
            f"{shown(path)}, {where}: expected an image name ({', '.join(IMAGE_KEYS[:3])}) and "
            f"captions ({', '.join(_TEXT_KEYS[:4])}), found {_describe(entry)}"
        )
    filename = filename.replace("\\", "/")
    folder = filename.split("/")[0] if "/" in filename else ""
    split = str(entry.get("split") or (folder if folder in SPLIT_NAMES else ""))
    return Annotation(filename, SPLIT_NAMES.get(split.lower(), split), _texts(entry[key]))


def _texts(value: Any) -> list[str]:
    """Captions as people nest them: one, several, in objects, as words apart; "" for no text."""
    if isinstance(value, dict):
        key = next((key for key in _TEXT_KEYS if key in value), None)
        return _texts(value[key] if key else [value.get("tokens", "")])
    if not isinstance(value, list):
        return [value if isinstance(value, str) else ""]
    words = [" ".join(map(str, part)) if isinstance(part, list) else part for part in value]
    return [text for part in words for text in _texts(part)]


def _entries(content: Any) -> list | None:
    """The images in a JSON value, with those of COCO given their captions; None if there is no list
    of images."""
    entries = content.get("images") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        return None
    coco = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(coco, list):
        return entries
    texts: dict[str, list[str]] = {}  # ids are numbers in one list and text in the other
    for annotation in coco:
        known = isinstance(annotation, dict) and "caption" in annotation
        if known and isinstance(annotation.get("image_id"), int | str):
            texts.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
    images = [entry for entry in entries if isinstance(entry, dict) and texts]
    return [{**image, "captions": texts.get(str(image.get("id")), [])} for image in images]


def _read_json(path: Path) -> list[Annotation]:
    content = parse_json(read_text(path), shown(path))
    entries = _entries(content)
    if entries is None:
        raise InputError(
            f'{shown(path)}: expected {{"images": [...]}} or a list, found {_describe(content)}'
        )
    records = [entry_of(e, path, f"entry {i}") for i, e in enumerate(entries)]
    if isinstance(content, dict) and "annotations" in content:
        records = [record._replace(split=record.split or split_of(path)) for record in records]
    return records if isinstance(content, dict) else grouped(records)


def _json_keys(path: Path) -> list[str]:
    entries = _entries(parse_json(read_text(path)))
    return list(entries[0]) if entries and isinstance(entries[0], dict) else []


def split_of(path: Path) -> str:
    """The split that a file is named after: ``captions_val2017.json``, ``test-00000.parquet``."""
    words = path.stem.lower().replace("-", "_").split("_")
    names = (SPLIT_NAMES.get(word.rstrip("0123456789"), "") for word in words)
    return next(filter(None, names), "")


def read_jsonl(path: Path) -> list[Annotation]:
    entries = []
    for number, value, problem in read_lines(path):
        if problem:
            raise InputError(f"{shown(path)}, line {number}: {problem}")
        entries.append(entry_of(value, path, f"line {number}"))
    return grouped(entries)


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "an object with " + (", ".join(map(repr, list(value)[:6])) or "no keys")
    return f"{type(value).__name__} {str(value)[:40]!r}"


def clean_text(text: object) -> str:
    """NFC, stripped, without control characters and halves of characters (which cannot be written);
    "" for anything that is not text."""
    if not isinstance(text, str):
        return ""
    text = _CONTROL.sub("", text.encode("utf-8", "ignore").decode())
    return unicodedata.normalize("NFC", text).strip()


_LAYOUTS = (
    Layout(10, ("dataset*.json",), _read_json, _json_keys, only_first=True),
    Layout(30, ("captions*.jsonl",), read_jsonl, lambda path: ()),
    Layout(31, ("captions*.json",), _read_json, _json_keys),
    Layout(60, ("*.json",), _read_json, _json_keys),
)
