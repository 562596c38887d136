"""Files: where things are kept, how they are read and written, and what is said when that fails.

Every file is written under a temporary name and moved into place, so that a crash or a full disk
leaves the earlier one intact. JSON holds its own fingerprint, other artefacts have a *manifest*
(JSON) beside them, so that one that is stale, damaged or edited is never used.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from secrets import token_hex
from typing import Any

_PARENT = Path(__file__).resolve().parent.parent
PROJECT_ROOT = _PARENT if (_PARENT / "notebooks").is_dir() else Path.cwd()
TEXT_BARS = "TRSLLAVA_TEXT_BARS"  # environment variable: progress bars are text
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NAMED = 5  # of many names in a sentence
KEPT = 512  # files that a reader keeps in memory


class _OneSentence:
    """Mixin: Jupyter shows such an error as its message, without forty frames of traceback."""

    def __str__(self) -> str:
        return escaped(super().__str__())

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


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Whatever a reader raises on a damaged file, or one of another kind, becomes a sentence."""
    try:
        yield
    except (InputError, MissingError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        reason = reason.splitlines()[0][:200]
        raise InputError(f"{shown(path)} cannot be read: {reason}") from error


def check_choice(what: str, value: str, valid: Iterable[str], hint: str = "") -> str:
    """Return ``value`` if it is one of ``valid``; else raise InputError naming them and the
    nearest."""
    valid = list(valid)
    if value in valid:
        return value
    near = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown {what} {value!r}; valid: {', '.join(valid)}.{guess} {hint}".strip())


# — names —


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
    """A path as a notebook prints it: relative to the project where possible, so that outputs hold
    on any machine."""
    full, root = Path(os.path.realpath(path)), PROJECT_ROOT.resolve()  # links may go in circles
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else str(path)


def escaped(text: str) -> str:
    """A text for a terminal: control characters, and those that turn the direction of writing, are
    shown as escapes; ends of lines and tabs stay."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def first_few(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (" …" if len(names) > NAMED else "")


def slug(name: str) -> str:
    """A file-name-safe form of an id: ``openai:gpt-4.1`` -> ``openai-gpt-4.1``; never empty."""
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


def file_stamp(path: str | os.PathLike) -> tuple[int, ...]:
    """Changes when a file changes, and costs no reading: size, time of change, number on disk."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


def read_once(read: Callable) -> Callable:
    """A reader of one file that reads it again only when the file or its manifest has changed;
    ``put(path, value)`` is for whoever has just written it. The value is shared: nobody may change
    it."""
    kept: dict[str, tuple[list, Any]] = {}

    def stamps(path: str | os.PathLike) -> list[tuple[int, ...]]:
        found = [file_stamp(path)]
        with suppress(OSError):
            found.append(file_stamp(f"{path}.json"))
        return found

    def put(path: str | os.PathLike, value: Any, stamp: list | None = None) -> None:
        kept.pop(name := os.path.abspath(path), None)
        kept[name] = stamp or stamps(path), value
        if len(kept) > KEPT:
            kept.pop(next(iter(kept)), None)  # the oldest

    @wraps(read)
    def once(path: str | os.PathLike) -> Any:
        with reading(path):
            stamp = stamps(path)
        found = kept.get(os.path.abspath(path))
        if found is None or found[0] != stamp:
            found = stamp, read(Path(path))
            put(path, found[1], stamp)
        return found[1]

    once.put = put
    return once


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


# — text and JSON —


def not_linked(path: str | os.PathLike) -> Path:
    """The path of an artefact, in full. A folder ``derived`` may be a link.

    Raises:
        InputError: something below it is one, and may lead elsewhere.
    """
    path = Path(os.path.abspath(path))
    parts = (path, *path.parents) if "derived" in path.parts else ()
    for part in takewhile(lambda part: part.name != "derived", parts):
        if part.is_symlink():
            raise InputError(
                f"{shown(part)} is a link, and below derived/ nothing is written through one; "
                "remove it, or make derived itself the link"
            )
    return path


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; move it into place on success, remove it on
    failure. A link that a user names stays, and the file that it leads to is replaced; a device is
    written to.

    Raises:
        InputError: the folder cannot be written (read-only, full), or :func:`not_linked`; the old
            file is intact.
    """
    target = Path(os.path.realpath(not_linked(target)))
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    tmp = target.with_name(f".{target.stem[:40]}.tmp-{token_hex(6)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # as umask has it
        yield tmp
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
        with suppress(OSError):
            tmp.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8), atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8", errors="backslashreplace")  # halves of characters
    return Path(path)


def read_text(path: str | os.PathLike) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
        InputError: it cannot be opened, or is in another encoding; the message names the line.
    """
    with reading(path):
        content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise InputError(
            f"{shown(path)}, line {line}: byte {byte:#04x} is not UTF-8; save the file as UTF-8"
        ) from error


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
        return dict(_written_json(path))
    except InputError:
        return {}


@read_once
def _written_json(path: Path) -> dict:
    value = parse_json(read_text(path))
    value = value if isinstance(value, dict) else {}
    sealed = value.pop("fingerprint", None)
    return value if sealed == fingerprint(value) else {}


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


def append_lines(path: Path, values: Iterable[dict]) -> None:
    """Add lines to a JSONL file; they are on disk when this returns. Half a last line, which a
    power cut may have left, is removed first."""
    lines = "".join(map(json_line, values)).encode()
    if not lines:
        return
    try:
        not_linked(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as f:
            end = f.seek(0, os.SEEK_END)
            f.seek(max(0, end - (1 << 20)))  # bytes; far above the longest line
            last = f.read().rpartition(b"\n")[2]
            with suppress(InputError):
                parse_json(last or b"0")
                lines, last = (b"\n" if last else b"") + lines, b""
            end = f.truncate(end - len(last))
            try:
                f.write(lines)
                f.flush()
                os.fsync(f.fileno())
            except OSError:
                os.ftruncate(f.fileno(), end)  # all lines or none
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


# — sealed files —


def write_sealed(path: Path, parts: Iterable[bytes | memoryview], about: dict) -> None:
    """Write a file and, last, its manifest ``<file>.json``: what it was made from, and its hash."""
    digest = hashlib.sha256()
    with atomic_path(path) as tmp, open(tmp, "wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    about = {**about, "sha256": digest.hexdigest()}
    write_json(path.with_name(f"{path.name}.json"), about)


def read_sealed(path: Path) -> tuple[dict, bytes]:
    """What a manifest says, and the content of its file, if that still has the hash in it; else
    nothing. The file is read once, since another run may be writing it anew."""
    about = read_json(path.with_name(f"{path.name}.json"))
    with suppress(OSError):
        content = path.read_bytes()
        if about.get("sha256") == hashlib.sha256(content).hexdigest():
            return about, content
    return {}, b""
