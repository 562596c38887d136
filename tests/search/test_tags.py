"""Tags: kept with pictures, asked for in conditions, exported as other tools read them."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest
from pycocotools.coco import COCO

from tests.conftest import draw, write_captions
from trsllava_extras.panel import search
from trsllava_extras.panel.index import Index
from trsllava_extras.tags import tag, tags_of, tags_path, untag
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError
from trsllava_utils.sources import Sources


@pytest.fixture
def sources(tmp_path) -> Sources:
    """The sample with captions of its own words."""
    dataset = load_dataset("sample", str(tmp_path / "data"), "test")
    return Sources(dataset, write_captions(tmp_path / "people.jsonl", dataset))


def described(path, captions):
    records = (
        {"image": name, "model": "people", "variants": [{"caption": text}]}
        for name, text in captions.items()
    )
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


@pytest.fixture
def archive(tmp_path):
    """Twelve images with captions in their folder."""
    names = [f"{kind}/{n}.png" for kind in ("river", "road") for n in range(6)]
    for seed, name in enumerate(names):
        draw(tmp_path / "mine" / name, seed)
    described(
        tmp_path / "mine" / "rsrt.jsonl", {name: f"a {name[:-6]} {name[-5]}" for name in names}
    )
    return tmp_path / "mine"


def load(folder):
    return load_dataset(str(folder), str(folder.parent / "data"))


def test_conditions_ask_each_tag(sources):
    dataset, index = sources.dataset, Index(sources)
    tag(dataset, ["harbor94", "river95"], "flooded", query="water over fields")
    tag(dataset, ["river95", "beach91"], "to check")
    tag(dataset, ["river95"], "to check")  # once more: nothing is there twice
    assert tags_of(dataset).to_dict() == {
        "harbor94": "flooded",
        "river95": "flooded; to check",
        "beach91": "to check",
    }

    def met(where):
        return set(index.every(where=where).table["image_id"])

    assert met("tag = 'flooded'") == {"harbor94", "river95"}
    assert met("tag = 'to check' and label = 'beach'") == {"beach91"}
    assert met("tag like '%check'") == {"river95", "beach91"}
    found = index.find("a river", k=5, where="tag = 'flooded'")
    assert found.total == 2 and found.table["tag"].notna().all()
    with pytest.raises(InputError, match="no image meets the condition tag = 'dry'"):
        index.every(where="tag = 'dry'")
    told = index.find("a river", where="tag = 'dry'").notes
    assert any("tag is one of flooded, to check" in note for note in told)
    assert untag(dataset, ["river95", "harbor94"], "flooded") == 2
    with pytest.raises(InputError, match="no image meets"):
        met("tag = 'flooded'")
    assert untag(dataset, ["river95"], "flooded") == 0


def test_all_tagged_images_by_one_call(sources, tmp_path):
    tag(sources.dataset, ["harbor94", "river95"], "seen")
    how = {"captioner": sources.captioner, "data_dir": str(tmp_path / "data")}
    assert len(search(where="tag = 'seen'", **how).table) == 2
    with pytest.raises(InputError, match="nothing to search for"):
        search(where=" ", **how)


def test_tags_stay_with_pictures_that_are_renamed_and_move(archive, capsys):
    tag(load(archive), ["river/0", "road/3"], "seen")
    load(archive)  # which is when an archive is known by its pictures
    (archive / "river" / "0.png").rename(archive / "road" / "other name.png")
    shutil.copy(archive / "road" / "4.png", archive / "river" / "0.png")  # the name of another
    assert set(tags_of(load(archive)).index) == {"road/other name", "road/3"}
    moved = archive.with_name("elsewhere")
    archive.rename(moved)
    assert set(tags_of(load(moved)).index) == {"road/other name", "road/3"}
    assert "moved from" in capsys.readouterr().out
    draw(moved / "road" / "3.png", 99)  # another picture, and the old one is nowhere
    assert "road/3" in tags_of(load(moved))


def test_a_word_that_is_none_changes_nothing(sources):
    tag(sources.dataset, ["beach91"], "seen")
    before = tags_path(sources.dataset).read_bytes()
    for odd in ("", " ", "=1+1", "a;b", "<b>", "x" * 50, "a\nb"):
        with pytest.raises(InputError, match="give a word"):
            tag(sources.dataset, ["beach91"], odd)
    with pytest.raises(InputError, match="no image 'beach0'"):
        tag(sources.dataset, ["beach91", "beach0"], "seen")
    assert tags_path(sources.dataset).read_bytes() == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "cannot be read"),
        ("image_id;date\nbeach91;2026-01-01\n", "no column tag"),
        ("image_id,tag\nbeach91,=cmd\n", "'=cmd' is no tag"),
        ("\0\1\2", "labels.csv"),
    ],
)
def test_a_damaged_file_is_a_sentence_and_stays(sources, content, told):
    path = tags_path(sources.dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    for action in (
        lambda: tag(sources.dataset, ["beach91"], "seen"),
        lambda: untag(sources.dataset, ["beach91"], "seen"),
        lambda: Index(sources).find("boats", where="tag = 'seen'"),
    ):
        with pytest.raises(InputError, match=told):
            action()
    assert path.read_text() == content


def test_a_file_that_a_spreadsheet_wrote(sources):
    path = tags_path(sources.dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\ufeffimage_id;tag\nbeach91;été\nbeach92;\ngone1;seen\n", "utf-8")
    assert tags_of(sources.dataset).to_dict() == {"beach91": "été"}
    tag(sources.dataset, ["beach90"], "seen")
    assert "gone1,seen" in path.read_text()  # of images that are gone, too


def test_a_column_of_the_users_own_may_be_called_tag(archive):
    (archive / "metadata.csv").write_text("file_name,tag\nriver/0.png,7\nroad/1.png,9\n")
    index = Index(Sources(load(archive)))
    assert index.every(where="tag > 8").table["image_id"].tolist() == ["road/1"]
    assert any("tag is 7" in note for note in index.find("a road", where="tag > 10").notes)


def test_exports_are_read_by_the_libraries_that_define_them(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dataset = sources.dataset
    tag(dataset, ["harbor94", "river95"], "seen")
    tag(dataset, ["harbor94"], "boats")
    found = Index(sources).every(where="tag = 'seen'")
    folder = found.save(tmp_path / "out", "imagefolder")
    cache = str(tmp_path / "cache")
    rows = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache)["train"]
    by_id = {row["image_id"]: row for row in rows}
    assert by_id["harbor94"]["tags"] == ["boats", "seen"] and by_id["river95"]["tags"] == ["seen"]
    records = sources.captions.records
    said = [variant.one_sentence for variant in records["harbor94"].variants]
    assert by_id["harbor94"]["captions"] == said and by_id["harbor94"]["text"] == said[0]
    assert by_id["harbor94"]["image"].size == (256, 256)
    assert by_id["harbor94"]["label"] == "harbor"
    with pytest.raises(InputError, match="not empty"):
        found.save(folder, "imagefolder")

    coco = COCO(str(found.save(tmp_path / "seen.json")))
    (image,) = [i for i in coco.loadImgs(coco.getImgIds()) if i["image_id"] == "harbor94"]
    assert (image["width"], image["height"], image["tags"]) == (256, 256, ["boats", "seen"])
    assert image["file_name"] == "harbor94.jpg"
    captions = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
    assert [annotation["caption"] for annotation in captions] == said


def test_windows_of_scenes_are_exported_as_pictures(tmp_path):
    import numpy as np
    import tifffile

    (tmp_path / "scenes").mkdir()
    values = np.random.default_rng(0).integers(0, 4000, (96, 128, 4), np.uint16)
    tifffile.imwrite(tmp_path / "scenes" / "a.tif", values, photometric="rgb")
    dataset = load_dataset(str(tmp_path / "scenes"), str(tmp_path / "data"), tile=64)
    described(
        tmp_path / "c.jsonl",
        {name: f"field {n}" for n, name in enumerate(dataset.images["filename"])},
    )
    sources = Sources(dataset, f"file:{tmp_path / 'c.jsonl'}")
    tag(dataset, [dataset.images["image_id"][1]], "seen")
    folder = Index(sources).every(where="tag = 'seen'").save(tmp_path / "out", "imagefolder")
    cache = str(tmp_path / "cache")
    (row,) = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache)["train"]
    assert row["image"].size == (64, 64) and row["text"] == "field 1"
