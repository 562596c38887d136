"""Command line: ``python -m trsllava_utils`` with

* ``get DATASET [--split test]``: fetch a dataset;
* ``run DATASET [DATASET …] [--from 02] [--to 04]``: the notebooks, headlessly;
* ``search DATASET "QUERY" [--image FILE] [--k 8] [--html FILE] …``: images for words or a picture;
* ``report DATASET [--html FILE]``: the results as one page for colleagues;
* ``merge DATASET``: the shards of a captioning run;
* ``gallery URL [--add DATASET] [--find "QUERY"]``: captions of any number, in partitions;

and parameters as ``-p NAME VALUE``, named as in the notebooks.
"""

from __future__ import annotations

import argparse
import re
import sys
from textwrap import shorten

from trsllava_utils.artefacts import InputError, MissingError, check_choice, shown
from trsllava_utils.captioning import load_captions, merge
from trsllava_utils.captioning.imported import about_pixels
from trsllava_utils.chain import NOTEBOOKS, Parameters, run
from trsllava_utils.datasets import get, load_dataset
from trsllava_utils.datasets.scenes import TILING
from trsllava_utils.parameters import MINILM, from_shell

WHERE = "only images with this, as in SQL: \"date >= '2023-06-01' and cloud < 20\""


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
        print(
            "\nstopped. Captions, vectors and rankings that are finished are safe on disk; the "
            "same command goes on from there",
            file=sys.stderr,
        )
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
    chain = command("run", _run, "run notebooks 00–04 over one or several datasets")
    chain.add_argument("datasets", nargs="+", metavar="DATASET", help=which)
    number = {"metavar": "NN", "choices": NOTEBOOKS}
    chain.add_argument("--from", dest="first", default="00", help="first notebook (00)", **number)
    chain.add_argument("--to", dest="last", default="04", help="last notebook (04)", **number)
    search = command("search", _search, "find images by words or by a picture")
    search.add_argument("dataset", metavar="DATASET", help=which)
    what = "what it shows; or parts, with weights: 'storage tanks + 0.5 river - houses'"
    search.add_argument("query", metavar="QUERY", nargs="?", default="", help=what)
    search.add_argument("--image", default="", metavar="FILE", help="a picture to search with")
    search.add_argument("--k", type=int, default=8, help="number of images (default 8)")
    search.add_argument("--where", default="", metavar="CONDITION", help=WHERE)
    search.add_argument("--bbox", default="", metavar="W,S,E,N", help="west,south,east,north")
    for kind in ("html", "csv", "geojson", "geoparquet", "folder"):
        search.add_argument(f"--{kind}", metavar=kind.upper(), help=f"save the result as {kind}")
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


def _run(args: argparse.Namespace, given: Parameters) -> None:
    run(args.datasets, given, args.first, args.last)


def _get(args: argparse.Namespace, given: Parameters) -> None:
    folder = get(args.dataset, **_texts(given, {"data_dir"}), split=args.split)
    print(f"{args.dataset} ({args.split}) is in {shown(folder)}")


def _search(args: argparse.Namespace, given: Parameters) -> None:
    from trsllava_utils.search import search
    from trsllava_utils.search.found import KINDS
    from trsllava_utils.search.picture import describer_of

    known = {"method", "captioner", "encoder", "split", "data_dir"}
    tiling = _tiling(given)
    known |= {"texts", "clip", "query_captioner", "precision"}
    only = {"where": args.where, "bbox": args.bbox}
    how = _texts(given, known) | tiling
    found = search(args.query, args.dataset, args.k, image=args.image, **how, **only)
    print(f"{found.total:,} images, described by {found.sources.captioner}", file=sys.stderr)
    if found.sources.captioner == "pixels" and "captioner" not in given:
        print(f"· {about_pixels(found.total)}", file=sys.stderr)
    if args.image and not args.query:
        who = given.get("query_captioner") or describer_of(found.sources)
        print(f"{args.image}, described by {who}: {found.query.text}")
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
