"""Captions on disk: one object owns all files of a captioner for a dataset.

Files in ``data/<dataset>/derived/captions/``:

    <captioner>.jsonl                  the records, one line per image, appended during a run
    <captioner>.json                   the manifest: identity, prompt, versions, an example reply
    <captioner>.rejected.jsonl         images without usable captions, each with the reason
    <captioner>.shard-2-of-8.*         the same three files of a shard, until shards are merged
    .<captioner>.jsonl.lock            held while a run writes
    <file>.<fingerprint>.superseded    files of another identity, restored when it comes back

A file holds captions of one *identity* only: model, prompt and settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from trsllava_utils.artefacts import (
    InputError,
    MissingError,
    cannot_write,
    fingerprint,
    read_json,
    shown,
    versions,
    write_json,
    write_text,
)
from trsllava_utils.captioning.records import Record, read_records

LONGEST_LINE = 1 << 20  # bytes; far above what five variants take


@dataclass(frozen=True)
class CaptionFile:
    """The files of one captioner, or of one shard of it.

    Attributes:
        path: of the records.
        whole: for a shard, the file that it will be merged into.
    """

    path: Path
    whole: CaptionFile | None = None

    @property
    def rejected_path(self) -> Path:
        """The JSONL file of the images set aside."""
        return self.path.with_suffix(".rejected.jsonl")

    @property
    def manifest_path(self) -> Path:
        """The JSON file that names the identity."""
        return self.path.with_suffix(".json")

    @property
    def _files(self) -> tuple[Path, Path, Path]:
        return self.path, self.rejected_path, self.manifest_path

    def shard(self, shard: str) -> CaptionFile:
        """The file of shard "i/n"; the same file for ""."""
        i, n = parse_shard(shard)
        name = f"{self.path.stem}.shard-{i}-of-{n}.jsonl"
        return self if n == 1 else CaptionFile(self.path.with_name(name), self)

    def shards(self) -> list[CaptionFile]:
        """The shards that are on disk."""
        paths = self.path.parent.glob(f"{self.path.stem}.shard-*-of-*.jsonl")
        named = (p for p in paths if re.search(r"\.shard-\d+-of-\d+\.jsonl$", p.name))
        return [CaptionFile(p, self) for p in sorted(named)]

    # — reading —

    def manifest(self) -> dict:
        """``identity``, ``prompt``, ``versions`` and, once there is a reply, ``example``."""
        manifest = read_json(self.manifest_path)
        return manifest if isinstance(manifest, dict) else {}

    def read(self) -> tuple[dict[str, Record], list[str]]:
        """Records by file name, and a sentence for each line that could not be used."""
        return read_records(self.path) if self.path.exists() else ({}, [])

    def read_rejected(self) -> dict[str, dict]:
        """The images set aside, by file name; torn lines are skipped."""
        rejected = {}
        if self.rejected_path.exists():
            text = self.rejected_path.read_text(encoding="utf-8", errors="replace")
            for line in text.split("\n"):  # splitlines would split at U+2028 too
                try:
                    value = json.loads(line)
                    rejected[value["image"]] = value
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue
        return rejected

    def finished(self) -> tuple[dict[str, Record], dict[str, dict], list[str]]:
        """Records and images set aside, for a shard also those merged earlier; and a sentence for
        each line of this file that could not be used."""
        (records, problems), rejected = self.read(), self.read_rejected()
        merged = self.whole
        if merged and merged.manifest().get("identity") == self.manifest().get("identity"):
            records = merged.read()[0] | records
            rejected = merged.read_rejected() | rejected
        return records, rejected, problems

    # — writing —

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the file; the system releases it when the process dies.

        Raises:
            InputError: another run holds it, or its folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"another run is writing {shown(self.path)}; wait until it has ended, or let this "
                "one take another shard"
            ) from None
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            yield
        finally:
            lock.release()

    def claim(self, identity: dict, prompt_text: str = "") -> None:
        """Make this a file of one identity.

        Captions of another identity are moved aside under another name, and moved back when that
        identity is claimed again.
        """
        known = self.manifest().get("identity")
        if known != identity:  # the manifest goes last: it vouches for the others
            for file in self._files:
                if file.exists():
                    file.replace(_superseded(file, known))
        for file in self._files:
            if not file.exists() and _superseded(file, identity).exists():
                _superseded(file, identity).replace(file)
        if not self.manifest_path.exists():
            made_with = versions("trsllava-utils", "transformers", "torch", "openai", "xgrammar")
            manifest = {"identity": identity, "prompt": prompt_text, "versions": made_with}
            write_json(self.manifest_path, manifest)
        self.path.touch()

    def append(self, records: Iterable[Record]) -> None:
        """Add records; they are on disk when this returns."""
        _append(self.path, "".join(record.line() for record in records))

    def set_aside(self, entries: Iterable[dict]) -> None:
        """Add images that gave no usable captions."""
        _append(self.rejected_path, _json_lines(entries))

    def keep_example(self, filename: str, reply: str) -> None:
        """Keep the first reply, word for word, in the manifest, to look at."""
        manifest = self.manifest()
        if "example" not in manifest:
            example = {"image": filename, "reply": reply[:8000]}
            write_json(self.manifest_path, {**manifest, "example": example})

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace all records."""
        write_text(self.path, "".join(record.line() for record in records))

    def drop(self, filenames: set[str]) -> None:
        """Remove the records of these images, if there are any."""
        records = self.read()[0]
        if filenames & records.keys():
            self.rewrite(record for name, record in records.items() if name not in filenames)

    def merge_shards(self) -> int:
        """Merge all shards into this file, then remove them.

        Of two records of one image, a shard's comes before one merged earlier, whose image may
        have changed since. An image set aside by one shard and captioned by another counts as
        captioned.

        Returns:
            The number of shards merged.

        Raises:
            MissingError: there are no shards.
            InputError: they differ in identity, or one is still being written.
        """
        shards = self.shards()
        if not shards:
            raise MissingError(
                f"no shards of {self.path.name} in {self.path.parent}; run 01 with -p shard i/n"
            )
        with ExitStack() as locks:
            for file in (self, *shards):
                locks.enter_context(file.held())
            manifest = _common_manifest(shards)
            self.claim(manifest["identity"], manifest.get("prompt", ""))
            write_json(self.manifest_path, {**self.manifest(), **manifest})
            records: dict[str, Record] = {}
            rejected: dict[str, dict] = {}
            for file in (*shards, self):  # the first record of an image stays
                records |= {n: r for n, r in file.read()[0].items() if n not in records}
                rejected |= {n: r for n, r in file.read_rejected().items() if n not in rejected}
            self.rewrite(records.values())
            if rejected:
                write_text(self.rejected_path, _json_lines(rejected.values()))
            for file in shards:
                for part in file._files:
                    part.unlink(missing_ok=True)
        return len(shards)


def _common_manifest(shards: list[CaptionFile]) -> dict:
    """The manifest of shards that agree in their identity."""
    manifests = {shard.path.name: shard.manifest() for shard in shards}
    first, *others = manifests
    identity = manifests[first].get("identity")
    different = [name for name in others if manifests[name].get("identity") != identity]
    if different or not identity:
        raise InputError(
            "shards made with different models, prompts or settings cannot be merged: "
            f"{first} and {different[0] if different else 'no manifest'}. Run the shards again "
            "with the same parameters."
        )
    return manifests[first]


def _superseded(file: Path, identity: dict | None) -> Path:
    return file.with_name(f"{file.name}.{fingerprint(identity)}.superseded")


def _json_lines(values: Iterable[dict]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _append(path: Path, lines: str) -> None:
    """Add whole lines. If a power cut left half a last line, that half is removed first."""
    if not lines:
        return
    try:
        with open(path, "ab+") as f:
            _mend_end(f)
            f.write(lines.encode())
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _mend_end(f: BinaryIO) -> None:
    """Cut off a torn last line; complete one that only lacks its line break."""
    end = f.seek(0, os.SEEK_END)
    f.seek(max(0, end - 1))
    if f.read() in (b"", b"\n"):
        return
    f.seek(max(0, end - LONGEST_LINE))
    last = f.read().rpartition(b"\n")[2]
    try:
        json.loads(last)
        f.write(b"\n")
    except ValueError:
        f.truncate(end - len(last))


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


def in_shard(filename: str, shard: str) -> bool:
    """Whether an image belongs to a shard. It depends on its name only, so new images move no
    others."""
    i, n = parse_shard(shard)
    return int(hashlib.sha256(filename.encode()).hexdigest()[:8], 16) % n == i - 1
