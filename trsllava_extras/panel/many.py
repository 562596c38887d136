"""Many queries at once: a file of queries goes in, one table of hits comes out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from trsllava_extras.layouts import read_csv
from trsllava_extras.panel.index import Index
from trsllava_utils.files import InputError, MissingError, read_text, shown, user_path


def read_queries(path: str | Path) -> pd.Series:
    """Queries by their ids: of a CSV file the columns ``query`` and, if there is one, ``id``; of
    any other file one a line, by the number of the line.

    Raises:
        InputError: there are none, or an id comes twice.
        MissingError: no such file.
    """
    file = user_path(path)
    if not file.is_file():
        raise MissingError(f"{path} not found; give a file of queries, one a line, or CSV")
    if file.suffix.lower() == ".csv":
        table = read_csv(file, dtype=str, keep_default_na=False)
        if "query" not in table:
            raise InputError(f"{shown(file)}: no column query, only {', '.join(table)}")
        ids = table["id"] if "id" in table else pd.Series(range(1, len(table) + 1)).astype(str)
        queries = pd.Series(table["query"].str.strip().to_numpy(), ids.to_numpy())
    else:
        lines = [line.strip() for line in read_text(file).splitlines()]
        queries = pd.Series(lines, [str(n) for n in range(1, len(lines) + 1)], dtype=object)
    queries = queries[queries != ""]
    if queries.empty or queries.index.has_duplicates:
        twice = queries.index[queries.index.duplicated()]
        told = f"the id {twice[0]!r} comes twice" if len(twice) else "there is no query"
        raise InputError(f"{shown(file)}: {told}")
    return queries.rename_axis("id")


def find_many(
    index: Index, queries: pd.Series, k: int = 8, fits: bool = False, **only: str
) -> pd.DataFrame:
    """The hits of all queries, each as :meth:`Index.find` gives them, behind ``id`` and ``query``.

    Args:
        index: what is searched.
        queries: by their ids, see :func:`read_queries`.
        k: images for each query.
        fits: leave out what is below the yardstick, see :meth:`Found.fitting`.
        only: filters.

    Raises:
        InputError: a query that cannot be understood; it is named.
    """
    index.sources.embed_queries(list(queries))  # by one call of the encoder
    tables = []
    for name, query in queries.items():
        try:
            found = index.find(query, k, **only)
            found = found.fitting() if fits else found
        except InputError as error:
            raise InputError(f"query {name} ({query[:60]!r}): {error}") from None
        table = found.table
        table.insert(0, "query", query)
        table.insert(0, "id", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
