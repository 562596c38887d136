"""Embedding the human captions of a dataset: plain ``SentenceTransformer.encode`` of every caption
against this project, which encodes equal captions once, in batches of equal length, a thread a
batch, in bfloat16 where the processor computes it; then what 1 % more captions cost, and nothing
new at all. Last, mR on the validation images with the vectors of either side, for each captioner
named (notebook 01 has to have described them).

    python benchmarks/embedding_throughput.py [DATASET [DATA_DIR [CAPTIONER …]]]   (default: sample)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from trsllava_utils import evaluation
from trsllava_utils.captioning import load_captions
from trsllava_utils.cluster import threads
from trsllava_utils.datasets import Dataset, load_dataset
from trsllava_utils.embedding.encoders import MINILM, computes_bfloat16, load_encoder
from trsllava_utils.embedding.vectors import Embeddings, embed_corpus
from trsllava_utils.retrieval.ranking import retrieve

PIECE = 2_000  # distinct captions of the side-by-side rounds
ROUNDS = 5


def timed(function, *arguments, **options) -> tuple:
    start = time.perf_counter()
    out = function(*arguments, **options)
    return out, time.perf_counter() - start


def mean_recall(dataset: Dataset, captioner: str, encode: Callable) -> float:
    """mR of the rule ``max`` with vectors from ``encode(texts)``, in percent."""
    captions = load_captions(dataset, captioner)
    human, joined = (
        Embeddings(rows.reset_index(drop=True), encode(rows["text"].tolist()), Path(), 0)
        for rows in (dataset.captions, captions.corpus("joined"))
    )
    images = sorted(set(joined.rows["image_id"]) & set(human.rows["image_id"]))
    sources = SimpleNamespace(human=human, joined=joined, relevance=None, scheduler="")
    return evaluation.mean_recall(evaluation.metrics(retrieve("max", sources, images=images)[0]))


def main(dataset: str = "sample", data_dir: str = "", *captioners: str) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    corpus = load_dataset(dataset, data_dir, "all").captions
    texts = corpus["text"].tolist()
    distinct = list(dict.fromkeys(texts))
    encoder = load_encoder(MINILM)
    plain = encoder._model.encode
    options = {"normalize_embeddings": True, "show_progress_bar": False}
    plain(texts[:64], **options)  # warm-up

    # the same distinct captions, turn and turn about: what batches and threads give
    piece = distinct[:: max(1, len(distinct) // PIECE)][:PIECE]
    ratios = []
    for _ in range(ROUNDS):
        _, slow = timed(plain, piece, **options)
        _, fast = timed(encoder.encode, piece, "document")
        ratios.append(slow / fast)

    with tempfile.TemporaryDirectory() as folder:

        def project(rows: pd.DataFrame) -> Embeddings:
            return embed_corpus(rows, encoder, Path(folder), "human")

        old = corpus[: -(len(corpus) // 100)]
        everything, all_plain = timed(plain, texts, **options)
        first, cold = timed(project, old)
        more, added = timed(project, corpus)
        _, again = timed(project, corpus)
    least = float((everything * more.vectors).sum(axis=1).min())
    rows = [
        {"what": "plain encode, every caption", "texts encoded": len(texts), "s": all_plain},
        {"what": "this project, 99 % of them", "texts encoded": first.encoded, "s": cold},
        {"what": "… then 1 % more", "texts encoded": more.encoded, "s": added},
        {"what": "… then the same again", "texts encoded": 0, "s": again},
    ]
    table = pd.DataFrame(rows).assign(**{"plain / this": [all_plain / row["s"] for row in rows]})
    result = {
        "dataset": dataset,
        "captions": len(texts),
        "distinct": len(distinct),
        "threads": threads(),
        "bfloat16": computes_bfloat16(torch.device("cpu")),
        "same texts, plain / this project": float(np.median(ratios)),
        "rounds": ratios,
        "least cosine to plain": least,
        "table": table.to_dict("records"),
    }
    val = load_dataset(dataset, data_dir, "val") if captioners else None
    for captioner in captioners:
        result["mR plain, this project: " + captioner] = [
            mean_recall(val, captioner, lambda t: plain(t, **options)),
            mean_recall(val, captioner, lambda t: encoder.encode(t, "document")),
        ]
    print(table.round(2).to_string(index=False))
    print(json.dumps({k: v for k, v in result.items() if k != "table"}, indent=2))
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
