"""Evaluation: ranks go in, recall at K, median rank and mean recall come out.

A tie counts as its *expected* value: with the tied items put in random order, the probability that
a relevant one is among the first K. So equal captions give neither wins nor losses by the order of
a file, and results do not depend on it. All values are percentages unless the name says otherwise.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import gammaln

from trsllava_utils.artefacts import (
    PROJECT_ROOT,
    MissingError,
    atomic_path,
    file_sha256,
    read_json,
    slug,
    versions,
    write_json,
)
from trsllava_utils.datasets.dataset import Dataset

KS = (1, 5, 10)
VERSIONS = ("trsllava-utils", "sentence-transformers", "transformers", "torch", "numpy")
TITLES = {"t2i": "text-to-image", "i2t": "image-to-text"}


def miss_probability(n_items: np.ndarray, n_relevant: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Probability that ``drawn`` items out of ``n_items``, without replacement, hold none of
    ``n_relevant``.

    Hypergeometric: :math:`\\binom{n-r}{d} / \\binom{n}{d}`. Arrays broadcast; the result is
        float64 in [0, 1].
    """
    n, r, d = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (n_items, n_relevant, drawn))
    )
    d = np.clip(d, 0, n)
    possible = d <= n - r
    safe = np.where(possible, d, 0)
    log = gammaln(n - r + 1) - gammaln(n - r - safe + 1) - gammaln(n + 1) + gammaln(n - safe + 1)
    return np.where(possible, np.exp(log), 0.0)


def hit_probability(ranks: pd.DataFrame, k: int) -> np.ndarray:
    """Per query, the expected value of "a relevant item is in the top ``k``", ties in random order.

    ``n_greater`` items come first; the remaining ``k - n_greater`` places go to the ``n_tied``
    items, of which ``n_relevant_tied`` are relevant.

    Returns:
        ``(n_queries,) float64`` in [0, 1].
    """
    places = k - ranks["n_greater"].to_numpy()
    return 1.0 - miss_probability(ranks["n_tied"], ranks["n_relevant_tied"], places)


def recall_at_k(ranks: pd.DataFrame, k: int) -> float:
    """R@k: the share of queries, in percent, with a relevant item among the first ``k``."""
    return float(100 * hit_probability(ranks, k).mean())


def expected_rank(ranks: pd.DataFrame) -> np.ndarray:
    """Per query, the expected rank (1 = best) of the best relevant item: ``n_greater + (t + 1) /
    (r + 1)``."""
    return (ranks["n_greater"] + (ranks["n_tied"] + 1) / (ranks["n_relevant_tied"] + 1)).to_numpy(
        np.float64
    )


def metrics(ranks: pd.DataFrame) -> dict:
    """``{"t2i": {"R@1", "R@5", "R@10", "MedR"}, "i2t": {...}, "mR"}``; mR is the mean of the six
    recalls."""
    out: dict = {}
    for direction, rows in ranks.groupby("direction", sort=False):
        out[direction] = {f"R@{k}": recall_at_k(rows, k) for k in KS}
        out[direction]["MedR"] = float(np.median(expected_rank(rows)))
    out["mR"] = mean_recall(out)
    return out


def mean_recall(result: dict) -> float:
    """mR: the mean of R@1, R@5 and R@10 over both directions."""
    return float(np.mean([result[d][f"R@{k}"] for d in ("t2i", "i2t") for k in KS]))


def chance(ranks: pd.DataFrame) -> dict:
    """What a random order would reach, exactly, on the same queries and gallery."""
    level = ranks.assign(n_greater=0, n_tied=ranks["n_items"], n_relevant_tied=ranks["n_relevant"])
    return metrics(level)


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


def recall_curve(ranks: pd.DataFrame, ks: np.ndarray) -> pd.DataFrame:
    """R@k for every k in ``ks``: columns ``k, t2i, i2t`` (percent)."""
    parts = {d: rows for d, rows in ranks.groupby("direction")}
    return pd.DataFrame(
        {"k": ks, **{d: [recall_at_k(parts[d], int(k)) for k in ks] for d in ("t2i", "i2t")}}
    )


def require_human_captions(dataset: Dataset) -> None:
    """Stop with a sentence where there is nothing to evaluate against.

    Raises:
        MissingError: the dataset has no human captions.
    """
    if dataset.captions.empty:
        raise MissingError(
            f"{dataset.title} ({dataset.split}) has no human captions, so recall cannot be "
            "measured. Put a captions.jsonl with "
            'lines {"image": "NAME.tif", "caption": "…"} into its folder, or stop after '
            "03_retrieval (--to 03)."
        )


def write_results(path: Path, methods: dict[str, dict], ranks: pd.DataFrame, **about) -> dict:
    """Write the results JSON (percentages) and return it; ``about`` is dataset, split, captioner,
    encoder, reference (the method that the others are compared with), compared (differences to
    it), parameters (as the notebook got them), left_out."""
    t2i = ranks[ranks["direction"] == "t2i"]
    result = {
        **about,
        "n_images": int(t2i["n_items"].iloc[0]),
        "n_captions": len(t2i),
        "methods": methods,
        "chance": chance(ranks),
        "made": date.today().isoformat(),
        "versions": versions(*VERSIONS),
    }
    write_json(path, result)
    return result


def claim_figures(path: Path, dataset: Dataset) -> None:
    """Note in the results JSON which files in the figures folder were drawn from these results, so
    that a report shows none of another run."""
    figures = {p.name: file_sha256(p) for p in sorted(dataset.figures.glob("04_*.png"))}
    write_json(path, {**read_json(path), "figures": figures})


def results_path(derived: Path, split: str, captioner: str, encoder: str) -> Path:
    """Where the results of one setting are kept."""
    return derived / "results" / f"{split}.{slug(captioner)}.{slug(encoder)}.json"


def summary(data_dir: Path) -> pd.DataFrame:
    """All results below a data folder in one table: a row for each dataset, split, captioner,
    encoder and method, chance included (percent)."""
    tables = []
    for path in sorted(data_dir.glob("*/derived/results/*.json")):
        result = read_json(path)
        if not isinstance(result, dict) or "methods" not in result:
            continue  # written by an earlier version, or not by us
        table = recall_table({**result["methods"], "chance": result["chance"]})
        setting = {name: result[name] for name in ("dataset", "split", "captioner", "encoder")}
        setting["images"] = result["n_images"]
        names = pd.DataFrame({**setting, "method": table.index})
        table.index = pd.MultiIndex.from_frame(names)
        tables.append(table)
    return pd.concat(tables) if tables else pd.DataFrame()


def export(table: pd.DataFrame, path: Path) -> list[Path]:
    """Write a table as ``path.csv`` and ``path.tex`` (needs LaTeX's booktabs and multirow)."""
    flat = table.copy()
    flat.columns = [" ".join(filter(None, c)) if isinstance(c, tuple) else c for c in flat.columns]
    paths = [path.with_name(path.name + suffix) for suffix in (".csv", ".tex")]
    with atomic_path(paths[0]) as tmp:
        flat.to_csv(tmp)
    with atomic_path(paths[1]) as tmp:
        # † and ‡ as commands: pdfLaTeX knows them everywhere
        latex = table.style.format(precision=1, na_rep="–", escape="latex")
        latex = latex.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
        text = latex.to_latex(hrules=True, multirow_align="t")
        text = text.replace("†", r"\dag{}").replace("‡", r"\ddag{}")
        tmp.write_text(text, encoding="utf-8")
    return paths


def published(dataset: str, measured: dict[str, dict] | None = None) -> pd.DataFrame:
    """Published results on the test split of a dataset as their sources print them, best first,
    with results measured here among them: ``method, year, kind, …, mR, source`` (percent).

    ``kind`` is "supervised" (trained on the dataset's training split), "zero-shot",
    "training-free" or "measured here". The rows stand in ``data/published_results.csv``.

    Args:
        measured: method -> metrics, of the test split.
    """
    table = pd.read_csv(PROJECT_ROOT / "data" / "published_results.csv", dtype={"year": "Int64"})
    table = table[table["dataset"] == dataset].drop(columns="dataset")
    if table.empty:
        return table
    own = [
        {
            "method": name,
            "kind": "measured here",
            **{f"{d}_R@{k}": result[d][f"R@{k}"] for d in TITLES for k in KS},
            "mR": result["mR"],
        }
        for name, result in (measured or {}).items()
    ]
    table = pd.DataFrame([*table.to_dict("records"), *own], columns=table.columns)
    return table.sort_values("mR", ascending=False, ignore_index=True).round(2)
