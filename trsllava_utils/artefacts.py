"""Where things are kept, and how they are written: project root, derived folders, atomic files,
fingerprints.

Every artefact is written under a temporary name and moved into place, so that a crash or a full
disk leaves the earlier one intact. Tables and vectors have a *manifest* (JSON) beside them: what
they were made from and the hash of their files, so that a stale or damaged one is never used.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

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


def cannot_write(path: str | os.PathLike, error: OSError) -> InputError:
    """The error for a folder that is read-only or a disk that is full."""
    return InputError(
        f"cannot write {shown(path)}: {error.strerror or error}. What was there before is intact; "
        "free some space, or pass -p data_dir DIR with a folder you may write to"
    )


def cannot_read(path: str | os.PathLike, error: Exception) -> InputError:
    """The error for a file that is damaged, or of another kind than its name says."""
    return InputError(f"{shown(path)} cannot be read: {str(error).splitlines()[0]}")


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


def resolve_data_dir(data_dir: str | os.PathLike = "") -> Path:
    """The folder that holds one folder per dataset; empty means the repository's ``data/``."""
    return Path(data_dir).expanduser().resolve() if str(data_dir) else PROJECT_ROOT / "data"


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
        raise cannot_write(target, error) from error
    finally:
        if tmp is not None:
            tmp.unlink(missing_ok=True)


def read_text(path: str | os.PathLike) -> str:
    """A text file in UTF-8, with or without a byte-order mark.

    Raises:
        InputError: it is in another encoding; the message names the line.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{shown(path)}, line {line}: byte {content[error.start]:#04x} is not UTF-8; save the "
            "file as UTF-8"
        ) from error


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8), atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> Any | None:
    """The JSON value in ``path``; None if the file is missing or is no valid JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_manifest(manifest: Path, about: dict, files: Iterable[Path]) -> None:
    """Write a manifest that says what ``files`` beside it were made from; write it last."""
    write_json(manifest, {**about, "files": {file.name: file_sha256(file) for file in files}})


def read_manifest(manifest: Path, files: Iterable[Path]) -> dict:
    """What a manifest says, if ``files`` are still those it was written for; else ``{}``."""
    about = read_json(manifest)
    try:
        whole = about["files"] == {file.name: file_sha256(file) for file in files}
    except (OSError, TypeError, KeyError):  # a file is gone, or this is no manifest
        return {}
    return about if whole else {}


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
    import pandas as pd

    at_least = at_least or {}
    manifest = path.with_name(path.name + ".json")
    files = {name: path.with_name(f"{path.name}.{name}.parquet") for name in names}
    known = read_manifest(manifest, files.values())
    enough = all(known.get("at_least", {}).get(name, -1) >= n for name, n in at_least.items())
    if known.get("made_from") == made_from and enough:
        return {name: pd.read_parquet(file) for name, file in files.items()}, True
    tables = make()
    for name, file in files.items():
        with atomic_path(file) as tmp:
            tables[name].to_parquet(tmp)
    write_manifest(manifest, {"made_from": made_from, "at_least": at_least}, files.values())
    return tables, False


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of ``packages``, for the manifests."""
    return {name: metadata.version(name) for name in packages}


def progress(*iterable, **options):
    """A tqdm bar. TQDM_DISABLE is checked here, because tqdm's bar for notebooks ignores it."""
    from tqdm.auto import tqdm

    return tqdm(*iterable, disable=bool(os.environ.get("TQDM_DISABLE")), **options)
