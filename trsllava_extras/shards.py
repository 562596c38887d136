"""Captioning shared by several machines: each takes a shard "i/n" of the images and writes a file
of its own, which is read like the whole; :func:`merge` makes one file of them."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import ExitStack
from dataclasses import replace

from trsllava_utils.caption_file import CaptionFile, newest_file
from trsllava_utils.captioner import Settings, captioner_id, names_in
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import Captions, choose_captioner, folder_of, load_captions
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, first_few, shown, write_lines


def caption_shard(
    dataset: Dataset, captioner: str, settings: Settings | None = None, shard: str = ""
) -> Captions:
    """:func:`trsllava_utils.caption_dataset` for shard "i/n" of the images; for all of them, "".
    Errors as there, and InputError where ``shard`` is none."""
    i, n = parse_shard(shard)
    if n == 1:
        return caption_dataset(dataset, captioner, settings)
    mine = [_number(name, n) == i - 1 for name in dataset.images["filename"]]
    images = dataset.images[mine].reset_index(drop=True)
    part = f"shard-{i}-of-{n}"
    return caption_dataset(replace(dataset, images=images), captioner, settings, part)


def _number(filename: str, n: int) -> int:
    """It depends on the name only, so new images move no others."""
    return int(hashlib.sha256(os.fsencode(filename)).hexdigest()[:8], 16) % n


def parse_shard(shard: str) -> tuple[int, int]:
    """``"2/8"`` -> ``(2, 8)``; "" -> ``(1, 1)``, the whole.

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", shard or "1/1")
    i, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= i <= n:
        raise InputError(
            f"shard={shard[:40]!r}: give i/n with i from 1 to n, such as 2/8, or nothing"
        )
    return i, n


def merge(dataset: Dataset, captioner: str, prompt: str = "rsrt") -> str:
    """Merge the shards of a captioner, or of several; returns a sentence on the outcome.

    Raises:
        MissingError: it has not been run.
        InputError: a shard is still being written.
    """
    names = names_in(choose_captioner(dataset, captioner, prompt))
    if len(names) > 1:
        return "; ".join(merge(dataset, name) for name in names)
    file = newest_file(folder_of(dataset), captioner_id(names[0]))
    if not file:
        load_captions(dataset, names[0])  # raises, with the command that makes them
    (records, problems), rejected = file.read(), file.read_rejected()
    merged = _merge(file)
    damaged = f"; kept in *.damaged: {' '.join(problems[:3])}" if problems else ""
    images = dataset.with_pixels["filename"]
    missing = [name for name in images if name not in records and name not in rejected]
    rest = f"; {len(missing):,} images are still to do: {first_few(missing)}" if missing else ""
    path, n = shown(file.path), f"{len(records):,}"
    return f"merged {merged} shards into {path}: {n} images captioned{rest}{damaged}"


def _merge(file: CaptionFile) -> int:
    """Put the records of all shards into one file, and remove the shards; how many there were. An
    image set aside by one and captioned by another counts as captioned."""
    files = file.siblings()
    shards = [one for one in files if one.part]
    with ExitStack() as locks:
        for one in {file, *shards}:
            locks.enter_context(one.held())
        if shards:
            records, rejected = file.read()[0], file.read_rejected()
            for one in files:
                one.keep_damaged()
            write_lines(file.path, (record.layout() for record in records.values()))
            if rejected:
                write_lines(file.rejected_path, rejected.values())
            for one in shards:
                one.path.unlink()
                one.rejected_path.unlink(missing_ok=True)
    return len(shards)
