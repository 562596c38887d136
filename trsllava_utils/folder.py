"""A folder of images, and which of its files a name means: names that stand in annotations or
captions are matched to the files."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path, PurePosixPath

from trsllava_utils.files import first_few, shown
from trsllava_utils.images import image_suffixes, reader_of

# lie beside images and are read as something else, or not at all
_COMPANIONS = """.json .jsonl .geojson .csv .tsv .txt .parquet .geoparquet .xml .ovr .msk .aux .hdr
.prj .rrd .imd .rpb .ige .md .html .tfw .jgw .pgw .j2w .wld .ini .yml .yaml"""
_LEADS_OUT = "is a link that leads out of the folder"
_THUMBNAILS = {"@eaDir", "Thumbs", "thumbs", "thumbnails"}


def list_images(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The images below a folder.

    Links are followed where they stay inside (:func:`leads_out`); linked folders are not. Folders
    of thumbnails, hidden ones and ``derived`` are left out.

    Returns:
        File by relative name (``/`` between folders, NFC), and sentences on what was left out.
    """
    files: dict[str, Path] = {}
    others, reasons = defaultdict(list), []
    for here, names in _folders(root, reasons):
        for file_name in sorted(names):
            path, suffix = here / file_name, Path(file_name).suffix.lower()
            outside = leads_out(path, root)
            if file_name.startswith(".") or (suffix in _COMPANIONS.split() and not outside):
                continue
            name = unicodedata.normalize("NFC", name_as_text(path.relative_to(root).as_posix()))
            if outside:
                reasons.append(f"{name} {_LEADS_OUT}; it was left out")
            elif suffix not in image_suffixes():
                others[suffix or "without a suffix"].append(name)
            elif reason := _not_readable(path, root) or (name in files and "is there twice"):
                reasons.append(f"{name} {reason}; it was left out")
            else:
                files[name] = path
    if others:
        kinds = (f"{len(n)} {kind} ({first_few(n)})" for kind, n in sorted(others.items()))
        reasons.append(f"left out, not a kind of image that is read here: {', '.join(kinds)}")
    return files, reasons


def _folders(root: Path, reasons: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """The folders that images are looked for in, and the names of their files."""

    def not_listed(error: OSError) -> None:
        reasons.append(f"{shown(error.filename)} cannot be opened ({error.strerror})")

    for folder, subfolders, names in os.walk(root, onerror=not_listed):
        here = Path(folder)
        of_cache = {"blobs", "refs"} if "snapshots" in subfolders else set()
        kept = (s for s in subfolders if not s.startswith((".", "__")) and s not in _THUMBNAILS)
        kept = (s for s in kept if s not in of_cache and (s != "derived" or here != root))
        subfolders[:] = sorted(kept)
        for name in subfolders:  # os.walk does not follow links
            if leads_out(here / name, root):
                text = name_as_text((here / name).relative_to(root).as_posix())
                reasons.append(f"{text} {_LEADS_OUT}; it was left out")
        yield here, names


def _not_readable(path: Path, root: Path) -> str:
    """Why a file is not opened; "" for one that is."""
    if not path.is_file():
        return "is no file"
    if not os.access(path, os.R_OK):
        return "cannot be opened (Permission denied)"
    reader = reader_of(path)
    return reader.refused(path, root.resolve()) if reader else ""


def leads_out(path: Path, root: Path) -> bool:
    """Whether links, of a file below ``root`` or of folders above it, lead outside it, and outside
    of the ``blobs`` of the Hugging Face cache that the folder is a snapshot of."""
    below = takewhile(lambda part: part != root, (path, *path.parents))
    if not any(part.is_symlink() for part in below):
        return False
    real, inside = os.path.realpath(path), [root]  # realpath ends where links go in circles
    inside += [root.parent.parent / "blobs"] if root.parent.name == "snapshots" else []
    return not any(Path(real).is_relative_to(folder.resolve()) for folder in inside)


def match_names(
    wanted: Iterable[str], available: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Which file each name means.

    The same path first; else the same file name, else the same stem (upper and lower case are the
    same), and of several the one that shares most of the folders above it. What stays ambiguous is
    matched to nothing, and no two names to one file.

    Returns:
        ``available`` by ``wanted`` name, and the wanted names that are ambiguous.
    """
    exact, by_name, by_stem = {}, defaultdict(list), defaultdict(list)
    for file in available:
        path = PurePosixPath(plain_name(file))
        exact[str(path)] = file
        by_name[path.name.casefold()].append((path, file))
        by_stem[stem_of(path).casefold()].append((path, file))
    claims: dict[str, list[tuple[tuple, str]]] = defaultdict(list)
    ambiguous = []
    for name in dict.fromkeys(wanted):
        path = PurePosixPath(plain_name(name))
        if same := exact.get(str(path)):
            claims[same].append(((999, False), name))
            continue
        near = by_name.get(path.name.casefold()) or by_stem.get(stem_of(path).casefold(), [])
        ranked = [(_closeness(path, other), file) for other, file in near]
        best = max((closeness for closeness, _ in ranked), default=None)
        chosen = [file for closeness, file in ranked if closeness == best]
        if len(chosen) > 1:
            ambiguous.append(name)
        elif chosen:
            claims[chosen[0]].append((best, name))
    matched = {}
    for file, claimants in claims.items():
        best = max(closeness for closeness, _ in claimants)
        owners = [name for closeness, name in claimants if closeness == best]
        if len(owners) == 1:
            matched[owners[0]] = file
        ambiguous += [name for _, name in claimants if name not in owners or len(owners) > 1]
    return matched, ambiguous


def _closeness(a: PurePosixPath, b: PurePosixPath) -> tuple[int, bool]:
    """Folders that two names share, counted from the file up; and whether the names are equal."""
    above = [[part.casefold() for part in reversed(name.parent.parts)] for name in (a, b)]
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(*above, strict=False))
    return len(list(shared)), a.name == b.name


def plain_name(name: str) -> str:
    """A relative name with ``/`` between folders, NFC."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).strip("/")


def stem_of(path: PurePosixPath) -> str:
    """The name without the suffix of an image; ``scene.1`` has none."""
    return path.stem if path.suffix.lower() in image_suffixes() else path.name


def name_as_text(name: str) -> str:
    """A file name as text; one that is not UTF-8 is taken for Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name
