"""Artefacts as JSON, JSONL and tables: values go in, files come out; what is read again is known to
be whole and up to date.

JSON holds its own fingerprint. Tables and vectors have a *manifest* (JSON) beside them: what they
were made from and the hash of their files. So an artefact that is stale, damaged or edited is never
used. JSONL has one reader and one writer, for all files of the package.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from trsllava_utils.artefacts import (
    InputError,
    atomic_path,
    cannot_write,
    file_sha256,
    fingerprint,
    read_text,
    reading,
    shown,
    write_text,
)


def parse_json(text: str | bytes, where: str = "") -> Any:
    """The value of a JSON text.

    Raises:
        InputError: it is broken, holds a number of thousands of digits, or is nested too deeply;
            the message begins with ``where``, the file.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if where else ""
        reason = f"broken JSON ({error.msg}, {line}column {error.colno}); mend it or get it again"
    except ValueError:
        reason = "a number has thousands of digits"
    except RecursionError:
        reason = "nested too deeply"
    raise InputError(f"{where}: {reason}" if where else reason)


def write_json(path: str | os.PathLike, value: dict, indent: int | None = 2) -> None:
    """Write an artefact as JSON, atomically, with the fingerprint of its content."""
    value = json.loads(json.dumps(value))  # as it will be read: keys are text
    sealed = {**value, "fingerprint": fingerprint(value)}
    write_text(path, json.dumps(sealed, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """What :func:`write_json` wrote; empty if the file is missing, damaged or was edited."""
    try:
        value = parse_json(read_text(path), shown(path))
    except InputError:
        return {}
    value = value if isinstance(value, dict) else {}
    sealed = value.pop("fingerprint", None)
    return value if sealed == fingerprint(value) else {}


# — JSONL —


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, Any, str]]:
    """The lines of a JSONL file: number, value, and what is wrong with the line ("" if nothing is).
    Only a line feed ends a line; empty lines are skipped.

    Raises:
        InputError: the file cannot be opened.
    """
    with reading(path):
        content = Path(path).read_bytes()
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode()
            if text.strip():
                yield number, parse_json(text), ""
        except UnicodeDecodeError:
            yield number, None, "not UTF-8; save the file as UTF-8"
        except InputError as error:
            yield number, None, str(error)


def json_line(value: dict) -> str:
    """A value as one line of JSON, whatever it holds."""
    line = json.dumps(value, ensure_ascii=False)
    for end in "\x85\u2028\u2029":  # some programs end a line there
        line = line.replace(end, f"\\u{ord(end):04x}")
    return line.encode("utf-8", "backslashreplace").decode() + "\n"  # escapes lone surrogates


def keep_damaged(path: Path, is_good: Callable[[Any], bool]) -> None:
    """Before a file is written anew: add those of its lines that are broken, or not ``is_good``, to
    ``<file>.damaged``, where a person can mend them."""
    if not path.exists():
        return
    lines, damaged = path.read_bytes().split(b"\n"), path.with_name(f"{path.name}.damaged")
    bad = [n for n, value, problem in read_lines(path) if problem or not is_good(value)]
    if bad:
        before = damaged.read_bytes() if damaged.exists() else b""
        with atomic_path(damaged) as tmp:
            tmp.write_bytes(before + b"".join(lines[n - 1] + b"\n" for n in bad))


def write_lines(path: Path, values: Iterable[dict]) -> None:
    """Write a JSONL file, atomically."""
    write_text(path, "".join(map(json_line, values)))


def append_lines(path: Path, values: Iterable[dict]) -> None:
    """Add lines to a JSONL file; they are on disk when this returns. If a power cut left half a
    last line, that half is removed first."""
    lines = "".join(map(json_line, values))
    if not lines:
        return
    try:
        with _opened(path) as f:
            _mend_end(f)
            end = f.seek(0, os.SEEK_END)
            try:
                f.write(lines.encode())
                f.flush()
                os.fsync(f.fileno())
            except OSError:
                os.ftruncate(f.fileno(), end)  # all lines or none
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def _opened(path: Path) -> BinaryIO:
    for _ in range(9):  # somebody may be removing the folder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return open(path, "ab+")
        except FileNotFoundError:
            continue
    return open(path, "ab+")


def _mend_end(f: BinaryIO) -> None:
    """Cut off a torn last line; complete one that only lacks its line break."""
    end = f.seek(0, os.SEEK_END)
    f.seek(max(0, end - 1))
    if f.read() in (b"", b"\n"):
        return
    f.seek(max(0, end - _LONGEST_LINE))
    last = f.read().rpartition(b"\n")[2]
    try:
        parse_json(last)
        f.write(b"\n")
    except InputError:
        f.truncate(end - len(last))


_LONGEST_LINE = 1 << 20  # bytes; far above what five variants take


# — tables and vectors —


def write_manifest(manifest: Path, about: dict, files: Iterable[Path]) -> None:
    """Write a manifest that says what ``files`` beside it were made from; write it last."""
    write_json(manifest, {**about, "files": {file.name: file_sha256(file) for file in files}})


def read_kept(manifest: Path, files: Iterable[Path]) -> tuple[dict, list[bytes]]:
    """What a manifest says, and the content of its files, if they still have the hashes in it; else
    nothing. Each file is read once, since another run may be writing it anew."""
    about = read_json(manifest)
    try:
        contents = {file.name: file.read_bytes() for file in files}
    except OSError:  # a file is gone
        return {}, []
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return (about, [*contents.values()]) if about.get("files") == hashes else ({}, [])


def keep(
    path: Path,
    made_from: dict,
    make: Callable[[], dict[str, pd.DataFrame]],
    names: Iterable[str],
    at_least: dict[str, int] | None = None,
) -> tuple[dict[str, pd.DataFrame], bool]:
    """Load tables that are up to date; otherwise make and store them.

    Args:
        path: where, without a suffix: tables go to ``<path>.<name>.parquet``, the manifest to
            ``<path>.json``.
        made_from: all that the tables depend on, as JSON values.
        make: returns the tables by name.
        names: of the tables.
        at_least: minimum values; stored tables made with larger ones, of ``top_k`` say, are used.

    Returns:
        The tables, and whether they were loaded.
    """
    at_least = at_least or {}
    manifest = path.with_name(path.name + ".json")
    files = {name: path.with_name(f"{path.name}.{name}.parquet") for name in names}
    known, contents = read_kept(manifest, files.values())
    enough = all(known.get("at_least", {}).get(name, -1) >= n for name, n in at_least.items())
    if known.get("made_from") == made_from and enough:
        tables = map(pd.read_parquet, map(io.BytesIO, contents))
        return dict(zip(files, tables, strict=True)), True
    tables = make()
    for name, file in files.items():
        with atomic_path(file) as tmp:
            tables[name].to_parquet(tmp)
    write_manifest(manifest, {"made_from": made_from, "at_least": at_least}, files.values())
    return tables, False
