"""Where things are kept, and how they are written: project root, derived folders, atomic files,
fingerprints.

Every artefact is written under a temporary name and moved into place, so that a crash or a full
disk leaves the one that was there before. Every artefact names its inputs by a *fingerprint*, so
that a stale one is never used in silence.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
PROJECT_ROOT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "notebooks").is_dir() else Path.cwd()


class _OneSentence:
    """Mixin: IPython and Jupyter show such an error as its message, without forty frames of
    traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class InputError(_OneSentence, ValueError):
    """Something the user gave cannot be used: says what, where, and what to do."""


class MissingError(_OneSentence, FileNotFoundError):
    """Something a stage needs is not there: says what, and the command that makes it."""


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


def resolve_data_dir(data_dir: str | os.PathLike = "") -> Path:
    """The folder that holds one folder a dataset; empty means the repository's ``data/``."""
    return Path(data_dir).expanduser().resolve() if str(data_dir) else PROJECT_ROOT / "data"


def shown(path: str | os.PathLike) -> str:
    """A path as a notebook prints it: relative to the project where possible, so outputs hold on
    any machine."""
    path = Path(path)
    root = PROJECT_ROOT.resolve()
    return (
        path.resolve().relative_to(root).as_posix()
        if path.resolve().is_relative_to(root)
        else str(path)
    )


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


def file_stamp(path: str | os.PathLike) -> tuple[int, int]:
    """Size and time of change of a file, which tell that it is another without reading it."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; move it into place on success, remove it on
    failure.

    Raises:
        InputError: if the folder cannot be written (read-only, full); the old file is intact.
    """
    target = Path(target)
    tmp = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem[:40]}.", suffix=target.suffix
        )
        os.close(handle)
        tmp = Path(name)
        yield tmp
        os.chmod(tmp, 0o644)
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, target)
    except OSError as error:
        raise InputError(
            f"cannot write {shown(target)}: {error.strerror or error}. What was there before is "
            "intact; "
            "free some space or pass -p data_dir DIR with a folder you may write to."
        ) from error
    finally:
        if tmp is not None:
            tmp.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any | None:
    """The JSON value in ``path``; None if the file is not there or is not whole (then it is made
    again)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of ``packages``, for the manifests."""
    return {name: metadata.version(name) for name in packages}


def progress(*iterable, **options):
    """A tqdm bar; none where TQDM_DISABLE is set, which tqdm's bar for notebooks overlooks."""
    from tqdm.auto import tqdm

    return tqdm(*iterable, disable=bool(os.environ.get("TQDM_DISABLE")), **options)
