"""What was made of an archive is found again when the archive has moved (``trsllava.homes``): it is
known by its pictures, not by its path."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

from trsllava_utils.files import (
    InputError,
    cannot_write,
    fingerprint,
    read_json,
    read_lines,
    shown,
    write_json,
)
from trsllava_utils.images import ImageFile
from trsllava_utils.parameters import TILE

LOOKED_AT = 12  # files of an archive
# homes of folders: name and six digits; known datasets have none
_OWN, _ARCHIVES = r".*-[0-9a-f]{6}", "*-??????/derived"
MOST = 0.5  # of them are known, or it is another archive


def adopt(root: Path, files: dict[str, Path], home: Path) -> None:
    """Bring what was made of an archive to its new home, which is named by its path. It is moved
    where the archive is gone from its old place, else copied. A line says so.

    Args:
        root: where the archive is now; files: its images.
        home: the folder ``derived`` of what is made of it is in.

    Raises:
        InputError: it cannot be moved.
    """
    derived = home / "derived"
    if not re.fullmatch(_OWN, home.name) or not files:
        return
    if derived.is_dir() and _root(derived) == str(root):
        return
    sampled = sorted(files)[:: max(1, len(files) // LOOKED_AT)]
    seen = {sha256 for name in sampled for sha256 in _pictures(files[name])}
    about = {"root": str(root), "pictures": sorted(seen)}
    if derived.is_dir():
        with suppress(InputError):  # a disk that can only be read
            write_json(derived / "archive.json", about)
        return
    for other in sorted(home.parent.glob(_ARCHIVES)):
        if len(seen & _described(other)) < MOST * len(sampled):
            continue
        old = _root(other)
        has_moved = bool(old) and not Path(old).is_dir()
        try:
            derived.parent.mkdir(parents=True, exist_ok=True)
            if has_moved:
                shutil.move(other, derived)
            else:
                shutil.copytree(other, derived, symlinks=True)
        except OSError as error:
            raise cannot_write(derived, error) from error
        with suppress(OSError):  # it holds something else
            other.parent.rmdir()
        write_json(derived / "archive.json", about)
        how = f"moved from {old}" if has_moved else "has the pictures of another one"
        print(f"{root.name} {how}; its captions and vectors are kept ({shown(derived)})")
        return


def archive_of(settings: dict, data: Path) -> str:
    """Where the archive is that a saved page searched: by the name of its home, or by some of its
    pictures (their hashes); "" if it is not known, or gone."""
    name, told = settings.get("dataset"), settings.get("pictures")
    pictures = set(map(str, told)) if isinstance(told, list) else set()
    for derived in sorted(data.glob(_ARCHIVES), key=lambda d: d.parent.name != name):
        root = _root(derived)
        is_it = derived.parent.name == name or pictures & _described(derived)
        if is_it and root and Path(root).is_dir():
            return root
    return ""


def _root(derived: Path) -> str:
    """Where the archive was when it was loaded last; "" if that is not known, or another than the
    one that its home is named by."""
    root = read_json(derived / "archive.json").get("root")
    is_own = isinstance(root, str) and derived.parent.name.endswith(fingerprint(root)[:6])
    return root if is_own else ""


def _pictures(path: Path) -> set[str]:
    """What may stand for the pictures of a file in captions: it, or its first window."""
    try:
        whole = ImageFile(str(path)).sha256
    except InputError:
        return set()
    return {whole, fingerprint(whole, (0, 0, TILE, TILE))}


def _described(derived: Path) -> set[str]:
    """The pictures that have captions there, and some that the archive held."""
    held = read_json(derived / "archive.json").get("pictures")
    lines = (line for path in derived.glob("captions/*.jsonl") for line in read_lines(path))
    described = {str(value.get("image_sha256")) for _, value, _ in lines if isinstance(value, dict)}
    return described | set(map(str, held if isinstance(held, list) else ()))
