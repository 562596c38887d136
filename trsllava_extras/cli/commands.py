"""The commands (``trsllava.commands``): each takes the words behind its name. Parameters are given
as ``-p NAME VALUE``, named as in the notebooks."""

from __future__ import annotations

import sys
from argparse import Namespace
from textwrap import shorten

from trsllava_extras.cli.shell import parse, parser
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import NAMED, InputError, escaped, first_few, shown, user_path, write_text
from trsllava_utils.parameters import MINILM, TILING
from trsllava_utils.sources import SETTING

DATASET = "sample, rsitmd, rsicd, ucm, sydney, or a folder of images"
WHERE = "only images with this, as in SQL: \"date >= '2023-06-01' and cloud < 20\""
_LOADED = {"data_dir", "split", "remote", *TILING}  # the parameters of load_dataset


def get(words: list[str]) -> None:
    """fetch a dataset"""
    from trsllava_extras.download import get as fetch

    made = parser("get", "Fetch a dataset.")
    made.add_argument("dataset", help="rsicd, rsitmd; of others it says where to ask")
    made.add_argument("--split", default="all", help="train, val, test or all (default)")
    args, given = parse(made, words, {"data_dir"})
    folder = fetch(args.dataset, **given, split=args.split)
    print(f"{args.dataset} ({args.split}) is in {shown(folder)}")


def run(words: list[str]) -> None:
    """run notebooks 00-04 over one or several datasets"""
    from trsllava_extras.cli.run import NOTEBOOKS
    from trsllava_extras.cli.run import run as run_notebooks

    made = parser("run", "Run notebooks 00-04 over one or several datasets.")
    made.add_argument("datasets", nargs="+", metavar="DATASET", help=DATASET)
    number = {"metavar": "NN", "choices": NOTEBOOKS}
    made.add_argument("--from", dest="first", default="00", help="first notebook (00)", **number)
    made.add_argument("--to", dest="last", default="04", help="last notebook (04)", **number)
    args, given = parse(made, words)
    run_notebooks(args.datasets, given, args.first, args.last)


def report(words: list[str]) -> None:
    """write the results as one page for colleagues"""
    from trsllava_extras.cli.run import report as write_report

    made = parser("report", "Notebook 04 as one HTML page, without its code.")
    made.add_argument("dataset", help=DATASET)
    made.add_argument("--html", default="", metavar="FILE", help="where to (beside the results)")
    args, given = parse(made, words)
    print("wrote", shown(write_report(args.dataset, given, args.html)))


def search(words: list[str]) -> None:
    """find images by words or by a picture"""
    from trsllava_extras.panel import search as find
    from trsllava_extras.panel.found import KINDS
    from trsllava_extras.panel.picture import describer_of
    from trsllava_extras.tags import tag

    made = parser("search", "Find images by words or by a picture.")
    made.add_argument("dataset", help=DATASET)
    what = "what it shows; or parts, with weights: 'storage tanks + 0.5 river - houses'"
    made.add_argument("query", nargs="?", default="", help=what)
    made.add_argument("--image", default="", metavar="FILE", help="a picture to search with")
    made.add_argument("--queries", metavar="FILE", help="many queries: one a line, or CSV")
    made.add_argument("--fits", action="store_true", help="only images that seem to fit")
    made.add_argument("--k", type=int, default=8, help="number of images (default 8)")
    made.add_argument("--where", default="", metavar="CONDITION", help=WHERE)
    made.add_argument("--bbox", default="", metavar="W,S,E,N", help="west,south,east,north")
    made.add_argument("--tag", metavar="WORD", help="keep this word with the images found")
    for kind in KINDS:
        made.add_argument(f"--{kind}", metavar=kind.upper(), help=f"save the result as {kind}")
    args, given = parse(made, words, {"method", *SETTING, *_LOADED})
    only = {"where": args.where, "bbox": args.bbox}
    if sys.stderr.isatty():  # PyTorch alone takes two seconds; the next line takes this one's place
        print("loading the captions and the encoder …", end="\r", file=sys.stderr)
    if args.queries:
        _search_many(args, given, only)
        return
    found = find(args.query, args.dataset, args.k, image=args.image, **given, **only)
    found = found.fitting() if args.fits else found
    about = f"{found.total:,} images, described by {found.sources.captioner}"
    print(f"{about:<40}", file=sys.stderr)
    if args.image and not args.query:
        who = given.get("query_captioner") or describer_of(found.sources)
        print(f"{args.image}, described by {who}: {found.query.text}")
    print(found)
    if args.tag is not None:
        tag(found.sources.dataset, found.table["image_id"], args.tag, found.query.text)
        print(f"{len(found.table):,} images have the tag {args.tag!r} now")
    for kind in KINDS:
        if path := getattr(args, kind):
            print("wrote", shown(found.save(path, kind)))


def _search_many(args: Namespace, given: dict, only: dict[str, str]) -> None:
    from trsllava_extras.panel.found import KINDS
    from trsllava_extras.panel.index import index_of
    from trsllava_extras.panel.many import find_many, read_queries
    from trsllava_extras.results import csv_text

    for name in ("query", "image", "tag", *KINDS):
        if name != "csv" and getattr(args, name):
            raise InputError(f"{name} does not go with --queries; the table is saved by --csv")
    queries = read_queries(args.queries)
    table = find_many(index_of(args.dataset, **given), queries, args.k, args.fits, **only)
    columns = ["id", "query", "rank", "image_id", "score", "percentile", "label"]
    shown_table = table[[c for c in columns if c in table]].round({"score": 3, "percentile": 1})
    shown_table["query"] = [shorten(text, 60) for text in shown_table["query"]]
    print(escaped(shown_table.to_string(index=False)) if len(table) else "no image fits")
    without = queries.index.difference(table["id"]).tolist()
    if without and args.fits:
        print(f"nothing fits {len(without)} of {len(queries)} queries: {first_few(without)}")
    if args.csv:
        print("wrote", shown(write_text(user_path(args.csv), csv_text(table, index=False))))


def serve(words: list[str]) -> None:
    """search in a browser, without notebooks"""
    from trsllava_extras.cli.serve import serve as serve_panel

    made = parser("serve", "The search panel in a browser, on this machine only.")
    made.add_argument("dataset", help=DATASET)
    made.add_argument("--query", default="buildings beside water", help="what is asked first")
    made.add_argument("--port", type=int, default=8866, help="of the address (default 8866)")
    made.add_argument("--no-browser", action="store_true", help="only print the address")
    args, given = parse(made, words, {"method", *SETTING, *_LOADED})
    serve_panel(args.dataset, given, args.query, args.port, not args.no_browser)


def gallery(words: list[str]) -> None:
    """embed and search captions of any number"""
    from trsllava_extras.gallery.gallery import Gallery

    made = parser("gallery", "Embed and search captions of any number, in partitions.")
    made.add_argument("url", metavar="URL", help="a folder, or s3://bucket/folder and the like")
    made.add_argument("--add", metavar="DATASET", help=f"put its captions there: {DATASET}")
    made.add_argument("--find", metavar="QUERY", help="what the images should show")
    made.add_argument("--k", type=int, default=8, help="number of images (default 8)")
    how = {"encoder": MINILM, "dtype": "float32", "scheduler": "", "precision": "float32"}
    args, given = parse(made, words, {"captioner", *_LOADED, *how})
    there = Gallery(args.url, **{name: given.get(name, value) for name, value in how.items()})
    if args.add:
        dataset = load_dataset(args.add, **{n: given[n] for n in given if n in _LOADED})
        captions = load_captions(dataset, given.get("captioner", ""))
        corpus = captions.corpus()
        names = there.add(corpus)
        for problem in captions.problems[:NAMED]:
            print("·", problem)
        print(f"{len(corpus):,} texts of {dataset.title} are there; {len(names)} new partitions")
    if args.add or args.find is None:
        embedded = there.embed()
        n = len(there.store.names)
        print(f"{args.url}: {n} partitions, {embedded} of them embedded now")
    if args.find is not None:
        table = there.find(args.find, args.k).round({"score": 3})
        table["text"] = [shorten(text, 90) for text in table["text"]]
        print(table.to_string(index=False))
