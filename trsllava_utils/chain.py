"""The notebooks as one command: datasets and parameters go in, executed notebooks come out.

While a notebook works, its own progress bars are shown on one line; at the end, what was read, left
out and made.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

from trsllava_utils.artefacts import (
    PROJECT_ROOT,
    TEXT_BARS,
    InputError,
    MissingError,
    cannot_write,
    check_choice,
    shown,
    user_path,
    write_text,
)
from trsllava_utils.captioning import choose_captioner, load_captions
from trsllava_utils.captioning.imported import about_pixels
from trsllava_utils.datasets import load_dataset, load_metadata, read_image
from trsllava_utils.datasets.dataset import KNOWN
from trsllava_utils.datasets.files import NAMED, first_few
from trsllava_utils.datasets.scenes import TILING
from trsllava_utils.parameters import choose
from trsllava_utils.report import to_shell

NOTEBOOKS = {
    "00": "00_dataset_loading",
    "01": "01_structured_captioning",
    "02": "02_embedding",
    "03": "03_retrieval",
    "04": "04_evaluation_visualisation",
}
SHARED = ("captioner", "encoder", "texts", "split", "data_dir", "precision", *TILING)
Parameters = dict[str, object]


class NotebookError(InputError):
    """A notebook of the chain failed; the message names it, the cell and the error."""


def run(datasets: list[str], given: Parameters, first: str = "00", last: str = "04") -> None:
    """Run the notebooks, then print what was read and made, and the next commands; arguments and
    errors as for :func:`run_chain`."""
    executed = run_chain(datasets, given, first, last)
    print("\nexecuted notebooks:", *(f"  {shown(path)}" for path in executed), sep="\n")
    chains = [_of_chain(name, given) for name in datasets]
    for values in chains:
        _print_read(values)
    for values in chains if last == "04" else ():
        _print_results(values)
    print("\nnext:")
    for name in datasets:
        command = to_shell([shlex.quote(name)], {n: v for n, v in given.items() if n in SHARED})
        print(f'  python -m trsllava_utils search {command} "what the images should show"')
        if last == "04":
            print(f"  python -m trsllava_utils report {command}")


def _print_read(given: Parameters) -> None:
    """What was read of a dataset, and what was not."""
    ds = load_dataset(**_of_dataset(given))
    problems = [*ds.problems, *load_metadata(ds)[1]]
    described = []
    try:
        captions = load_captions(ds, str(given.get("captioner", "")))
        described = [f"{len(captions.records):,} described by {captions.captioner}"]
        bare = [i for i in ds.with_pixels["image_id"] if i not in captions.records]
    except (InputError, MissingError):  # notebook 01 was not among those run
        bare = []
    for image_id in bare[:NAMED]:
        try:
            read_image(ds.file_of(image_id), ds.rendering, 64)
        except InputError as error:
            problems.append(str(error))
    if bare:
        problems.append(f"{len(bare):,} images without captions: {first_few(bare)}")
    print(f"\n{ds.title}:", ", ".join([f"{len(ds.with_pixels):,} images found", *described]))
    for problem in problems:
        print("·", problem)


def _of_dataset(given: Parameters) -> Parameters:
    """The parameters that select the images."""
    names = ("dataset", "data_dir", "split", "limit", "figures_dir", *TILING)
    return {name: given[name] for name in names if name in given}


def run_chain(
    datasets: list[str], parameters: Parameters, first: str = "00", last: str = "04"
) -> list[Path]:
    """Run notebooks ``first`` to ``last`` for each dataset, with a progress line for each.

    A parameter is given to the notebooks that have it; one that none has is refused.

    Returns:
        The executed notebooks, copies under ``data/<dataset>/derived/notebooks/``.

    Raises:
        InputError: an unknown parameter, or ``first`` comes after ``last``.
        NotebookError: a notebook failed.
    """
    import papermill

    if first > last:
        raise InputError(f"--from {first} comes after --to {last}")
    stems = [stem for number, stem in NOTEBOOKS.items() if first <= number <= last]
    notebooks = [PROJECT_ROOT / "notebooks" / f"{stem}.ipynb" for stem in stems]
    known = {path: set(papermill.inspect_notebook(str(path))) for path in notebooks}
    for name in parameters:
        check_choice("parameter", name, sorted(set().union(*known.values())))
    if "dataset" in parameters:
        raise InputError("datasets are named after the command: run rsicd, not -p dataset rsicd")
    executed = []
    for dataset in datasets:
        values = _of_chain(dataset, parameters)  # a missing dataset stops here, at once
        loaded = load_dataset(**_of_dataset({**values, "split": "all"}))
        if not values.get("captioner") and choose_captioner(loaded) == "pixels":
            print(f"· {about_pixels(len(loaded.with_pixels))}")
        for path in notebooks:
            output = loaded.derived / "notebooks" / path.name
            given = {name: value for name, value in values.items() if name in known[path]}
            _run_one(path, output, given, loaded.name)
            executed.append(output)
    return executed


def _of_chain(dataset: str, parameters: Parameters) -> Parameters:
    """The parameters that the notebooks get, with full paths. Only notebook 01 has a parameter
    ``prompt``, so for another prompt the others get the captioner's full name, which has it."""
    values = {**parameters, "dataset": dataset}
    for name in ("dataset", "data_dir", "figures_dir"):
        is_name = name == "dataset" and (dataset in KNOWN or not user_path(dataset).is_dir())
        if values.get(name) and not is_name:
            values[name] = str(user_path(values[name]))
    if (prompt := values.get("prompt", "rsrt")) != "rsrt":
        loaded = load_dataset(**_of_dataset({**values, "split": "all"}))
        values["captioner"] = choose_captioner(loaded, values.get("captioner", ""), prompt)
    return values


def _run_one(path: Path, output: Path, parameters: Parameters, dataset: str) -> None:
    import papermill

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(output.parent, error) from error
    start, line = time.perf_counter(), StatusLine(f"{dataset}  {path.stem} …")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ[TEXT_BARS] = "1"
    options = {"progress_bar": False, "cwd": str(Path.cwd()), "stderr_file": line}
    options["shutdown_kernel"] = "immediate"  # Ctrl-C: no traceback of the kernel's own
    try:
        papermill.execute_notebook(
            str(path), str(output), parameters, extra_arguments=["--log-level=ERROR"], **options
        )
    except papermill.PapermillExecutionError as error:
        line.end("failed")
        raise NotebookError(
            f"{path.name}, cell {error.exec_count}, failed on {dataset}: {error.ename}: "
            f"{error.evalue} (executed copy: {shown(output)})"
        ) from error
    except OSError as error:
        raise cannot_write(output, error) from error
    line.end(f"{time.perf_counter() - start:.1f} s")
    _without_bars(output)


class StatusLine:
    """One line of the terminal that says how far a notebook is. It takes what the notebook writes
    to stderr, and shows the last state of a progress bar; in a log file, once a minute."""

    def __init__(self, title: str) -> None:
        self._title, self._shown_at = title, time.monotonic()
        self._live = sys.stdout.isatty()
        print(title, end="", flush=True)

    def write(self, text: str) -> None:
        bars = re.findall(r"[^\r\n]*\d+%\|[^\r\n]*|[^\r\n]*\d+(?:it|\w+) \[[^\r\n]*", text)
        if not bars or time.monotonic() - self._shown_at < (0.2 if self._live else 60):
            return
        self._shown_at = time.monotonic()
        room = shutil.get_terminal_size().columns - 1
        bar = re.sub(r"\|[^|]*\|", " ·", bars[-1].strip(), count=1)  # without the drawn bar
        line = f"{self._title} {bar}"[:room]
        print(f"\r{line.ljust(room)}" if self._live else f"\n{line}", end="", flush=True)

    def flush(self) -> None:
        """Needed by papermill; there is no buffer."""

    def end(self, outcome: str) -> None:
        """The last state of the line."""
        room = shutil.get_terminal_size().columns - 1
        again = f"\r{' ' * room}\r{self._title}" if self._live else ""
        print(f"{again} {outcome}", flush=True)


def _without_bars(notebook: Path) -> None:
    """Keep only the last state of the progress bars in an executed notebook."""
    import nbformat

    executed = nbformat.read(notebook, as_version=4)
    for cell in executed.cells:
        for out in cell.get("outputs", ()):
            if out.output_type == "stream":
                out.text = re.sub(r"[^\n]*\r(?=[^\n])", "", out.text)
    write_text(notebook, nbformat.writes(executed))


def _print_results(given: Parameters) -> None:
    """The results of a run: its figures, its rules and its captioners."""
    from trsllava_utils.evaluation import read_results, recall_table, results_path
    from trsllava_utils.retrieval import Sources

    dataset = load_dataset(**_of_dataset(given))
    who = ("captioner", "query_captioner", "encoder", "texts", "precision")
    who, _ = choose(str(given.get("protocol", "")), {n: given.get(n, "") for n in who})
    how = {name: value for name, value in who.items() if value}
    path = results_path(dataset.derived, Sources(dataset, **how).setting)
    result = read_results(path)
    if not result:
        raise MissingError(f"{shown(path)} is damaged or gone; run the same command again")
    figures = (f"  {shown(path)}" for path in sorted(dataset.figures.glob("*.*")))
    print("\nresults:", f"  {shown(path)}", "figures:", *figures, sep="\n")
    print(
        f"\n{dataset.title} · {result['split']} · {result['n_images']:,} images, "
        f"{result['n_captions']:,} captions · encoder {result['encoder']} (percent; MedR is a rank)"
    )
    print(f"\nScoring rules, images described by {result['captioner']}:")
    print(recall_table({**result["methods"], "chance": result["chance"]}).to_string(na_rep="–"))
    print(f"\nWho describes the images, {result['n_common']:,} that all describe:")
    print(recall_table(result["captioners"]).to_string(na_rep="–"))
