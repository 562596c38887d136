"""The chain of notebooks: runs them with papermill, over one dataset after another.

What comes in: dataset names, parameters, the first and the last notebook. What goes out: executed
copies under ``data/<dataset>/derived/notebooks/``, and whatever the notebooks write.
"""

from __future__ import annotations

import ast
import os
import re
import time
from pathlib import Path

from trsllava_utils.artefacts import PROJECT_ROOT, InputError, check_choice, shown
from trsllava_utils.datasets.dataset import load_dataset

NOTEBOOKS = {
    "00": "00_dataset_loading",
    "01": "01_structured_captioning",
    "02": "02_embedding",
    "03": "03_retrieval",
    "04": "04_evaluation_visualisation",
}


class NotebookError(InputError):
    """A notebook of the chain failed; the message names it, the cell and the error."""


def chain(first: str = "00", last: str = "04") -> list[Path]:
    """The notebook files from ``first`` to ``last`` ("00" … "04")."""
    for name in (first, last):
        check_choice("notebook", name, NOTEBOOKS)
    if first > last:
        raise InputError(f"--from {first} comes after --to {last}")
    return [
        PROJECT_ROOT / "notebooks" / f"{stem}.ipynb"
        for number, stem in NOTEBOOKS.items()
        if first <= number <= last
    ]


def parse_value(text: str) -> object:
    """A parameter from the shell as papermill's ``-p`` reads it: a Python literal where it is
    one, else the text."""
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.startswith("[") and text.endswith("]"):  # [max, mean], as one types it in a shell
            parts = re.split(r",(?![^(]*\))", text[1:-1])  # not the commas of fields(caption=2,…)
            return [part.strip().strip("'\"") for part in parts if part.strip()]
        return text
    return value if isinstance(value, int | float | list | str) else text


def run_chain(
    datasets: list[str], parameters: dict[str, object], first: str = "00", last: str = "04"
) -> list[Path]:
    """Run notebooks ``first`` to ``last`` for each dataset, with a progress line for each.

    A parameter is given to the notebooks that have it; one that none has is refused.

    Returns:
        The executed notebooks.

    Raises:
        InputError: an unknown parameter or notebook number.
        NotebookError: a notebook failed.
    """
    import papermill

    notebooks = chain(first, last)
    known = {path: set(papermill.inspect_notebook(str(path))) for path in notebooks}
    for name in parameters:
        check_choice("parameter", name, sorted(set().union(*known.values()) - {"dataset"}))
    executed = []
    for dataset in datasets:
        loaded = load_dataset(
            dataset, str(parameters.get("data_dir", "")), "all"
        )  # a missing dataset stops here, at once
        if Path(dataset).is_dir() and dataset != loaded.name:
            dataset = str(Path(dataset).resolve())
        if "data_dir" in parameters:
            parameters = {
                **parameters,
                "data_dir": str(Path(str(parameters["data_dir"])).expanduser().resolve()),
            }
        for path in notebooks:
            given = {
                k: v for k, v in {**parameters, "dataset": dataset}.items() if k in known[path]
            }
            output = loaded.derived / "notebooks" / path.name
            _run_one(path, output, given, loaded.name)
            executed.append(output)
    return executed


def _run_one(path: Path, output: Path, parameters: dict[str, object], dataset: str) -> None:
    import papermill

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {shown(output.parent)}: {error.strerror}; pass -p data_dir DIR"
        ) from error
    print(f"{dataset}  {path.stem} …", end="", flush=True)
    start = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        papermill.execute_notebook(
            str(path),
            str(output),
            parameters,
            progress_bar=False,
            cwd=str(Path.cwd()),
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        print(" failed")
        raise NotebookError(
            f"{path.name}, cell {error.exec_count}, failed on {dataset}: {error.ename}: "
            f"{error.evalue} (executed copy: {shown(output)})"
        ) from error
    print(f" {time.perf_counter() - start:.1f} s", flush=True)
