"""Embedding the human captions of a dataset: plain ``SentenceTransformer.encode`` of every caption
against this project, which encodes equal captions once, in batches of equal length, a thread a
batch; then what 1 % more captions cost, and nothing new at all.

    python benchmarks/embedding_throughput.py [DATASET [DATA_DIR]]     (default: sample)
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from trsllava_utils.cluster import threads
from trsllava_utils.datasets import load_dataset
from trsllava_utils.embedding import Embeddings, embed_corpus
from trsllava_utils.encoders import MINILM, computes_bfloat16, load_encoder

PIECE = 2_000  # distinct captions of the side-by-side rounds
ROUNDS = 5


def timed(function, *arguments, **options) -> tuple:
    start = time.perf_counter()
    out = function(*arguments, **options)
    return out, time.perf_counter() - start


def main(dataset: str, data_dir: str) -> None:
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
        "bfloat16": bool(encoder._half) and computes_bfloat16(torch.device("cpu")),
        "same texts, plain / this project": float(np.median(ratios)),
        "rounds": ratios,
        "least cosine to plain": least,
        "table": table.to_dict("records"),
    }
    print(table.round(2).to_string(index=False))
    print(json.dumps({k: v for k, v in result.items() if k != "table"}, indent=2))
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(*([*sys.argv[1:], "", ""] if sys.argv[1:] else ["sample", ""])[:2])
