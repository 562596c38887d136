"""Captions on disk. Each captioner has a file for each of its settings (model, prompt, …):

    <captioner>.<settings>.jsonl              the records, one line per image, appended in a run
    <captioner>.<settings>.rejected.jsonl     images without usable captions, each with the reason
    <captioner>.<settings>.json               the manifest: identity, prompt, versions, an example
    <captioner>.<settings>.shard-2-of-8.jsonl the part of one machine, read like the first

``<settings>`` is a fingerprint, so captions of other settings never share a file, and those of
earlier settings are there when they are wanted again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from trsllava_utils.files import (
    InputError,
    append_lines,
    cannot_write,
    fingerprint,
    not_linked,
    read_json,
    read_lines,
    shown,
    versions,
    write_json,
)
from trsllava_utils.records import Record, read_records

_HEX = "[0-9a-f]{16}"
TICK = 10**6  # nanoseconds


@dataclass(frozen=True)
class CaptionFile:
    """The file of one captioner's captions with one setting, or of one shard of it.

    Attributes:
        folder: where it lies; captioner: the id; made_with: fingerprint of the settings.
        part: "" for the whole, else "shard-2-of-8".
    """

    folder: Path
    captioner: str
    made_with: str
    part: str = ""

    def _named(self, *ends: str) -> Path:
        return self.folder / ".".join([self.captioner, self.made_with, *filter(None, ends)])

    @property
    def path(self) -> Path:
        """The records."""
        return self._named(self.part, "jsonl")

    @property
    def rejected_path(self) -> Path:
        """The images set aside."""
        return self._named(self.part, "rejected.jsonl")

    @property
    def manifest_path(self) -> Path:
        """What the captions were made with; one for all shards."""
        return self._named("json")

    def siblings(self) -> list[CaptionFile]:
        """All files of these settings, the one written last at the end."""
        named = re.compile(re.escape(f"{self._named().name}.") + r"(?:(shard-\d+-of-\d+)\.)?jsonl")
        paths = sorted(files_in(self.folder), key=lambda path: path.stat().st_mtime_ns)
        parts = [match[1] or "" for path in paths if (match := named.fullmatch(path.name))]
        return [replace(self, part=part) for part in parts]

    # — reading —

    def manifest(self) -> dict:
        """``identity``, ``prompt``, ``versions`` and, once there is a reply, ``example``; empty if
        it is missing or damaged."""
        manifest = read_json(self.manifest_path)
        return manifest if isinstance(manifest.get("identity", {}), dict) else {}

    def read(self) -> tuple[dict[str, Record], list[str]]:
        """Records by file name, those of shards included, and a sentence for each line that could
        not be used. Where a picture has changed, the record that was written last counts."""
        return read_files(file.path for file in self.siblings())

    def read_rejected(self) -> dict[str, dict]:
        """The images set aside, by file name; of several lines for one the last counts."""
        entries: dict[str, dict] = {}
        for file in dict.fromkeys([*self.siblings(), self]):
            lines = read_lines(file.rejected_path) if file.rejected_path.exists() else ()
            known = (value for _, value, _ in lines if isinstance(value, dict))
            entries |= {v["image"]: v for v in known if isinstance(v.get("image"), str)}
        return entries

    # — writing —

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the file; the system releases it when the process dies.

        Raises:
            InputError: another run holds it, or its folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(not_linked(self.folder / f".{self.path.name}.lock"), timeout=0)
            not_linked(self.path)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"another run is writing {shown(self.path)}; wait until it has ended, or let this "
                "one take another shard"
            ) from None
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            _adopt(self.folder, self.captioner)
            yield
        finally:
            lock.release()

    def claim(self, identity: dict, prompt_text: str = "") -> None:
        """Begin to write it: its manifest is made, anew if it was damaged."""
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{shown(self.path)} is no file; remove it")
        if self.manifest().get("identity") != identity:
            made_with = versions("trsllava-utils", "transformers", "torch", "xgrammar")
            about = {"identity": identity, "prompt": prompt_text, "versions": made_with}
            write_json(self.manifest_path, about)
        newest = newest_file(self.folder, self.captioner)  # that is the one which is loaded
        if not self.path.exists() or newest.made_with != self.made_with:
            self.path.touch()
            # clocks of file systems are coarse: later than any other
            last = max(path.stat().st_mtime_ns for path in files_in(self.folder))
            os.utime(self.path, ns=(last + TICK, last + TICK))

    def append(self, records: Iterable[Record]) -> None:
        """Add records; they are on disk when this returns."""
        append_lines(self.path, (record.layout() for record in records))

    def set_aside(self, entries: Iterable[dict]) -> None:
        """Add images that gave no usable captions."""
        append_lines(self.rejected_path, entries)

    def keep_example(self, filename: str, reply: str) -> None:
        """Keep the first reply, word for word, in the manifest, to look at."""
        manifest = self.manifest()
        if manifest and "example" not in manifest:
            example = {"image": filename, "reply": reply[:8000]}
            write_json(self.manifest_path, {**manifest, "example": example})


def read_files(paths: Iterable[Path]) -> tuple[dict[str, Record], list[str]]:
    """The records and problems of several captions files; of an image in two, the last counts."""
    records, problems = {}, []
    for path in paths:
        more, odd = read_records(path)
        records, problems = records | more, problems + odd
    return records, problems


def files_in(folder: Path) -> list[Path]:
    """The files of records in a folder; a folder, or a link in a circle, in their place is none."""
    return [path for path in folder.glob("*.jsonl") if path.is_file()]


def newest_file(folder: Path, captioner: str) -> CaptionFile | None:
    """The file of the settings that the captioner was last run with; None if it never was."""
    _adopt(folder, captioner)
    named = re.compile(re.escape(captioner) + rf"\.({_HEX})(?:\.shard-\d+-of-\d+)?\.jsonl")
    paths = [path for path in files_in(folder) if named.fullmatch(path.name)]
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
    return newest and CaptionFile(folder, captioner, named.fullmatch(newest.name)[1])


def _adopt(folder: Path, captioner: str) -> None:
    """Files of earlier versions, which had no settings in their names, get their new names."""
    for old in (folder / f"{captioner}.jsonl", *folder.glob(f"{captioner}.shard-*.jsonl")):
        if not old.is_file() or ".rejected." in old.name:
            continue
        identity = read_json(old.with_suffix(".json")).get("identity")
        told = [r.settings for r in read_records(old)[0].values()]
        made_with = fingerprint(identity) if identity else next(filter(None, told), "")
        if re.fullmatch(_HEX, made_with):
            new = CaptionFile(folder, captioner, made_with, old.stem[len(captioner) + 1 :])
            _rename(old, new.path)
            _rename(old.with_suffix(".json"), new.manifest_path)
            _rename(old.with_suffix(".rejected.jsonl"), new.rejected_path)
    for old in folder.glob(f"{captioner}.*.superseded"):
        if match := re.fullmatch(rf"(json|jsonl|rejected\.jsonl)\.({_HEX})\.superseded",
                                 old.name[len(captioner) + 1 :]):  # fmt: skip
            _rename(old, folder / f"{captioner}.{match[2]}.{match[1]}")


def _rename(old: Path, new: Path) -> None:
    with suppress(OSError):  # there is none, or another run was first
        if not new.exists():
            old.rename(new)
