"""Annotations and image files, joined: a table of images and one of captions come out."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from trsllava_utils.annotations import Annotation, clean_text
from trsllava_utils.files import first_few
from trsllava_utils.folder import match_names, plain_name, stem_of
from trsllava_utils.records import CORPUS_COLUMNS


def tables(
    records: list[Annotation] | None, files: dict[str, Path], problems: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join annotations and files: images ``image_id, filename, split, path`` and the captions."""
    plain = records is None  # then every file is an image without captions
    records = [Annotation(file, "", []) for file in files] if plain else records
    table = pd.DataFrame(records, columns=["filename", "split", "captions"])
    table["filename"] = table["filename"].map(plain_name)
    again = table.loc[table["filename"].duplicated(), "filename"]
    if len(again):
        joined = {"split": "first", "captions": "sum"}
        table = table.groupby("filename", sort=False).agg(joined).reset_index()
    splits = table.set_index("filename")["split"]
    for name in again:
        problems.append(
            f"{name} is annotated more than once; captions joined, split {splits[name]!r} kept"
        )
    # An image is named by its stem; in a plain folder by its path, for stems repeat there.
    names = table["filename"].map(PurePosixPath)
    stems = names.map(lambda name: str(name.with_suffix("")) if plain else stem_of(name))
    taken = stems.duplicated()
    for name, stem in zip(table["filename"][taken], stems[taken], strict=True):
        problems.append(f"{name}: another image has the stem {stem!r}; its id is its full name")
    ids = stems.where(~taken, table["filename"])
    table["image_id"] = ids.where(~ids.duplicated(keep=False), table["filename"])
    matched, ambiguous = match_names(table["filename"], files)
    if ambiguous:
        problems.append(
            f"{len(ambiguous):,} annotated images may be any of several files, or share one, and "
            f"have none: {first_few(ambiguous)}; write the folders into their names"
        )
    table["path"] = [str(files[matched[n]]) if n in matched else "" for n in table["filename"]]
    table["window"] = None
    return table.drop(columns="captions"), corpus_of(table, [] if plain else problems)


def corpus_of(table: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """The captions as a text corpus, without empty ones."""
    corpus = table[["image_id", "captions"]].explode("captions").dropna(subset="captions")
    texts = corpus["captions"].map(clean_text).astype(str)
    corpus = corpus.assign(text=texts, source="reference", field="caption")[texts != ""]
    corpus["variant"] = corpus.groupby("image_id").cumcount().astype(int)
    repeated = "captions repeat another caption of the same image (kept: the protocol counts them)"
    counts = {
        "empty captions were left out": (texts == "").sum(),
        repeated: corpus.duplicated(["image_id", "text"]).sum(),
        "images have no caption": len(table) - corpus["image_id"].nunique(),
    }
    problems += [f"{n:,} {what}" for what, n in counts.items() if n]
    return corpus[CORPUS_COLUMNS]
