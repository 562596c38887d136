"""Galleries in partitions: the same results as in one piece, wherever and however they are cut."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import captions, questions
from trsllava_extras.gallery.gallery import Gallery, Top, open_part
from trsllava_extras.gallery.partitions import ROW_GROUP
from trsllava_extras.methods import Method, Scorer
from trsllava_utils.__main__ import main
from trsllava_utils.encoders import load_encoder
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.ranking import NamedSide, query_ids, rank_queries
from trsllava_utils.recall import recall_at_k
from trsllava_utils.scoring import Side, one_each
from trsllava_utils.vectors import Embeddings


def in_one_piece(corpus: pd.DataFrame, queries: Embeddings, encoder: str, k: int):
    """The same by ``retrieval.py``; the query without an image is left out."""
    vectors = load_encoder(encoder).encode(corpus["text"].tolist(), "document")
    groups, ids = pd.factorize(corpus["image_id"])
    described = Side(corpus["text"].to_numpy(), groups, vectors)
    asked = one_each(queries.rows["text"].to_numpy()[:-1], queries.vectors[:-1])
    owner = pd.Index(ids).get_indexer(queries.rows["image_id"][:-1])
    names = query_ids(queries.rows).to_numpy()[:-1]
    left = NamedSide(asked, names, owner)
    right = NamedSide(described, np.array(ids, dtype=object), np.arange(len(ids)))
    score = Scorer(Method("max"), described)(asked)
    ranks, top = rank_queries(score, left, right, len(names), k)
    for table in (ranks, top):
        table.insert(0, "direction", "t2i")
        table["image_id"] = right.ids[table["image_id"]]
    return ranks, top


@given(texts_each=st.integers(15, 300), k=st.integers(1, 30), seed=st.integers(0, 5))
@settings(max_examples=8, deadline=None)
def test_same_as_in_one_piece(static_encoder, tmp_path_factory, texts_each, k, seed):
    corpus = captions(90, seed)
    gallery = Gallery(str(tmp_path_factory.mktemp("g")), static_encoder)
    gallery.add(corpus, texts_each)
    gallery.embed()
    queries = questions(corpus, static_encoder)
    ranks, top = gallery.rank(queries, k)
    expected_ranks, expected = in_one_piece(corpus, queries, static_encoder, k + 1)
    pd.testing.assert_frame_equal(ranks.iloc[:-1], expected_ranks, check_dtype=False)
    last = ranks.iloc[-1]
    assert (last["n_greater"], last["n_relevant"], last["n_items"]) == (90, 0, 90)
    # neighbours whose scores differ in the last digit only may come in either order
    apart = expected.groupby("query_id", sort=False)["score"].diff().abs().fillna(1) > 1e-6
    alone = (apart & apart.shift(-1, fill_value=True))[expected["rank"] <= k].to_numpy()
    expected = expected[expected["rank"] <= k].reset_index(drop=True)
    top = top[: len(expected)]
    assert np.allclose(top["score"], expected["score"], atol=1e-6) and alone.mean() > 0.5
    pd.testing.assert_frame_equal(top[alone], expected[alone], check_exact=False, atol=1e-6)


def test_merging_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (7, 60)).astype(np.float32)  # many ties
    parts = [Top.of(scores[:, a : a + 20], n, 8) for n, a in enumerate((0, 20, 40))]
    merged = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        top = Top.empty(7)
        for i in order:
            top = top.merge(parts[i], 8)
        merged.append(top)
    whole = np.argsort(-scores, axis=1, kind="stable")[:, :8]
    for top in merged:
        number, local = np.divmod(top.items, Top.PART)
        assert np.array_equal(number * 20 + local, whole)


def test_grows_and_never_changes(static_encoder, tmp_path):
    corpus, more = captions(60), captions(40, 1, start=60)
    gallery = Gallery(f"{tmp_path}/g", static_encoder)
    with pytest.raises(MissingError, match=r"no captions in .*Gallery\.add"):
        gallery.embed()
    names = gallery.add(corpus, texts_each=50)
    assert len(names) > 2 and gallery.store.names == names
    with pytest.raises(
        MissingError, match=f"{len(names)} of {len(names)} partitions .* no float32"
    ):
        gallery.find("a river")
    assert gallery.embed() == len(names) and gallery.embed() == 0
    before = {p: p.read_bytes() for p in Path(gallery.url).iterdir()}
    assert gallery.add(corpus, texts_each=50) == []  # nothing new
    new = gallery.add(more, texts_each=50)
    assert gallery.store.names == names + new and gallery.embed() == len(new)
    assert all(p.read_bytes() == content for p, content in before.items())
    changed = corpus.assign(text="other words")
    with pytest.raises(InputError, match=r"image 'image00000' is in .* already \(part-000000"):
        gallery.add(changed)
    with pytest.raises(InputError, match="rows of image 'image00000' are not adjacent"):
        gallery.add(pd.concat([corpus, corpus[:1]]))
    (tmp_path / "g" / gallery.vectors_name(names[1])).unlink()  # killed before it was written
    (tmp_path / "g" / f".{names[0]}.x1y2z3.parquet").write_bytes(b"PAR1")  # half-written
    assert gallery.embed() == 1 and gallery.store.names == names + new


def test_half_the_bytes(static_encoder, tmp_path):
    corpus = captions(80)
    tables = {}
    for dtype in ("float32", "float16"):
        gallery = Gallery(str(tmp_path), static_encoder, dtype)
        gallery.add(corpus)
        gallery.embed()
        tables[dtype], _ = gallery.rank(questions(corpus, static_encoder))
        assert open_part(gallery, gallery.store.names[0]).side.vectors.dtype == dtype
    sizes = [p.stat().st_size for p in sorted(tmp_path.glob("*.safetensors"))]
    assert sizes[0] < 0.6 * sizes[1]  # float16 comes first
    for k in (1, 5, 10):
        assert abs(recall_at_k(tables["float16"], k) - recall_at_k(tables["float32"], k)) < 5
    with pytest.raises(InputError, match="unknown dtype 'int8'; valid: float32, float16"):
        Gallery(str(tmp_path), dtype="int8")


def test_object_storage(static_encoder):
    corpus = captions(50)
    gallery = Gallery("memory://bucket/gallery", static_encoder)
    gallery.add(corpus, texts_each=40)
    gallery.embed()
    assert fsspec.filesystem("memory").exists("/bucket/gallery")
    found = gallery.find(corpus["text"][7], k=3)
    assert corpus["text"][7] == found["text"][0] and found["score"][0] > 0.999
    assert len(gallery.rank(questions(corpus, static_encoder), 5)[1]) > 0


def test_command_line(static_encoder, tmp_path, capsys):
    made = ["-p", "data_dir", str(tmp_path), "-p", "split", "val"]
    url, encoder = f"{tmp_path}/g", ["-p", "encoder", static_encoder]
    assert main(["gallery", url, "--add", "sample", *made, *encoder]) == 0
    assert "315 texts of Sample" in (out := capsys.readouterr().out) and "1 of them embedded" in out
    assert main(["gallery", url, "--find", "boats in a harbour", "--k", "3", *encoder]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["gallery", url, "--find", "boats", "-p", "dtype", "float16", *encoder]) == 1
    assert "have no float16 vectors" in capsys.readouterr().err


def test_find_reads_the_nearest_text(static_encoder, tmp_path):
    corpus = captions(3000)  # several groups of rows
    assert len(corpus) > ROW_GROUP
    gallery = Gallery(str(tmp_path), static_encoder)
    gallery.add(corpus)
    gallery.embed()
    vectors = load_encoder(static_encoder).encode(corpus["text"].tolist(), "document")
    asked = load_encoder(static_encoder).encode(["a boat near a tank"], "query")[0]
    corpus["score"] = vectors @ asked
    best = corpus.sort_values("score", ascending=False, kind="stable").drop_duplicates("image_id")
    found = gallery.find("a boat near a tank", k=20)
    assert np.allclose(found["score"], best["score"][:20], atol=1e-6)
    assert found["rank"].tolist() == list(range(1, 21))
    own = corpus.set_index("image_id").loc[found["image_id"]]
    assert all(
        t in set(own.loc[[i], "text"])
        for i, t in zip(found["image_id"], found["text"], strict=True)
    )
    with pytest.raises(InputError, match="query=' ' should not be empty"):
        gallery.find(" ")
    with pytest.raises(InputError, match="k=0 should be greater"):
        gallery.find("a boat", k=0)


def test_a_partition_damaged_while_it_is_searched_is_named(static_encoder, tmp_path):
    gallery = Gallery(str(tmp_path), static_encoder)
    (name,) = gallery.add(captions(30), texts_each=100)
    gallery.embed()
    assert len(gallery.find("a boat")) == 8
    (tmp_path / f"{name}.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match=rf"{name}.parquet cannot be read"):
        gallery.find("a boat")


def test_damaged_vectors_are_named(static_encoder, tmp_path):
    gallery = Gallery(str(tmp_path), static_encoder)
    names = gallery.add(captions(30), texts_each=30)
    gallery.embed()
    first, second = (tmp_path / gallery.vectors_name(name) for name in names[:2])
    first.write_bytes(second.read_bytes())
    before = second.read_bytes()
    with pytest.raises(InputError, match="make it again"):
        gallery.find("a boat")
    first.write_bytes(before[:-4] + b"oops")
    with pytest.raises(InputError, match=rf"{first.name} is damaged.* trsllava_utils gallery"):
        gallery.find("a boat")
    assert gallery.embed() == 1 and len(gallery.find("a boat")) == 8
