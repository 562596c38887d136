"""Search, its pages and its panel, on the sample dataset with captions made of reference words, and on
folders with hostile names and known places."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from tests.conftest import draw, write_captions
from trsllava_extras import figures, pages
from trsllava_extras.metadata import load_metadata
from trsllava_extras.panel import search, search_panel
from trsllava_extras.panel.found import Found, read_settings, result_page
from trsllava_extras.panel.index import Index
from trsllava_extras.panel.picture import describe
from trsllava_extras.panel.query import phrase
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError, MissingError
from trsllava_utils.ranking import rule_of
from trsllava_utils.sources import Sources


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
        assert len(index.find(f"[{image_id}]").table) == 8
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
    harbours = index.find("boats in a harbour", 105, where="label = 'harbor'")
    assert set(harbours.table["label"]) == {"harbor"} and harbours.total == 5
    for page, k in ((0, 8), (15, 8), (1, 0)):
        with pytest.raises(InputError, match=r"no page|should be greater"):
            index.find("boats", k, page)
    assert index.find("boats", where="label = 'habror'").total == 0
    with pytest.raises(InputError, match="Did you mean 'harbor'"):
        index.find("boats", label="habror")
    with pytest.raises(InputError, match=r"unknown filter 'lable'.*Did you mean 'label'"):
        index.find("boats", lable="harbor")
    inside = index.find("boats", label="harbor", where="1=1) or (1=1")
    assert inside.total == 5  # a condition does not lead out of the class
    with pytest.raises(InputError, match="nothing to search for"):
        index.find("  ")


def test_more_like_this_leaves_the_image_out_and_stays_near(index, sources):
    found = index.find("[harbor92]", 104)
    assert "harbor92" not in set(found.table["image_id"]) and "percentile" not in found.table
    vectors, rows = sources.embed_captions().vectors, sources.embed_captions().rows
    mine = vectors[(rows["image_id"] == "harbor92").to_numpy()]
    best = pd.Series((vectors @ mine.T).max(axis=1)).groupby(rows["image_id"]).max()
    assert found.table.set_index("image_id")["score"].to_dict() == pytest.approx(
        best.drop("harbor92").to_dict(), abs=1e-6
    )
    with pytest.raises(InputError, match="no captions"):
        index.find("[nothing]")
    nobody = index.find("[harbor92]", where="label = 'nothing'")
    assert nobody.total == 0 and nobody.table.empty and "0 images searched" in nobody._repr_html_()


def test_parts_are_a_weighted_mean_for_every_rule(sources):
    for method in ("max", "centroid", "lexical", "hybrid(weight=0.3)"):
        index = Index(sources, method)
        tanks, houses, like = map(index.scores, ("storage tanks", "houses", "[beach90]"))
        both = index.scores("storage tanks - 0.25 houses + 2*[beach90]")
        expected = (tanks - 0.25 * houses + 2 * like) / 3.25
        assert both.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6, rel=1e-5)
        moved = index.scores("houses", right=["beach90", "beach91"], wrong=["river93"])
        right = (like + index.scores("[beach91]")) / 2
        expected = houses + 0.75 * right - 0.15 * index.scores("[river93]")
        assert moved.to_numpy() == pytest.approx(expected.to_numpy() / 1.9, abs=1e-6, rel=1e-5)


def test_a_minus_takes_away_and_marks_lead_towards_what_is_right(index):
    with_houses = index.find("trees + houses", 10).table["image_id"]
    without = index.find("trees - houses", 10).table["image_id"]
    assert sum("residential" in i for i in with_houses) > sum("residential" in i for i in without)
    plain = index.scores("water").rank(ascending=False)
    moved = index.scores("water", right=["harbor92"], wrong=["beach90"]).rank(ascending=False)
    assert moved["harbor93"] < plain["harbor93"] and moved["beach91"] > plain["beach91"]
    found = index.find("water", 105, right=["harbor92"]).table
    assert found["image_id"].iloc[0] == "harbor92" and "percentile" not in found


def test_a_caption_of_the_dataset_is_never_split(sources):
    captions = sources.dataset.captions.copy()
    captions.loc[3, "text"] = "a well - built school"
    index = Index(replace(sources, dataset=replace(sources.dataset, captions=captions)))
    assert len(index.find("A well - built school .").query.parts) == 1
    assert len(index.find("a well - built house").query.parts) == 2


def test_percentiles_say_when_nothing_fits(index, sources):
    """Against phrases as people type them. Against whole captions, right short queries failed."""
    found = index.find("white boats at a pier", 8)
    texts = sources.captions.corpus("one_sentence")["text"]
    best = [index.scores(f'"{text}"').max() for text in sorted(set(map(phrase, texts)))]
    share = [100 * np.mean(np.array(best) < score) for score in found.table["score"]]
    assert found.table["percentile"].tolist() == pytest.approx(share, abs=0.3)
    for words in ("boats", "a beach", "a runway", "an airplane", "cars", "a river", "a forest"):
        assert not index.find(words).notes, words
    for words in ("a cat on a sofa", "ein Flughafen", "spiral galaxy", "a recipe for apple pie"):
        (note,) = index.find(words).notes
        assert note.startswith("nothing like this in 105 images, it seems: 92 of 100 short phrases")
        assert not index.find(words, label="harbor").nothing_fits  # a filter may leave it out
    assert not index.find("a cat on a sofa", page=2).notes  # said once
    note = index.find("a field without any water").notes
    assert len(note) == 1 and "“a field - water”" in note[0]
    assert not any(
        hit
        for piece, hit in index.find("a pond without boats", 1).tiles[0]["words"]
        if "boat" in piece
    )


def test_percentiles_without_reference_captions(sources):
    bare = replace(sources.dataset, captions=sources.dataset.captions[:0])
    index = Index(replace(sources, dataset=bare))
    assert (index.best_scores == Index(sources).best_scores).all()
    assert index.find("a cat on a sofa").nothing_fits
    few = replace(bare, images=bare.images[:6])
    assert (
        "percentile"
        not in Index(replace(index.sources, dataset=few, captioner=index.sources.captioner))
        .find("x")
        .table
    )


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
    sides = {"<b>bad</b>": found.sources.captions.records}
    first = found.table["image_id"].iloc[0]
    saved = result_page(found)
    assert read_settings(saved, "x")["request"]["query"] == bad  # and ends no script
    for page in (
        found._repr_html_(),
        saved[: saved.index('<script type="application/json" id="search">')],
        found.card(first, with_path=True),
        pages.captions_beside(dataset, [first], sides).data,
        pages.table(pd.DataFrame({"text": [bad]})).data,
    ):
        read = Tags(page)
        assert "script" not in read.tags and "alert(1)" in page
        assert "<script" not in page and "<b onclick" not in page and "<i>mine" not in page
        assert all(a.startswith(("data:image/", "#image-")) for a in read.addresses)


def test_pages_stand_alone(index, tmp_path, sources):
    found = index.find("boats in a harbour", 5)
    page = found.save(tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg') == 10 and "http:" not in page and "https:" not in page
    assert found.settings == read_settings(page, "found.html")
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
    page = result_page(found)
    figures.place_map(found.table, "between $ and $\\x", known).canvas.draw()
    assert "Where they are" in page and "47.8000° N, 11.1000° E" in page


def test_without_a_person_the_panel_shows_the_first_result(sources, monkeypatch):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    found = search_panel(sources, "boats", "csls", 4)
    assert isinstance(found, Found) and found._repr_html_().count("<img") == 4
    assert found.request["method"] == "max"  # csls cannot rank a single query


def test_selections_are_saved_and_read_again(index, sources, tmp_path):
    picked = index.pick(["harbor92", "beach90", "river93"])
    assert picked.table["image_id"].tolist() == ["harbor92", "beach90", "river93"]
    csv = picked.save(tmp_path / "mine.csv")
    paths = pd.read_csv(csv)["path"]
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in paths)
    for name in ("mine.csv", "mine.html"):
        text = picked.save(tmp_path / name).read_text(encoding="utf-8")
        assert read_settings(text, name)["request"]["selected"] == [
            "harbor92",
            "beach90",
            "river93",
        ]
    folder = picked.save(tmp_path / "mine")
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == ["1_harbor92.jpg", "2_beach90.jpg", "3_river93.jpg"]
    assert files[0].read_bytes() == Path(sources.dataset.file_of("harbor92").path).read_bytes()
    with pytest.raises(InputError, match="mine is not empty"):
        picked.save(folder, "folder")
    with pytest.raises(InputError, match="no place is known"):
        picked.save(tmp_path / "mine.geojson")
    for text in ("", "a,b\n1,2", "{}", "<html></html>", "[1]", "\x00", '{"features": [{}]}'):
        with pytest.raises(InputError, match=r"mine\.txt: (no page|broken JSON)"):
            read_settings(text, "mine.txt")


def test_a_saved_result_among_the_images_does_no_harm(tmp_path):
    folder = tmp_path / "mine"
    for name in ("null", "NA", "'+q", "=x", "a [1] + b"):
        draw(folder / f"{name}.png", len(name))
    (folder / "metadata.csv").write_text(
        "image,rank,query,method,path,window\nnull.png,1,2,3,4,5\n"
    )
    lines = [{"image": p.name, "caption": f"a picture {p.stem}"} for p in folder.glob("*.png")]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def sources() -> Sources:
        dataset = load_dataset(str(folder), str(tmp_path))
        return Sources(dataset, f"file:{tmp_path / 'c.jsonl'}")

    found = Index(sources()).find("a picture", 5)
    ids = found.table["image_id"].tolist()
    text = found.save(folder / "result.csv").read_text()
    assert read_settings(text, "result.csv")["request"]["selected"] == ids
    again = Index(sources())
    assert again.find("a picture", 5).table["image_id"].tolist() == ids
    assert again.find("[a [1] + b]").total == 4
    Path(sources().dataset.file_of("NA").path).unlink()
    with pytest.raises(InputError, match="no files on disk of NA; nothing was saved"):
        found.save(tmp_path / "links")
    assert not (tmp_path / "links").exists()


def test_a_picture_asks(sources, tmp_path):
    picture = sources.dataset.file_of("beach90").path
    words = describe(picture, sources)
    assert "image shows" in words  # pixels: the captions of these sources are only read
    folder = str(sources.dataset.derived.parent.parent)
    given = {"captioner": sources.captioner, "data_dir": folder}
    by_picture = search(image=picture, k=3, **given)
    assert by_picture.query.text == words
    assert (
        by_picture.table["image_id"].tolist()
        == search(words, k=3, **given).table["image_id"].tolist()
    )
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no\.jpg"):
        search(image=str(tmp_path / "no.jpg"), **given)
    with pytest.raises(MissingError, match=r"gone\.jpg' not found"):
        search(image="gone.jpg", **given)


def test_one_call_and_the_command(sources, tmp_path, capsys):
    folder = sources.dataset.derived.parent.parent
    given = {"captioner": sources.captioner, "data_dir": str(folder)}
    found = search("two planes", k=3, **given)
    words = ["-m", "trsllava_utils", "search", "sample", "two planes", "--k", "3"]
    for name, value in given.items():
        words += ["-p", name, value]
    words += ["--html", str(tmp_path / "a.html"), "--csv", str(tmp_path / "a.csv")]
    out = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert out.returncode == 0, out.stderr
    assert pd.read_csv(tmp_path / "a.csv")["image_id"].tolist() == found.table["image_id"].tolist()
    assert found.table["image_id"].iloc[0] in out.stdout and (tmp_path / "a.html").is_file()
    with pytest.raises(MissingError, match="the command is papermill 01_structured"):
        search("two planes", captioner="pixels", split="val", data_dir=str(folder))


@pytest.mark.parametrize(
    "caption, words",
    [
        ("An aerial view of a harbour with white boats.", "a harbour"),
        ("A satellite image showing dense houses, in rows", "dense houses"),
        ("Two tennis courts side by side", "Two tennis courts"),
        ("Houses", "Houses"),
        ("Ein großer Flughafen neben einem sehr breiten Fluss", "Ein großer Flughafen"),
        ("", ""),
    ],
)
def test_phrases(caption, words):
    assert phrase(caption) == words


def test_an_index_goes_when_nobody_uses_it(sources):
    """It is as large as the gallery, and what is remembered for all methods must not hold it."""
    index = Index(sources, "hybrid")
    index.find("boats", k=2, label="harbor")
    gone = weakref.ref(index)
    gc.disable()
    del index
    gc.enable()
    assert gone() is None


@pytest.mark.parametrize("method", [-1, True, ["max"]])
def test_a_method_that_is_no_text_is_a_sentence(sources, method):
    with pytest.raises(InputError, match="method"):
        Index(sources, method)
    with pytest.raises(InputError, match="method"):
        rule_of(method)
