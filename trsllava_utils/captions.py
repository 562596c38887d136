"""Captions of a dataset: a captioner's name goes in, its records by image come out. They were made
by ``captioning.py``, come with the data (``rsrt``, ``style``, ``query``), or were made elsewhere
(``file:PATH``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from trsllava_utils import plugins
from trsllava_utils.caption_file import CaptionFile, newest_file, read_files
from trsllava_utils.captioner import (
    beside,
    captioner_id,
    exists,
    names_in,
    prompt_and_model,
    with_prompt,
)
from trsllava_utils.data import Dataset
from trsllava_utils.files import (
    PROJECT_ROOT,
    InputError,
    MissingError,
    first_few,
    resolve_data_dir,
    shown,
    user_path,
)
from trsllava_utils.folder import leads_out, match_names
from trsllava_utils.images import Rendering
from trsllava_utils.parameters import TILE, TILING
from trsllava_utils.records import Record, caption_corpus

WAYS = (
    "write them with notebook 01 (-p captioner transformers:MODEL runs a vision-language model "
    "here, openai:MODEL asks a server, pixels needs no weights but is often wrong) or bring your "
    "own (-p captioner file:PATH.jsonl)"
)


@dataclass
class Report:
    """A run in numbers. ``a + b`` is two runs side by side."""

    already: int = 0  # images captioned by an earlier run
    aside: int = 0  # images set aside by an earlier run
    captioned: int = 0  # images captioned by this run
    retried: int = 0  # of these, after more than one attempt
    unreadable: int = 0  # images whose file cannot be read
    failed: int = 0  # images that got no answer
    left: int = 0  # images not tried: the budget is spent, or the run was stopped
    retries: Counter = field(default_factory=Counter)  # replies asked for again, by reason
    rejected: Counter = field(default_factory=Counter)  # images set aside, by reason
    usage: Counter = field(default_factory=Counter)  # requests and tokens
    problems: list[str] = field(default_factory=list)  # unreadable and failed images, notes
    seconds: float = 0.0  # of two runs, those of the longer
    stopped: Exception | None = None  # why the run ended early, if it did

    def __add__(self, other: Report) -> Report:
        names = [f.name for f in fields(self) if f.name not in ("usage", "seconds", "stopped")]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        usage = Counter(self.usage)
        usage.update(other.usage)  # unlike +, keeps what is 0
        longer, reason = max(self.seconds, other.seconds), self.stopped or other.stopped
        return Report(**sums, usage=usage, seconds=longer, stopped=reason)


@dataclass(frozen=True)
class Captions:
    """The captions of a dataset's images, by one captioner or several.

    Attributes:
        captioner: the captioner's id.
        records: RSRT record by image id, in the dataset's order, with all captioners' variants.
        paths: the files that they lie in.
        files: those of them that notebook 01 wrote.
        problems: images and lines that gave nothing, one sentence each.
        report: the run in numbers (None if loaded from an earlier run).
        parts: of several captioners, the captions of each.
    """

    captioner: str
    records: dict[str, Record]
    paths: tuple[Path, ...]
    files: tuple[CaptionFile, ...] = ()
    problems: tuple[str, ...] = ()
    report: Report | None = None
    parts: tuple[Captions, ...] = ()

    @property
    def most_variants(self) -> int:
        """The most variants that one captioner wrote for one image."""
        each = self.parts or (self,)
        return max((len(r.variants) for part in each for r in part.records.values()), default=0)

    def corpus(self, texts: str = "joined") -> pd.DataFrame:
        """The text corpus of these captions; for ``texts`` see ``records.py``."""
        if not self.parts:
            return caption_corpus(self.records.items(), self.captioner, texts)
        rows = pd.concat([part.corpus(texts) for part in self.parts], ignore_index=True)
        place = {image_id: n for n, image_id in enumerate(self.records)}
        order = rows["image_id"].map(place).dropna().sort_values(kind="stable").index
        return rows.loc[order].reset_index(drop=True)


def choose_captioner(dataset: Dataset, captioner: str = "", prompt: str = "rsrt") -> str:
    """The captioner's full name, with the prompt where it is not "rsrt". For an empty one: the
    captions that come with these images, else what a plug-in finds (``trsllava.defaults``)."""
    if not captioner and has_shipped_captions(dataset, prompt):
        return prompt
    if not captioner:
        if not (default := plugins.find("defaults", "captioner")):
            raise MissingError(f"no captions come with {dataset.title}: {WAYS}")
        captioner = default(dataset, prompt)
    names = [beside(name, dataset.root) for name in names_in(captioner)]
    return " + ".join(with_prompt(name, prompt) for name in names)


def load_captions(dataset: Dataset, captioner: str = "") -> Captions:
    """The captions that notebook 01 made, that come with the data, or of a file.

    >>> captions = load_captions(load_dataset("sample"), "rsrt")
    >>> captions.records["harbor92"].variants[0].one_sentence
    'A harbour with white boats moored along branching docks, a long pier in the west and ...'

    Raises:
        MissingError: there are none yet; the message says how to get some.
    """
    captioner = choose_captioner(dataset, captioner)
    return together(captioner, lambda name: _load_one(dataset, name))


def together(captioner: str, captions_by: Callable[[str], Captions]) -> Captions:
    """The captions of one captioner or, where it names several, of all: images that all of them
    describe, each with the variants of all."""
    parts = tuple(captions_by(name) for name in names_in(captioner))
    if len(parts) == 1:
        return parts[0]
    described = [set(part.records) for part in parts]
    common = set.intersection(*described)
    problems = [problem for part in parts for problem in part.problems]
    if not common:
        raise InputError(f"no image is described by all of {captioner}")
    if missing := len(set.union(*described) - common):
        problems.append(f"{missing:,} images are left out, which not all of {captioner} describe")
    records = {}
    for image_id in parts[0].records:
        if image_id in common:
            several = [part.records[image_id] for part in parts]
            model = " + ".join(dict.fromkeys(record.model for record in several))
            variants = [variant for record in several for variant in record.variants]
            records[image_id] = several[0].model_copy(update={"model": model, "variants": variants})
    reports = [part.report for part in parts if part.report]
    report = sum(reports[1:], reports[0]) if reports else None
    paths, files = (sum((getattr(p, name) for p in parts), ()) for name in ("paths", "files"))
    return Captions(captioner_id(captioner), records, paths, files, tuple(problems), report, parts)


def folder_of(dataset: Dataset) -> Path:
    """Where the captions that are made for a dataset lie."""
    return dataset.derived / "captions"


def seen_by(captioner: str, dataset: Dataset) -> Dataset:
    """The dataset with its multi-band files shown as a captioner saw them; of several captioners,
    as the first one that looked at the images itself."""
    for name in names_in(captioner):
        file = None if exists(name) else newest_file(folder_of(dataset), captioner_id(name))
        if file and (identity := file.manifest().get("identity")):
            told = {"stretch": "per-band" * bool(dataset.rendering.stretch)} | identity
            fields = ("bands", "stretch", "false_colour")
            seen = Rendering(**{field: str(told.get(field, "")) for field in fields})
            return dataset if seen == dataset.rendering else replace(dataset, rendering=seen)
    return dataset


def _load_one(dataset: Dataset, captioner: str) -> Captions:
    if exists(captioner):
        return import_captions(dataset, captioner)
    file = newest_file(folder_of(dataset), captioner_id(captioner))
    model = prompt_and_model(captioner)[1]
    manifest = file.manifest() if file else {}
    identity = manifest.get("identity", {})
    written = identity.get("captioner", model)
    if written != model and not user_path(model.partition(":")[2]).is_dir():
        raise MissingError(f"{shown(file.path)} holds captions by {written!r}, not by {model!r}")
    tiling = {name: identity[name] for name in TILING if name in identity}
    if identity and tiling != dataset.tiling:
        tiling = tiling or {"tile": TILE, "overlap": 0}
        given = " ".join(f"-p {name} {value}" for name, value in tiling.items())
        raise MissingError(
            f"{captioner!r} described other windows of these scenes; pass {given} as it was then, "
            "or run notebook 01 again"
        )
    by_name, problems = file.read() if file else ({}, [])
    records = by_image(dataset, by_name)
    if not records and dataset.with_pixels.empty:
        raise MissingError(
            f"{dataset.title} ({dataset.split}): {len(dataset.images):,} images are annotated, "
            f"none of their files is in {shown(dataset.root)}, and nobody has described them yet. "
            "Put the files there, or bring captions: -p captioner file:PATH.jsonl"
        )
    if not records:
        raise MissingError(
            f"no captions by {captioner!r} for {dataset.title} ({dataset.split}): {WAYS}; the "
            "command is papermill 01_structured_captioning.ipynb out.ipynb "
            f"{_parameters(dataset)} -p captioner {captioner}"
        )
    problems += _stale(dataset, records, manifest)
    return Captions(captioner_id(captioner), records, (file.path,), (file,), tuple(problems))


def by_image(dataset: Dataset, records: dict[str, Record]) -> dict[str, Record]:
    """Records by file name -> by image id, those of the dataset in its order. A file that has got
    another name, or the name of another one, keeps the record of its picture."""
    by_picture = {record.image_sha256: record for record in records.values()}
    found = {}
    for image_id, name in zip(dataset.images["image_id"], dataset.images["filename"], strict=True):
        record, file = records.get(name), dataset.file_of(image_id)
        with suppress(InputError):  # a picture that cannot be read keeps what its name has
            if file and file.sha256 in by_picture and (not record or record.image_sha256):
                record = by_picture[file.sha256].model_copy(update={"image": name})
        if record:
            found[image_id] = record
    return found


def _parameters(dataset: Dataset) -> str:
    """The papermill parameters that lead to this dataset."""
    data_dir = dataset.derived.parent.parent
    name = dataset.name if dataset.root == data_dir / dataset.name else str(dataset.root)
    elsewhere = "" if data_dir == resolve_data_dir() else f" -p data_dir {data_dir}"
    return f"-p dataset {name}{elsewhere} -p split {dataset.split}"


def _stale(dataset: Dataset, records: dict[str, Record], manifest: dict) -> list[str]:
    """What no longer fits: pictures that changed since, a manifest that is gone."""
    files = {image_id: dataset.file_of(image_id) for image_id in records}
    pixels = {image_id: file.sha256 for image_id, file in files.items() if file}
    changed = [i for i, sha256 in pixels.items() if sha256 != records[i].image_sha256]
    reasons = [] if manifest else ["the captions' manifest is damaged or gone"]
    if changed:
        reasons.append(f"{len(changed):,} images changed after they were captioned: {changed[:3]}")
    return [f"{reason}; run 01_structured_captioning again" for reason in reasons]


# — captions made elsewhere —


def import_captions(dataset: Dataset, captioner: str) -> Captions:
    """The captions of ``file:`` or those that come with the data, matched by file name.

    Raises:
        MissingError: the file is not there, or no captions come with the dataset.
        InputError: the file holds no usable line, or none for this dataset.
    """
    here, shipped = f"{dataset.title} ({dataset.split})", not captioner.startswith("file:")
    own = user_path(captioner.removeprefix("file:"))
    files = _shipped(dataset, captioner) if shipped else [own]
    if not shipped and not own.is_file():
        raise MissingError(
            f"captioner {captioner!r}: {own} not found (from {shown(Path.cwd())}); give the "
            "path of an RSRT JSONL file"
        )
    records, problems = read_files(files)
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
    return Captions(captioner_id(captioner), matched, tuple(files), problems=tuple(problems))


def has_shipped_captions(dataset: Dataset, name: str) -> bool:
    """Whether captions of this name come with the dataset or with this project. A file that
    is damaged, or names no image of any split, counts too, so that it is noticed."""
    files = _shipped(dataset, name)
    records = read_files(files)[0]
    if not files or _matched(dataset, records)[0]:
        return bool(files)
    return not _matched(dataset.on("all"), records)[0]


def _shipped(dataset: Dataset, name: str) -> list[Path]:
    """``data/rsrt/<dataset>_*.jsonl``, and ``rsrt.jsonl`` in the dataset's folder, which counts
    where both describe an image; for other names likewise."""
    own = [dataset.root / f"{name}.jsonl"]
    own = [file for file in own if file.is_file() and not leads_out(file, dataset.root)]
    return sorted((PROJECT_ROOT / "data" / name).glob(f"{dataset.name}_*.jsonl")) + own


def _matched(dataset: Dataset, records: dict[str, Record]) -> tuple[dict[str, Record], list[str]]:
    """Records by file name -> by image id, and the names of records that may be of several
    images."""
    file_of, ambiguous = match_names(records, dataset.images["filename"])
    pairs = ((file, records[name]) for name, file in file_of.items())
    renamed = {file: record.model_copy(update={"image": file}) for file, record in pairs}
    return by_image(dataset, renamed), ambiguous
