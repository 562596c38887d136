"""Many queries in one call, and only what fits."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.conftest import write_captions
from trsllava_extras.cli.commands import search as command
from trsllava_extras.panel.index import Index
from trsllava_extras.panel.many import find_many, read_queries
from trsllava_utils.data import load_dataset
from trsllava_utils.encoders import SentenceTransformerEncoder
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.sources import Sources


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("many")
    dataset = load_dataset("sample", str(folder / "data"), "test")
    return Index(Sources(dataset, write_captions(folder / "people.jsonl", dataset)))


def test_queries_are_lines_or_a_table(tmp_path):
    (tmp_path / "q.txt").write_text("boats\n\n  a river, wide \n", "utf-8")
    assert read_queries(tmp_path / "q.txt").to_dict() == {"1": "boats", "3": "a river, wide"}
    (tmp_path / "q.csv").write_text('id,query\nk7,"boats, white"\n007,a river\n', "utf-8")
    assert read_queries(tmp_path / "q.csv").to_dict() == {"k7": "boats, white", "007": "a river"}
    (tmp_path / "s.csv").write_text("sep=;\nid;query\nk7;boats, white\n", "utf-8")  # Excel's
    assert read_queries(tmp_path / "s.csv").to_dict() == {"k7": "boats, white"}
    (tmp_path / "n.csv").write_text("query\nboats\na river\n", "utf-8")
    assert read_queries(tmp_path / "n.csv").to_dict() == {"1": "boats", "2": "a river"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("q.txt", "\n \n", "there is no query"),
        ("q.csv", "id,text\n1,a\n", "no column query, only id, text"),
        ("q.csv", "id,query\n1,a\n1,b\n", "the id '1' comes twice"),
        ("q.csv", "", "cannot be read"),
    ],
)
def test_no_queries_are_a_sentence(tmp_path, name, content, told):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(InputError, match=told):
        read_queries(tmp_path / name)
    with pytest.raises(MissingError, match="one a line"):
        read_queries(tmp_path / "other.txt")


def test_each_query_finds_what_it_finds_alone(index, monkeypatch):
    queries = pd.Series({"a": "boats at a pier", "b": "storage tanks + 0.5 grass", "c": "trees"})
    calls, encode = [], SentenceTransformerEncoder.encode

    def counted(self, texts, role):
        calls.append(list(texts))
        return encode(self, texts, role)

    _ = index.best_scores  # the phrases are encoded before
    monkeypatch.setattr(SentenceTransformerEncoder, "encode", counted)
    table = find_many(index, queries, k=3)
    assert sorted(calls[0]) == sorted(queries)
    assert table["id"].tolist() == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    for name, query in queries.items():
        alone = index.find(query, 3).table
        mine = table[table["id"] == name]
        assert mine["image_id"].tolist() == alone["image_id"].tolist()
        assert mine["score"].to_numpy() == pytest.approx(alone["score"].to_numpy(), abs=1e-6)
    with pytest.raises(InputError, match=r"query 2 \('\[nobody\]'\)"):
        find_many(index, pd.Series({"1": "boats", "2": "[nobody]"}))


def test_only_what_fits(index):
    queries = pd.Series({"in": "boats moored at a pier", "out": "a cat on a sofa"})
    table = find_many(index, queries, k=100, fits=True)
    assert set(table["id"]) == {"in"} and (table["percentile"] >= 8).all() and len(table) < 100
    none = index.find("a cat on a sofa").fitting()
    assert none.table.empty and "nothing like this" in repr(none)
    assert len(index.find("boats moored at a pier", 3).fitting().table) == 3
    with pytest.raises(InputError, match="plain sentence"):
        index.find("boats + river").fitting()


def test_the_command_prints_and_saves_one_table(index, tmp_path, capsys):
    (tmp_path / "q.csv").write_text("id,query\nx,boats at a pier\ny,a cat on a sofa\n", "utf-8")
    given = ["-p", "captioner", index.sources.captioner]
    given += ["-p", "data_dir", str(index.sources.dataset.derived.parent.parent)]
    words = ["sample", "--queries", str(tmp_path / "q.csv"), "--k", "2", *given]
    command([*words, "--fits", "--csv", str(tmp_path / "out.csv")])
    told = capsys.readouterr().out
    assert "nothing fits 1 of 2 queries: y" in told and "harbor" in told
    saved = pd.read_csv(tmp_path / "out.csv")
    assert saved["id"].tolist() == ["x", "x"] and saved["rank"].tolist() == [1, 2]
    for other in (["--html", "x.html"], ["--tag", "seen"], ["--image", "x.jpg"], ["--folder", "x"]):
        with pytest.raises(InputError, match="does not go with --queries"):
            command([*words, *other])
