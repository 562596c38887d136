"""On a real Dask cluster of processes: the same results as here, whatever happens to workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

from tests.conftest import captions, questions
from trsllava_extras import cluster
from trsllava_extras.cluster import connect, spread, threads
from trsllava_extras.gallery.gallery import Gallery
from trsllava_utils.files import InputError
from trsllava_utils.vectors import embed_corpus

distributed = pytest.importorskip("distributed")
HERE = "local[2]"


def twice(piece: int, shared: int) -> int:
    return 2 * piece + shared


def die_once(piece: int, folder: str) -> int:
    """The first worker that takes piece 3 is killed by the system, as for memory."""
    mark = Path(folder) / "died"
    if piece == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def die(piece: int) -> int:
    if piece == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def refuse(piece: int) -> None:
    raise InputError(f"nothing to be done with piece {piece}")


def test_spread():
    assert sorted(spread(twice, range(5), "", (1,))) == sorted(spread(twice, range(5), HERE, (1,)))
    assert connect(HERE) is connect(HERE)
    with pytest.raises(InputError, match="nothing to be done with piece 0"):
        list(spread(refuse, [0], HERE))


def test_workers_have_a_thread_each_and_this_process_keeps_its_own():
    before = threads()
    assert set(connect(HERE).run(threads).values()) == {1}
    assert threads() == before == (cluster._OMP_NUM_THREADS or joblib.cpu_count())


@pytest.mark.parametrize("name", ["local", "local[0]", "8786", "http://host:1", "local[2]; x"])
def test_unknown_schedulers_are_refused(name):
    with pytest.raises(InputError, match="give local"):
        connect(name)


def test_a_cluster_that_is_not_there(monkeypatch):
    monkeypatch.setattr("trsllava_extras.cluster.PATIENCE", 0.5)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        connect("tcp://127.0.0.1:9")


def test_a_worker_that_dies(tmp_path):
    assert sorted(spread(die_once, range(8), HERE, (str(tmp_path),))) == [(i, i) for i in range(8)]
    assert (tmp_path / "died").exists()


def test_a_worker_that_keeps_dying():
    with pytest.raises(
        InputError, match=r"piece \d of 3, or .* killed its worker 4 times .*memory"
    ):
        list(spread(die, range(3), HERE))
    assert sorted(spread(twice, range(3), HERE, (0,))) == [(0, 0), (1, 2), (2, 4)]  # recovered


def test_gallery_on_workers(static_encoder, tmp_path):
    corpus = captions(400)
    here = Gallery(f"{tmp_path}/here", static_encoder)
    there = Gallery(f"{tmp_path}/there", static_encoder, scheduler=HERE)
    for gallery in (here, there):
        gallery.add(corpus, texts_each=100)
        assert gallery.embed() > 8
    for name in here.store.files:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    queries = questions(corpus, static_encoder)
    for mine, theirs in zip(here.rank(queries), there.rank(queries), strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)


def test_embedding_on_workers(static_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("trsllava_utils.vectors.CHUNK", 50)
    corpus = captions(100)
    mine = embed_corpus(corpus, static_encoder, tmp_path / "a")
    theirs = embed_corpus(corpus, static_encoder, tmp_path / "b", scheduler=HERE)
    assert np.array_equal(mine.vectors, theirs.vectors) and theirs.encoded == mine.encoded > 100
