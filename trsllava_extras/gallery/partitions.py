"""Partitions: a text corpus of any size as Parquet files under one URL.

A file's name says what is in it, and no file is ever changed: a corpus only grows, what is there is
right, and a run that was cut off goes on where it stopped. The URL is a folder, or whatever else
fsspec opens: ``s3://bucket/gallery``; ``filecache::s3://…`` keeps on disk what it has read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from trsllava_utils.files import InputError, MissingError, atomic_path, fingerprint, reading
from trsllava_utils.parameters import check

PARTITION = 50_000  # texts
ROW_GROUP = 4096  # rows of a Parquet file that are read together


@dataclass(frozen=True)
class Partitions:
    """The files under a URL."""

    url: str

    def _at(self, name: str = "") -> tuple[AbstractFileSystem, str]:
        """The file system and the path of a file, or of the folder."""
        check(url=self.url)
        url = f"{self.url.rstrip('/')}/{name}" if name else self.url
        try:
            return fsspec.url_to_fs(url)
        except ImportError as error:
            raise MissingError(
                f"{self.url} needs a package that is not installed: {error}; for s3:// it is "
                'pip install "trsllava-utils[s3]"'
            ) from None
        except (ValueError, OSError) as error:
            raise InputError(f"{self.url}: {error}; give a folder, or s3://bucket/folder") from None

    @property
    def files(self) -> set[str]:
        """Names of the files that are there."""
        fs, root = self._at()
        with reading(self.url):
            fs.invalidate_cache()
            there = fs.ls(root, detail=True) if fs.exists(root) else []
            return {Path(each["name"]).name for each in there if each["type"] == "file"}

    @property
    def names(self) -> list[str]:
        """Names of the partitions, in the order of the gallery."""
        return names_of(self.files)

    def add(self, corpus: pd.DataFrame, texts_each: int = PARTITION) -> list[str]:
        """Append a text corpus, cut into partitions. Images that are here with the same texts are
        passed over, so a call that was cut off, or a dataset that has grown, is added as before.

        Args:
            corpus: ``image_id, source, variant, field, text``, the rows of an image together.
            texts_each: texts per partition, about.

        Returns:
            Names of the new partitions.

        Raises:
            InputError: the rows of an image are apart, or an image is here already with other
                texts.
        """
        ids = corpus["image_id"].iloc[first_rows(corpus["image_id"])]
        if ids.duplicated().any():
            raise InputError(
                f"the rows of image {ids[ids.duplicated()].iloc[0]!r} are not adjacent: sort "
                "the corpus by image_id"
            )
        names = self.names
        new = corpus[~corpus["image_id"].isin(self._known(corpus, names))]
        added = []
        for n, piece in enumerate(_pieces(new, texts_each), len(names)):
            added.append(f"part-{n:06d}-{_content(piece)}")
            out = BytesIO()
            piece.to_parquet(out, index=False, row_group_size=ROW_GROUP)
            self.write(f"{added[-1]}.parquet", out.getvalue())
        return added

    def _known(self, corpus: pd.DataFrame, names: list[str]) -> set[str]:
        """Images of the corpus that are here with the same texts."""
        known: set[str] = set()
        for name in names:
            stored = _by_image(self.rows(name)[0])
            for image_id, rows in _by_image(corpus[corpus["image_id"].isin(stored)]).items():
                if rows != stored[image_id]:
                    raise InputError(
                        f"image {image_id!r} is in {self.url} already ({name}), with other texts; "
                        "a gallery only grows: take another URL"
                    )
                known.add(image_id)
        return known

    def rows(self, name: str) -> tuple[pd.DataFrame, str]:
        """The rows of a partition, and the sha256 of its file.

        Raises:
            InputError: the file is not what was written.
        """
        with reading(f"{self.url}/{name}.parquet"):
            content = Path(self.local(f"{name}.parquet")).read_bytes()
        try:
            with reading(name):
                table = pd.read_parquet(BytesIO(content))
        except InputError:
            table = pd.DataFrame()
        if _content(table) != name.rpartition("-")[2]:
            raise InputError(
                f"{self.url}: {name}.parquet is damaged, or was changed; delete it, and add its "
                "captions again"
            )
        return table, hashlib.sha256(content).hexdigest()

    def text(self, name: str, row: int) -> str:
        """One text of a partition."""
        with reading(f"{self.url}/{name}.parquet"):
            file = pq.ParquetFile(self.local(f"{name}.parquet"))
            texts = file.read_row_group(row // ROW_GROUP, columns=["text"])["text"]
            return texts[row % ROW_GROUP].as_py()

    def local(self, name: str) -> str:
        """Path of a file on this machine; a remote file is downloaded first."""
        url, fs = f"{self.url.rstrip('/')}/{name}", self._at(name)[0]
        here = "::" in url or isinstance(fs, LocalFileSystem)
        return fsspec.open_local(url if here else f"simplecache::{url}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        fs, path = self._at(name)
        if isinstance(fs, LocalFileSystem):
            with atomic_path(path) as tmp:
                tmp.write_bytes(content)
        else:  # an object is not there until all of it is
            fs.pipe_file(path, content)


def _content(rows: pd.DataFrame) -> str:
    """Fingerprint of rows."""
    return fingerprint(rows.astype(str).values.tolist())


def _by_image(rows: pd.DataFrame) -> dict[str, list[tuple]]:
    """Image -> its rows."""
    several: dict[str, list[tuple]] = {}
    for row in rows.astype(str).itertuples(index=False):
        several.setdefault(row.image_id, []).append(tuple(row))
    return several


def _pieces(corpus: pd.DataFrame, texts_each: int) -> Iterator[pd.DataFrame]:
    """Partitions of at least ``texts_each`` texts, and a rest; images stay whole."""
    first = 0
    for start in [*first_rows(corpus["image_id"])[1:], len(corpus)]:
        if start - first >= texts_each or first < start == len(corpus):
            yield corpus.iloc[first:start]
            first = start


def names_of(files: set[str]) -> list[str]:
    """Names of the partitions among files, in the order of the gallery; temporary files of a
    killed run are ignored."""
    rows = (name for name in files if name.startswith("part-") and name.endswith(".parquet"))
    return sorted(name.removesuffix(".parquet") for name in rows)


def whole_names(files: set[str]) -> list[str]:
    """:func:`names_of`. Raises InputError where a partition is lost (vectors without rows, fewer
    partitions than numbers) or there twice."""
    names = names_of(files)
    content = [name.rpartition("-")[2] for name in names]
    if again := [n for n, c in zip(names, content, strict=True) if content.count(c) > 1]:
        raise InputError(f"{' and '.join(again)} are the same; remove one of them")
    bare = {name.partition(".")[0] for name in files if name.endswith(".safetensors")}
    lost = sorted(name for name in bare if name.rpartition("-")[2] not in content)
    # two runs at once may give a number twice, and the next one is then left out
    if lost or (names and int(names[-1].split("-")[1]) >= len(names)):
        gone = lost[0] if lost else f"one of part-000000 to {names[-1]}"
        raise InputError(
            f"rows of the gallery are lost: {gone}.parquet is gone. Put it back, or add its "
            "captions again, and remove vectors without rows"
        )
    return names


def first_rows(image_ids: pd.Series) -> np.ndarray:
    """``(n_images,)``: where the rows of each image begin."""
    return np.flatnonzero(image_ids != image_ids.shift())
