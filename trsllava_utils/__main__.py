"""Command line: ``python -m trsllava_utils`` with

* ``get DATASET [--split test]``: fetch a dataset;
* ``run DATASET [DATASET …] [--from 02] [--to 04]``: the notebooks, headlessly;
* ``search DATASET "QUERY" [--k 8] [--html FILE] …``: images for a sentence;
* ``report DATASET [--html FILE]``: the results as one page for colleagues;
* ``merge DATASET``: the shards of a captioning run;
* ``gallery URL [--add DATASET] [--find "QUERY"]``: captions of any number, in partitions;

and parameters as ``-p NAME VALUE``, named as in the notebooks.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from textwrap import shorten

from trsllava_utils.artefacts import (
    PROJECT_ROOT,
    InputError,
    MissingError,
    cannot_write,
    check_choice,
    shown,
    user_path,
)
from trsllava_utils.captioning import choose_captioner, load_captions, merge
from trsllava_utils.datasets import get, load_dataset, load_metadata, read_image
from trsllava_utils.datasets.dataset import KNOWN
from trsllava_utils.datasets.files import NAMED, first_few
from trsllava_utils.datasets.scenes import TILING
from trsllava_utils.parameters import MINILM, choose, from_shell

NOTEBOOKS = {
    "00": "00_dataset_loading",
    "01": "01_structured_captioning",
    "02": "02_embedding",
    "03": "03_retrieval",
    "04": "04_evaluation_visualisation",
}
WHERE = "only images with this, as in SQL: \"date >= '2023-06-01' and cloud < 20\""
Parameters = dict[str, object]


class NotebookError(InputError):
    """A notebook of the chain failed; the message names it, the cell and the error."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    # argparse takes "-122.5,37.2,…" for an option, but not with a blank before it
    args = _parser().parse_args([f" {w}" if re.match(r"-\d[\d.]*[-,]", w) else w for w in words])
    try:
        args.action(args, {name: from_shell(name, value) for name, value in args.parameters})
    except (InputError, MissingError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trsllava_utils", description="Training-free retrieval, without a notebook."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, action, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about)
        sub.set_defaults(action=action)
        parameter = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
        sub.add_argument("-p", dest="parameters", help="a notebook parameter", **parameter)
        return sub

    which = "sample, rsitmd, rsicd, ucm, sydney, or a folder of images"
    fetch = command("get", _get, "fetch a dataset")
    fetch.add_argument("dataset", metavar="DATASET", help="rsicd; of others it says where to ask")
    fetch.add_argument("--split", default="all", help="train, val, test or all (default)")
    run = command("run", _run, "run notebooks 00–04 over one or several datasets")
    run.add_argument("datasets", nargs="+", metavar="DATASET", help=which)
    number = {"metavar": "NN", "choices": NOTEBOOKS}
    run.add_argument("--from", dest="first", default="00", help="first notebook (00)", **number)
    run.add_argument("--to", dest="last", default="04", help="last notebook (04)", **number)
    search = command("search", _search, "find images by a sentence")
    search.add_argument("dataset", metavar="DATASET", help=which)
    search.add_argument("query", metavar="QUERY", help="what the image should show")
    search.add_argument("--k", type=int, default=8, help="number of images (default 8)")
    search.add_argument("--where", default="", metavar="CONDITION", help=WHERE)
    search.add_argument("--bbox", default="", metavar="W,S,E,N", help="west,south,east,north")
    for kind in ("html", "csv", "geojson", "geoparquet"):
        search.add_argument(f"--{kind}", metavar="FILE", help=f"write the result as {kind}")
    report = command("report", _report, "write the results as one HTML page")
    report.add_argument("dataset", metavar="DATASET", help=which)
    report.add_argument("--html", metavar="FILE", help="where to (default: beside the results)")
    shards = command("merge", _merge, "merge the shards of a captioning run")
    shards.add_argument("dataset", metavar="DATASET", help=which)
    gallery = command("gallery", _gallery, "embed and search captions of any number")
    gallery.add_argument("url", metavar="URL", help="a folder, or s3://bucket/folder and the like")
    gallery.add_argument("--add", metavar="DATASET", help=f"put its captions there: {which}")
    gallery.add_argument("--find", metavar="QUERY", help="what the images should show")
    gallery.add_argument("--k", type=int, default=8, help="number of images (default 8)")
    return parser


# — the chain of notebooks —


def _run(args: argparse.Namespace, given: Parameters) -> None:
    executed = run_chain(args.datasets, given, args.first, args.last)
    print("\nexecuted notebooks:", *(f"  {shown(path)}" for path in executed), sep="\n")
    chains = [_of_chain(name, given) for name in args.datasets]
    for values in chains:
        _print_read(values)
    for values in chains if args.last == "04" else ():
        _print_results(values)


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
        check_choice("parameter", name, sorted(set().union(*known.values()) - {"dataset"}))
    executed = []
    for dataset in datasets:
        values = _of_chain(dataset, parameters)  # a missing dataset stops here, at once
        loaded = load_dataset(**_of_dataset({**values, "split": "all"}))
        for path in notebooks:
            output = loaded.derived / "notebooks" / path.name
            given = {name: value for name, value in values.items() if name in known[path]}
            _run_one(path, output, given, loaded.name)
            executed.append(output)
    return executed


def _of_chain(dataset: str, parameters: Parameters) -> Parameters:
    """The parameters that the notebooks get: full paths, and the captioner's full name where there
    is another prompt, which 01 alone has."""
    values = {**parameters, "dataset": dataset}
    for name in ("dataset", "data_dir", "figures_dir"):
        if values.get(name) and (name != "dataset" or _is_folder(dataset)):
            values[name] = str(user_path(values[name]))
    if (prompt := values.get("prompt", "rsrt")) != "rsrt":
        loaded = load_dataset(**_of_dataset({**values, "split": "all"}))
        values["captioner"] = choose_captioner(loaded, values.get("captioner", ""), prompt)
    return values


def _is_folder(dataset: str) -> bool:
    return dataset not in KNOWN and user_path(dataset).is_dir()


def _run_one(path: Path, output: Path, parameters: Parameters, dataset: str) -> None:
    import papermill

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(output.parent, error) from error
    print(f"{dataset}  {path.stem} …", end="", flush=True)
    start = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = {"progress_bar": False, "cwd": str(Path.cwd())}
    try:
        papermill.execute_notebook(
            str(path), str(output), parameters, extra_arguments=["--log-level=ERROR"], **options
        )
    except papermill.PapermillExecutionError as error:
        print(" failed")
        raise NotebookError(
            f"{path.name}, cell {error.exec_count}, failed on {dataset}: {error.ename}: "
            f"{error.evalue} (executed copy: {shown(output)})"
        ) from error
    except OSError as error:
        raise cannot_write(output, error) from error
    print(f" {time.perf_counter() - start:.1f} s", flush=True)


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


# — single steps —


def _get(args: argparse.Namespace, given: Parameters) -> None:
    folder = get(args.dataset, **_texts(given, {"data_dir"}), split=args.split)
    print(f"{args.dataset} ({args.split}) is in {shown(folder)}")


def _search(args: argparse.Namespace, given: Parameters) -> None:
    from trsllava_utils.search import search
    from trsllava_utils.search.found import KINDS

    known = {"method", "captioner", "encoder", "split", "data_dir"}
    tiling = _tiling(given)
    known |= {"texts", "clip", "precision"}
    only = {"where": args.where, "bbox": args.bbox}
    how = _texts(given, known) | tiling
    found = search(args.query, args.dataset, args.k, **how, **only)
    print(f"{found.total:,} images, described by {found.sources.captioner}", file=sys.stderr)
    print(found)
    for kind in KINDS:
        if path := getattr(args, kind):
            print("wrote", shown(found.save(path, kind)))


def _report(args: argparse.Namespace, given: Parameters) -> None:
    from trsllava_utils.report import SETTING, report

    known = {"split", "data_dir", *SETTING}
    tiling = _tiling(given)
    print("wrote", shown(report(args.dataset, args.html or "", **_texts(given, known), **tiling)))


def _merge(args: argparse.Namespace, given: Parameters) -> None:
    """Merge the shards that notebook 01 wrote with these parameters."""
    tiling = _tiling(given)
    defaults = {"data_dir": "", "split": "test", "captioner": "", "prompt": "rsrt"}
    values = defaults | _texts(given, set(defaults))
    dataset = load_dataset(args.dataset, values["data_dir"], values["split"], **tiling)
    print(merge(dataset, values["captioner"], values["prompt"]))


def _gallery(args: argparse.Namespace, given: Parameters) -> None:
    from trsllava_utils.retrieval import Gallery

    tiling = _tiling(given)
    source = {"data_dir": "", "split": "test", "captioner": ""}
    how = {"encoder": MINILM, "dtype": "float32", "scheduler": "", "precision": "float32"}
    values = source | how | _texts(given, {*source, *how})
    gallery = Gallery(args.url, **{name: values[name] for name in how})
    if args.add:
        dataset = load_dataset(args.add, values["data_dir"], values["split"], **tiling)
        corpus = load_captions(dataset, values["captioner"]).corpus()
        names = gallery.add(corpus)
        print(f"{len(corpus):,} texts of {dataset.title} are there; {len(names)} new partitions")
    if args.add or args.find is None:
        made = gallery.embed()
        print(f"{args.url}: {len(gallery.store.names)} partitions, {made} of them embedded now")
    if args.find is not None:
        table = gallery.find(args.find, args.k).round({"score": 3})
        table["text"] = [shorten(text, 90) for text in table["text"]]
        print(table.to_string(index=False))


def _tiling(given: Parameters) -> Parameters:
    """Take ``tile`` and ``overlap`` out of the parameters: they are numbers."""
    return {name: given.pop(name) for name in TILING if name in given}


def _texts(given: Parameters, known: set[str]) -> dict[str, str]:
    """The parameters given, all of them known, as text."""
    for name in given:
        check_choice("parameter", name, sorted(known))
    return {name: str(value) for name, value in given.items()}


if __name__ == "__main__":
    sys.exit(main())
