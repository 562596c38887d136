"""Captioning: images go in, RSRT records come out, one JSON line per image.

Each image goes the same way: :func:`ask` reads its pictures and puts the question to the captioner,
:func:`judge` makes a record of the reply or refuses it, and the record is on disk before the next
step (``run.py``, which also asks again after a bad reply). :func:`_to_do` finds what an earlier run
has done, so a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import replace

from trsllava_utils.caption_file import CaptionFile, caption_file, in_shard, newest_file
from trsllava_utils.captioner import (
    Captioner,
    Question,
    Reply,
    Settings,
    captioner_id,
    exists,
    names_in,
    open_captioner,
    prompt_and_model,
)
from trsllava_utils.captions import (
    Captions,
    by_image,
    choose_captioner,
    folder_of,
    import_captions,
    load_captions,
    together,
)
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, MissingError, fingerprint, first_few, shown
from trsllava_utils.images import View, view
from trsllava_utils.parameters import PROMPTS
from trsllava_utils.prompts import Prompt, ReplyError, make_prompt, parse_reply, with_examples
from trsllava_utils.quality import check, language_of
from trsllava_utils.records import Record
from trsllava_utils.run import GIVE_UP, NO_ANSWER, Job, Outcome, Report, run


def caption_dataset(
    dataset: Dataset, captioner: str = "", settings: Settings | None = None, shard: str = ""
) -> Captions:
    """Caption every image of the dataset that has no captions yet.

    >>> captions = caption_dataset(load_dataset("sample"), "rsrt")  # these exist already
    >>> len(captions.records)
    105

    Finished images are on disk at once, so an interrupted run goes on where it stopped. Images
    whose pixels changed are described again. Captions of other settings stay in files of their own.

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
    return together(captioner, lambda name: _caption_by_one(dataset, name, settings, shard))


def _caption_by_one(dataset: Dataset, captioner: str, settings: Settings, shard: str) -> Captions:
    if exists(captioner):
        if captioner in PROMPTS and settings.prompt not in ("rsrt", captioner):
            raise InputError(f"prompt={settings.prompt!r}: the captions of {captioner} exist")
        if shard:
            raise InputError(
                f"shard={shard!r}: the captions of {captioner} exist, nothing is to share"
            )
        captions = import_captions(dataset, captioner)
        return replace(captions, report=Report(already=len(captions.records)))
    settings = with_examples(replace(settings, prompt=prompt_and_model(captioner)[0]), dataset)
    if dataset.with_pixels.empty:
        raise MissingError(
            f"{dataset.name} ({dataset.split}): no image files in {shown(dataset.root)}, so "
            "nothing can be captioned. Get the images (see data/README.md) or bring captions "
            "(-p captioner file:PATH.jsonl)."
        )
    describer, prompt = open_captioner(captioner, settings), make_prompt(settings)
    language_of("", settings.language)  # refuses unknown ones before anything is spent
    identity = _identity(captioner, settings, describer, dataset)
    file = caption_file(folder_of(dataset), captioner_id(captioner), identity, shard)

    def ask_and_judge(batch: list[Job]) -> list[Outcome]:
        seen, unreadable = _look(batch, dataset, settings)
        replies = ask(seen, describer, settings) if seen else []
        judged = (
            judge(j, r, prompt, settings.language) for j, r in zip(seen, replies, strict=True)
        )
        return [*unreadable, *judged]

    with file.held():
        damaged = file.path.exists() and not file.manifest()
        file.claim(identity, describer.prompt_text)
        jobs, done, aside, problems = _to_do(dataset, file, shard)
        report = Report(already=len(done), aside=aside)
        control = next(iter(done), None)
        this_run, written = run(jobs, ask_and_judge, describer, file, control)
        records = {job.filename: record for job, record in done.items()} | written
        file.append_lost(written if shard else records)
        file.claim(identity, describer.prompt_text)
    if damaged:
        name = shown(file.manifest_path)
        problems.append(f"{name} was damaged or gone; it was made anew, the captions are the same")
    report += this_run
    problems = tuple(dict.fromkeys([*problems, *report.problems]))
    records, name = by_image(dataset, records), captioner_id(captioner)
    return Captions(name, records, (file.path,), (file,), problems, report)


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
) -> tuple[list[Job], dict[Job, Record], int, list[str]]:
    """The images still to caption, those with a record that is right, how many images are set
    aside, and what could not be read. A record whose picture has changed since is removed."""
    (finished, problems), rejected = file.read(), file.read_rejected()
    jobs, done, aside = [], {}, 0
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
        job = Job(row.filename, image, sha256, file.made_with, failed_runs=failed_runs)
        if row.filename in finished and finished[row.filename].image_sha256 == sha256:
            done[job] = finished[row.filename]
        elif earlier and not 0 < failed_runs < GIVE_UP:
            aside += 1
        else:
            jobs.append(job)
    file.drop({job.filename for job in jobs} & finished.keys())
    return sorted(jobs, key=lambda job: job.failed_runs > 0), done, aside, problems


def _look(
    batch: list[Job], dataset: Dataset, settings: Settings
) -> tuple[dict[Job, View], list[Outcome]]:
    """The pictures of each image, and an outcome for each file that cannot be read."""
    seen, unreadable = {}, []
    for job in batch:
        try:
            seen[job] = view(job.file, dataset.rendering, settings.max_side)
        except InputError as error:
            unreadable.append(Outcome(job, detail=str(error), unreadable=True))
    return seen, unreadable


def ask(seen: dict[Job, View], describer: Captioner, settings: Settings) -> list[Reply]:
    """Show the captioner the pictures of some images, and get its replies."""
    questions = []
    for job, shown_to_model in seen.items():
        seed = settings.seed_of(job.filename, job.attempt)
        temperature = settings.temperature_of(job.attempt)
        facts = _facts(shown_to_model, settings.gsd)
        questions.append(Question(shown_to_model.by_name, seed, temperature, facts))
    return describer.describe(questions)


def _facts(seen: View, gsd: str) -> tuple[str, ...]:
    """What the model is told of one image beside the prompt: what its colours mean, its scale, and
    what white means."""
    facts = []
    metres = seen.gsd if gsd == "file" else float(gsd or 0) * seen.scale
    if metres:
        height, width = next(iter(seen.by_name.values())).shape[:2]
        area = f"{width * metres:,.0f} x {height * metres:,.0f} m"
        facts.append(f"One pixel is about {metres:.2g} m; the picture covers about {area}.")
    if seen.blank > 0.01:
        facts.append("White areas with straight edges hold no data: leave them out.")
    return (*seen.notes, *filter(None, [" ".join(facts)]))


def judge(job: Job, reply: Reply, prompt: Prompt, language: str = "en") -> Outcome:
    """A reply becomes a record, or is refused with a reason. After a refusal the image is asked
    about again, with another seed; after ``attempts`` refusals it is set aside with the reason."""
    try:
        if reply.problem:
            reason, _, detail = reply.problem.partition(": ")
            raise ReplyError(reason, detail or reply.text[:80])
        variants = parse_reply(reply.text, prompt)
        check(variants, language, prompt.rules, prompt.examples)
    except ReplyError as error:
        return Outcome(job, reply, reason=error.reason, detail=str(error))
    record = Record(
        image=job.filename,
        model=reply.model,
        variants=variants,
        image_sha256=job.sha256,
        settings=job.made_with,
        attempts=job.attempt + 1,
    )
    return Outcome(job, reply, record)


def merge(dataset: Dataset, captioner: str, prompt: str = "rsrt") -> str:
    """Merge the shards of a captioner, or of several; returns a sentence on the outcome.

    Raises:
        MissingError: it has not been run.
    """
    names = names_in(choose_captioner(dataset, captioner, prompt))
    if len(names) > 1:
        return "; ".join(merge(dataset, name) for name in names)
    file = newest_file(folder_of(dataset), captioner_id(names[0]))
    if not file:
        load_captions(dataset, names[0])  # raises, with the command that makes them
    (records, problems), rejected = file.read(), file.read_rejected()
    merged = file.merge()
    damaged = f"; kept in *.damaged: {' '.join(problems[:3])}" if problems else ""
    images = dataset.with_pixels["filename"]
    missing = [name for name in images if name not in records and name not in rejected]
    rest = f"; {len(missing):,} images are still to do: {first_few(missing)}" if missing else ""
    path, n = shown(file.path), f"{len(records):,}"
    return f"merged {merged} shards into {path}: {n} images captioned{rest}{damaged}"
