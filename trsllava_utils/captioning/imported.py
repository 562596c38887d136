"""Captioner ``file:PATH``: captions made elsewhere, matched to a dataset's images by file name."""

from __future__ import annotations

from pathlib import Path

from trsllava_utils.artefacts import InputError, MissingError, shown
from trsllava_utils.captioning.records import Record, read_records
from trsllava_utils.datasets.dataset import Dataset


def match_file(dataset: Dataset, captioner: str) -> tuple[dict[str, Record], list[str]]:
    """Captions of a ``file:`` captioner, matched by path, then by file name, then by stem (of equal
    stems the last).

    Returns:
        Records by image id, and sentences about unreadable lines and images without a match.

    Raises:
        MissingError: the file is not there.
        InputError: it holds no usable line, or none for this dataset.
    """
    source = Path(captioner.removeprefix("file:")).expanduser()
    if not source.is_file():
        raise MissingError(
            f"captioner {captioner!r}: {source} not found (from {shown(Path.cwd())}); give the "
            "path of an RSRT JSONL file"
        )
    records, problems = read_records(source)
    if not records:
        raise InputError(f"{source.name} holds no usable caption line. {' '.join(problems[:3])}")
    by_stem = {record.stem: record for record in records.values()}
    images = list(zip(dataset.images["image_id"], dataset.images["filename"], strict=True))
    matched = {}
    for image_id, filename in images:
        name = Path(filename)
        record = records.get(filename) or records.get(name.name) or by_stem.get(name.stem)
        if record is not None:
            matched[image_id] = record.model_copy(update={"image": filename})
    here = f"{dataset.title} ({dataset.split})"
    if not matched:
        raise InputError(
            f"{source.name}: none of its {len(records):,} images is in {here}; the file names "
            f"{next(iter(records))!r} and {images[0][1]!r} are examples of the two sides. Is it "
            "another split?"
        )
    used = {record.stem for record in matched.values()}
    bare = [image_id for image_id, _ in images if image_id not in matched]
    foreign = [name for name, record in records.items() if record.stem not in used]
    if bare:
        problems.append(
            f"{len(bare):,} images of {here} have no caption in {source.name}; the gallery is "
            f"restricted to the others: {_some(bare)}"
        )
    if foreign:
        problems.append(
            f"{len(foreign):,} captioned images of {source.name} are not in {here}: "
            f"{_some(foreign)}"
        )
    return matched, problems


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
