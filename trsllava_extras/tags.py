"""Tags: words that people keep with images, in ``derived/labels.csv``: ``image_id, tag, query,
date, picture``, one row for each image and tag. A tag stays with its picture (a hash), whatever the
file is called later. The table may be edited in a spreadsheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from functools import lru_cache
from pathlib import Path

import pandas as pd

from trsllava_extras.layouts import read_csv
from trsllava_extras.results import csv_text
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, file_stamp, read_once, shown, write_text

COLUMNS = ["image_id", "tag", "query", "date", "picture"]
BETWEEN = "; "  # several tags of an image in one cell
_TAG = r"\w[\w .-]{0,39}"


def tags_path(dataset: Dataset) -> Path:
    """Where the tags of a dataset lie."""
    return dataset.derived / "labels.csv"


def tags_of(dataset: Dataset) -> pd.Series:
    """The tags of each tagged image of this split, by its id: ``"dry; flooded"``.

    Raises:
        InputError: the file is damaged.
    """
    return _tags(dataset, stamp(dataset))


def stamp(dataset: Dataset) -> tuple[int, ...]:
    """Changes when a tag does."""
    path = tags_path(dataset)
    return file_stamp(path) if path.exists() else ()


@lru_cache(4)
def _tags(dataset: Dataset, _: tuple) -> pd.Series:
    rows = _rows(dataset)
    if rows.empty:  # then no picture need be looked at
        return pd.Series(dtype=object, name="tag")
    by_picture: dict[str, list[str]] = {}
    here = {}
    for image_id in dataset.images["image_id"]:
        here[image_id] = _picture(dataset, image_id)
        by_picture.setdefault(here[image_id], []).append(image_id)
    tags: dict[str, set[str]] = {}
    for row in rows.itertuples():
        moved = by_picture.get(row.picture, []) if row.picture else []
        own = row.image_id in here and (here[row.image_id] == row.picture or not moved)
        for image_id in [row.image_id] if own else moved:
            tags.setdefault(image_id, set()).add(row.tag)
    joined = {image_id: BETWEEN.join(sorted(names)) for image_id, names in tags.items()}
    return pd.Series(joined, dtype=object, name="tag")


def tag(dataset: Dataset, image_ids: Iterable[str], word: str, query: str = "") -> None:
    """Keep a word with these images; ``query`` is what found them.

    Raises:
        InputError: the word is none, there is no such image, or the file is damaged or cannot be
            written.
    """
    word, image_ids = word.strip(), list(image_ids)
    if not re.fullmatch(_TAG, word):
        raise InputError(f"tag {word!r}: give a word or a few, of letters, digits, '-' and '.'")
    if unknown := set(image_ids) - set(dataset.images["image_id"]):
        raise InputError(f"tag {word!r}: there is no image {sorted(unknown)[0]!r} here")
    today = date.today().isoformat()
    more = [(i, word, query, today, _picture(dataset, i)) for i in image_ids]
    rows = pd.concat([_rows(dataset), pd.DataFrame(more, columns=COLUMNS)])
    _write(dataset, rows.drop_duplicates(["image_id", "tag", "picture"]))


def untag(dataset: Dataset, image_ids: Iterable[str], word: str) -> int:
    """Take a word from these images; how many had it. Errors as for :func:`tag`."""
    rows, image_ids = _rows(dataset), list(image_ids)
    pictures = {_picture(dataset, image_id) for image_id in image_ids} - {""}
    theirs = rows["image_id"].isin(image_ids) | rows["picture"].isin(pictures)
    gone = theirs & (rows["tag"] == word.strip())
    if gone.any():
        _write(dataset, rows[~gone])
    return int(gone.sum())


def _picture(dataset: Dataset, image_id: str) -> str:
    with suppress(InputError):  # a file that cannot be read keeps what its name has
        file = dataset.file_of(image_id)
        return file.sha256 if file else ""
    return ""


def _rows(dataset: Dataset) -> pd.DataFrame:
    path = tags_path(dataset)
    return _read(path) if path.exists() else pd.DataFrame(columns=COLUMNS, dtype=str)


@read_once
def _read(path: Path) -> pd.DataFrame:
    rows = read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in COLUMNS[:2] if name not in rows]:
        raise InputError(
            f"{shown(path)}: no column {missing[0]}; its columns should be {', '.join(COLUMNS)}"
        )
    rows = rows.reindex(columns=COLUMNS, fill_value="")
    rows = rows.map(lambda text: text.removeprefix("'").strip())  # see csv_text
    rows = rows[rows["tag"] != ""]  # emptied by hand
    if odd := next((word for word in rows["tag"] if not re.fullmatch(_TAG, word)), ""):
        raise InputError(f"{shown(path)}: {odd!r} is no tag")
    return rows


def _write(dataset: Dataset, rows: pd.DataFrame) -> None:
    write_text(tags_path(dataset), csv_text(rows, index=False))
