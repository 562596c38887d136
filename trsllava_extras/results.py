"""Results on disk: metrics go in, a JSON file, tables for papers and a summary come out."""

from __future__ import annotations

from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from trsllava_utils.data import Dataset
from trsllava_utils.files import (
    PROJECT_ROOT,
    MissingError,
    atomic_path,
    read_json,
    shown,
    versions,
    write_json,
    write_text,
)
from trsllava_utils.recall import KS, TITLES, chance

_Recalls = TypedDict("_Recalls", {**{f"R@{k}": float for k in KS}, "MedR": float})


class _Interval(TypedDict):
    mR: tuple[float, float]


class _Metrics(TypedDict):
    t2i: _Recalls
    i2t: _Recalls
    mR: float
    interval: NotRequired[_Interval]


class _Result(TypedDict):
    dataset: str
    split: str
    captioner: str
    encoder: str
    inputs: str
    n_images: int
    methods: dict[str, _Metrics]
    chance: _Metrics


_RESULT = TypeAdapter(_Result)


def require_reference_captions(dataset: Dataset) -> None:
    """Stop with a sentence where there is nothing to evaluate against.

    Raises:
        MissingError: the dataset has no reference captions.
    """
    if dataset.captions.empty:
        raise MissingError(
            f"{dataset.title} ({dataset.split}) has no reference captions, so recall cannot be "
            "measured. Put a captions.jsonl with "
            'lines {"image": "NAME.tif", "caption": "…"} into its folder, or stop after '
            "03_retrieval (--to 03)."
        )


def recall_table(results: dict[str, dict]) -> pd.DataFrame:
    """Method -> metrics as the table of the field: T2I and I2T R@1/5/10, median ranks, mR
    (percent), and the 95 % interval of mR where a result holds ``"interval"``."""
    rows = {}
    for name, result in results.items():
        row = {
            (title, m): result.get(d, {}).get(m, np.nan)
            for d, title in TITLES.items()
            for m in (*(f"R@{k}" for k in KS), "MedR")
        }
        row["", "mR"] = result["mR"]
        if "interval" in result:
            row["95 % of mR", "low"], row["95 % of mR", "high"] = result["interval"]["mR"]
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


def write_results(path: Path, methods: dict[str, dict], ranks: pd.DataFrame, **about) -> dict:
    """Write the results JSON (percentages) and return it; ``about`` is dataset, split, captioner
    (``Sources.described_by``), encoder, baseline (the method that the others are compared with),
    compared (differences to it), captioners (metrics of several on the same ``n_common`` images),
    parameters (as the notebook got them), left_out, inputs (``Rankings.identity`` of the
    baseline)."""
    t2i = ranks[ranks["direction"] == "t2i"]
    packages = ("trsllava-utils", "sentence-transformers", "transformers", "torch", "numpy")
    result = {
        **about,
        "n_images": int(t2i["n_items"].iloc[0]),
        "n_captions": len(t2i),
        "methods": methods,
        "chance": chance(ranks),
        "made": date.today().isoformat(),
        "versions": versions(*packages),
    }
    write_json(path, result)
    return result


def read_results(path: Path) -> dict:
    """What :func:`write_results` wrote; empty if it is missing, damaged, edited, or written by an
    earlier version of this project, or something else (its fingerprint is no signature)."""
    result = read_json(path)
    with suppress(ValidationError):
        _RESULT.validate_python(result)
        return result
    return {}


def results_path(derived: Path, setting: str) -> Path:
    """Where the results of one setting (see ``Sources.setting``) are kept."""
    return derived / "results" / f"{setting}.json"


def summary(data_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    """All results below a data folder in one table: one row for each dataset, split, captioner,
    encoder and method, chance included (percent); and sentences on files that cannot be used."""
    tables, problems = [], []
    for path in sorted(data_dir.glob("*/derived/results/*.json")):
        result = read_results(path)
        if not result:
            problems.append(
                f"{shown(path)} is damaged, was edited, or is of an earlier version; it was left "
                "out: delete it, or run notebook 04 again"
            )
            continue
        table = recall_table({**result["methods"], "chance": result["chance"]})
        setting = {name: result[name] for name in ("dataset", "split", "captioner", "encoder")}
        setting["images"] = result["n_images"]
        names = pd.DataFrame({**setting, "method": table.index})
        table.index = pd.MultiIndex.from_frame(names)
        tables.append(table)
    return pd.concat(tables) if tables else pd.DataFrame(), problems


def csv_text(table: pd.DataFrame, index: bool = True) -> str:
    """A table as CSV. A text that a spreadsheet would take for a formula gets a quotation mark in
    front, and so does one that begins with such a mark."""

    starts = tuple("=+-@\t\r'")

    def plain(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(starts) else value

    table = table.map(plain).rename(index=plain, columns=plain)
    return table.to_csv(index=index)


def export(table: pd.DataFrame, path: Path) -> list[Path]:
    """Write a table as ``path.csv`` and ``path.tex`` (needs LaTeX's booktabs and multirow)."""
    flat = table.copy()
    flat.columns = [" ".join(filter(None, c)) if isinstance(c, tuple) else c for c in flat.columns]
    paths = [path.with_name(path.name + suffix) for suffix in (".csv", ".tex")]
    write_text(paths[0], csv_text(flat))
    with atomic_path(paths[1]) as tmp:
        # marks as commands: pdfLaTeX knows them everywhere
        latex = table.style.format(precision=1, na_rep="–", escape="latex")
        latex = latex.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
        text = latex.to_latex(hrules=True, multirow_align="t")
        text = text.replace("†", r"\dag{}").replace("‡", r"\ddag{}").replace("°", r"\textdegree{}")
        tmp.write_text(text, encoding="utf-8")
    return paths


def published(
    dataset: str,
    measured: dict[str, dict] | None = None,
    captioner: str = "",
    protocol: str = "rows",
) -> pd.DataFrame:
    """Published results on the test split of a dataset as their sources print them, best first,
    with results measured here among them: ``method, year, kind, …, mR, source`` (percent).

    ``kind`` is "supervised" (trained on the dataset's training split), "zero-shot",
    "training-free" or "measured here". The rows stand in ``data/published_results.csv``.

    Args:
        measured: method -> metrics, of the test split; captioner: whose captions they are of.
        protocol: "rows" (each caption is a query) or "merged" (equal captions are one text).
    """
    table = pd.read_csv(PROJECT_ROOT / "data" / "published_results.csv", dtype={"year": "Int64"})
    wanted = (table["dataset"] == dataset) & (table["protocol"] == protocol)
    table = table[wanted].drop(columns=["dataset", "protocol"])
    if table.empty:
        return table
    own = []
    for name, result in (measured or {}).items():
        recalls = {f"{d}_R@{k}": result[d][f"R@{k}"] for d in TITLES for k in KS}
        name = f"{captioner}, {name}".removeprefix(", ")
        own.append({"method": name, "kind": "measured here", **recalls, "mR": result["mR"]})
    table = pd.DataFrame([*table.to_dict("records"), *own], columns=table.columns)
    return table.sort_values("mR", ascending=False, ignore_index=True).round(2)
