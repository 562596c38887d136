"""Structured captioning: images go in, RSRT records come out, one JSON line per image.

Who writes them is named by a string, see ``names.py``. A new captioner is a module with a class of
the ``Captioner`` protocol (``captioner.py``) and a line in :func:`open_captioner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from trsllava_utils.artefacts import (
    InputError,
    MissingError,
    fingerprint,
    resolve_data_dir,
    shown,
    user_path,
)
from trsllava_utils.captioning.caption_file import CaptionFile, in_shard
from trsllava_utils.captioning.captioner import Captioner, Settings
from trsllava_utils.captioning.imported import WAYS, has_shipped_captions, match_captions
from trsllava_utils.captioning.names import (
    beside,
    captioner_id,
    exists,
    names_in,
    prompt_and_model,
    with_prompt,
)
from trsllava_utils.captioning.prompts import with_examples
from trsllava_utils.captioning.records import Record, caption_corpus
from trsllava_utils.captioning.run import GIVE_UP, NO_ANSWER, Job, Report, run
from trsllava_utils.datasets import Dataset, Rendering
from trsllava_utils.datasets.scenes import TILING
from trsllava_utils.parameters import PROMPTS, TILE


@dataclass(frozen=True)
class Captions:
    """The captions of a dataset's images, by one captioner or several.

    Attributes:
        captioner: the captioner's id.
        records: RSRT record by image id, in the dataset's order, with all captioners' variants.
        files: where they are kept, one for each captioner.
        problems: images and lines that gave nothing, one sentence each.
        report: the run in numbers (None if loaded from an earlier run).
        parts: of several captioners, the captions of each.
    """

    captioner: str
    records: dict[str, Record]
    files: tuple[CaptionFile, ...]
    problems: tuple[str, ...]
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
    captions that come with these images, else ``pixels``."""
    if not captioner and has_shipped_captions(dataset, prompt):
        return prompt
    names = [beside(name, dataset.root) for name in names_in(captioner or "pixels")]
    return " + ".join(with_prompt(name, prompt) for name in names)


def captions_file(dataset: Dataset, captioner: str) -> CaptionFile:
    """Where the captions of one captioner for ``dataset`` are kept."""
    return CaptionFile(dataset.derived / "captions" / f"{captioner_id(captioner)}.jsonl")


def open_captioner(captioner: str, settings: Settings) -> Captioner:
    """The captioner of that name. Weights are loaded when the first image is described.

    Raises:
        InputError: no such captioner.
        MissingError: its weights or its key are not there.
    """
    captioner_id(captioner)  # refuses unknown names
    captioner = prompt_and_model(captioner)[1]
    if captioner == "pixels":
        from trsllava_utils.captioning.pixels import PixelCaptioner

        return PixelCaptioner(settings)
    if captioner.startswith("transformers:"):
        from trsllava_utils.captioning.transformers_vlm import TransformersCaptioner

        return TransformersCaptioner(captioner, settings)
    from trsllava_utils.captioning.openai_vlm import OpenAICaptioner

    return OpenAICaptioner(captioner, settings)


def caption_dataset(
    dataset: Dataset, captioner: str = "", settings: Settings | None = None, shard: str = ""
) -> Captions:
    """Caption every image of the dataset that has no captions yet.

    Finished images are on disk at once, so an interrupted run goes on where it stopped. Images
    whose pixels changed are described again. Captions of another model, prompt or setting are set
    aside under another name.

    Args:
        dataset: whose images.
        captioner: its name, or several; empty: see :func:`choose_captioner`.
        settings: how it is asked; the prompt in a captioner's name comes before theirs.
        shard: "i/n" captions only that part of the images, into a file of its own.

    Raises:
        InputError: unknown captioner, another run on the same file, a full disk, or a captions file
            without any usable line.
        MissingError: the images (or the weights, the key, the file of the captioner) are not there.
    """
    settings = settings or Settings()
    captioner = choose_captioner(dataset, captioner, settings.prompt)
    return _together(captioner, lambda name: _caption_by_one(dataset, name, settings, shard))


def _caption_by_one(dataset: Dataset, captioner: str, settings: Settings, shard: str) -> Captions:
    if exists(captioner):
        if captioner in PROMPTS and settings.prompt not in ("rsrt", captioner):
            raise InputError(f"prompt={settings.prompt!r}: the captions of {captioner} exist")
        return _import_captions(dataset, captioner, shard)
    settings = with_examples(replace(settings, prompt=prompt_and_model(captioner)[0]), dataset)
    if dataset.with_pixels.empty:
        raise MissingError(
            f"{dataset.name} ({dataset.split}): no image files in {shown(dataset.root)}, so "
            "nothing can be captioned. Get the images (see data/README.md) or bring captions "
            "(-p captioner file:PATH.jsonl)."
        )
    describer = open_captioner(captioner, settings)
    file = captions_file(dataset, captioner).shard(shard)
    with file.held():
        damaged = file.path.exists() and not file.manifest()
        problems = file.read()[1]  # before a change of settings may write the file anew
        file = file.claim(_identity(captioner, settings, describer, dataset), describer.prompt_text)
        jobs, done, aside, more = _to_do(dataset, file, shard)
        records = {job.filename: record for job, record in done}
        report = Report(already=len(records), aside=aside)
        control = done[0][0] if done else None
        how = {"rendering": dataset.rendering, "control": control}
        problems = list(dict.fromkeys([*problems, *more]))
        this_run, written = run(jobs, describer, settings, file, **how)
        report += this_run
        file.append_lost(written if shard else records | written)
    if damaged:
        name = shown(file.manifest_path)
        problems.append(f"{name} was damaged or gone; it was made anew, the captions are the same")
    records |= written
    problems = (*problems, *report.problems)
    return Captions(captioner_id(captioner), _by_image(dataset, records), (file,), problems, report)


def _together(captioner: str, captions_by: Callable[[str], Captions]) -> Captions:
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
    report = sum(reports, Report()) if reports else None
    files = tuple(file for part in parts for file in part.files)
    return Captions(captioner_id(captioner), records, files, tuple(problems), report, parts)


def _identity(captioner: str, settings: Settings, describer: Captioner, dataset: Dataset) -> dict:
    """What captions depend on beside the pictures' files."""
    names, how = ("language", "max_side"), dataset.rendering
    model, form = prompt_and_model(captioner)[1], f"{settings.prompt} x {settings.n}"
    answer = {"captioner": model, "answer": form}
    if settings.examples:
        answer["examples"] = fingerprint(settings.examples)
    answer |= {"bands": how.bands, "false_colour": how.false_colour} | dataset.tiling
    added_later = {"stretch": how.stretch, "gsd": str(settings.gsd)}  # absent from older captions
    answer |= {name: value for name, value in added_later.items() if value}
    return answer | {n: getattr(settings, n) for n in names} | describer.identity


def _to_do(
    dataset: Dataset, file: CaptionFile, shard: str
) -> tuple[list[Job], list[tuple[Job, Record]], int, list[str]]:
    """The images still to caption, those with a record that is right, how many images are set
    aside, and what could not be read.

    A record whose picture has changed since is removed from the file.
    """
    finished, rejected, problems = file.finished()
    jobs, done, aside = [], [], 0
    for row in dataset.with_pixels.itertuples():
        if not in_shard(row.filename, shard):
            continue
        image = dataset.file_of(row.image_id)
        try:
            sha256 = image.sha256
        except InputError as error:
            problems.append(f"{error}; the run went on without it")
            continue
        earlier = rejected.get(row.filename, {})
        earlier = earlier if earlier.get("image_sha256") == sha256 else {}
        counted = earlier.get("attempts")
        counted = counted if isinstance(counted, int) else 1
        failed_runs = counted if earlier.get("reason") == NO_ANSWER else 0
        job = Job(row.filename, image, sha256, failed_runs=failed_runs)
        if row.filename in finished and finished[row.filename].image_sha256 == sha256:
            done.append((job, finished[row.filename]))
        elif earlier and not 0 < failed_runs < GIVE_UP:
            aside += 1
        else:
            jobs.append(job)
    stale = {job.filename for job in jobs} & finished.keys()
    if stale:
        file.drop(stale)
    return sorted(jobs, key=lambda job: job.failed_runs > 0), done, aside, problems


def seen_by(captioner: str, dataset: Dataset) -> Dataset:
    """The dataset with its multi-band files shown as a captioner saw them; of several captioners,
    as the first one that looked at the images itself."""
    for name in names_in(captioner):
        identity = captions_file(dataset, name).manifest().get("identity", {})
        if identity and not exists(name):
            names = ("bands", "stretch", "false_colour")
            how = {field: str(identity.get(field, "")) for field in names}
            return replace(dataset, rendering=Rendering(**how))
    return dataset


def load_captions(dataset: Dataset, captioner: str = "") -> Captions:
    """The captions that notebook 01 made. Those that come with the data and those of ``file:`` are
    imported again.

    Raises:
        MissingError: there are none yet; the message says how to get some.
    """
    captioner = choose_captioner(dataset, captioner)
    return _together(captioner, lambda name: _load_one(dataset, name))


def _load_one(dataset: Dataset, captioner: str) -> Captions:
    if exists(captioner):
        return _import_captions(dataset, captioner)
    file = captions_file(dataset, captioner)
    model = prompt_and_model(captioner)[1]
    manifest = file.manifest()
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
    by_name, problems = file.read()
    records = _by_image(dataset, by_name)
    where = f"{_parameters(dataset)} -p captioner {captioner}"
    if not records and file.shards():
        raise MissingError(
            f"the captions by {captioner!r} are still in {len(file.shards())} shards; merge "
            f"them first: python -m trsllava_utils merge {where.removeprefix('-p dataset ')}"
        )
    if not records:
        raise MissingError(
            f"no captions by {captioner!r} for {dataset.title} ({dataset.split}): {WAYS}; the "
            f"command is papermill 01_structured_captioning.ipynb out.ipynb {where}"
        )
    problems += _stale(dataset, captioner, records, manifest)
    return Captions(captioner_id(captioner), records, (file,), tuple(problems))


def _by_image(dataset: Dataset, records: dict[str, Record]) -> dict[str, Record]:
    """Records by file name -> by image id, those of the dataset in its order."""
    names = zip(dataset.images["image_id"], dataset.images["filename"], strict=True)
    return {image_id: records[name] for image_id, name in names if name in records}


def _parameters(dataset: Dataset) -> str:
    """The papermill parameters that lead to this dataset."""
    data_dir = dataset.derived.parent.parent
    name = dataset.name if dataset.root == data_dir / dataset.name else str(dataset.root)
    elsewhere = "" if data_dir == resolve_data_dir() else f" -p data_dir {data_dir}"
    return f"-p dataset {name}{elsewhere} -p split {dataset.split}"


def _stale(
    dataset: Dataset, captioner: str, records: dict[str, Record], manifest: dict
) -> list[str]:
    """What no longer fits: pictures that changed since, or an earlier version of ``pixels``."""
    files = {image_id: dataset.file_of(image_id) for image_id in records}
    pixels = {image_id: file.sha256 for image_id, file in files.items() if file}
    changed = [i for i, sha256 in pixels.items() if sha256 != records[i].image_sha256]
    reasons = [] if manifest else ["the captions' manifest is damaged or gone"]
    if changed:
        reasons.append(f"{len(changed):,} images changed after they were captioned: {changed[:3]}")
    if captioner == "pixels":
        now = open_captioner(captioner, Settings()).identity
        if manifest and manifest.get("identity", {}) | now != manifest.get("identity"):
            reasons.append("the captions come from another version of the captioner")
    return [f"{reason}; run 01_structured_captioning again" for reason in reasons]


def _import_captions(dataset: Dataset, captioner: str, shard: str = "") -> Captions:
    if shard:
        raise InputError(f"shard={shard!r}: the captions of {captioner} exist, nothing is to share")
    records, problems = match_captions(dataset, captioner)
    file = captions_file(dataset, captioner)
    file.rewrite(records.values())
    report = Report(already=len(records))
    return Captions(captioner_id(captioner), records, (file,), tuple(problems), report)


def merge(dataset: Dataset, captioner: str, prompt: str = "rsrt") -> str:
    """Merge the shards of a captioner, or of several; returns a sentence on the outcome."""
    names = names_in(choose_captioner(dataset, captioner, prompt))
    if len(names) > 1:
        return "; ".join(merge(dataset, name) for name in names)
    file = captions_file(dataset, names[0])
    problems = [problem for part in (file, *file.shards()) for problem in part.read()[1]]
    merged = file.merge_shards()
    records, rejected, _ = file.finished()
    damaged = f"; kept in *.damaged: {' '.join(problems[:3])}" if problems else ""
    images = dataset.with_pixels["filename"]
    missing = [name for name in images if name not in records and name not in rejected]
    rest = f"; {len(missing):,} images are still to do: {missing[:3]} …" if missing else ""
    path, n = shown(file.path), f"{len(records):,}"
    return f"merged {merged} shards into {path}: {n} images captioned{rest}{damaged}"
