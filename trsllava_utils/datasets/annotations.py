"""Caption annotations as they come on disk: finds the files, reads them, and returns a list of
:class:`Annotation`.

Layouts (see ``data/README.md``): nested JSON ``{"images": [{"filename", "split", "sentences":
[{"raw"}]}]}``; a flat JSON or JSONL list of ``{"image", "caption"}``; ``<split>_caps.txt`` with
``<split>_filename.txt``; CSV ``filename,title[,split]``; Parquet ``filename, captions[, split]``.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from trsllava_utils.artefacts import InputError, shown

PLACES = "coordinates.csv"  # says where images were taken, and nothing of what they show
SPLIT_NAMES = {name: name for name in ("train", "val", "test")}
SPLIT_NAMES |= {"restval": "train", "valid": "val", "validation": "val", "dev": "val"}
_LAYOUTS = (  # the best first
    ("dataset*.json",),
    ("*_caps.txt",),
    ("captions*.jsonl", "captions*.json"),
    ("*.csv",),
    ("*.parquet", "data/*.parquet"),
    ("*.json",),
)
_FILE_KEYS = ("filename", "file_name", "image", "image_name", "name")
_TEXT_KEYS = ("captions", "caption", "title", "sentences", "text", "raw")


class Annotation(NamedTuple):
    """One image: its file name, its split ("" if none is given) and its captions."""

    filename: str
    split: str
    captions: list[str]


def find(root: Path) -> list[Path]:
    """The annotation files in ``root``, of the first layout that is there; of several
    ``dataset*.json`` only the first."""
    for patterns in _LAYOUTS:
        paths = sorted(path for pattern in patterns for path in root.glob(pattern))
        paths = [p for p in paths if not p.name.startswith(".") and p.name != PLACES]
        if paths:
            return paths[:1] if patterns == _LAYOUTS[0] else paths
    return []


def read(paths: list[Path], problems: list[str]) -> list[Annotation]:
    """Read annotation files of one layout.

    Raises:
        InputError: a file is broken or of a schema that is not known: which file, where, and what
            was expected.
    """
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".txt": _read_text_pair}
    records = [r for path in paths for r in readers.get(path.suffix.lower(), _read_table)(path)]
    if not records:
        problems.append(f"{', '.join(p.name for p in paths)}: no annotation found in it")
    return records


def _grouped(records: list[Annotation]) -> list[Annotation]:
    """Join the rows of an image, for layouts of one caption per row."""
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


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(
            f"{where}: broken JSON ({error.msg} at {place}); it may be a partial download, get it "
            "again"
        ) from error


def _read_json(path: Path) -> list[Annotation]:
    content = _parsed(_text(path), shown(path))
    entries = content.get("images") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise InputError(
            f'{shown(path)}: expected {{"images": [...]}} or a list, found {_describe(content)}'
        )
    records = [_entry(e, path, f"entry {i}") for i, e in enumerate(entries)]
    return records if isinstance(content, dict) else _grouped(records)


def _read_jsonl(path: Path) -> list[Annotation]:
    lines = ((n, line) for n, line in enumerate(_text(path).split("\n"), 1) if line.strip())
    values = ((n, _parsed(line, f"{shown(path)}, line {n}")) for n, line in lines)
    return _grouped([_entry(value, path, f"line {n}") for n, value in values])


def _entry(entry: Any, path: Path, where: str) -> Annotation:
    """One image of any JSON layout, or one row of a table."""
    known = entry if isinstance(entry, dict) else {}
    names = (known.get(key) for key in _FILE_KEYS)
    filename = next((name for name in names if name and isinstance(name, str)), None)
    key = next((k for k in _TEXT_KEYS if k in known), None)
    if filename is None or key is None:
        raise InputError(
            f"{shown(path)}, {where}: expected an image name ({', '.join(_FILE_KEYS[:3])}) and "
            f"captions ({', '.join(_TEXT_KEYS[:4])}), found {_describe(entry)}"
        )
    texts = entry[key] if isinstance(entry[key], list) else [entry[key]]
    texts = [t.get("raw", t.get("text", "")) if isinstance(t, dict) else t for t in texts]
    folder = PurePosixPath(filename).parts[0] if "/" in filename else ""
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
    captions, names = (_text(p).rstrip("\n").split("\n") for p in (path, names_path))
    share, rest = divmod(len(captions), len(names))
    if rest or not share:
        raise InputError(
            f"{shown(path)} has {len(captions)} lines and {names_path.name} {len(names)}: neither "
            "equal nor a multiple"
        )
    split = SPLIT_NAMES.get(split, split)
    return [
        Annotation(name.strip(), split, captions[i * share : (i + 1) * share])
        for i, name in enumerate(names)
    ]


def _read_table(path: Path) -> list[Annotation]:
    try:
        if path.suffix.lower() == ".csv":
            table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
        else:
            import pyarrow.parquet as pq

            # pixels inside Parquet are not read here
            columns = [name for name in pq.read_schema(path).names if name != "image"]
            table = pd.read_parquet(path, columns=columns)
    except (ValueError, OSError) as error:
        raise InputError(f"{shown(path)} cannot be read: {str(error).splitlines()[0]}") from error
    default = next((s for s in SPLIT_NAMES if path.stem.lower().startswith(s)), "")
    records = []
    for i, row in enumerate(table.to_dict("records"), 1):
        row = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()}
        record = _entry(row, path, f"row {i}")
        records.append(record._replace(split=record.split or default))
    return _grouped(records)


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "an object with " + (", ".join(map(repr, list(value)[:6])) or "no keys")
    return f"{type(value).__name__} {str(value)[:40]!r}"
