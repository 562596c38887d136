"""Rankings on disk: :func:`rank_dataset` ranks a split, and keeps the result, so that it is loaded
while what it was made from is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pandas as pd

from trsllava_utils.files import fingerprint, read_once, read_sealed, slug, write_sealed
from trsllava_utils.parameters import check
from trsllava_utils.ranking import retrieve, rule_of
from trsllava_utils.scoring import VERSION
from trsllava_utils.sources import Sources


@dataclass(frozen=True)
class Rankings:
    """The outcome of retrieval in both directions.

    Attributes:
        ranks, top: the two tables of :func:`~.ranking.retrieve`.
        path: the Parquet file of ``ranks``; that of ``top`` lies beside it.
        reused: whether they were on disk and up to date.
        identity: fingerprint of all that they were made from.
    """

    ranks: pd.DataFrame
    top: pd.DataFrame
    path: Path
    reused: bool
    identity: str


def rank_dataset(method: str, sources: Sources, top_k: int = 10) -> Rankings:
    """Rank every query of a split, in both directions (:func:`retrieve`); kept on disk as Parquet,
    and loaded from there while vectors and settings are the same and ``top_k`` results were kept.

    >>> ranks = rank_dataset("max", Sources(load_dataset("sample"), "rsrt")).ranks
    >>> len(ranks)
    630
    """
    check(top_k=top_k)
    rule = rule_of(method)
    stem = f"{sources.setting}.{slug(rule.name)}-{fingerprint(rule.name)[:6]}"
    path = sources.dataset.derived / "rankings" / stem
    inputs = fingerprint([made.identity for made in rule.inputs(sources)], sources.variants)
    made_from = {"inputs": inputs, "method": rule.name, "rules": VERSION}

    files = {name: path.with_name(f"{stem}.{name}.parquet") for name in ("ranks", "top")}
    kept = {name: _stored(file) for name, file in files.items() if file.exists()}
    reused = len(kept) == len(files) and all(
        about.get("made_from") == made_from
        and isinstance(about.get("top_k"), int)
        and about["top_k"] >= top_k
        for about, _ in kept.values()
    )
    if reused:
        tables = {name: table for name, (_, table) in kept.items()}
    else:
        tables = dict(zip(files, retrieve(method, sources, top_k), strict=True))
        for name, file in files.items():
            about = {"made_from": made_from, "top_k": top_k}
            write_sealed(file, [tables[name].to_parquet()], about)
    top = tables["top"][tables["top"]["rank"] <= top_k].reset_index(drop=True)
    return Rankings(tables["ranks"].copy(), top, files["ranks"], reused, fingerprint(made_from))


@read_once
def _stored(path: Path) -> tuple[dict, pd.DataFrame | None]:
    """A table and what it was made from; nothing if it is damaged."""
    about, content = read_sealed(path)
    return about, pd.read_parquet(BytesIO(content)) if about else None
