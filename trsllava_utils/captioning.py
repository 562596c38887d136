"""Captioning: images go in, RSRT records come out, one JSON line per image.

Each image goes the same way: :func:`ask` shows its pictures to the captioner, :func:`judge` makes a
record of the reply or refuses it, and a runner puts the record on disk, or asks again: the plug-in
for many images at once, or :func:`run_in_turn`.
:func:`_to_do` finds what an earlier run has done, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from trsllava_utils import captions, plugins
from trsllava_utils.caption_file import CaptionFile
from trsllava_utils.captioner import (
    Captioner,
    Question,
    Reply,
    Settings,
    captioner_id,
    exists,
    open_captioner,
    prompt_and_model,
)
from trsllava_utils.captions import Captions, Report
from trsllava_utils.data import Dataset
from trsllava_utils.examples import with_examples
from trsllava_utils.files import InputError, MissingError, fingerprint, progress, shown
from trsllava_utils.images import ImageFile, View, view
from trsllava_utils.parameters import PROMPTS
from trsllava_utils.prompts import Prompt, ReplyError, make_prompt, parse_reply
from trsllava_utils.records import Record

GIVE_UP = 3  # runs in which an image alone got no answer; then it is set aside
NO_ANSWER = "no answer"
# some servers draw the same words whatever the seed, but not for another prompt
AGAIN = "An earlier answer could not be used. Give another one, and nothing but the JSON."


@dataclass(frozen=True)
class Job:
    """One image to caption."""

    filename: str
    file: ImageFile
    sha256: str
    made_with: str = ""  # fingerprint of the settings
    attempt: int = 0
    alone: bool = False  # for runners: it must not share a batch
    last: bool = False  # for runners: it got no answer, and is tried once more at the end
    failed_runs: int = 0  # earlier runs in which it got no answer


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a record, or the reason why there is none."""

    job: Job
    reply: Reply | None = None
    record: Record | None = None
    reason: str = ""
    detail: str = ""
    unreadable: bool = False


def caption_dataset(
    dataset: Dataset, captioner: str = "", settings: Settings | None = None, part: str = ""
) -> Captions:
    """Caption every image of the dataset that has no captions yet.

    >>> len(caption_dataset(load_dataset("sample"), "rsrt").records)  # these exist already
    105

    Finished images are on disk at once, so an interrupted run goes on where it stopped. Images
    whose pixels changed are described again. Captions of other settings stay in files of their own.

    Args:
        dataset: whose images.
        captioner: its name, or several; empty: see :func:`~.captions.choose_captioner`.
        settings: how it is asked; a prompt in the captioner's name overrides theirs.
        part: "shard-2-of-8" where ``dataset`` is one shard; empty: the whole.

    Raises:
        InputError: unknown captioner, another run on the same file, a full disk, or a captions file
            without any usable line.
        MissingError: the images (or the weights, the key, the file of the captioner) are not there.
    """
    settings = settings or Settings()
    captioner = captions.choose_captioner(dataset, captioner, settings.prompt)
    return captions.together(captioner, lambda one: _by_one(dataset, one, settings, part))


def _by_one(dataset: Dataset, captioner: str, settings: Settings, part: str) -> Captions:
    if exists(captioner):
        if part or (captioner in PROMPTS and settings.prompt not in ("rsrt", captioner)):
            asked = f"shard={part!r}" if part else f"prompt={settings.prompt!r}"
            raise InputError(f"{asked}: the captions of {captioner} exist; leave it out")
        found = captions.import_captions(dataset, captioner)
        return replace(found, report=Report(already=len(found.records)))
    settings = with_examples(replace(settings, prompt=prompt_and_model(captioner)[0]), dataset)
    if dataset.with_pixels.empty:
        raise MissingError(
            f"{dataset.name} ({dataset.split}): no image files in {shown(dataset.root)}, so "
            "nothing can be captioned. Get the images (see data/README.md) or bring captions "
            "(-p captioner file:PATH.jsonl)."
        )
    describer, prompt = open_captioner(captioner, settings), make_prompt(settings)
    gates = [gate(settings) for gate in plugins.load_all("gates").values()]
    identity = _identity(captioner, settings, describer, dataset)
    name, made_with = captioner_id(captioner), fingerprint(identity)
    file = CaptionFile(captions.folder_of(dataset), name, made_with, part)

    def outcomes_of(batch: list[Job]) -> list[Outcome]:
        seen, unreadable = {}, []
        for job in batch:
            try:
                seen[job] = view(job.file, dataset.rendering, settings.max_side)
            except InputError as error:
                unreadable.append(Outcome(job, detail=str(error), unreadable=True))
        replies = ask(seen, describer, settings) if seen else []
        pairs = zip(seen, replies, strict=True)
        return [*unreadable, *(judge(job, reply, prompt, gates) for job, reply in pairs)]

    run = plugins.find("runners", "threads") or run_in_turn
    with file.held():
        file.claim(identity, describer.prompt_text)
        jobs, done, aside, problems = _to_do(dataset, file)
        this_run, written = run(jobs, outcomes_of, describer, file, next(iter(done), None))
        records = {job.filename: record for job, record in done.items()} | written
    report = Report(already=len(done), aside=aside) + this_run
    problems = tuple(dict.fromkeys([*problems, *report.problems]))
    by_image = captions.by_image(dataset, records)
    return Captions(name, by_image, (file.path,), (file,), problems, report)


def _identity(captioner: str, settings: Settings, describer: Captioner, dataset: Dataset) -> dict:
    """What captions depend on beside the pictures' files."""
    how = dataset.rendering
    model, form = prompt_and_model(captioner)[1], f"{settings.prompt} x {settings.n}"
    answer = {"captioner": model, "answer": form}
    if settings.examples:
        answer["examples"] = fingerprint(settings.examples)
    answer |= {"bands": how.bands, "false_colour": how.false_colour} | dataset.tiling
    added = {"stretch": how.stretch.replace("per-band", ""), "gsd": str(settings.gsd)}
    answer |= {n: value for n, value in added.items() if value}  # older captions lack them
    answer |= {"language": settings.language, "max_side": settings.max_side}
    return answer | describer.identity


def _to_do(
    dataset: Dataset, file: CaptionFile
) -> tuple[list[Job], dict[Job, Record], int, list[str]]:
    """The images still to caption, those with a record that is right, how many images are set
    aside, and what could not be read. A picture that has changed since is described anew."""
    (finished, problems), rejected = file.read(), file.read_rejected()
    jobs, done, aside = [], {}, 0
    for row in dataset.with_pixels.itertuples():
        image = dataset.file_of(row.image_id)
        try:
            sha256 = image.sha256
        except InputError as error:
            problems.append(f"{error}; the run went on without it")
            continue
        earlier = rejected.get(row.filename, {})
        earlier = earlier if earlier.get("image_sha256") == sha256 else {}
        # where there was no answer, "attempts" counts runs
        counted = earlier.get("attempts") if isinstance(earlier.get("attempts"), int) else 1
        failed_runs = counted if earlier.get("reason") == NO_ANSWER else 0
        job = Job(row.filename, image, sha256, file.made_with, failed_runs=failed_runs)
        if row.filename in finished and finished[row.filename].image_sha256 == sha256:
            done[job] = finished[row.filename]
        elif earlier and not 0 < failed_runs < GIVE_UP:
            aside += 1
        else:
            jobs.append(job)
    return sorted(jobs, key=lambda job: job.failed_runs > 0), done, aside, problems


def ask(seen: dict[Job, View], describer: Captioner, settings: Settings) -> list[Reply]:
    """Show the captioner the pictures of some images, and get its replies. The words go with them:
    it adds the prompt of its settings (:meth:`Prompt.for_question`)."""
    questions = []
    for job, shown_as in seen.items():
        seed = settings.seed_of(job.filename, job.attempt)
        temperature = settings.temperature_of(job.attempt)
        facts = (*_facts(shown_as, settings.gsd), *[AGAIN] * (job.attempt > 0))
        questions.append(Question(shown_as.by_name, seed, temperature, facts))
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


def judge(
    job: Job, reply: Reply, prompt: Prompt, gates: list[Callable[[list, Prompt], None]]
) -> Outcome:
    """A reply becomes a record, or is refused with a reason: the captioner itself says so, it is no
    JSON of the right shape, or a gate (``trsllava.gates``: it loops, is in another language, …)
    raises ReplyError."""
    try:
        if reply.problem:
            reason, _, detail = reply.problem.partition(": ")
            raise ReplyError(reason, detail or reply.text[:80])
        variants = parse_reply(reply.text, prompt)
        for gate in gates:
            gate(variants, prompt)
    except ReplyError as error:
        return Outcome(job, reply, reason=error.reason, detail=str(error))
    about = {"image_sha256": job.sha256, "settings": job.made_with, "attempts": job.attempt + 1}
    record = Record(image=job.filename, model=reply.model, variants=variants, **about)
    return Outcome(job, reply, record)


def run_in_turn(
    jobs: list[Job],
    outcomes_of: Callable[[list[Job]], list[Outcome]],
    describer: Captioner,
    file: CaptionFile,
    control: Job | None = None,
) -> tuple[Report, dict[str, Record]]:
    """Caption one image after the other, where no plug-in does it.

    After a bad reply the image is asked about again, with another seed and at least temperature
    0.5; after ``describer.attempts`` bad replies it is set aside with the reason. The plug-in
    (``trsllava.runners``) keeps many images under way, and survives a server's moods; ``control``,
    an image that was answered for before, is for it.
    """
    report, records = Report(), {}
    for job in progress(jobs, desc="captioning", unit="image"):
        for attempt in range(describer.attempts):
            (outcome,) = outcomes_of([replace(job, attempt=attempt)])
            if outcome.record or outcome.unreadable:
                break
            if attempt + 1 < describer.attempts:
                report.retries[outcome.reason] += 1
        if outcome.record:
            file.append([outcome.record])
            records[job.filename] = outcome.record
            report.retried += attempt > 0
        elif outcome.unreadable:
            report.unreadable += 1
            report.problems.append(f"{outcome.detail}; the run went on without it")
        else:
            file.set_aside([set_aside(outcome)])
            report.rejected[outcome.reason] += 1
    report.captioned, report.usage = len(records), Counter(describer.usage)
    return report, records


def set_aside(outcome: Outcome) -> dict:
    """The line of an image that is set aside."""
    job, reply = outcome.job, outcome.reply
    line = {"image": job.filename, "reason": outcome.reason, "detail": outcome.detail}
    line |= {"attempts": job.attempt + 1, "model": reply.model, "reply": reply.text[:4000]}
    return line | {"image_sha256": job.sha256, "settings": job.made_with}
