"""Embedding the captions of a dataset: plain ``SentenceTransformer.encode`` of every caption
against this project in each precision, which encodes equal captions once; then what 1 % more
captions cost, and nothing new at all. Last, for each captioner named (notebook 01 has to have
described them): mR on the validation images with the vectors of each side, and how many queries
keep their rank.

    python benchmarks/embedding_throughput.py [DATASET [DATA_DIR [CAPTIONER …]]]   (default: sample)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from trsllava_extras.cluster import threads
from trsllava_utils import recall as evaluation
from trsllava_utils.captions import load_captions
from trsllava_utils.data import Dataset, load_dataset
from trsllava_utils.encoders import Encoder, load_encoder
from trsllava_utils.parameters import MINILM
from trsllava_utils.ranking import retrieve
from trsllava_utils.vectors import Embeddings, embed_corpus
from trsllava_utils.weights import computes_bfloat16

PIECE = 2_000  # distinct captions of the side-by-side rounds
ROUNDS = 5


def timed(function, *arguments, **options) -> tuple:
    start = time.perf_counter()
    out = function(*arguments, **options)
    return out, time.perf_counter() - start


def ranks_of(dataset: Dataset, captioner: str, encode: Callable) -> pd.DataFrame:
    """Ranks by the rule ``max`` with vectors from ``encode(texts)``."""
    corpora = dataset.captions, load_captions(dataset, captioner).corpus("joined")
    reference, joined = (
        Embeddings(rows.reset_index(drop=True), encode(rows["text"].tolist()), Path(), 0)
        for rows in corpora
    )
    sources = SimpleNamespace(
        embed_reference=lambda: reference,
        embed_captions=lambda texts: joined,
        query_captioner="",
        scheduler="",
    )
    images = sorted(set(joined.rows["image_id"]) & set(reference.rows["image_id"]))
    return retrieve("max", sources, images=images)[0]


def side_by_side(plain: Callable, encoder: Encoder, texts: list[str]) -> list[float]:
    """Time of plain ``encode`` over ours on the same distinct texts, turn and turn about."""
    ratios = []
    for _ in range(ROUNDS):
        _, slow = timed(plain, texts)
        _, fast = timed(encoder.encode, texts, "document")
        ratios.append(slow / fast)
    return ratios


def growing(encoder: Encoder, corpus: pd.DataFrame) -> tuple[list[dict], np.ndarray]:
    """99 % of a corpus embedded, then 1 % more, then the same again."""
    with tempfile.TemporaryDirectory() as folder:

        def embed(rows: pd.DataFrame) -> Embeddings:
            return embed_corpus(rows, encoder, Path(folder), "reference")

        first, cold = timed(embed, corpus[: -(len(corpus) // 100)])
        more, added = timed(embed, corpus)
        _, again = timed(embed, corpus)
    rows = [("99 % of the captions", first.encoded, cold), ("… then 1 % more", more.encoded, added)]
    rows.append(("… then the same again", 0, again))
    names = ("what", "texts encoded", "s")
    return [dict(zip(names, row, strict=True)) for row in rows], more.vectors


def main(dataset: str = "sample", data_dir: str = "", *captioners: str) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    corpus = load_dataset(dataset, data_dir, "all").captions
    texts = corpus["text"].tolist()
    distinct = list(dict.fromkeys(texts))
    piece = distinct[:: max(1, len(distinct) // PIECE)][:PIECE]
    encoders = {p: load_encoder(MINILM, p) for p in ("float32", "bfloat16")}

    def plain(texts: list[str]) -> np.ndarray:
        model = encoders["float32"]._model
        return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    plain(texts[:64])  # warm-up
    exact, seconds = timed(plain, texts)
    table = [{"side": "plain", "what": "every caption", "texts encoded": len(texts), "s": seconds}]
    result = {"dataset": dataset, "captions": len(texts), "distinct": len(distinct)}
    result |= {"threads": threads(), "bfloat16 units": computes_bfloat16()}
    for precision, encoder in encoders.items():
        rounds = side_by_side(plain, encoder, piece)
        rows, vectors = growing(encoder, corpus)
        table += [{"side": precision, **row} for row in rows]
        result[precision] = {
            "same texts, plain / this project": float(np.median(rounds)),
            "rounds": rounds,
            "least cosine to plain": float((exact * vectors).sum(axis=1).min()),
        }
    val = load_dataset(dataset, data_dir, "val") if captioners else None
    for captioner in captioners:
        ranks = {"plain": ranks_of(val, captioner, plain)}
        for precision, encoder in encoders.items():
            ranks[precision] = ranks_of(val, captioner, partial(encoder.encode, role="document"))
        places = {side: evaluation.expected_rank(table) for side, table in ranks.items()}
        kept = {side: 100 * float(np.mean(p == places["plain"])) for side, p in places.items()}
        result[captioner] = {
            side: {"mR": evaluation.metrics(ranks[side])["mR"], "same rank, % of queries": share}
            for side, share in kept.items()
        }
    table = pd.DataFrame(table).assign(**{"plain / this": [seconds / row["s"] for row in table]})
    print(table.round(2).to_string(index=False))
    print(json.dumps(result, indent=2))
    result["table"] = table.to_dict("records")
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
