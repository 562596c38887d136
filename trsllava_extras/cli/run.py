"""The notebooks as one command: datasets and parameters go in, executed notebooks come out, and of
the last one a page for colleagues. While a notebook works, its own progress bars are shown on one
line; at the end, what was read, left out and made.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from trsllava_extras.choice import told
from trsllava_extras.cli.shell import Parameters, defaults, to_shell
from trsllava_extras.metadata import load_metadata
from trsllava_extras.methods import Method
from trsllava_extras.pages import notebook_page
from trsllava_extras.protocols import choose
from trsllava_extras.results import (
    read_results,
    recall_table,
    require_reference_captions,
    results_path,
)
from trsllava_utils.captions import choose_captioner, load_captions
from trsllava_utils.data import KNOWN, Dataset, load_dataset
from trsllava_utils.files import (
    NAMED,
    PROJECT_ROOT,
    TEXT_BARS,
    InputError,
    MissingError,
    cannot_write,
    check_choice,
    first_few,
    not_linked,
    shown,
    user_path,
    write_text,
)
from trsllava_utils.images import read_image
from trsllava_utils.parameters import TILING
from trsllava_utils.sources import SETTING, Sources

NOTEBOOKS = {
    "00": "00_dataset_loading",
    "01": "01_structured_captioning",
    "02": "02_embedding",
    "03": "03_retrieval",
    "04": "04_evaluation_visualisation",
}
_LOADED = ("data_dir", "figures_dir", "split", "limit", "remote", *TILING)


class NotebookError(InputError):
    """A notebook failed; the message names it, the cell and the error."""


@dataclass(frozen=True)
class Chain:
    """The notebooks of one dataset: its name as it was given, the parameters as the notebooks get
    them, and the dataset, all its splits."""

    name: str
    values: Parameters
    dataset: Dataset

    @property
    def split(self) -> Dataset:
        """The split that is worked on."""
        return self.dataset.on(str(self.values.get("split", "test")))


def run(datasets: list[str], given: Parameters, first: str = "00", last: str = "04") -> None:
    """Run notebooks ``first`` to ``last`` for each dataset, then print what was read and made, and
    the next commands; errors as for :func:`run_chain`."""
    chains = run_chain(datasets, given, first, last)
    stems = [stem for number, stem in NOTEBOOKS.items() if first <= number <= last]
    print("\nexecuted notebooks:")
    for chain in chains:
        for stem in stems:
            print(f"  {shown(_executed(chain.dataset, stem))}")
    for chain in chains:
        _print_read(chain)
    for chain in chains if last == "04" else ():
        _print_results(chain)
    print("\nnext:")
    also = {name: given[name] for name in given if name in (*SETTING, "split", "data_dir", *TILING)}
    for name in datasets:
        print(f'  {to_shell("search", name, also)} "what the images should show"')
        if last == "04":
            known = {n: v for n, v in given.items() if n in defaults(NOTEBOOKS["04"])}
            print(f"  {to_shell('report', name, known)}")


def run_chain(
    datasets: list[str], given: Parameters, first: str = "00", last: str = "04"
) -> list[Chain]:
    """Run notebooks for each dataset, with a progress line for each. A parameter is given to the
    notebooks that have it; one that none has is refused. The executed notebooks are copies under
    ``data/<dataset>/derived/notebooks/``.

    Raises:
        InputError: an unknown parameter or method, or ``first`` comes after ``last``.
        MissingError: a dataset, captions that no notebook of these makes, or reference captions for
            the last one.
        NotebookError: a notebook failed.
    """
    if first > last:
        raise InputError(f"--from {first} comes after --to {last}")
    numbers = [number for number in NOTEBOOKS if first <= number <= last]
    known = {number: set(defaults(NOTEBOOKS[number])) for number in numbers}
    for name in given:
        check_choice("parameter", name, sorted(set().union(*known.values())))
    if "dataset" in given:
        raise InputError("datasets are named after the command: run rsicd, not -p dataset rsicd")
    if "timeout" in given:  # of captioners by parameter; encoders have it from here
        os.environ["OPENAI_TIMEOUT"] = str(given["timeout"])
    chains = [_chain(name, given) for name in datasets]
    _check_ahead(chains, given, first, last)
    for chain in chains:
        values, dataset = chain.values, chain.dataset
        if not values.get("captioner") and (line := told(dataset)):
            print(f"· {line}")
        for number in numbers:
            mine = {name: value for name, value in values.items() if name in known[number]}
            _run_one(NOTEBOOKS[number], _executed(dataset, NOTEBOOKS[number]), mine, dataset.name)
    return chains


def _check_ahead(chains: list[Chain], given: Parameters, first: str, last: str) -> None:
    """What a later notebook would miss is said before the first one starts."""
    for method in [given.get("method", "max"), *given.get("methods", [])]:
        Method(method)
    for chain in chains:
        if last == "04":
            require_reference_captions(chain.split)
        if first > "01" and not given.get("protocol"):
            load_captions(chain.split, str(chain.values.get("captioner", "")))


def report(dataset: str, given: Parameters, path: str | Path = "") -> Path:
    """Notebook 04 as one HTML page for colleagues: its tables and pictures without the code, and
    the command that makes it again. It needs no network.

    Args:
        dataset: a name or a folder; given: parameters of notebook 04.
        path: where to; empty: beside the results.

    Raises:
        NotebookError: the notebook failed: captions are missing, for example.
    """
    (chain,) = run_chain([dataset], given, "04", "04")
    return _write_page(chain, path)


def _write_page(chain: Chain, path: str | Path = "") -> Path:
    command = to_shell(
        "report", chain.name, {n: v for n, v in chain.values.items() if n != "dataset"}
    )
    title = f"{chain.dataset.title} · {chain.split.split}"
    page = notebook_page(_executed(chain.dataset, NOTEBOOKS["04"]), title, command)
    return write_text(path or _results(chain).with_suffix(".html"), page)


def _executed(dataset: Dataset, stem: str) -> Path:
    return dataset.derived / "notebooks" / f"{stem}.ipynb"


def _chain(name: str, given: Parameters) -> Chain:
    """The parameters that the notebooks get, with full paths. Only notebook 01 has a parameter
    ``prompt``, so for another prompt the others get the captioner's full name, which has it."""
    values = {**given, "dataset": name}
    for path in ("dataset", "data_dir", "figures_dir"):
        is_name = path == "dataset" and (name in KNOWN or not user_path(name).is_dir())
        if values.get(path) and not is_name:
            values[path] = str(user_path(values[path]))
    where = {n: values[n] for n in _LOADED if n in values and n not in ("split", "limit")}
    dataset = load_dataset(values["dataset"], split="all", **where)
    if (prompt := values.get("prompt", "rsrt")) != "rsrt":
        values["captioner"] = choose_captioner(dataset, values.get("captioner", ""), prompt)
    return Chain(name, values, dataset)


def _run_one(stem: str, output: Path, parameters: Parameters, dataset: str) -> None:
    import papermill

    path = PROJECT_ROOT / "notebooks" / f"{stem}.ipynb"
    try:
        not_linked(output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(output.parent, error) from error
    start, line = time.perf_counter(), StatusLine(f"{dataset}  {stem} …")
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
    to stderr, and shows the last state of a progress bar; in a log file, once a minute.
    (Papermill's own bar counts cells, and captioning is one cell of hours.)"""

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
        if self._live:
            print(f"\r{' ' * room}", end="")
        print(f"\r{self._title}" * self._live, outcome, flush=True)


def _without_bars(notebook: Path) -> None:
    """Keep only the last state of the progress bars in an executed notebook."""
    import nbformat

    executed = nbformat.read(notebook, as_version=4)
    for cell in executed.cells:
        for out in cell.get("outputs", ()):
            if out.output_type == "stream":
                out.text = re.sub(r"[^\n]*\r(?=[^\n])", "", out.text)
    write_text(notebook, nbformat.writes(executed))


def _print_read(chain: Chain) -> None:
    """What was read of a dataset, and what was not."""
    ds, described, bare = chain.split, [], []
    problems = [*ds.problems, *load_metadata(ds)[1]]
    try:
        captions = load_captions(ds, str(chain.values.get("captioner", "")))
        described = [f"{len(captions.records):,} described by {captions.captioner}"]
        bare = [i for i in ds.with_pixels["image_id"] if i not in captions.records]
    except (InputError, MissingError):  # notebook 01 was not among those run
        pass
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


def _results(chain: Chain) -> Path:
    """Where notebook 04 wrote its results."""
    who = {name: chain.values.get(name, "") for name in SETTING}
    who, _ = choose(str(chain.values.get("protocol", "")), who)
    sources = Sources(chain.split, **{name: value for name, value in who.items() if value})
    return results_path(chain.dataset.derived, sources.setting)


def _print_results(chain: Chain) -> None:
    """The results of a run: its page, its figures, its rules and its captioners."""
    path, dataset = _results(chain), chain.dataset
    result = read_results(path)
    if not result:
        raise MissingError(f"{shown(path)} is damaged or gone; run the same command again")
    figures = (f"  {shown(path)}" for path in sorted(dataset.figures.glob("*.*")))
    page = _write_page(chain)
    print("\nresults:", f"  {shown(path)}", f"  {shown(page)}", "figures:", *figures, sep="\n")
    print(
        f"\n{dataset.title} · {result['split']} · {result['n_images']:,} images, "
        f"{result['n_captions']:,} captions · encoder {result['encoder']} (percent; MedR is a rank)"
    )
    print(f"\nScoring rules, images described by {result['captioner']}:")
    print(recall_table({**result["methods"], "chance": result["chance"]}).to_string(na_rep="–"))
    print(f"\nWho describes the images, {result['n_common']:,} that all describe:")
    print(recall_table(result["captioners"]).to_string(na_rep="–"))
