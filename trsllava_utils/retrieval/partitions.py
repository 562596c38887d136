"""Partitions: a text corpus of any size as Parquet files under one URL.

A file's name says what is in it, and no file is ever changed: a corpus only grows, what is there is
right, and a run that was cut off goes on where it stopped. The URL is a folder, or whatever else
fsspec opens: ``s3://bucket/gallery``; ``filecache::s3://…`` keeps on disk what it has read.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from trsllava_utils.artefacts import InputError, atomic_path, fingerprint

PARTITION = 50_000  # texts
ROW_GROUP = 4096  # rows of a Parquet file that are read together


@dataclass(frozen=True)
class Partitions:
    """The files under a URL."""

    url: str

    @property
    def files(self) -> set[str]:
        """Names of the files that are there."""
        fs, root = fsspec.url_to_fs(self.url)
        fs.invalidate_cache()
        return {Path(p).name for p in fs.ls(root, detail=False)} if fs.exists(root) else set()

    @property
    def names(self) -> list[str]:
        """Names of the partitions, in the order of the gallery."""
        return names_of(self.files)

    def add(self, corpus: pd.DataFrame, texts_each: int = PARTITION) -> list[str]:
        """Append a text corpus, cut into partitions; adding the same again adds nothing.

        Args:
            corpus: ``image_id, source, variant, field, text``, the rows of an image together.
            texts_each: texts per partition, about.

        Returns:
            Names of the partitions that hold it.

        Raises:
            InputError: the rows of an image are apart, or an image is here already with other
                texts.
        """
        starts = first_rows(corpus["image_id"])
        ids = corpus["image_id"].iloc[starts]
        if ids.duplicated().any():
            raise InputError(
                f"the rows of image {ids[ids.duplicated()].iloc[0]!r} are not adjacent: sort "
                "the corpus by image_id"
            )
        cuts = starts[np.flatnonzero(np.diff(starts // texts_each, prepend=-1))]
        pieces = np.split(np.arange(len(corpus)), cuts[1:]) if len(corpus) else []
        known = {name.rpartition("-")[2]: name for name in self.names}
        prints = [fingerprint(corpus.iloc[rows].astype(str).values.tolist()) for rows in pieces]
        new = {p: rows for p, rows in zip(prints, pieces, strict=True) if p not in known}
        if new:
            self._refuse_known(corpus["image_id"].iloc[np.concatenate(list(new.values()))])
        for content, rows in new.items():
            known[content] = f"part-{len(known):06d}-{content}"
            out = BytesIO()
            corpus.iloc[rows].to_parquet(out, index=False, row_group_size=ROW_GROUP)
            self.write(f"{known[content]}.parquet", out.getvalue())
        return [known[content] for content in prints]

    def _refuse_known(self, ids: pd.Series) -> None:
        new = ids.unique().astype(str)
        for name in self.names:
            both = np.intersect1d(self.column(name, "image_id").astype(str), new)
            if len(both):
                raise InputError(
                    f"image {str(both[0])!r} is in {self.url} already ({name}), with other "
                    "texts; a gallery only grows: take another URL"
                )

    def column(self, name: str, column: str) -> np.ndarray:
        """A column of a partition: ``(n_rows,)`` str."""
        table = pq.read_table(self.local(f"{name}.parquet"), columns=[column])
        return table[column].to_numpy()

    def text(self, name: str, row: int) -> str:
        """One text of a partition."""
        file = pq.ParquetFile(self.local(f"{name}.parquet"))
        texts = file.read_row_group(row // ROW_GROUP, columns=["text"])["text"]
        return texts[row % ROW_GROUP].as_py()

    def local(self, name: str) -> str:
        """Path of a file on this machine; a remote file is downloaded first."""
        url = f"{self.url.rstrip('/')}/{name}"
        here = "::" in url or isinstance(fsspec.url_to_fs(url)[0], LocalFileSystem)
        return fsspec.open_local(url if here else f"simplecache::{url}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        fs, path = fsspec.url_to_fs(f"{self.url.rstrip('/')}/{name}")
        if isinstance(fs, LocalFileSystem):
            with atomic_path(path) as tmp:
                tmp.write_bytes(content)
        else:  # an object is not there until all of it is
            fs.pipe_file(path, content)


def names_of(files: set[str]) -> list[str]:
    """Names of the partitions among files, in the order of the gallery; temporary files of a
    killed run are ignored."""
    rows = (name for name in files if name.startswith("part-") and name.endswith(".parquet"))
    return sorted(name.removesuffix(".parquet") for name in rows)


def first_rows(image_ids: pd.Series) -> np.ndarray:
    """``(n_images,)``: where the rows of each image begin."""
    return np.flatnonzero(image_ids != image_ids.shift())
