"""Many images under way at once (``trsllava.runners``): images wait in a queue, each finished
record is on disk before it is counted. No single image can stop a run, and stopping it loses at
most the images under way.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import pandas as pd

from trsllava_extras.rasters.reader import is_stretched
from trsllava_extras.rasters.rendering import TOGETHER
from trsllava_utils.caption_file import CaptionFile
from trsllava_utils.captioner import BudgetSpentError, Captioner, NoAnswerError, Settings
from trsllava_utils.captioning import NO_ANSWER, Job, Outcome, set_aside
from trsllava_utils.captions import Report
from trsllava_utils.files import InputError, MissingError, fingerprint, progress
from trsllava_utils.records import Record


def run(
    jobs: list[Job],
    ask: Callable[[list[Job]], list[Outcome]],
    captioner: Captioner,
    file: CaptionFile,
    control: Job | None = None,
) -> tuple[Report, dict[str, Record]]:
    """Caption ``jobs``, appending to ``file``; ``ask`` gives the outcomes of a batch.

    A refused reply is asked for again with another seed, ``captioner.attempts`` times in all; then
    the image is set aside with the reason. An image whose batch fails is tried alone. One that gets
    no answer is tried again after all others, and then left for the next run. Such a run is counted
    against the image only if the captioner answers afterwards for ``control``, an image that it
    answered for before; after ``captioning.GIVE_UP`` such runs the image is set aside too. A server
    or a model that keeps failing ends the run, and no image is blamed.

    Returns:
        The run in numbers, and its records by file name.

    Raises:
        InputError, MissingError: the run cannot continue (full disk, wrong key, no weights);
            captions finished before are on disk.
    """
    kept = _kept(jobs, file)
    report, records = _Run(
        [job for job in jobs if job.filename not in kept], ask, captioner, file, control
    ).execute()
    report.already += len(kept)
    return report, kept | records


def _kept(jobs: list[Job], file: CaptionFile) -> dict[str, Record]:
    """Records of pictures that have been described already: under another name, or before colours
    were stretched together, where that changes nothing; a line says how many it changes."""
    known = {record.image_sha256: record for record in file.read()[0].values()}
    identity = file.manifest().get("identity", {})
    if identity.get("stretch") == TOGETHER:
        before = fingerprint({name: told for name, told in identity.items() if name != "stretch"})
        earlier = {r.image_sha256: r for r in replace(file, made_with=before).read()[0].values()}
        same = [job for job in jobs if job.sha256 in earlier.keys() - known.keys()]
        bands = identity.get("bands", "")
        other = {job.sha256 for job in same if is_stretched(job.file.path, bands)}
        if other:
            print(
                f"{len(other):,} images are described anew: their colours are now stretched "
                "together, no longer each band by itself. -p stretch per-band keeps the earlier "
                "captions."
            )
        known |= {job.sha256: earlier[job.sha256] for job in same if job.sha256 not in other}
    kept = {}
    for job in jobs:
        if job.sha256 in known:
            named = {"image": job.filename, "settings": file.made_with}
            kept[job.filename] = known[job.sha256].model_copy(update=named)
    if kept:
        file.append(kept.values())
    return kept


class _Run:
    """The state of a run: jobs waiting and under way, and what has been counted so far."""

    def __init__(self, jobs, ask, captioner: Captioner, file: CaptionFile, control) -> None:
        self.ask, self.captioner, self.file, self.control = ask, captioner, file, control
        self.waiting = deque(jobs)
        self.records: dict[str, Record] = {}
        self.unsaved: list[Record] = []  # while the disk is full
        self.set_aside: list[dict] = []
        self.unanswered: list[dict] = []
        self.under_way: dict[Future, list[Job]] = {}
        self.failed_in_a_row = 0  # requests without an answer
        self.example_kept = False
        self.report = Report()
        self.bar = progress(total=len(jobs), desc=f"captioning ({file.captioner})", unit="image")
        captioner.on_wait = self.bar.set_postfix_str

    def execute(self) -> tuple[Report, dict[str, Record]]:
        """Caption all jobs."""
        report, start = self.report, time.perf_counter()
        pool = ThreadPoolExecutor(self.captioner.concurrency, "captioner")
        try:
            while self.under_way or (self.waiting and not report.stopped):
                room = self.captioner.concurrency
                while self.waiting and not report.stopped and len(self.under_way) < room:
                    batch = self._next_batch()
                    self.under_way[pool.submit(self.ask, batch)] = batch
                for future in wait(self.under_way, return_when=FIRST_COMPLETED).done:
                    self._settle(self._outcomes(future, self.under_way.pop(future)))
            self._save()
        finally:
            self.bar.close()
            pool.shutdown(wait=False, cancel_futures=True)
        report.left += len(self.waiting)
        report.seconds = time.perf_counter() - start
        if report.stopped and not isinstance(report.stopped, BudgetSpentError):
            raise report.stopped
        if self.unanswered and self.control and self._answers(self.control):
            self.file.set_aside(self.unanswered)
        report.usage = Counter(self.captioner.usage)
        report.problems += self.captioner.notes
        return report, self.records

    def _answers(self, job: Job) -> bool:
        """Whether the captioner answers for an image that it has answered for before."""
        try:
            return any(outcome.reply for outcome in self.ask([job]))
        except Exception:  # of any kind: then it is not the images
            return False

    def _next_batch(self) -> list[Job]:
        waiting = self.waiting
        # after a failure from the middle of the queue: neighbours often have the same fault
        place = len(waiting) // 2 if self.failed_in_a_row else 0
        batch = [waiting[place]]
        del waiting[place]
        while waiting and len(batch) < self.captioner.batch_size:
            if batch[0].alone or waiting[0].alone:
                break
            batch.append(waiting.popleft())
        return batch

    def _outcomes(self, future: Future, batch: list[Job]) -> list[Outcome]:
        """The outcomes of a finished batch. Of one that failed there are none: its images are tried
        alone, or counted as failed, or the run is stopped."""
        report = self.report
        try:
            outcomes = future.result()
            self.failed_in_a_row = 0
            return outcomes
        except Exception as error:
            if _is_final(error):  # requests already sent are still finished
                report.left += len(batch)
                report.stopped = report.stopped or error
            elif len(batch) > 1:
                self.waiting.extendleft(replace(job, alone=True) for job in batch)
            else:
                self._count_failure(batch[0], error)
        return []

    def _count_failure(self, job: Job, error: Exception) -> None:
        what = error if isinstance(error, NoAnswerError) else repr(error)
        self.failed_in_a_row += 1
        if not job.last:
            self.waiting.append(replace(job, last=True, alone=True))
        else:
            self.report.failed += 1
            self.report.problems.append(f"{job.filename}: {what}")
            self.bar.update()
            entry = {"image": job.filename, "reason": NO_ANSWER, "detail": str(what)}
            entry |= {"attempts": job.failed_runs + 1, "image_sha256": job.sha256}
            self.unanswered.append({**entry, "settings": job.made_with})
        if self.failed_in_a_row >= max(4, self.captioner.concurrency) and not self.report.stopped:
            self.report.stopped = InputError(
                f"the last {self.failed_in_a_row} requests in a row got no answer: {what}. What "
                "was captioned is safe; run again to go on"
            )

    def _settle(self, outcomes: list[Outcome]) -> None:
        """Put outcomes on disk, then count them; what deserves another attempt waits again."""
        report = self.report
        again, captioned, rejected = [], [], []
        for outcome in outcomes:
            job = outcome.job
            if outcome.record:
                captioned.append(outcome)
            elif outcome.unreadable:
                report.unreadable += 1
                report.problems.append(f"{outcome.detail}; the run went on without it")
            elif job.attempt + 1 < self.captioner.attempts:
                report.retries[outcome.reason] += 1
                again.append(replace(job, attempt=job.attempt + 1))
            else:
                rejected.append(outcome)
        self.unsaved += [outcome.record for outcome in captioned]
        self.set_aside += [set_aside(outcome) for outcome in rejected]
        answered = [o for o in outcomes if o.reply]
        self.control = self.control or next((o.job for o in answered), None)
        self._save(answered)
        report.captioned += len(captioned)
        report.retried += sum(outcome.job.attempt > 0 for outcome in captioned)
        report.rejected.update(outcome.reason for outcome in rejected)
        self.waiting.extendleft(reversed(again))
        self.bar.update(len(outcomes) - len(again))
        counts = {"rejected": report.rejected.total(), "failed": report.failed}
        self.bar.set_postfix(**counts, refresh=False)

    def _save(self, answered: Iterable[Outcome] = ()) -> None:
        """Put records on disk. If the disk is full the run ends, but requests already sent are
        still finished, and saved if there is room by then."""
        try:
            self.file.append(self.unsaved)
            self.records |= {record.image: record for record in self.unsaved}
            self.unsaved.clear()
            self.file.set_aside(self.set_aside)
            self.set_aside.clear()
            for outcome in answered:
                if outcome.reply.text and not self.example_kept:
                    self.file.keep_example(outcome.job.filename, outcome.reply.text)
                    self.example_kept = True
        except InputError as error:
            self.report.stopped = self.report.stopped or error


def _is_final(error: Exception) -> bool:
    """Whether the run cannot continue: the budget is spent, the key wrong, the weights missing."""
    return isinstance(error, InputError | MissingError) and not isinstance(error, NoAnswerError)


def report_table(report: Report, settings: Settings) -> pd.DataFrame:
    """The report as a table: what, how many, and why."""
    rows = [
        ("captioned before", report.already, ""),
        ("captioned now", report.captioned, ""),
        ("… of these after a retry", report.retried, _counts(report.retries)),
        ("given up now", report.rejected.total(), _counts(report.rejected)),
        ("given up before", report.aside, ""),
        ("unreadable files", report.unreadable, ""),
        ("no answer in this run", report.failed, ""),
        ("not tried", report.left, str(report.stopped or "")),
    ]
    rows = [row for row in rows if row[1]]
    if report.captioned and report.seconds > 0:
        rows.append(("images per second", round(report.captioned / report.seconds, 2), ""))
    rows += [(name, n, "") for name, n in report.usage.items()]
    cost = report.usage["input tokens"] * settings.price_in
    cost += report.usage["output tokens"] * settings.price_out
    if cost:
        rows.append(("estimated cost (US $)", round(cost / 1e6, 4), ""))
    # object: counts stay whole numbers beside the rate
    columns = ["number", "why"] if any(why for _, _, why in rows) else ["number"]
    table = pd.DataFrame(rows, columns=["what", "number", "why"], dtype=object)
    return table.set_index("what")[columns]


def _counts(counts: Counter) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in counts.most_common())
