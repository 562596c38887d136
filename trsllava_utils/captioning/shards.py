"""Sharing a captioning run between machines or jobs: shard ``i/n`` takes the images whose name
falls into its part and writes a file of its own; one command merges the files.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path

from trsllava_utils.artefacts import InputError, MissingError, atomic_path, read_json, write_json
from trsllava_utils.captioning.records import read_records
from trsllava_utils.captioning.run import claim, locked, rejected_path


def parse_shard(shard: str) -> tuple[int, int]:
    """``"2/8"`` -> ``(2, 8)``; "" -> ``(1, 1)``, the whole.

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", shard or "1/1")
    i, n = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= i <= n:
        raise InputError(f"shard={shard!r}: give i/n with i from 1 to n, such as 2/8, or nothing")
    return i, n


def shard_path(path: Path, shard: str) -> Path:
    """The captions file of one shard; ``path`` itself for the whole."""
    i, n = parse_shard(shard)
    return path if n == 1 else path.with_name(f"{path.stem}.shard-{i}-of-{n}.jsonl")


def in_shard(filename: str, shard: str) -> bool:
    """Whether an image belongs to a shard: by its name, so that adding images moves none."""
    i, n = parse_shard(shard)
    return int(hashlib.sha256(filename.encode()).hexdigest()[:8], 16) % n == i - 1


def shard_files(path: Path) -> list[Path]:
    """The shards of a captions file that are on disk."""
    found = path.parent.glob(f"{path.stem}.shard-*-of-*.jsonl")
    return sorted(p for p in found if re.search(r"\.shard-\d+-of-\d+\.jsonl$", p.name))


def merge_shards(path: Path) -> tuple[int, list[Path]]:
    """Merge all shards of ``path`` into it, then remove them.

    Of two records of one image the first is kept, and what was merged before comes last: its image
    may have changed since. Images that were set aside by one shard and captioned by another count
    as captioned.

    Returns:
        How many images ``path`` holds now, and the shards merged.

    Raises:
        MissingError: there are no shards.
        InputError: they were made with different settings, or one is still being written.
    """
    shards = shard_files(path)
    if not shards:
        raise MissingError(f"no shards of {path.name} in {path.parent}; run 01 with -p shard i/n")
    with ExitStack() as held:
        for file in (path, *shards):
            held.enter_context(locked(file))
        manifests = [read_json(file.with_suffix(".json")) or {} for file in shards]
        odd = [
            s.name
            for s, manifest in zip(shards, manifests, strict=True)
            if manifest.get("identity") != manifests[0].get("identity")
        ]
        if odd or not manifests[0]:
            raise InputError(
                f"shards made with different models, prompts or settings cannot be merged: "
                f"{shards[0].name} and {odd[0] if odd else 'no manifest'}. Run the shards again "
                "with the same parameters."
            )
        claim(path, manifests[0]["identity"], manifests[0].get("prompt", ""))
        write_json(path.with_suffix(".json"), manifests[0])
        sources = [file for file in (*shards, path) if file.exists()]
        records = {}
        for file in sources:
            for name, record in read_records(file)[0].items():
                records.setdefault(name, record)
        aside = [
            line + "\n"
            for file in sources
            if rejected_path(file).exists()
            for line in rejected_path(file).read_text(encoding="utf-8").splitlines()
        ]
        with atomic_path(path) as tmp:
            tmp.write_text("".join(r.line() for r in records.values()), encoding="utf-8")
        if aside:
            with atomic_path(rejected_path(path)) as tmp:
                tmp.write_text("".join(dict.fromkeys(aside)), encoding="utf-8")
        for file in shards:
            for part in (file, rejected_path(file), file.with_suffix(".json")):
                part.unlink(missing_ok=True)
    return len(records), shards
