"""Command line: ``python -m trsllava_utils run DATASET [DATASET …] [-p NAME VALUE …] [--from 02]
[--to 04]`` and ``python -m trsllava_utils merge DATASET -p captioner NAME``."""

from __future__ import annotations

import argparse
import json
import sys

from trsllava_utils import pipeline
from trsllava_utils.artefacts import InputError, MissingError, check_choice, shown
from trsllava_utils.captioning import merge
from trsllava_utils.datasets import load_dataset
from trsllava_utils.evaluation import recall_table


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trsllava_utils", description="Run the notebooks headlessly."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run notebooks 00–04 over one or several datasets")
    run.add_argument(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="sample, rsitmd, rsicd, ucm, sydney, or a folder of images",
    )
    run.add_argument(
        "--from", dest="first", default="00", metavar="NN", help="first notebook (default 00)"
    )
    run.add_argument(
        "--to", dest="last", default="04", metavar="NN", help="last notebook (default 04)"
    )
    join = commands.add_parser("merge", help="merge the shards of a captioning run")
    join.add_argument("datasets", nargs=1, metavar="DATASET")
    for command in (run, join):
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
        parameters = {name: pipeline.parse_value(value) for name, value in args.parameters}
        if args.command == "merge":
            print(_merge(args.datasets[0], parameters))
            return 0
        executed = pipeline.run_chain(args.datasets, parameters, args.first, args.last)
        if args.last == "04":
            for name in args.datasets:
                _print_results(name, str(parameters.get("data_dir", "")))
    except (InputError, MissingError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    print("\nexecuted notebooks:", *(f"  {shown(path)}" for path in executed), sep="\n")
    return 0


def _merge(name: str, parameters: dict[str, object]) -> str:
    """Merge the shards that notebook 01 wrote with these parameters."""
    known = {"data_dir": "", "split": "test", "captioner": "pixels", "prompt": "rsrt"}
    for given in parameters:
        check_choice("parameter", given, known)
    values = {key: str(parameters.get(key, default)) for key, default in known.items()}
    dataset = load_dataset(name, values["data_dir"], values["split"])
    return merge(dataset, values["captioner"], values["prompt"])


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
