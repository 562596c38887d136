"""Captioning shared by several machines: each takes a shard "i/n" of the images and writes a file
of its own; all of them are read like one."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace

from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import Captions
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError


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
