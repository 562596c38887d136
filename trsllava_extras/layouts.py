"""Layouts of annotations beside those of JSON (``trsllava.layouts``): tables, pairs of text files
(UCM, Sydney), Parquet (img2dataset), folders as the Hugging Face hub has them, and a text file
beside each image."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from trsllava_utils.annotations import (
    SPLIT_NAMES,
    Annotation,
    Layout,
    entry_of,
    grouped,
    read_jsonl,
    split_of,
)
from trsllava_utils.files import InputError, read_lines, read_text, reading, shown
from trsllava_utils.images import image_suffixes

_NUMBERED = re.compile(r"^(raw|caption|sentence|title|text)s?[ _.-]?\d+$")
_LIST = re.compile(r"\[\s*['\"].*['\"]\s*\]", re.DOTALL)
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """A table of text with commas, semicolons or tabs between its columns.

    Raises:
        InputError: it cannot be read.
    """
    text = read_text(path)
    if told := re.match(r"sep=(.)\r?\n", text):  # a line for Excel
        text = text[told.end() :]
    header = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])
    separator = told[1] if told else max(",;\t", key=header.count)
    with reading(path):
        return pd.read_csv(io.StringIO(text), sep=separator, **options)


def rows(table: pd.DataFrame, path: Path) -> list[Annotation]:
    """The rows of a table as annotations."""
    records = []
    for i, row in enumerate(table.to_dict("records"), 1):
        row = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()}
        record = entry_of(_one_column(row), path, f"row {i}")
        records.append(record._replace(split=record.split or split_of(path)))
    return grouped(records)


def _one_column(row: dict) -> dict:
    """A row with the captions of numbered columns (raw, raw_1, …) in one, and lists that were
    written into a cell as lists."""
    out: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, str) and _LIST.fullmatch(value.strip()):
            value = [single or double for single, double in _QUOTED.findall(value)]
            value = [re.sub(r"\\(.)", r"\1", text) for text in value]
        (name,) = _columns([column])
        if name in out:
            pair = (v if isinstance(v, list) else [v] for v in (out[name], value))
            value = [text for part in pair for text in part]
        out[name] = value
    return out


def _columns(names: Iterable[str]) -> list[str]:
    """Names of columns, without the numbers of those for captions."""
    return [_NUMBERED.sub(r"\1", str(name)) for name in names]


def _read_rows(path: Path) -> list[Annotation]:
    return rows(read_csv(path, dtype=str, keep_default_na=False), path)


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
    return grouped([Annotation(name.strip(), split, texts) for name, texts in pairs])


def parquet_columns(path: Path) -> list[str]:
    """The names of a table's columns, without reading the rest."""
    return pq.read_schema(path).names


def is_geoparquet(path: Path) -> bool:
    """Whether a Parquet file has places, whatever the column is called."""
    return b"geo" in (pq.read_schema(path).metadata or {})


def _read_parquet(path: Path) -> list[Annotation]:
    # pixels inside Parquet are not read here
    columns = [name for name in parquet_columns(path) if name != "image"]
    return rows(pd.read_parquet(path, columns=columns), path)


def _read_imagefolder(path: Path) -> list[Annotation]:
    """``metadata.jsonl`` or ``.csv`` in a folder of the hub, or in those of its splits: file names
    are relative to it."""
    records = _read_rows(path) if path.suffix == ".csv" else read_jsonl(path)
    folder = path.parent.name
    split = SPLIT_NAMES.get(folder.lower())
    if not split:
        return [record._replace(split=record.split or split_of(path)) for record in records]
    return [Annotation(f"{folder}/{r.filename}", r.split or split, r.captions) for r in records]


def _first_keys(path: Path) -> Iterable[str]:
    if path.suffix.lower() in (".csv", ".tsv"):
        return _columns(read_csv(path, nrows=0).columns)
    first = next((value for _, value, _ in read_lines(path)), None)
    return first if isinstance(first, dict) else ()


def _image_beside(path: Path) -> Path | None:
    files = (path.with_suffix(suffix) for suffix in sorted(image_suffixes()))
    return next((file for file in files if file.is_file()), None)


def _read_beside(path: Path) -> list[Annotation]:
    """``a.txt`` beside ``a.jpg``, one caption a line."""
    lines = read_text(path).splitlines()
    return [Annotation(_image_beside(path).name, "", lines)]


def _words_beside(path: Path) -> Iterable[str]:
    """Whether it is one: boxes and classes lie beside images too, as numbers."""
    if not _image_beside(path) or not re.search(r"[^\W\d]{2}", read_text(path)):
        return ()
    return ("image", "caption")


TABLES = Layout(40, ("*.csv", "*.tsv"), _read_rows, _first_keys)
TEXT_PAIRS = Layout(20, ("*_caps.txt",), _read_text_pair, lambda path: ("image", "caption"))
PARQUET = Layout(50, ("*.parquet", "data/*.parquet"), _read_parquet, parquet_columns)
HUB_FILES = ("metadata.jsonl", "*/metadata.jsonl", "*/metadata.csv")
SPLIT_FILES = tuple(f"{name}*.jsonl" for name in sorted(SPLIT_NAMES))
IMAGEFOLDER = Layout(45, (*HUB_FILES, *SPLIT_FILES), _read_imagefolder, _first_keys)
BESIDE = Layout(70, ("*.txt",), _read_beside, _words_beside)
