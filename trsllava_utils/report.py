"""Report: the results of notebook 04 go in, one HTML page for colleagues comes out — what was run,
the tables, the figures, successes and failures, and how to run it again. It needs no network.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from trsllava_utils.artefacts import MissingError, check_choice, file_sha256, write_text
from trsllava_utils.datasets.dataset import Dataset, load_dataset
from trsllava_utils.evaluation import breakdown, published, read_results, recall_table, results_path
from trsllava_utils.pages import data_uri, query_examples, render
from trsllava_utils.parameters import TILE
from trsllava_utils.retrieval import Rankings, Sources, caption_texts, rank_dataset

FIGURES = {
    "04_methods": "Mean recall by scoring rule, with 95 % intervals",
    "04_gallery_size": "Recall as the gallery grows",
    "04_variants": "Mean recall by the number of captions per image",
    "04_class_recall": "Recall at 10 by class",
}
SETTING = ("captioner", "texts", "query_captioner", "encoder", "precision")
EXAMPLES, SHOWN = 6, 4  # successes and failures each; images found for each


def report(
    dataset: str = "sample",
    path: str | Path = "",
    *,
    split: str = "test",
    data_dir: str = "",
    figures_dir: str = "",
    tile: int = TILE,
    overlap: int = 0,
    **how: str,
) -> Path:
    """Write the page of one setting.

    Args:
        dataset: a name or a folder, as in the notebooks.
        path: where to; empty: beside the results.
        split, data_dir, figures_dir, tile, overlap: of the dataset.
        how: which results, as in the notebooks: :data:`SETTING`.

    Returns:
        Its path.

    Raises:
        MissingError: notebook 04 has not been run with this setting.
    """
    for name in how:
        check_choice("parameter", name, SETTING)
    where = {"tile": tile, "overlap": overlap, "figures_dir": figures_dir}
    ds = load_dataset(dataset, data_dir, split, **where)
    sources = Sources(ds, **how)
    results = results_path(ds.derived, sources.setting)
    result = read_results(results)
    chain = ["python -m trsllava_utils run", shlex.quote(dataset)]
    given = {"split": ds.split, **ds.tiling, **{name: getattr(sources, name) for name in SETTING}}
    command = to_shell(chain, {"data_dir": data_dir, **given})
    if not result:
        others = _others(ds, dataset, data_dir)
        raise MissingError(f"no results to report for this setting; make them: {command}{others}")
    parameters = result["parameters"]
    sources = replace(sources, clip=parameters["clip"])
    ranking = rank_dataset(parameters["method"], sources)
    if ranking.identity != result["inputs"]:
        raise MissingError(
            f"captions or vectors have changed since these results were made; run again: {command}"
        )
    texts = caption_texts(sources.embed_reference())
    examples = breakdown.extremes(ranking.ranks, ranking.top, texts, EXAMPLES)
    successes, failures = (_examples(queries, ranking, sources) for queries in examples)
    page = render(
        "report.html",
        ds=ds,
        result=result,
        captions=sources.captions,
        identities=[f.manifest().get("identity", {}) for f in sources.captions.files],
        recall=_table(recall_table({**result["methods"], "chance": result["chance"]})),
        captioners=_table(recall_table(result["captioners"])),
        compared=_table(pd.DataFrame.from_dict(result["compared"], orient="index")),
        published=_published(ds, result),
        figures=_figures(ds, result["figures"]),
        successes=successes,
        failures=failures,
        command=to_shell(chain, given | {n: v for n, v in parameters.items() if n not in SETTING}),
    )
    return write_text(path or results.with_suffix(".html"), page)


def _others(ds: Dataset, dataset: str, data_dir: str) -> str:
    """The commands of the reports that could be written."""
    chain, commands = ["python -m trsllava_utils report", shlex.quote(dataset)], []
    for path in sorted((ds.derived / "results").glob("*.json")):
        if result := read_results(path):
            how = {n: v for n, v in result["parameters"].items() if n in SETTING}
            given = {"data_dir": data_dir, "split": result["split"], **ds.tiling, **how}
            commands.append(to_shell(chain, given))
    return "\nThere are results for\n  " + "\n  ".join(commands) if commands else ""


def to_shell(words: list[str], parameters: dict) -> str:
    """The command line with every parameter that is set."""
    for name, value in parameters.items():
        if value not in ("", [], None):
            text = f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
            words = [*words, "-p", name, shlex.quote(text)]
    return " ".join(words)


def _table(table: pd.DataFrame) -> Markup:
    """A table as HTML; pandas escapes what stands in it."""
    return Markup(table.to_html(border=0, na_rep="–", justify="right"))


def _published(ds: Dataset, result: dict) -> Markup | None:
    if ds.split != "test":
        return None
    table = published(ds.name, result["methods"], result["captioner"])
    return Markup(table.to_html(border=0, na_rep="–", index=False)) if len(table) else None


def _figures(ds: Dataset, claimed: dict[str, str]) -> list[dict]:
    """The figures that belong to these results and not to another run since."""
    out = []
    for name, title in FIGURES.items():
        path = ds.figures / f"{name}.png"
        if path.is_file() and claimed.get(path.name) == file_sha256(path):
            picture = data_uri(path.read_bytes(), "image/png")
            out.append({"title": title, "picture": picture})
    return out


def _examples(queries: pd.DataFrame, ranking: Rankings, sources: Sources) -> Markup | str:
    return Markup(query_examples(queries, ranking, sources, SHOWN).data) if len(queries) else ""
