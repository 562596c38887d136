"""Captions made elsewhere, matched to a dataset's images by file name: captioner ``file:PATH`` (a
file of the user), and those named like a prompt, ``rsrt``, ``style`` or ``query`` (the captions
that come with a dataset or this project).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from trsllava_utils.artefacts import PROJECT_ROOT, InputError, MissingError, shown, user_path
from trsllava_utils.captioning.records import Record, Variant, read_records
from trsllava_utils.datasets.dataset import Dataset, other_split
from trsllava_utils.datasets.files import first_few, match_names
from trsllava_utils.parameters import MAX_VARIANTS

WAYS = (
    "write them with notebook 01 (-p captioner transformers:MODEL runs a vision-language model "
    "here, openai:MODEL asks a server, pixels needs no weights but is often wrong) or bring your "
    "own (-p captioner file:PATH.jsonl)"
)

SMOLVLM, SECONDS = "HuggingFaceTB/SmolVLM-256M-Instruct", 60  # an image: benchmarks/smolvlm_time.py


def about_pixels(images: int) -> str:
    """What those should know who search their own images by the captioner ``pixels``."""
    hours = images * SECONDS / 3600
    return (
        "captions by pixels, rules of thumb without a model, are a baseline, often wrong (in "
        "a mixed archive 8 of 25 images among the first five were right). A vision-language model "
        f"describes them better: -p captioner transformers:{SMOLVLM} takes about a minute an image "
        f"on two cores without a GPU, for these {images:,} images {hours:,.1f} hours; -p captioner "
        "openai:MODEL asks a server or an API (README, Captioners)"
    )


def match_captions(dataset: Dataset, captioner: str) -> tuple[dict[str, Record], list[str]]:
    """Captions of ``file:`` or of those that come with the data, matched as
    :func:`trsllava_utils.datasets.files.match_names` does.

    Returns:
        Records by image id, and sentences about unreadable lines and images without a match.

    Raises:
        MissingError: the file is not there, or no captions come with the dataset.
        InputError: the file holds no usable line, or none for this dataset.
    """
    here, shipped = f"{dataset.title} ({dataset.split})", not captioner.startswith("file:")
    own = user_path(captioner.removeprefix("file:"))
    files = _shipped(dataset, captioner) if shipped else [own]
    if not shipped and not files[0].is_file():
        raise MissingError(
            f"captioner {captioner!r}: {files[0]} not found (from {shown(Path.cwd())}); give the "
            "path of an RSRT JSONL file"
        )
    records, problems = _read(files)
    names = " and ".join(file.name for file in files)
    if files and not records:
        raise InputError(f"{names} holds no usable caption line. {' '.join(problems[:3])}")
    if not files:
        raise MissingError(f"no captions {captioner!r} come with {here}: {WAYS}")
    matched, ambiguous = _matched(dataset, records)
    if ambiguous:
        problems.append(
            f"{names}: {len(ambiguous):,} captions may be of any of several images and are left "
            f"out: {first_few(ambiguous)}; write the folders into their names"
        )
    if not matched:
        raise InputError(
            f"{names}: none of its {len(records):,} images is in {here}; the file names "
            f"{next(iter(records))!r} and {dataset.images['filename'][0]!r} are examples of the "
            "two sides. Is it another split?"
        )
    bare = [image_id for image_id in dataset.images["image_id"] if image_id not in matched]
    if bare:
        problems.append(
            f"{len(bare):,} images of {here} have no caption in {names}; the gallery is "
            f"restricted to the others: {first_few(bare)}"
        )
    used = {PurePosixPath(record.image).stem for record in matched.values()} | {*ambiguous}
    foreign = [n for n in records if n not in used and PurePosixPath(n).stem not in used]
    if foreign and not shipped:  # the shipped files describe other splits too
        problems.append(
            f"{len(foreign):,} captioned images of {names} are not in {here}: {first_few(foreign)}"
        )
    return matched, problems


def has_shipped_captions(dataset: Dataset, name: str) -> bool:
    """Whether captions of this name come with the dataset or with this project. A file that
    is damaged, or names no image of any split, counts too, so that it is noticed."""
    files = _shipped(dataset, name)
    records = _read(files)[0]
    if not files or _matched(dataset, records)[0]:
        return bool(files)
    return not _matched(other_split(dataset, "all"), records)[0]


def reference_captions(dataset: Dataset) -> dict[str, Record]:
    """The dataset's own captions as records (the first five per image), to compare with."""
    names = dataset.images.set_index("image_id")["filename"]
    records = {}
    for image_id, texts in dataset.captions.groupby("image_id", sort=False)["text"]:
        variants = [Variant(caption=text) for text in texts[:MAX_VARIANTS]]
        records[image_id] = Record(image=names[image_id], model="reference", variants=variants)
    return records


def _shipped(dataset: Dataset, name: str) -> list[Path]:
    """``rsrt.jsonl`` in the dataset's folder, and ``data/rsrt/<dataset>_*.jsonl``; for other names
    likewise."""
    own = [file for file in [dataset.root / f"{name}.jsonl"] if file.is_file()]
    return own + sorted((PROJECT_ROOT / "data" / name).glob(f"{dataset.name}_*.jsonl"))


def _read(files: list[Path]) -> tuple[dict[str, Record], list[str]]:
    """Records by file name; of two for one image the first is kept."""
    records, problems = {}, []
    for file in files:
        more, odd = read_records(file)
        records, problems = more | records, problems + odd
    return records, problems


def _matched(dataset: Dataset, records: dict[str, Record]) -> tuple[dict[str, Record], list[str]]:
    """Records by file name -> by image id, and the names of records that may be of several
    images."""
    filenames = dataset.images["filename"]
    image_of, ambiguous = match_names(records, filenames)
    name_of = {filename: name for name, filename in image_of.items()}
    matched = {
        image_id: records[name_of[filename]].model_copy(update={"image": filename})
        for image_id, filename in zip(dataset.images["image_id"], filenames, strict=True)
        if filename in name_of
    }
    return matched, ambiguous
