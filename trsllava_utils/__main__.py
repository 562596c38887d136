"""Command line: ``python -m trsllava_utils`` with

* ``run DATASET [DATASET …] [--from 02] [--to 04]``: the notebooks, headlessly;
* ``search DATASET "QUERY" [--k 8] [--html FILE] [--csv FILE]``: images for a sentence;
* ``report DATASET [--html FILE]``: the results as one page for colleagues;
* ``merge DATASET``: the shards of a captioning run;
* ``gallery URL [--add DATASET] [--find "QUERY"] [--export URL]``: captions of any number, in
  partitions;

and parameters as ``-p NAME VALUE``, named as in the notebooks.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from textwrap import shorten

from trsllava_utils import chain as pipeline
from trsllava_utils.artefacts import InputError, MissingError, check_choice, shown
from trsllava_utils.captioning import load_captions, merge
from trsllava_utils.datasets.dataset import load_dataset
from trsllava_utils.embedding.encoders import MINILM
from trsllava_utils.evaluation.recall import recall_table


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trsllava_utils", description="Training-free retrieval, without a notebook."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    which = "sample, rsitmd, rsicd, ucm, sydney, or a folder of images"
    run = commands.add_parser("run", help="run notebooks 00–04 over one or several datasets")
    run.add_argument("datasets", nargs="+", metavar="DATASET", help=which)
    run.add_argument(
        "--from", dest="first", default="00", metavar="NN", help="first notebook (default 00)"
    )
    run.add_argument(
        "--to", dest="last", default="04", metavar="NN", help="last notebook (default 04)"
    )
    run.set_defaults(action=_run)
    find = commands.add_parser("search", help="find images by a sentence")
    find.add_argument("dataset", metavar="DATASET", help=which)
    find.add_argument("query", metavar="QUERY", help="what the image should show")
    find.add_argument("--k", type=int, default=8, help="number of images (default 8)")
    find.add_argument("--html", metavar="FILE", help="write a page with the images")
    find.add_argument("--csv", metavar="FILE", help="write a table")
    find.set_defaults(action=_search)
    tell = commands.add_parser("report", help="write the results as one HTML page")
    tell.add_argument("dataset", metavar="DATASET", help=which)
    tell.add_argument("--html", metavar="FILE", help="where to (default: beside the results)")
    tell.set_defaults(action=_report)
    join = commands.add_parser("merge", help="merge the shards of a captioning run")
    join.add_argument("dataset", metavar="DATASET", help=which)
    join.set_defaults(action=_merge)
    many = commands.add_parser("gallery", help="embed and search captions of any number")
    many.add_argument("url", metavar="URL", help="a folder, or s3://bucket/folder and the like")
    many.add_argument("--add", metavar="DATASET", help=f"put its captions there: {which}")
    many.add_argument("--export", metavar="URL", help="write Parquet for a vector database there")
    many.add_argument("--find", metavar="QUERY", help="what the images should show")
    many.add_argument("--k", type=int, default=8, help="number of images (default 8)")
    many.set_defaults(action=_gallery)
    for command in (run, find, tell, join, many):
        command.add_argument(
            "-p",
            dest="parameters",
            nargs=2,
            action="append",
            default=[],
            metavar=("NAME", "VALUE"),
            help="a notebook parameter",
        )
    args = parser.parse_args(argv)
    try:
        given = {name: pipeline.parse_value(value) for name, value in args.parameters}
        args.action(args, given)
    except (InputError, MissingError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace, given: dict[str, object]) -> None:
    executed = pipeline.run_chain(args.datasets, given, args.first, args.last)
    if args.last == "04":
        for name in args.datasets:
            _print_results(name, str(given.get("data_dir", "")))
    print("\nexecuted notebooks:", *(f"  {shown(path)}" for path in executed), sep="\n")


def _search(args: argparse.Namespace, given: dict[str, object]) -> None:
    from trsllava_utils.search.index import search

    known = set(inspect.signature(search).parameters) - {"query", "dataset", "k"}
    found = search(args.query, args.dataset, args.k, **_texts(given, known))
    print(found)
    for path, save in ((args.html, found.save_html), (args.csv, found.save_csv)):
        if path:
            print("wrote", shown(save(path)))


def _report(args: argparse.Namespace, given: dict[str, object]) -> None:
    from trsllava_utils.report import report

    known = set(inspect.signature(report).parameters) - {"dataset", "path"}
    print("wrote", shown(report(args.dataset, args.html or "", **_texts(given, known))))


def _texts(given: dict[str, object], known: set[str]) -> dict[str, str]:
    """The parameters given, all of them known, as text."""
    for name in given:
        check_choice("parameter", name, sorted(known))
    return {name: str(value) for name, value in given.items()}


def _merge(args: argparse.Namespace, given: dict[str, object]) -> None:
    """Merge the shards that notebook 01 wrote with these parameters."""
    values = _values(given, data_dir="", split="test", captioner="pixels", prompt="rsrt")
    dataset = load_dataset(args.dataset, values["data_dir"], values["split"])
    print(merge(dataset, values["captioner"], values["prompt"]))


def _gallery(args: argparse.Namespace, given: dict[str, object]) -> None:
    from trsllava_utils.retrieval.gallery import Gallery

    source = {"data_dir": "", "split": "test", "captioner": "pixels"}
    values = _values(given, **source, encoder=MINILM, dtype="float32", scheduler="")
    gallery = Gallery(args.url, values["encoder"], values["dtype"], values["scheduler"])
    if args.add:
        dataset = load_dataset(args.add, values["data_dir"], values["split"])
        corpus = load_captions(dataset, values["captioner"]).corpus()
        names = gallery.add(corpus)
        print(f"{len(corpus):,} texts of {dataset.title} are in {len(names)} partitions")
    if args.add or not (args.find or args.export):
        made = gallery.embed()
        print(f"{args.url}: {len(gallery.store.names)} partitions, {made} of them embedded now")
    if args.export:
        print(f"{gallery.export(args.export)} files for a vector database are in {args.export}")
    if args.find:
        found = gallery.find(args.find, args.k).round({"score": 3})
        found["text"] = [shorten(text, 90) for text in found["text"]]
        print(found.to_string(index=False))


def _values(given: dict[str, object], **defaults: str) -> dict[str, str]:
    return defaults | _texts(given, set(defaults))


def _print_results(name: str, data_dir: str) -> None:
    """The newest results of a dataset as a table, and its figures."""
    dataset = load_dataset(name, data_dir, "all")
    found = sorted((dataset.derived / "results").glob("*.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        print(f"\n{dataset.title}: no human captions, so no recall table")
        return
    result = json.loads(found[-1].read_text(encoding="utf-8"))
    print(
        f"\n{dataset.title} · {result['split']} · {result['n_images']:,} images, "
        f"{result['n_captions']:,} captions"
        f" · captioner {result['captioner']} · encoder {result['encoder']} (percent; MedR is a "
        "rank)\n"
    )
    print(recall_table({**result["methods"], "chance": result["chance"]}).to_string())
    print(
        "\nresults:",
        f"  {shown(found[-1])}",
        "figures:",
        *(f"  {shown(p)}" for p in sorted(dataset.figures.glob("*.png"))),
        sep="\n",
    )


if __name__ == "__main__":
    sys.exit(main())
