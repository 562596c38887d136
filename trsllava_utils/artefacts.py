"""Where things are kept and how files are written: project root, names, fingerprints, errors.

Every file is written under a temporary name and moved into place, so that a crash or a full disk
leaves the earlier one intact.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import pandas as pd

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
PROJECT_ROOT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "notebooks").is_dir() else Path.cwd()

TEXT_BARS = "TRSLLAVA_TEXT_BARS"  # environment variable: progress bars are text


class _OneSentence:
    """Mixin: IPython and Jupyter show such an error as its message, without forty frames of
    traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class InputError(_OneSentence, ValueError):
    """Something the user gave cannot be used: says what, where, and what to do."""


class MissingError(_OneSentence, FileNotFoundError):
    """Something a stage needs is not there: says what, and the command that makes it."""


def cannot_write(path: str | os.PathLike, error: OSError) -> InputError:
    """The error for a folder that is read-only or a disk that is full."""
    return InputError(
        f"cannot write {shown(path)}: {error.strerror or error}. What was there before is intact. "
        "Free some space, or take a folder that you may write to (-p data_dir DIR, for figures -p "
        "figures_dir DIR)"
    )


def cannot_read(path: str | os.PathLike, error: Exception) -> InputError:
    """The error for a file that is damaged, or of another kind than its name says."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return InputError(f"{shown(path)} cannot be read: {reason.splitlines()[0][:200]}")


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[str | os.PathLike]:
    """Whatever a reader raises on a damaged file becomes :func:`cannot_read`."""
    try:
        yield path
    except (InputError, MissingError):
        raise
    except Exception as error:
        raise cannot_read(path, error) from error


def not_here(what: str, error: Exception, hint: str) -> MissingError:
    """The error for weights that are neither on this machine nor can be downloaded."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return MissingError(
        f"{what} is not on this machine and cannot be downloaded ({reason}); {hint}"
    )


def check_choice(what: str, value: str, valid: Iterable[str], hint: str = "") -> str:
    """Return ``value`` if it is one of ``valid``; otherwise raise InputError naming them and the
    nearest."""
    valid = list(valid)
    if value in valid:
        return value
    near = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"unknown {what} {value!r}; valid: {', '.join(valid)}.{guess}{' ' + hint if hint else ''}"
    )


def user_path(text: str | os.PathLike) -> Path:
    """A path that a user typed, in full.

    Raises:
        InputError: no file system can have it, or ``~name`` is nobody's home.
    """
    try:
        path = Path(text).expanduser().resolve()
        path.exists()  # raises OSError if the name is too long
        return path
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(text)[:100]} is no path: {reason}") from None


def resolve_data_dir(data_dir: str | os.PathLike = "") -> Path:
    """The folder that holds one folder per dataset; empty means the repository's ``data/``."""
    return user_path(data_dir) if str(data_dir) else PROJECT_ROOT / "data"


def shown(path: str | os.PathLike) -> str:
    """A path as a notebook prints it: relative to the project where possible, so outputs hold on
    any machine."""
    full, root = Path(path).resolve(), PROJECT_ROOT.resolve()
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else str(path)


def slug(name: str) -> str:
    """A file-name-safe form of an id, e.g. ``openai:gpt-4.1`` -> ``openai-gpt-4.1``; never empty,
    never a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits of the sha256 of ``parts`` (JSON values), independent of dict order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file's content, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def content_fingerprint(path: str | os.PathLike) -> str:
    """Sixteen hex digits for a file, or for all files of a folder with their names."""
    path = Path(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return fingerprint([(p.relative_to(path).as_posix(), file_sha256(p)) for p in files])


def file_stamp(path: str | os.PathLike) -> tuple[int, int]:
    """Size and time of change: they show that a file changed, without reading it."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


# — writing —


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; move it into place on success, remove it on
    failure.

    A link stays, and the file that it leads to is replaced; a device is written to.

    Raises:
        InputError: if the folder cannot be written (read-only, full); the old file is intact.
    """
    target, tmp = Path(os.path.realpath(target)), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        is_device = target.exists() and not target.is_file()
        folder = Path(tempfile.gettempdir()) if is_device else target.parent
        sweep(folder, os.getpid())
        tmp = folder / f".{target.stem[:40]}.{_OWNER}-{os.getpid()}-{token_hex(4)}{target.suffix}"
        os.close(os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # as umask has it
        yield tmp
        if is_device:
            target.write_bytes(tmp.read_bytes())
            return
        if target.exists():
            os.chmod(tmp, stat.S_IMODE(target.stat().st_mode))
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, target)
    except MissingError:  # which is an OSError too
        raise
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if tmp is not None:
            with suppress(OSError):
                tmp.unlink(missing_ok=True)


_OWNER = f"tmp-{slug(platform.node())}"  # several machines may share a folder


@cache
def sweep(folder: Path, process: int) -> None:
    """Remove temporary files of runs on this machine that were killed; once in a ``process``."""
    for file in folder.glob(f".*.{_OWNER}-*"):
        owner = re.match(r"(\d+)-", file.name.rpartition(f"{_OWNER}-")[2])
        if owner and int(owner[1]) != process and not psutil.pid_exists(int(owner[1])):
            file.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8), atomically."""
    for tries_left in range(8, -1, -1):  # somebody may be removing the folder
        try:
            with atomic_path(path) as tmp:
                tmp.write_text(text, encoding="utf-8", errors="backslashreplace")  # lone surrogates
            break
        except InputError as error:
            if not tries_left or not isinstance(error.__cause__, FileNotFoundError):
                raise
    return Path(path)


def csv_text(table: pd.DataFrame, index: bool = True) -> str:
    """A table as CSV. A text that a spreadsheet would take for a formula gets a quotation mark in
    front, and so does one that begins with such a mark."""

    starts = tuple("=+-@\t\r'")

    def plain(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(starts) else value

    table = table.map(plain).rename(index=plain, columns=plain)
    return table.to_csv(index=index)


# — reading —


def read_text(path: str | os.PathLike) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
        InputError: it cannot be opened, or is in another encoding; the message names the line.
    """
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{shown(path)}, line {line}: byte {content[error.start]:#04x} is not UTF-8; save the "
            "file as UTF-8"
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of ``packages``, for the manifests."""
    return {name: metadata.version(name) for name in packages}


def progress(*iterable, **options):
    """A tqdm bar. TQDM_DISABLE is checked here, because tqdm's bar for notebooks ignores it. Under
    ``run`` it is text, once a second, which is shown in the terminal."""
    from tqdm import auto, std

    in_terminal = TEXT_BARS in os.environ
    tqdm = std.tqdm if in_terminal else auto.tqdm
    options |= {"mininterval": 1.0, "ncols": 100, "nrows": 20} if in_terminal else {}
    return tqdm(*iterable, disable=bool(os.environ.get("TQDM_DISABLE")), **options)
