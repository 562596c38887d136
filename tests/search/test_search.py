"""Search, its pages and its panel, on the sample dataset with captions made of reference words, and on
folders with hostile names and known places."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.conftest import draw, write_captions
from trsllava_utils import figures
from trsllava_utils.artefacts import PROJECT_ROOT, InputError, MissingError
from trsllava_utils.datasets import load_dataset, load_metadata
from trsllava_utils.retrieval.sources import Sources
from trsllava_utils.search import Found, Index
from trsllava_utils.search import found as pages
from trsllava_utils.search import index as search
from trsllava_utils.search.panel import Panel, search_panel


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    folder = tmp_path_factory.mktemp("data")
    dataset = load_dataset("sample", str(folder), "test")
    return Sources(dataset, write_captions(folder / "people.jsonl", dataset))


@pytest.fixture(scope="module")
def index(sources) -> Index:
    return Index(sources)


def test_every_rule_of_a_single_query_composes_and_the_others_are_refused(sources):
    image_id = sources.gallery[3]
    query = sources.captions.records[image_id].variants[0].caption
    for method in ("max", "texts(fields)", "centroid", "centred+hybrid", "querybank", "lexical"):
        index = Index(sources, method)
        found = index.find(query, 10).table
        assert image_id in set(found["image_id"]) and len(found) == 10
        assert found["score"].is_monotonic_decreasing
        assert len(index.like(image_id).table) == 8
    for method in ("csls", "dual_softmax", "reference"):
        with pytest.raises(InputError, match="not one of your own"):
            Index(sources, method)


def test_a_page_says_which_variant_matched_and_whose_the_query_is(index, sources):
    captions = sources.dataset.captions
    text = captions["text"].iloc[3]
    found = index.find(f"  {text.upper()}").table
    own = set(captions.loc[captions["text"] == text, "image_id"])
    assert set(found.loc[found["hit"].fillna(False), "image_id"]) == own & set(found["image_id"])
    assert found["hit"].any() and found["hit"].notna().all()
    page = index.find(text)._repr_html_()
    assert page.count("✓ hit") == page.count("3px solid #009E73") == found["hit"].sum()
    assert page.count("✗ miss") == (~found["hit"]).sum()
    assert "✗" not in index.find("a purple dragon")._repr_html_()
    for row in found.itertuples():
        variant = sources.captions.records[row.image_id].variants[row.variant - 1]
        assert row.text == variant.text()
    assert index.find("a purple dragon").table["hit"].isna().all()


def test_pages_are_the_ranking_in_pieces(index):
    whole = index.find("boats in a harbour", 105).table
    pieces = [index.find("boats in a harbour", 20, page).table for page in range(1, 7)]
    pd.testing.assert_frame_equal(pd.concat(pieces, ignore_index=True), whole)
    harbours = index.find("boats in a harbour", 105, label="harbor")
    assert set(harbours.table["label"]) == {"harbor"} and harbours.total == 5
    for page, k in ((0, 8), (15, 8), (1, 0)):
        with pytest.raises(InputError, match=r"no page|should be greater"):
            index.find("boats", k, page)
    with pytest.raises(InputError, match="Did you mean 'harbor'"):
        index.find("boats", label="habror")
    with pytest.raises(InputError, match="should not be empty"):
        index.find("  ")


def test_more_like_this_leaves_the_image_out_and_stays_near(index, sources):
    found = index.like("harbor92", 104)
    assert "harbor92" not in set(found.table["image_id"]) and found.by_image
    vectors, rows = sources.embed_captions().vectors, sources.embed_captions().rows
    mine = vectors[(rows["image_id"] == "harbor92").to_numpy()]
    best = pd.Series((vectors @ mine.T).max(axis=1)).groupby(rows["image_id"]).max()
    assert found.table.set_index("image_id")["score"].to_dict() == pytest.approx(
        best.drop("harbor92").to_dict(), abs=1e-6
    )
    with pytest.raises(InputError, match="no captions"):
        index.like("nothing")
    images = sources.dataset.images.assign(label=lambda t: t["image_id"])  # each its own class
    alone = Index(replace(sources, dataset=replace(sources.dataset, images=images)))
    nobody = alone.like("harbor92", label="harbor92")
    assert nobody.total == 0 and nobody.table.empty and "0 of 0" in nobody._repr_html_()


def test_words_of_the_query_are_marked_in_singular_and_plural():
    pieces = pages.marked("White planes near the grass; a plane.", "the plane on grasses, near")
    assert "".join(piece for piece, _ in pieces) == "White planes near the grass; a plane."
    assert [piece for piece, hit in pieces if hit] == ["planes", "near", "grass", "plane"]
    assert pages.marked("", "plane") == [] and pages.marked("plane", "") == [("plane", False)]


class Tags(HTMLParser):
    """The tags of a page, and every address it would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.addresses = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        assert not any(k.startswith("on") for k, _ in attrs), (tag, attrs)


def test_hostile_captions_and_names_show_as_text(tmp_path):
    bad = "<script>alert(1)</script> a river & \"trees\" <img src=x onerror='alert(2)'>"
    name = "<b onclick=x>'\"&river.png"
    folder = tmp_path / "<i>mine"
    draw(folder / name)
    draw(folder / "plain.png", 1)
    lines = [
        {
            "image": n,
            "model": bad,
            "variants": [{"one_sentence": bad, "feature": bad, "caption": bad}],
        }
        for n in (name, "plain.png")
    ]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    dataset = load_dataset(str(folder), str(tmp_path / "data"))
    found = Index(Sources(dataset, f"file:{tmp_path / 'bad.jsonl'}")).find(bad)
    assert len(found.table) == 2
    for page in (
        found._repr_html_(),
        pages.result_page(found),
        pages.card(found, found.table["image_id"].iloc[0]),
    ):
        read = Tags(page)
        assert "script" not in read.tags and "alert(1)" in page
        assert "<script" not in page and "<b onclick" not in page and "<i>mine" not in page
        assert all(a.startswith(("data:image/", "#image-")) for a in read.addresses)


def test_pages_stand_alone(index, tmp_path, sources):
    found = index.find("boats in a harbour", 5)
    page = found.save(tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg') == 10 and "http:" not in page and "https:" not in page
    assert all(image_id in page for image_id in found.table["image_id"])
    assert "default-src 'none'" in page
    table = pd.read_csv(found.save(tmp_path / "found.csv"))
    assert table["image_id"].tolist() == found.table["image_id"].tolist()
    assert set(table["query"]) == {"boats in a harbour"}


def test_images_without_readable_pixels_have_a_place_all_the_same(sources, tmp_path):
    images = sources.dataset.images.copy()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    images.loc[images.index[0], "path"], images.loc[images.index[1], "path"] = "", str(broken)
    blind = replace(sources, dataset=replace(sources.dataset, images=images))
    page = Index(blind).find("anything", 105)._repr_html_()
    assert page.count("no pixels on disk") == 2 and page.count("<img") == 103


def write_geotiff(path: Path, keys: list[int], origin: tuple, scale: float) -> None:
    """40 rows and 20 columns whose upper left corner lies at ``origin``."""
    directory = [1, 1, 0, len(keys) // 4, *keys]
    tags = [
        (33550, "d", 3, (scale, scale, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, *origin, 0.0), True),
        (34735, "H", len(directory), directory, True),
    ]
    tifffile.imwrite(path, np.zeros((40, 20, 3), np.uint8), photometric="rgb", extratags=tags)


def test_geotiffs_know_where_they_are(tmp_path):
    folder = tmp_path / "tiles"
    folder.mkdir()
    write_geotiff(folder / "degrees.tif", [1024, 0, 1, 2, 2048, 0, 1, 4326], (11.0, 48.0), 0.01)
    # the false origin of UTM 32 N: 500 km east is 9° E, on the equator; the middle lies 100 m south
    write_geotiff(folder / "utm.tif", [1024, 0, 1, 1, 3072, 0, 1, 32632], (499950.0, 0.0), 5.0)
    write_geotiff(folder / "own.tif", [1024, 0, 1, 1, 3072, 0, 1, 32767], (0.0, 0.0), 5.0)
    tifffile.imwrite(folder / "plain.tif", np.zeros((8, 8, 3), np.uint8))
    dataset = load_dataset(str(folder), str(tmp_path))
    places = load_metadata(dataset)[0][["lat", "lon"]].dropna()
    assert list(places.index) == ["degrees", "utm"]
    assert places.loc["degrees"].tolist() == pytest.approx([47.8, 11.1])
    assert places.loc["utm"].tolist() == pytest.approx([-100 / 110574, 9.0], abs=1e-5)
    (folder / "coordinates.csv").write_text("image,lat,lon\nplain,1,2\n")
    known = load_metadata(dataset)[0]
    assert list(known.index[known["lat"].notna()]) == ["degrees", "plain", "utm"]
    lines = [{"image": f"{n}.tif", "caption": f"a {n} field"} for n in ("degrees", "utm", "own")]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = Index(Sources(dataset, f"file:{tmp_path / 'c.jsonl'}")).find("a field")
    assert found.table["lat"].notna().sum() == 2
    page = pages.result_page(found)
    figures.place_map(found.table, "between $ and $\\x", known).canvas.draw()
    assert "Where they are" in page and "47.8000° N, 11.1000° E" in page


def test_without_a_person_the_panel_shows_the_first_result(sources, monkeypatch):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    found = search_panel(sources, "boats", "csls", 4)
    assert isinstance(found, Found) and found._repr_html_().count("<img") == 4
    assert found.method == "max"  # csls cannot rank a single query


def test_panel(sources, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "03_retrieval.ipynb")
    panel = search_panel(sources, "boats", k=4)
    panel.method.options = ["max", "lexical", "fusion"]
    assert isinstance(panel, Panel) and len(panel.pictures.children) == 4
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "<img" in bundle["text/html"]
    panel.query.value = "a green river"
    assert panel.found.query == "a green river" and "a green river" in panel.status.value
    panel.next.click()
    assert panel.page.value == 2 and panel.found.table["rank"].iloc[0] == 5
    panel.k.value = 8
    assert panel.page.value == 1 and len(panel.pictures.children) == 8
    panel.label.value = "harbor"
    assert panel.found.total == 5 and panel.next.disabled
    panel.label.value = ""
    panel.method.value = "lexical"
    assert panel.found.method == "lexical"
    panel.method.value = "fusion"
    assert "needs a CLIP" in panel.status.value and panel.found.method == "lexical"
    panel.method.value = "max"
    opened = panel.found.table["image_id"].iloc[2]
    panel.pictures.children[2].children[0].click()
    assert opened in panel.card.value and "<mark>river</mark>" in panel.card.value
    panel.like.click()
    assert panel.found.by_image and panel.found.query == opened
    panel.any_caption.click()
    assert not panel.found.by_image and panel.found.table["hit"].notna().all()
    panel.query.value = sources.dataset.captions["text"].iloc[3]
    own = panel.found.table["hit"].sum()
    shown = [box.children[1].value for box in panel.pictures.children]
    assert own and sum("✓ hit" in text for text in shown) == own
    assert panel._style.value.count("#009E73") == own
    panel.history.value = ("boats", False)
    assert panel.found.query == "boats" and panel.query.value == "boats"
    assert [text for text, _ in panel.history.options][:1] == ["boats"]
    panel.export.click()
    assert panel._links.value.count("download=") == 2
    panel.query.value = "<b>&"
    assert "<b>&lt;b&gt;&amp;</b>" in panel.status.value


def test_one_call_and_the_command(sources, tmp_path, capsys):
    folder = sources.dataset.derived.parent.parent
    given = {"captioner": sources.captioner, "data_dir": str(folder)}
    found = search.search("two planes", k=3, **given)
    words = ["-m", "trsllava_utils", "search", "sample", "two planes", "--k", "3"]
    for name, value in given.items():
        words += ["-p", name, value]
    words += ["--html", str(tmp_path / "a.html"), "--csv", str(tmp_path / "a.csv")]
    out = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert out.returncode == 0, out.stderr
    assert pd.read_csv(tmp_path / "a.csv")["image_id"].tolist() == found.table["image_id"].tolist()
    assert found.table["image_id"].iloc[0] in out.stdout and (tmp_path / "a.html").is_file()
    with pytest.raises(MissingError, match="the command is papermill 01_structured"):
        search.search("two planes", captioner="pixels", split="val", data_dir=str(folder))
