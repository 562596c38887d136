"""The captioning run: images that have no captions yet go in; lines of the captions file come out,
each on disk before it is counted. No single image can stop it, and stopping it loses at most the
images under way.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue

import pandas as pd
from filelock import FileLock, Timeout

from trsllava_utils.artefacts import (
    InputError,
    MissingError,
    fingerprint,
    progress,
    read_json,
    shown,
    versions,
    write_json,
)
from trsllava_utils.captioning import quality
from trsllava_utils.captioning.captioner import (
    BudgetSpentError,
    Captioner,
    Question,
    Reply,
    ServerError,
    Settings,
)
from trsllava_utils.captioning.prompts import Prompt, ReplyError, make_prompt, parse_reply
from trsllava_utils.captioning.records import Record, append_lines
from trsllava_utils.datasets.imagery import read_renderings


@dataclass(frozen=True)
class Job:
    """One image to caption, ``attempt`` counting from 0; ``alone`` if it must not share a batch."""

    image_id: str
    filename: str
    path: str
    sha256: str
    attempt: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a record, or why there is none (``unreadable``: it is the file)."""

    job: Job
    reply: Reply | None = None
    record: Record | None = None
    reason: str = ""
    detail: str = ""
    unreadable: bool = False


@dataclass
class Report:
    """A run in numbers.

    Attributes:
        already, aside: images captioned, and images set aside, by an earlier run.
        captioned: images captioned by this run; retried: how many of them took several attempts.
        retries: refused replies that were asked again, by reason.
        rejected: images set aside by this run, by reason.
        problems: unreadable images, and images the server gave no answer for; one sentence each.
        left: images not tried (budget, or the run was stopped).
        seconds: time the run took.
        usage: requests, tokens.
        stopped: why the run ended early, if it did.
    """

    already: int = 0
    aside: int = 0
    captioned: int = 0
    retried: int = 0
    retries: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    unreadable: int = 0
    failed: int = 0
    left: int = 0
    seconds: float = 0.0
    usage: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    stopped: Exception | None = None

    def table(self, settings: Settings) -> pd.DataFrame:
        """The report as a table: what, how many, and why."""
        rows = [
            ("captioned before", self.already, ""),
            ("captioned now", self.captioned, ""),
            ("… of these after a retry", self.retried, _counts(self.retries)),
            ("set aside now", self.rejected.total(), _counts(self.rejected)),
            ("set aside before", self.aside, ""),
            ("unreadable files", self.unreadable, ""),
            ("no answer, left for the next run", self.failed, ""),
            ("not tried", self.left, str(self.stopped or "")),
        ]
        rows = [row for row in rows if row[1] or row[0].startswith("captioned")]
        if self.captioned and self.seconds > 0:
            rows.append(("images per second", round(self.captioned / self.seconds, 2), ""))
        rows += [(name, n, "") for name, n in self.usage.items()]
        cost = self.usage.get("input tokens", 0) * settings.price_in
        cost += self.usage.get("output tokens", 0) * settings.price_out
        if cost:
            rows.append(("estimated cost (US $)", round(cost / 1e6, 4), ""))
        # object: counts stay whole numbers beside the rate
        return pd.DataFrame(rows, columns=["what", "number", "why"], dtype=object).set_index("what")


def total(reports: list[Report]) -> Report:
    """Runs side by side as one; ``seconds`` are those of the longest."""
    out, usage = Report(seconds=max(report.seconds for report in reports)), Counter()
    for report in reports:
        for name in ("already", "aside", "captioned", "retried", "unreadable", "failed", "left"):
            setattr(out, name, getattr(out, name) + getattr(report, name))
        out.retries += report.retries
        out.rejected += report.rejected
        out.problems += report.problems
        out.stopped = out.stopped or report.stopped
        usage.update(report.usage)
    out.usage = dict(usage)
    return out


def _counts(counts: Counter) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in counts.most_common())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the captions file ``path``; the system lets go of it when the process dies.

    Raises:
        InputError: another run holds it, or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another run is writing {shown(path)}; wait until it has ended, or let this one take "
            "another shard"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot write {shown(path.parent)}: {error.strerror or error}; pass -p data_dir DIR "
            "with a folder you may write to"
        ) from error
    try:
        yield
    finally:
        lock.release()


def rejected_path(path: Path) -> Path:
    """Where the images lie that gave no usable captions."""
    return path.with_suffix(".rejected.jsonl")


def read_rejected(path: Path) -> dict[str, dict]:
    """The images set aside, by file name; torn lines are skipped."""
    aside = {}
    if rejected_path(path).exists():
        for line in rejected_path(path).read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
                aside[value["image"]] = value
            except (json.JSONDecodeError, KeyError, TypeError):
                continue
    return aside


def claim(path: Path, identity: dict, prompt_text: str = "") -> None:
    """Make ``path`` hold captions of this identity only.

    Captions asked for differently are set aside under another name, and taken back when they are
    asked for again.
    """
    manifest = path.with_suffix(".json")
    known = read_json(manifest) or {}
    files = (path, rejected_path(path), manifest)  # the manifest last: it vouches for the others
    if known.get("identity") != identity:
        for file in files:
            if file.exists():
                file.replace(_aside(file, known.get("identity")))
    for file in files:
        if not file.exists() and _aside(file, identity).exists():
            _aside(file, identity).replace(file)
    if not manifest.exists():
        made_with = versions("trsllava-utils", "transformers", "torch", "openai", "xgrammar")
        write_json(manifest, {"identity": identity, "prompt": prompt_text, "versions": made_with})
    path.touch()


def _aside(file: Path, identity: dict | None) -> Path:
    return file.with_name(f"{file.name}.{fingerprint(identity)}.superseded")


def run(
    jobs: list[Job], captioner: Captioner, settings: Settings, path: Path, identity: dict
) -> Report:
    """Caption ``jobs``, appending to ``path``.

    A refused reply is asked for again with another seed, ``captioner.attempts`` times in all; then
    the image is set aside in ``<captioner>.rejected.jsonl`` with the reason. An image whose batch
    breaks is tried alone; one that breaks alone is left for the next run. A server or a model that
    keeps breaking ends the run after as many images in a row as are under way at once.

    Raises:
        InputError: it is useless to go on (full disk, wrong key, no weights); whatever was answered
            until then is on disk.
    """
    quality.language_of("", settings.language)  # refuses unknown ones before anything is spent
    prompt, made_with = make_prompt(settings), fingerprint(identity)
    report, start, failures, example_kept = Report(), time.perf_counter(), 0, False
    queue = deque(jobs)
    flying: dict[Future, list[Job]] = {}
    landed: SimpleQueue[Future] = SimpleQueue()
    pool = ThreadPoolExecutor(captioner.concurrency, "captioner")
    bar = progress(total=len(jobs), desc=f"captioning ({identity['captioner']})", unit="image")
    try:
        while flying or (queue and not report.stopped):
            while queue and not report.stopped and len(flying) < captioner.concurrency:
                batch = _next_batch(queue, captioner.batch_size)
                future = pool.submit(_work, batch, captioner, settings, prompt, made_with)
                flying[future] = batch
                future.add_done_callback(landed.put)
            outcomes = []
            for future in _take(landed):
                batch = flying.pop(future)
                try:
                    outcomes += future.result()
                    failures = 0
                except Exception as error:
                    if _is_final(error):  # what is under way is still waited for
                        report.left += len(batch)
                        report.stopped = report.stopped or error
                    elif len(batch) > 1:
                        queue.extendleft(replace(job, alone=True) for job in batch)
                    else:
                        failures += 1
                        report.failed += 1
                        what = error if isinstance(error, ServerError) else repr(error)
                        report.problems.append(f"{batch[0].filename}: {what}")
                        bar.update()
                        if failures >= max(4, captioner.concurrency):
                            report.stopped = report.stopped or _gave_up(failures, what, error)
            again = _settle(outcomes, captioner.attempts, path, made_with, report)
            example_kept = example_kept or _keep_example(path, outcomes)
            queue.extendleft(reversed(again))
            bar.update(len(outcomes) - len(again))
            bar.set_postfix(rejected=report.rejected.total(), failed=report.failed, refresh=False)
    finally:
        bar.close()
        pool.shutdown(wait=False, cancel_futures=True)
    report.left += len(queue)
    report.seconds = time.perf_counter() - start
    report.usage = dict(captioner.usage)
    report.problems += captioner.notes
    if report.stopped and not isinstance(report.stopped, BudgetSpentError):
        raise report.stopped
    return report


def _is_final(error: Exception) -> bool:
    """Whether it is useless to go on: the budget is spent, the key wrong, the weights missing."""
    return isinstance(error, InputError | MissingError) and not isinstance(error, ServerError)


def _take(landed: SimpleQueue[Future]) -> Iterator[Future]:
    """The next finished piece of work, and whatever else is finished by now."""
    yield landed.get()
    with suppress(Empty):
        while True:
            yield landed.get_nowait()


def _next_batch(queue: deque[Job], size: int) -> list[Job]:
    batch = [queue.popleft()]
    while queue and len(batch) < size and not (batch[0].alone or queue[0].alone):
        batch.append(queue.popleft())
    return batch


def _gave_up(failures: int, what: object, cause: Exception) -> InputError:
    error = InputError(
        f"the last {failures} images in a row got no answer: {what}. What was captioned is safe; "
        "run again to go on"
    )
    error.__cause__ = cause
    return error


def _keep_example(path: Path, outcomes: list[Outcome]) -> bool:
    """The first reply of a captions file, word for word, goes into its manifest: to look at."""
    replies = [o for o in outcomes if o.reply and o.reply.text]
    if not replies:
        return False
    manifest = read_json(path.with_suffix(".json")) or {}
    if "example" not in manifest:
        example = {"image": replies[0].job.filename, "reply": replies[0].reply.text[:8000]}
        write_json(path.with_suffix(".json"), {**manifest, "example": example})
    return True


def _work(
    batch: list[Job], captioner: Captioner, settings: Settings, prompt: Prompt, made_with: str
) -> list[Outcome]:
    """In a thread: read the pictures, ask, judge the answers."""
    outcomes, asked = [], []
    for job in batch:
        try:
            pictures = read_renderings(
                job.path, settings.bands, settings.false_colour, settings.max_side
            )
            seed = settings.seed_of(job.filename, job.attempt)
            asked.append((job, Question(pictures, seed, settings.temperature_of(job.attempt))))
        except InputError as error:
            outcomes.append(Outcome(job, detail=str(error), unreadable=True))
    if asked:
        replies = captioner.describe([question for _, question in asked])
        for (job, _), reply in zip(asked, replies, strict=True):
            outcomes.append(judge(job, reply, prompt, settings.language, made_with))
    return outcomes


def judge(job: Job, reply: Reply, prompt: Prompt, language: str, made_with: str) -> Outcome:
    """A reply becomes a record, or is refused with a reason."""
    try:
        if reply.problem:
            reason, _, detail = reply.problem.partition(": ")
            raise ReplyError(reason, detail or reply.text[:80])
        variants = parse_reply(reply.text, prompt)
        quality.check(variants, language, prompt.text)
    except ReplyError as error:
        return Outcome(job, reply, reason=error.reason, detail=str(error))
    record = Record(
        image=job.filename,
        model=reply.model,
        variants=variants,
        image_sha256=job.sha256,
        settings=made_with,
        attempts=job.attempt + 1,
    )
    return Outcome(job, reply, record)


def _settle(
    outcomes: list[Outcome], attempts: int, path: Path, made_with: str, report: Report
) -> list[Job]:
    """Put outcomes on disk, then count them. Returns the jobs to try again."""
    again, kept, aside = [], [], []
    for outcome in outcomes:
        job = outcome.job
        if outcome.record:
            kept.append(outcome)
        elif outcome.unreadable:
            report.unreadable += 1
            report.problems.append(f"{outcome.detail}; the run went on without it")
        elif job.attempt + 1 < attempts:
            report.retries[outcome.reason] += 1
            again.append(replace(job, attempt=job.attempt + 1))
        else:
            aside.append(outcome)
    if kept:
        append_lines(path, "".join(outcome.record.line() for outcome in kept))
    if aside:
        lines = [_rejected_line(outcome, made_with) for outcome in aside]
        append_lines(rejected_path(path), "".join(lines))
    report.captioned += len(kept)
    report.retried += sum(outcome.job.attempt > 0 for outcome in kept)
    report.rejected.update(outcome.reason for outcome in aside)
    return again


def _rejected_line(outcome: Outcome, made_with: str) -> str:
    value = {
        "image": outcome.job.filename,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "attempts": outcome.job.attempt + 1,
        "model": outcome.reply.model,
        "reply": outcome.reply.text[:4000],
        "image_sha256": outcome.job.sha256,
        "settings": made_with,
    }
    return json.dumps(value, ensure_ascii=False) + "\n"
