"""Exact text-to-image retrieval as the gallery grows, side by side on the same vectors.

5,465 queries (RSICD's test captions are as many) against galleries of 5,000 to 1,000,000 captions,
five an image, 384 dimensions. Every side is asked for the rank of each query's own image, its first
100 images, and R@1/5/10:

* *matrix product*: bare, in blocks, with torch; nothing is kept: the limit of an exact scan;
* *this project*: ``trsllava_utils.ranking``;
* *per-query loop*: as the paper's code does: dot product, scatter-max to images, full argsort;
* *semantic_search*: of sentence-transformers, then grouped by image; no ranks beyond its list;
* *faiss*: ``IndexFlatIP``, likewise (left out where it is not installed: pip install faiss-cpu).

The loop, where it would take an hour, is timed on fewer queries and scaled up: column ``scaled``.
The product, this project and faiss, which are close to one another, take turns three times, and the
median counts. Memory is what the process grew by, at most, while a side ran.

    python benchmarks/retrieval_scale.py [CAPTIONS …]
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import platform
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from sentence_transformers.util import semantic_search

from trsllava_extras.methods import Method, Scorer
from trsllava_utils import recall as evaluation
from trsllava_utils.ranking import NamedSide, rank_queries
from trsllava_utils.scoring import Side, one_each

ROUNDS = 3
PALETTE, MARKERS = ("C0", "C1", "C2", "C3", "C4", "C5"), "osD^vP"
SIZES = (5_000, 50_000, 500_000, 1_000_000)
QUERIES, EACH, DIM, K = 5_465, 5, 384, 100
LOOP_PRODUCTS = 200_000_000  # of the loop, before it is scaled up


def make(n_texts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Captions around a direction for each image; queries near those of some images."""
    rng = np.random.default_rng(0)
    n = n_texts // EACH
    centres = rng.standard_normal((n, DIM), np.float32)
    texts = np.repeat(centres, EACH, axis=0)
    texts += rng.standard_normal(texts.shape, np.float32)
    owner = np.sort(rng.integers(0, n, QUERIES))
    queries = centres[owner] + 3 * rng.standard_normal((QUERIES, DIM), np.float32)
    for x in (texts, queries):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return texts, queries, owner


def matrix_product(texts: np.ndarray, queries: np.ndarray) -> None:
    x, q = torch.from_numpy(texts), torch.from_numpy(queries)
    out = torch.empty(256, len(x))
    for block in q.split(256):
        torch.mm(block, x.T, out=out[: len(block)])


def this_project(texts: np.ndarray, queries: np.ndarray, owner: np.ndarray) -> dict:
    n = len(texts) // EACH
    groups = np.repeat(np.arange(n), EACH)
    images = [str(i) for i in range(n)]
    described = Side(np.full(len(texts), "", dtype=object), groups, texts)
    asked = one_each(np.full(len(queries), "", dtype=object), queries)
    ids = np.arange(len(queries)).astype(str).astype(object)
    left = NamedSide(asked, ids, owner)
    right = NamedSide(described, np.array(images, dtype=object), np.arange(n))
    score = Scorer(Method("max"), described)(asked)
    ranks, top = rank_queries(score, left, right, len(queries), K)
    recalls = {k: evaluation.recall_at_k(ranks, k) for k in evaluation.KS}
    return {"recalls": recalls, "top": top["item_id"].astype(int).to_numpy().reshape(-1, K)}


def per_query_loop(texts: np.ndarray, queries: np.ndarray, owner: np.ndarray) -> dict:
    n = len(texts) // EACH
    x, image = torch.from_numpy(texts), torch.arange(n).repeat_interleave(EACH)
    top, ranks = [], []
    for q, own in zip(torch.from_numpy(queries), owner, strict=True):
        scores = torch.full((n,), -torch.inf).scatter_reduce(0, image, x @ q, "amax")
        order = scores.argsort(descending=True)
        top.append(order[:K].numpy())
        ranks.append(int((order == own).nonzero()) + 1)
    return grouped(np.array(top), np.array(ranks))


def with_semantic_search(texts: np.ndarray, queries: np.ndarray, owner: np.ndarray) -> dict:
    found = semantic_search(torch.from_numpy(queries), torch.from_numpy(texts), top_k=K * EACH)
    return listed([[hit["corpus_id"] for hit in hits] for hits in found], owner)


def with_faiss(texts: np.ndarray, queries: np.ndarray, owner: np.ndarray) -> dict:
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(texts)
    return listed(index.search(queries, K * EACH)[1].tolist(), owner)


def listed(found: list[list[int]], owner: np.ndarray) -> dict:
    """Captions in order -> images in order, each once."""
    images = [list(dict.fromkeys(i // EACH for i in row))[:K] for row in found]
    ranks = [
        row.index(own) + 1 if own in row else K + 1
        for row, own in zip(images, owner.tolist(), strict=True)
    ]
    return grouped(np.array([(row + [-1] * K)[:K] for row in images]), np.array(ranks))


def grouped(top: np.ndarray, ranks: np.ndarray) -> dict:
    return {"recalls": {k: 100 * (ranks <= k).mean() for k in evaluation.KS}, "top": top}


class Memory(threading.Thread):
    """The most that this process grew by since the start, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        gc.collect()
        if platform.system() == "Linux":  # give back what an earlier side left over
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self.most = self._process.memory_info().rss

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss)

    def stop(self) -> float:
        self._done.set()
        return (self.most - self._before) / 1e6


def timed(side, *data) -> tuple[dict | None, float, float]:
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    out = side(*data)
    return out, time.perf_counter() - start, memory.stop()


def measure(n_texts: int) -> list[dict]:
    texts, queries, owner = make(n_texts)
    few = min(QUERIES, max(20, LOOP_PRODUCTS // n_texts))
    sides = {
        "matrix product": (lambda x, q, _: matrix_product(x, q), QUERIES, ROUNDS),
        "this project": (this_project, QUERIES, ROUNDS),
        "per-query loop": (per_query_loop, few, 1),
        "semantic_search": (with_semantic_search, QUERIES, 1),
        "faiss": (with_faiss, QUERIES, ROUNDS),
    }
    if not importlib.util.find_spec("faiss"):
        del sides["faiss"]
    matrix_product(texts[:5000], queries[:512])  # warm-up of the threads
    runs: dict[str, list] = {name: [] for name in sides}
    for turn in range(ROUNDS):
        for name, (side, n, rounds) in sides.items():
            if turn < rounds:
                runs[name].append(timed(side, texts, queries[:n], owner[:n]))
    limit = np.median([seconds for _, seconds, _ in runs["matrix product"]])
    reference = runs["this project"][0][0]["top"]
    rows = []
    for name, (_, n, _) in sides.items():
        seconds = np.median([each[1] for each in runs[name]]) * QUERIES / n
        row = {"captions": n_texts, "x product": seconds / limit, "side": name, "seconds": seconds}
        row |= {"MB": max(each[2] for each in runs[name]), "scaled": n < QUERIES}
        if out := runs[name][0][0]:
            row["same first 100 (%)"] = 100 * float((out["top"] == reference[:n]).mean())
            row["R@1"] = out["recalls"][1]
        rows.append(row)
    return rows


def draw(table: pd.DataFrame, path: Path) -> None:
    """Time and memory against size, log–log; the product as the limit."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8))
    for (side, rows), colour, marker in zip(
        table.groupby("side", sort=False), PALETTE, MARKERS, strict=False
    ):
        style = "--" if side == "matrix product" else "-"
        for ax, column in zip(axes, ("seconds", "MB"), strict=True):
            values = rows[column].clip(lower=1 if column == "MB" else 0)
            ax.plot(rows["captions"], values, style, color=colour, marker=marker, label=side)
    axes[0].set(ylabel=f"seconds for {QUERIES:,} queries")
    axes[1].set(ylabel="memory beside the vectors (MB)")
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="captions in the gallery")
        ax.grid(alpha=0.3)
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle("Exact retrieval as the gallery grows: five captions per image, 384 dimensions")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main(sizes: list[int]) -> None:
    rows = []
    for n_texts in sizes:
        rows += measure(n_texts)
        shown = pd.DataFrame(rows).query("captions == @n_texts").drop(columns="captions")
        print(
            f"\n{n_texts:,} captions, {QUERIES:,} queries\n{shown.round(2).to_string(index=False)}"
        )
    table = pd.DataFrame(rows)
    here = Path(__file__)
    result = {"machine": platform.processor() or platform.machine(), "table": rows}
    here.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    draw(table, here.with_suffix(".png"))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or list(SIZES))
