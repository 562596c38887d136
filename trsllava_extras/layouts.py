"""Layouts of annotations that are rarer: pairs of text files (UCM, Sydney), Parquet (the Hugging
Face hub, img2dataset)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from trsllava_utils.annotations import SPLIT_NAMES, Annotation, Layout, grouped, rows
from trsllava_utils.files import InputError, read_text, shown


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


def _read_parquet(path: Path) -> list[Annotation]:
    # pixels inside Parquet are not read here
    columns = [name for name in parquet_columns(path) if name != "image"]
    return rows(pd.read_parquet(path, columns=columns), path)


TEXT_PAIRS = Layout(20, ("*_caps.txt",), _read_text_pair, lambda path: ())
PARQUET = Layout(50, ("*.parquet", "data/*.parquet"), _read_parquet, parquet_columns)
