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
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from trsllava_utils.artefacts import (
    InputError,
    MissingError,
    cannot_write,
    fingerprint,
    shown,
    sweep,
    versions,
)
from trsllava_utils.captioning.records import Record, is_record, read_records
from trsllava_utils.storage import (
    append_lines,
    keep_damaged,
    read_json,
    read_lines,
    write_json,
    write_lines,
)


@dataclass(frozen=True)
class CaptionFile:
    """The files of one captioner, or of one shard of it.

    Attributes:
        path: of the records.
        whole: for a shard, the file that it will be merged into.
        claimed: the manifest of the identity that it was claimed for.
    """

    path: Path
    whole: CaptionFile | None = None
    claimed: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def rejected_path(self) -> Path:
        """The JSONL file of the images set aside."""
        return self.path.with_suffix(".rejected.jsonl")

    @property
    def manifest_path(self) -> Path:
        """The JSON file that names the identity."""
        return self.path.with_suffix(".json")

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
        """``identity``, ``prompt``, ``versions`` and, once there is a reply, ``example``; empty if
        it is missing or damaged."""
        return read_json(self.manifest_path)

    def read(self) -> tuple[dict[str, Record], list[str]]:
        """Records by file name, and a sentence for each line that could not be used."""
        return read_records(self.path) if self.path.exists() else ({}, [])

    def read_rejected(self) -> dict[str, dict]:
        """The images set aside, by file name; of several lines for one the last counts."""
        return {entry["image"]: entry for entry in _entries(self.rejected_path)}

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
            sweep(self.path.parent, os.getpid())
            yield
        except MissingError:  # which is an OSError too
            raise
        except OSError as error:
            raise cannot_write(self.path, error) from error
        finally:
            lock.release()

    def claim(self, identity: dict, prompt_text: str = "") -> CaptionFile:
        """Make this a file of one identity, and return it as such.

        Every line says which settings it was made with. Lines with other settings are moved to
        ``<file>.<fingerprint>.superseded``; when those settings are used again, they come back.
        A manifest that is damaged or gone is made anew.
        """
        manifest, mine = self.manifest(), fingerprint(identity)
        known = fingerprint(manifest.get("identity")) if manifest else mine
        for file in (self.path, self.rejected_path):
            by_settings: dict[str, list[dict]] = {}
            for entry in _entries(file):
                by_settings.setdefault(_settings(entry, known), []).append(entry)
            kept, earlier = by_settings.pop(mine, []), _superseded(file, mine)
            for settings, entries in by_settings.items():
                _append_new(_superseded(file, settings), entries)
            if by_settings:
                keep_damaged(file, _names_image)
                write_lines(file, kept)
            if earlier.exists():
                keep_damaged(earlier, _names_image)
                _append_new(file, _entries(earlier))
                earlier.unlink()
        if manifest.get("identity") != identity:
            if manifest:
                write_json(_superseded(self.manifest_path, known), manifest)
            earlier = read_json(_superseded(self.manifest_path, mine))
            made_with = versions("trsllava-utils", "transformers", "torch", "xgrammar")
            fresh = {"identity": identity, "prompt": prompt_text, "versions": made_with}
            manifest = earlier if earlier.get("identity") == identity else fresh
            write_json(self.manifest_path, manifest)
            _superseded(self.manifest_path, mine).unlink(missing_ok=True)
        self.path.touch()
        return replace(self, claimed=manifest)

    @property
    def made_with(self) -> str:
        """Fingerprint of the identity that was claimed."""
        return fingerprint(self.claimed["identity"])

    def append(self, records: Iterable[Record]) -> None:
        """Add records; they are on disk when this returns."""
        append_lines(self.path, (record.layout() for record in records))
        if self.claimed and not self.manifest_path.exists():  # somebody removed all of it
            write_json(self.manifest_path, self.claimed)

    def append_lost(self, records: dict[str, Record]) -> None:
        """Add those of the records that are no longer in the file."""
        there = {entry["image"] for entry in _entries(self.path)}
        self.append(record for name, record in records.items() if name not in there)

    def set_aside(self, entries: Iterable[dict]) -> None:
        """Add images that gave no usable captions."""
        append_lines(self.rejected_path, entries)

    def keep_example(self, filename: str, reply: str) -> None:
        """Keep the first reply, word for word, in the manifest, to look at."""
        manifest = self.manifest() or self.claimed
        if "example" not in manifest:
            example = {"image": filename, "reply": reply[:8000]}
            write_json(self.manifest_path, {**manifest, "example": example})

    def rewrite(self, records: Iterable[Record]) -> None:
        """Replace all records."""
        write_lines(self.path, (record.layout() for record in records))

    def drop(self, filenames: set[str]) -> None:
        """Remove the records of these images, if there are any."""
        records = self.read()[0]
        if filenames & records.keys():
            keep_damaged(self.path, is_record)
            self.rewrite(record for name, record in records.items() if name not in filenames)

    def merge_shards(self) -> int:
        """Merge all shards into this file, then remove them.

        Of two records of one image, a shard's comes before one merged earlier, whose image may
        have changed since. An image set aside by one shard and captioned by another counts as
        captioned.

        Returns:
            The number of shards merged; 0 if an earlier call has merged them.

        Raises:
            MissingError: there are no shards, and nothing was merged earlier.
            InputError: they differ in identity, or one is still being written.
        """
        shards = self.shards()
        if not shards and not self.path.exists():
            raise MissingError(
                f"no shards of {self.path.name} in {self.path.parent}; run 01 with -p shard i/n"
            )
        with ExitStack() as locks:
            for file in (self, *shards):
                locks.enter_context(file.held())
            if shards:
                self._take_over(shards)
            for part in self.path.parent.glob(f"{self.path.stem}.shard-*-of-*.json"):
                part.unlink()  # the manifests last, for shards need them until they are merged
        return len(shards)

    def _take_over(self, shards: list[CaptionFile]) -> None:
        manifest = _common_manifest([*shards, self])
        self.claim(manifest["identity"], manifest.get("prompt", ""))
        write_json(self.manifest_path, {**self.manifest(), **manifest})
        records: dict[str, Record] = {}
        rejected: dict[str, dict] = {}
        for file in (*shards, self):  # the first record of an image stays
            keep_damaged(file.path, is_record)
            records |= {n: r for n, r in file.read()[0].items() if n not in records}
            rejected |= {n: r for n, r in file.read_rejected().items() if n not in rejected}
        self.rewrite(records.values())
        if rejected:
            write_lines(self.rejected_path, rejected.values())
        for file in shards:
            file.rejected_path.unlink(missing_ok=True)
            file.path.unlink()


def _common_manifest(files: list[CaptionFile]) -> dict:
    """The manifest that all shards share.

    Raises:
        InputError: a record was made with other settings, or no manifest is left.
    """
    vouching = next((file for file in files if file.manifest().get("identity")), None)
    if not vouching:
        raise InputError(
            f"the manifests of {files[0].path.name} and the other shards are damaged or gone; run "
            "one of the shards again as before, which makes its manifest anew, then merge"
        )
    manifest = vouching.manifest()
    mine = fingerprint(manifest["identity"])
    for shard in files[:-1]:
        if any(_settings(entry, mine) != mine for entry in _entries(shard.path)):
            raise InputError(
                "shards made with different models, prompts or settings cannot be merged: "
                f"{vouching.path.name} and {shard.path.name}. Run the shards again with the same "
                "parameters."
            )
    return manifest


def _settings(entry: dict, otherwise: str) -> str:
    """The fingerprint of the settings in a line, or ``otherwise`` if it has none."""
    told = str(entry.get("settings"))
    return told if re.fullmatch(r"[0-9a-f]{16}", told) else otherwise


def _superseded(file: Path, settings: str) -> Path:
    return file.with_name(f"{file.name}.{settings}.superseded")


def _entries(path: Path) -> list[dict]:
    """The lines of a file that name an image; others are skipped."""
    lines = read_lines(path) if path.exists() else ()
    return [value for _, value, _ in lines if _names_image(value)]


def _names_image(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("image"), str)


def _append_new(path: Path, entries: list[dict]) -> None:
    """Add the entries that are not in the file yet: a move that was cut off goes on."""
    there = {entry["image"] for entry in _entries(path)}
    append_lines(path, (entry for entry in entries if entry["image"] not in there))


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


def in_shard(filename: str, shard: str) -> bool:
    """Whether an image belongs to a shard. It depends on its name only, so new images move no
    others."""
    i, n = parse_shard(shard)
    return int(hashlib.sha256(os.fsencode(filename)).hexdigest()[:8], 16) % n == i - 1
