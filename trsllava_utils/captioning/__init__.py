"""Structured captioning: images go in, RSRT records come out, one JSON line an image as soon as
it is ready.

A captioner is named by a string: ``pixels`` (reads the picture, no weights) or ``file:PATH``
(captions made
elsewhere). A new one is a module with a class of the :class:`Captioner` protocol and a line in
``open_captioner``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd
from tqdm.auto import tqdm

from trsllava_utils.artefacts import (
    InputError,
    MissingError,
    atomic_path,
    check_choice,
    file_sha256,
    fingerprint,
    read_json,
    resolve_data_dir,
    shown,
    slug,
    write_json,
)
from trsllava_utils.captioning.records import (
    MAX_VARIANTS,
    TEXTS,
    Record,
    Variant,
    append_record,
    caption_corpus,
    read_records,
)
from trsllava_utils.datasets import Dataset
from trsllava_utils.imagery import read_image

KINDS = ("pixels", "file:PATH.jsonl")


class Captioner(Protocol):
    """Describes one image; ``id`` names the captions file, ``identity`` changes when its output
    would."""

    id: str
    identity: str

    def describe(self, image) -> list[Variant]:
        """``(H, W, 3) uint8`` RGB -> variants."""


@dataclass(frozen=True)
class Captions:
    """The captions of a dataset's images.

    Attributes:
        captioner: the captioner's id.
        records: RSRT record by image id, only images of the dataset.
        path: the JSONL file.
        problems: images and lines that gave nothing, one sentence each.
        made: how many were captioned in this run (0: all were there).
    """

    captioner: str
    records: dict[str, Record]
    path: Path
    problems: tuple[str, ...]
    made: int = 0

    def corpus(self, texts: str = "joined") -> pd.DataFrame:
        """The text corpus of these captions; ``texts`` is "joined" or "fields"."""
        check_choice("texts", texts, TEXTS)
        return caption_corpus(self.records.items(), self.captioner, texts)


def captioner_id(captioner: str) -> str:
    """The short id of a captioner string, used in file names: "pixels", or "file-NAME-xxxxxx"."""
    kind, _, rest = captioner.partition(":")
    if kind == "file" and rest:
        path = Path(rest).expanduser().resolve()
        return f"file-{slug(path.stem)}-{fingerprint(str(path))[:6]}"
    check_choice("captioner", captioner, KINDS)
    if captioner != "pixels":
        raise InputError(
            "captioner 'file:PATH.jsonl': put the path of your captions file in place of PATH.jsonl"
        )
    return captioner


def captions_path(dataset: Dataset, captioner: str) -> Path:
    """Where the captions of ``captioner`` for ``dataset`` are kept."""
    return dataset.derived / "captions" / f"{captioner_id(captioner)}.jsonl"


def caption_dataset(
    dataset: Dataset, captioner: str = "pixels", n_variants: int = MAX_VARIANTS, bands: str = ""
) -> Captions:
    """Caption every image of the dataset that has no captions yet.

    Finished images are on disk at once, so an interrupted run goes on where it stopped. Images
    whose pixels changed
    are described again. When the captioner itself changed, its earlier file is set aside under
    another name.

    Raises:
        InputError: unknown captioner, or a captions file without any usable line.
        MissingError: the images (or the file of a ``file:`` captioner) are not there.
    """
    if captioner.startswith("file:"):
        return _import_captions(dataset, captioner)
    captioner_id(captioner)
    if not 1 <= n_variants <= MAX_VARIANTS:
        raise InputError(f"n_variants={n_variants}: RSRT has 1 to {MAX_VARIANTS} variants")
    images = dataset.with_pixels
    if images.empty:
        raise MissingError(
            f"{dataset.name} ({dataset.split}): no image files in {shown(dataset.root)}, so "
            "nothing can be captioned. "
            "Get the images (see data/README.md) or bring captions: -p captioner file:PATH.jsonl."
        )
    from trsllava_utils.captioning.pixels import PixelCaptioner

    describer: Captioner = PixelCaptioner(n_variants)
    path = captions_path(dataset, captioner)
    identity = {"captioner": describer.id, "identity": describer.identity, "bands": bands}
    manifest = path.with_suffix(".json")
    known = read_json(manifest)
    if path.exists() and known != identity:
        path.replace(path.with_name(f"{path.stem}.{fingerprint(known)}.superseded"))
    if known != identity:
        write_json(manifest, identity)

    done, _ = read_records(path) if path.exists() else ({}, [])
    records: dict[str, Record] = {}
    problems: list[str] = []
    made = 0
    rows = list(zip(images["image_id"], images["filename"], images["path"], strict=True))
    for image_id, filename, image_path in tqdm(
        rows, desc=f"captioning ({captioner})", unit="image"
    ):
        pixels_sha = file_sha256(image_path)
        record = done.get(filename)
        if record is None or record.image_sha256 != pixels_sha:
            try:
                variants = describer.describe(read_image(image_path, bands))
            except InputError as error:
                problems.append(f"{error}; the run went on without it")
                continue
            record, stale = (
                Record(
                    image=filename,
                    model=describer.identity,
                    variants=variants,
                    image_sha256=pixels_sha,
                ),
                record,
            )
            if stale is not None:  # the picture behind this name changed: its old line goes first
                _rewrite(path, {name: r for name, r in done.items() if name != filename})
                del done[filename]
            append_record(path, record)
            made += 1
        records[image_id] = record
    return Captions(captioner_id(captioner), records, path, tuple(problems), made)


def load_captions(dataset: Dataset, captioner: str = "pixels") -> Captions:
    """The captions that notebook 01 made.

    Raises:
        MissingError: there are none yet; the message is the command that makes them.
    """
    if captioner.startswith("file:"):
        return _import_captions(dataset, captioner)
    path = captions_path(dataset, captioner)
    records, problems = read_records(path) if path.exists() else ({}, [])
    matched = {
        image_id: records[filename]
        for image_id, filename in zip(
            dataset.images["image_id"], dataset.images["filename"], strict=True
        )
        if filename in records
    }
    if not matched:
        raise MissingError(
            f"no captions by {captioner!r} for {dataset.title} ({dataset.split}); make them first: "
            f"papermill 01_structured_captioning.ipynb out.ipynb {_parameters(dataset)} "
            f"-p captioner {captioner}"
        )
    problems += _stale(dataset, matched, read_json(path.with_suffix(".json")))
    return Captions(captioner_id(captioner), matched, path, tuple(problems))


def _parameters(dataset: Dataset) -> str:
    """The papermill parameters that lead to this dataset."""
    data_dir = dataset.derived.parent.parent
    name = dataset.name if dataset.root == data_dir / dataset.name else str(dataset.root)
    elsewhere = "" if data_dir == resolve_data_dir() else f" -p data_dir {data_dir}"
    return f"-p dataset {name}{elsewhere} -p split {dataset.split}"


def _stale(dataset: Dataset, records: dict[str, Record], manifest: dict | None) -> list[str]:
    """What no longer fits: pictures that changed since, or an earlier version of the captioner."""
    from trsllava_utils.captioning.pixels import PixelCaptioner

    paths = dict(zip(dataset.images["image_id"], dataset.images["path"], strict=True))
    changed = [
        i for i, r in records.items() if paths[i] and file_sha256(paths[i]) != r.image_sha256
    ]
    n_variants = max(len(record.variants) for record in records.values())
    told = []
    if changed:
        told.append(f"{len(changed):,} images changed after they were captioned: {changed[:3]}")
    if (manifest or {}).get("identity") != PixelCaptioner(n_variants).identity:
        told.append("the captions come from another version of the captioner")
    return [f"{what}; run 01_structured_captioning again" for what in told]


def _rewrite(path: Path, records: dict[str, Record]) -> None:
    with atomic_path(path) as tmp:
        tmp.write_text("".join(r.line() for r in records.values()), encoding="utf-8")


def _import_captions(dataset: Dataset, captioner: str) -> Captions:
    """Captions of a ``file:`` captioner, matched by file name, or by stem where that is unique."""
    source = Path(captioner.removeprefix("file:")).expanduser()
    path = captions_path(dataset, captioner)
    if not source.is_file():
        raise MissingError(
            f"captioner {captioner!r}: {source} not found (from {shown(Path.cwd())}); give the "
            "path of an RSRT JSONL file"
        )
    found, problems = read_records(source)
    if not found:
        raise InputError(f"{source.name} holds no usable caption line. {' '.join(problems[:3])}")
    by_stem = {record.image_id: record for record in found.values()}
    matched = {}
    for image_id, filename in zip(
        dataset.images["image_id"], dataset.images["filename"], strict=True
    ):
        record = (
            found.get(filename)
            or found.get(Path(filename).name)
            or by_stem.get(Path(filename).stem)
        )
        if record is not None:
            matched[image_id] = record.model_copy(update={"image": filename})
    if not matched:
        raise InputError(
            f"{source.name}: none of its {len(found):,} images is in {dataset.title} "
            f"({dataset.split}); the file names "
            f"{next(iter(found))!r} and {dataset.images['filename'].iloc[0]!r} are examples of "
            "the two sides. Is it another split?"
        )
    used = {r.image_id for r in matched.values()}
    for what, names in (
        (
            f"images of {dataset.title} ({dataset.split}) have no caption in {source.name}; the "
            "gallery is restricted to the others",
            [i for i in dataset.images["image_id"] if i not in matched],
        ),
        (
            f"captioned images of {source.name} are not in {dataset.title} ({dataset.split})",
            [name for name, r in found.items() if r.image_id not in used],
        ),
    ):
        if names:
            problems.append(
                f"{len(names):,} {what}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
            )
    _rewrite(path, {r.image: r for r in matched.values()})
    return Captions(captioner_id(captioner), matched, path, tuple(problems))
