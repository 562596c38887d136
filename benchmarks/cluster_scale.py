"""A gallery of a million captions in partitions: on this machine, on 1 to 4 worker processes of a
Dask cluster, and while a worker is killed.

Captions are made up of a few words, and the encoder is a random vector a word (a real
sentence-transformers model, made here): what is measured is the way of the data, not a model. A
tenth, a third and all of the captions are embedded and searched with 2,000 queries for ranks and
the first 100 images. Ids and ranks must be the same everywhere, or the script stops.

    python benchmarks/cluster_scale.py [IMAGES]        (default 200,000, five captions each)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import torch
from matplotlib.ticker import LogLocator
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from trsllava_extras.cluster import connect
from trsllava_extras.gallery.gallery import Gallery, open_part
from trsllava_utils.encoders import kept_encoder, load_encoder
from trsllava_utils.parameters import MINILM
from trsllava_utils.recall import KS, recall_at_k
from trsllava_utils.vectors import Embeddings

SCHEDULERS = ("", "local[1]", "local[2]", "local[3]", "local[4]")
EACH, QUERIES, K = 5, 2_000, 100
PALETTE, MARKERS = ("C0", "C1", "C2", "C3", "C4", "C5"), "osD^vP"
NOUNS = "river port runway forest field road house pool boat lake bridge church beach tank crop"
ADJECTIVES = "green blue large small long dark bright round narrow wide red white grey old new"


def make(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Captions of n images, and queries for some of them: ``image_id, variant, …, text``."""
    rng = np.random.default_rng(0)
    nouns, adjectives = np.array(NOUNS.split()), np.array(ADJECTIVES.split())
    first = rng.choice(nouns, n)  # all captions of an image begin with the same thing
    words = rng.choice(nouns, (n, EACH, 3))
    kinds = rng.choice(adjectives, (n, EACH, 3))
    texts = [
        f"{k[0]} {first[i]} near a {k[1]} {w[0]}, {k[2]} {w[1]} and a {w[2]}, place {i % 997}"
        for i in range(n)
        for w, k in zip(words[i], kinds[i], strict=True)
    ]
    ids = np.array([f"image{i:07d}" for i in range(n)], dtype=object)
    columns = {"source": "made", "variant": np.tile(np.arange(EACH), n), "field": "full"}
    corpus = pd.DataFrame({"image_id": np.repeat(ids, EACH), **columns, "text": texts})
    own = rng.integers(0, n, QUERIES)
    asked = [f"a {first[i]}, a {words[i, 0, 0]} and a {words[i, 0, 1]} at {i % 997}" for i in own]
    return corpus, pd.DataFrame({"image_id": ids[own], "variant": 0, "text": asked})


def make_encoder(folder: str) -> str:
    torch.manual_seed(0)
    tokenizer = load_encoder(MINILM)._model.tokenizer.backend_tokenizer
    words = StaticEmbedding(tokenizer, embedding_dim=384)
    SentenceTransformer(modules=[words]).save_pretrained(folder)
    return folder


def timed(function, *arguments) -> tuple:
    start = time.perf_counter()
    out = function(*arguments)
    return out, time.perf_counter() - start


def same(one: tuple, other: tuple) -> None:
    for mine, theirs in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)


def forget_vectors(url: str) -> None:
    open_part.cache_clear()
    for file in Path(url).glob("*.safetensors"):
        file.unlink()


def kill_one(scheduler: str, after: float) -> None:
    """Kill a worker process, as the system does when memory runs out, some seconds from now."""
    pids = list(connect(scheduler).run(os.getpid).values())
    threading.Timer(after, os.kill, (pids[0], signal.SIGKILL)).start()


def measure(url: str, encoder: str, n_texts: int, queries: Embeddings) -> list[dict]:
    rows, reference = [], None
    for scheduler in SCHEDULERS:
        forget_vectors(url)
        gallery = Gallery(url, encoder, scheduler=scheduler)
        if scheduler:  # workers start and import before the clock does
            connect(scheduler).run(kept_encoder, encoder)
        _, embedding = timed(gallery.embed)
        result, ranking = timed(gallery.rank, queries, K)
        reference = reference or result
        same(reference, result)
        row = {"captions": n_texts, "where": scheduler or "no cluster", "embed s": embedding}
        rows.append(row | {"rank s": ranking, "killed": False})
        print(rows[-1], flush=True)
        if scheduler == "local[2]":
            forget_vectors(url)
            kill_one(scheduler, embedding / 2)
            _, embedding = timed(gallery.embed)
            kill_one(scheduler, ranking / 2)
            result, ranking = timed(gallery.rank, queries, K)
            same(reference, result)
            rows.append({**row, "embed s": embedding, "rank s": ranking, "killed": True})
            print(rows[-1], flush=True)
        if scheduler:
            client = connect(scheduler)
            client.cluster.close()
            client.close()
    return rows


def one_query(gallery: Gallery) -> dict:
    """Opening, and one query after the other, vectors mapped into memory."""
    open_part.cache_clear()
    _, opening = timed(lambda: [open_part(gallery, name) for name in gallery.store.names])
    _, first = timed(gallery.find, "a river near a bridge")
    times = [timed(gallery.find, f"a {word} near a boat")[1] for word in NOUNS.split()]
    return {"open s": opening, "first query s": first, "median query s": float(np.median(times))}


def storage(url: str, encoder: str, queries: Embeddings) -> list[dict]:
    """What float16 saves, and what it changes."""
    rows, lists = [], []
    for dtype in ("float32", "float16"):
        gallery = Gallery(url, encoder, dtype)
        gallery.embed()
        (ranks, top), seconds = timed(gallery.rank, queries, K)
        lists.append(top["item_id"].to_numpy().reshape(-1, K))
        size = sum(file.stat().st_size for file in Path(url).glob(f"*.{dtype}.safetensors"))
        rows.append({"dtype": dtype, "MB": size / 1e6, "rank s": seconds, **one_query(gallery)})
        rows[-1] |= {f"R@{k}": recall_at_k(ranks, k) for k in KS}
    common = [len(set(a) & set(b)) / K for a, b in zip(*lists, strict=True)]
    return [
        {**row, "of float32's 100 (%)": 100 * c}
        for row, c in zip(rows, (1, np.mean(common)), strict=True)
    ]


def draw(table: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    for ax, column in zip(axes, ("embed s", "rank s"), strict=True):
        for (where, rows), colour, marker in zip(
            table[~table["killed"]].groupby("where", sort=False),
            PALETTE,
            MARKERS,
            strict=False,
        ):
            ax.plot(rows["captions"], rows[column], color=colour, marker=marker, label=where)
        killed = table[table["killed"]]
        ax.plot(killed["captions"], killed[column], "kx", ms=9, label="local[2], one killed")
        ax.set(xscale="log", yscale="log", xlabel="captions", ylabel="seconds")
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
        ax.grid(alpha=0.3)
    axes[0].set_title("embedding (a random vector a word)")
    axes[1].set_title(f"ranking {QUERIES:,} queries, first {K}")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"The same gallery here and on worker processes, {os.cpu_count()} cores")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main(n_images: int) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = make_encoder(f"{folder}/encoder")
        for n in (n_images // 10, n_images // 3, n_images):
            corpus, asked = make(n)
            url = f"{folder}/{n}"
            _, adding = timed(Gallery(url, encoder).add, corpus)
            print(f"{len(corpus):,} captions written in {adding:.1f} s", flush=True)
            vectors = load_encoder(encoder).encode(asked["text"].tolist(), "query")
            queries = Embeddings(asked, vectors, Path(), 0)
            rows += measure(url, encoder, len(corpus), queries)
        kept = storage(url, encoder, queries)
    memory = psutil.virtual_memory().total / 1e9
    result = {"cores": os.cpu_count(), "memory GB": memory, "table": rows, "storage": kept}
    here = Path(__file__)
    here.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(pd.DataFrame(rows).round(1).to_string(index=False))
    print(pd.DataFrame(kept).round(3).to_string(index=False))
    draw(pd.DataFrame(rows), here.with_suffix(".png"))


if __name__ == "__main__":  # workers import this file too
    main(int(sys.argv[1]) if sys.argv[1:] else 200_000)
