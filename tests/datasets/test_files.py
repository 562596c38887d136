"""Files of a folder and the names that mean them; tables and captions as people have them."""

from __future__ import annotations

import json
import os
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import draw
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError
from trsllava_utils.folder import match_names
from trsllava_utils.images import read_image


def lines(path, rows, encoding="utf-8"):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding=encoding)


def load(folder, tmp_path, split="test"):
    return load_dataset(str(folder), str(tmp_path / "data"), split)


def pixels(ds, image_id):
    return read_image(ds.file_of(image_id))


@pytest.fixture
def three(tmp_path):
    """The same file name in three folders, each another colour."""
    for seed, name in enumerate(("airport", "forest", "river")):
        draw(tmp_path / "mine" / name / "1.png", seed)
    return tmp_path / "mine"


def test_equal_names_in_other_folders_share_nothing(three, tmp_path):
    rows = [{"image": f"images/{n}/1.png", "caption": f"a {n}"} for n in ("river", "airport")]
    lines(three / "captions.jsonl", rows)
    ds = load(three, tmp_path)
    for caption, path, label in zip(
        ds.captions["text"], ds.images["path"], ds.images["label"], strict=True
    ):
        assert caption == f"a {label}" and path.endswith(f"{label}/1.png")
    lines(three / "captions.jsonl", [{"image": "1.png", "caption": "whose?"}])
    ds = load(three, tmp_path)
    assert ds.with_pixels.empty and "may be any of several files" in " ".join(ds.problems)


def test_captions_made_elsewhere_find_their_folder(three, tmp_path):
    names = ("forest", "airport")
    rows = [{"image": f"/data/rs/{n}/1.png", "caption": f"a {n}"} for n in names]
    lines(tmp_path / "c.jsonl", [*rows, {"image": "1.png", "caption": "whose?"}])
    captions = load_captions(load(three, tmp_path), f"file:{tmp_path / 'c.jsonl'}")
    said = {i: record.variants[0].caption for i, record in captions.records.items()}
    assert said == {"airport/1": "a airport", "forest/1": "a forest"}
    assert "1 captions may be of any of several images" in " ".join(captions.problems)


def test_two_names_never_share_a_file(tmp_path):
    draw(tmp_path / "mine" / "1.png")
    rows = [{"image": f"{n}/1.png", "caption": f"a {n}"} for n in ("forest", "river")]
    lines(tmp_path / "mine" / "captions.jsonl", rows)
    ds = load(tmp_path / "mine", tmp_path)
    assert len(ds.images) == 2 and ds.with_pixels.empty


@pytest.mark.parametrize(
    ("wanted", "available", "matched"),
    [
        ("a.png", ["x/a.png"], "x/a.png"),
        ("IMG_A.JPG", ["img_a.jpg"], "img_a.jpg"),
        ("a.tif", ["a.jpg"], "a.jpg"),
        ("a.png", ["a.png", "x/a.png"], "a.png"),
        ("y/x/a.png", ["z/x/a.png", "a.png"], "z/x/a.png"),
        ("C:\\data\\x\\a.png", ["x/a.png", "y/a.png"], "x/a.png"),
        ("../../etc/passwd", ["a.png"], None),
        ("a.png", ["x/a.png", "y/a.png"], None),
        ("a.png", ["a.jpg", "a.tif"], None),
    ],
)
def test_which_file_a_name_means(wanted, available, matched):
    assert match_names([wanted], available)[0].get(wanted) == matched


@given(st.lists(st.text("ab/", min_size=1, max_size=6), unique=True))
def test_matching_is_one_to_one_and_complete_for_equal_names(names):
    names = list(dict.fromkeys(n.strip("/") for n in names if n.strip("/") and "//" not in n))
    assert match_names(names, names) == ({n: n for n in names}, [])
    matched, ambiguous = match_names([f"far/away/{n}" for n in names], names)
    assert len(set(matched.values())) == len(matched)
    assert not set(matched) & set(ambiguous)


def test_names_of_all_kinds(tmp_path):
    mine = tmp_path / "mine"
    names = ["S2_2021-06-01T10:30:31.png", "source/b.png", "Aéroport Zürich.png"]
    draw(mine / names[0]), draw(mine / names[1])
    draw(mine / unicodedata.normalize("NFD", names[2]), 7)
    draw(tmp_path / "x.png").rename(os.fsdecode(os.fsencode(mine) + b"/caf\xe9.png"))
    for hidden in ("@eaDir/t.png", ".thumbnails/t.png", "derived/t.png", "__MACOSX/t.png"):
        draw(mine / hidden)
    ds = load(mine, tmp_path)
    assert set(ds.images["filename"]) == {*names, "café.png"}
    for image_id in ds.images["image_id"]:
        assert pixels(ds, image_id).shape == (64, 64, 3)
    lines(mine / "captions.jsonl", [{"image": names[2], "caption": "an airport"}])
    assert len(load(mine, tmp_path).with_pixels) == 1


def test_links_inside_the_folder_and_in_the_cache_of_the_hub(tmp_path):
    cache = tmp_path / "datasets--a--b"
    draw(cache / "blobs" / "b1.png").rename(cache / "blobs" / "b1")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "snapshots" / "abc" / "a.png").symlink_to("../../blobs/b1")
    (cache / "snapshots" / "abc" / "gone.png").symlink_to("../../blobs/b2")
    (cache / "snapshots" / "abc" / "secret.png").symlink_to(draw(tmp_path / "secret.png"))
    ds = load(cache / "snapshots" / "abc", tmp_path)
    assert ds.images["image_id"].tolist() == ["a"] and pixels(ds, "a").shape == (64, 64, 3)
    said = " ".join(ds.problems)
    assert "secret.png is a link that leads out" in said and "gone.png is no file" in said
    assert load(cache, tmp_path).images["image_id"].tolist() == ["snapshots/abc/a"]


def test_what_is_left_out_is_counted_and_named(tmp_path):
    mine = tmp_path / "mine"
    draw(mine / "a.png")
    for name in ("report.pdf", "other.pdf", "data.nc", "README.md", "a.tfw"):
        (mine / name).write_text("x")
    (mine / "broken.tif").write_bytes(b"II*\0half")
    os.mkfifo(mine / "pipe.png")
    ds = load(mine, tmp_path)
    assert ds.images["image_id"].tolist() == ["a"]
    said = " ".join(ds.problems)
    assert "1 .nc (data.nc), 2 .pdf (other.pdf, report.pdf)" in said
    assert "broken.tif is not a readable image" in said and "pipe.png is no file" in said
    assert "README" not in said and "tfw" not in said


def test_classes_are_folders_and_no_others(tmp_path):
    mine = tmp_path / "mine"
    names = {"forest/a_1.png": "forest", "img/b.png": "", "2024/c.png": "", "tile_7/d.png": ""}
    names |= {"harbour_3.png": "", "data/Oil Tanks/e.png": "oil tanks"}
    for name in names:
        draw(mine / name)
    images = load(mine, tmp_path).images
    assert dict(zip(images["filename"], images["label"], strict=True)) == names


def coco(path, texts):
    images = [{"id": i, "file_name": f"{n}.png"} for i, n in enumerate("ab")]
    annotations = [{"image_id": i, "caption": text} for i, text in texts]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def test_layouts_that_people_have(tmp_path):
    for folder in ("coco", "img2dataset/00000", "numbers", "semicolon", "tabs"):
        for seed, name in enumerate("ab"):
            stem = {"img2dataset/00000": f"00000000{seed}", "numbers": f"{seed}"}.get(folder, name)
            draw(tmp_path / folder / f"{stem}.png", seed)
    coco(tmp_path / "coco" / "captions_val2017.json", [(0, "one"), (1, "three"), (0, "two")])
    ds = load(tmp_path / "coco", tmp_path, "val")
    assert ds.captions.groupby("image_id")["text"].agg(list).to_dict() == {
        "a": ["one", "two"],
        "b": ["three"],
    }
    with pytest.raises(InputError, match="valid: val, all"):
        load(tmp_path / "coco", tmp_path)
    shard = tmp_path / "img2dataset"
    table = {"key": ["000000000", "000000001"], "caption": ["one", "two"], "url": ["x", "y"]}
    pd.DataFrame(table).to_parquet(shard / "00000.parquet")
    (shard / "00000_stats.json").write_text('{"count": 2}')
    numbers = [{"image": 0, "caption": "one"}, {"image": 1, "caption": "two"}]
    (tmp_path / "numbers" / "captions.json").write_text(json.dumps(numbers))
    text = "filename;title\na.png;one, with a comma\nb.png;two\n"
    (tmp_path / "semicolon" / "captions.csv").write_text(text, encoding="utf-8-sig")
    (tmp_path / "tabs" / "captions.tsv").write_text(text.replace(";", "\t"))
    for folder in ("img2dataset", "numbers", "semicolon", "tabs"):
        ds = load(tmp_path / folder, tmp_path)
        first = ds.captions["text"].tolist()
        assert len(ds.with_pixels) == 2 and first[0].startswith("one") and first[1] == "two"
    assert load(tmp_path / "semicolon", tmp_path).captions["text"][0] == "one, with a comma"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "scene,date\na,2021-06-01\n"),
        ("footprints.json", '{"type": "FeatureCollection", "features": []}'),
        ("detections.json", '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}'),
        ("stats.json", '{"count": 2}'),
        ("half.json", '{"images": ['),
        ("empty.csv", ""),
    ],
)
def test_a_table_without_captions_leaves_the_folder_usable(tmp_path, name, text):
    draw(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / name).write_text(text)
    ds = load(tmp_path / "mine", tmp_path)
    assert ds.images["image_id"].tolist() == ["a"] and ds.captions.empty


def test_only_a_line_feed_ends_a_line(tmp_path):
    draw(tmp_path / "mine" / "a.png")
    text = "planes\u2028a terminal\u0085a road"
    row = {"image": "a.png", "caption": text}
    lines(tmp_path / "mine" / "captions.jsonl", [row])
    ds = load(tmp_path / "mine", tmp_path)
    assert ds.captions["text"].tolist() == [text]
    captions = load_captions(ds, f"file:{tmp_path / 'mine' / 'captions.jsonl'}")
    assert captions.records["a"].variants[0].caption == text and not captions.problems


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    draw(tmp_path / "mine" / "a.png"), draw(tmp_path / "mine" / "b.png")
    ds = load(tmp_path / "mine", tmp_path)
    rows = [{"image": "a.png", "caption": "plain"}, {"image": "b.png", "caption": "Straße"}]
    lines(tmp_path / "c.jsonl", rows, "latin-1")
    captions = load_captions(ds, f"file:{tmp_path / 'c.jsonl'}")
    assert list(captions.records) == ["a"] and "line 2: not UTF-8" in captions.problems[0]
    lines(tmp_path / "mine" / "captions.jsonl", rows, "latin-1")
    with pytest.raises(InputError, match=r"captions\.jsonl, line 2: not UTF-8"):
        load(tmp_path / "mine", tmp_path)


def test_photographs_are_what_pillow_reads(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "c.webp", "d.bmp", "e.tif"):
        picture = Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8))
        picture.save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert (read_image(tmp_path / name) == np.asarray(image.convert("RGB"))).all()


CAPTIONS = {  # files -> captions by image, and splits
    "coco": (
        {
            "captions_val.json": {
                "images": [{"id": "1", "file_name": "a.jpg"}, {"id": "02", "file_name": "b.jpg"}],
                "annotations": [
                    {"id": 1, "image_id": 1, "caption": "a plane"},
                    {"id": 2, "image_id": "02", "caption": "boats"},
                ],
            }
        },
        {"a": ["a plane"], "b": ["boats"]},
    ),
    "label studio": (
        {
            "captions.json": [
                {"image": "a.jpg", "caption": {"text": ["a plane", "a jet"]}},
                {"image": "b.jpg", "caption": {"text": "boats"}},
            ]
        },
        {"a": ["a plane", "a jet"], "b": ["boats"]},
    ),
    "tokens": (
        {
            "dataset_mine.json": {
                "images": [
                    {"filename": "a.jpg", "sentences": [{"tokens": ["a", "plane"]}]},
                    {"filename": "b.jpg", "captions": [["two", "boats"], ["boats"]]},
                ]
            }
        },
        {"a": ["a plane"], "b": ["two boats", "boats"]},
    ),
    "lists in a cell": (
        {
            "captions.csv": "filename,captions\n"
            'a.jpg,"[\'a plane\', ""a man\'s jet""]"\nb.jpg,"[\'boats\' \'ships\']"\n'
        },
        {"a": ["a plane", "a man's jet"], "b": ["boats", "ships"]},
    ),
    "numbered": (
        {"x.csv": "filename,raw,raw_1,raw_2\na.jpg,a plane,a jet,x\nb.jpg,boats,ships,\n"},
        {"a": ["a plane", "a jet", "x"], "b": ["boats", "ships"]},
    ),
    "numbered from one": (
        {"captions.csv": "filename;caption_1;caption_2\na.jpg;a plane;a jet\nb.jpg;boats;ships\n"},
        {"a": ["a plane", "a jet"], "b": ["boats", "ships"]},
    ),
    "the hub": (
        {
            "metadata.jsonl": '{"file_name": "a.jpg", "text": "a plane"}\n'
            '{"file_name": "b.jpg", "text": "boats"}\n'
        },
        {"a": ["a plane"], "b": ["boats"]},
    ),
    "beside": (
        {"a.txt": "a plane\na jet\n", "b.txt": "boats", "classes.txt": "plane\nboat"},
        {"a": ["a plane", "a jet"], "b": ["boats"]},
    ),
}


@pytest.mark.parametrize("who", CAPTIONS)
def test_captions_as_people_have_them(tmp_path, who):
    """Each of these was lost once, without a word."""
    content, captions = CAPTIONS[who]
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        draw(tmp_path / "mine" / name, seed)
    for name, value in content.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / "mine" / name).write_text(text)
    ds = load(tmp_path / "mine", tmp_path, "all")
    found = ds.captions.groupby("image_id")["text"].apply(list).to_dict()
    assert found == captions and set(ds.images["path"]) == {
        str(tmp_path / "mine" / name) for name in ("a.jpg", "b.jpg")
    }


def test_splits_in_folders(tmp_path):
    """The hub's, one file each; and names as Windows writes them."""
    for split, name in (("train", "a"), ("validation", "b"), ("test", "c")):
        draw(tmp_path / "mine" / split / f"{name}.jpg")
        lines(
            tmp_path / "mine" / split / "metadata.jsonl",
            [{"file_name": f"{name}.jpg", "text": name}],
        )
    sizes = {"train": 1, "val": 1, "test": 1}
    ds = load(tmp_path / "mine", tmp_path)
    assert ds.split_sizes == sizes and ds.captions["text"].tolist() == ["c"]
    rows = ["filename,caption", "train\\a.jpg,a", "validation\\b.jpg,b", "test\\c.jpg,c"]
    (tmp_path / "mine" / "captions.csv").write_text("\n".join(rows))
    ds = load(tmp_path / "mine", tmp_path)
    assert ds.split_sizes == sizes and ds.images["image_id"].tolist() == ["c"]


def test_a_split_has_the_name_that_the_dataset_gives_it(tmp_path):
    for name in "abc":
        draw(tmp_path / "mine" / f"{name}.jpg")
    rows = "filename,caption,split\na.jpg,a,fold 1\nb.jpg,b,fold 2\nc.jpg,c,valid\n"
    (tmp_path / "mine" / "captions.csv").write_text(rows)
    for split, image in {"fold 1": "a", "fold 2": "b", "valid": "c", "val": "c"}.items():
        assert load(tmp_path / "mine", tmp_path, split).images["image_id"].tolist() == [image]
    with pytest.raises(InputError, match=r"unknown split of .* 'fold 3'.*Did you mean 'fold [12]'"):
        load(tmp_path / "mine", tmp_path, "fold 3")


def test_captions_that_are_lost_are_counted_also_where_none_is_left(tmp_path):
    draw(tmp_path / "mine" / "a.jpg")
    content = {"images": [{"id": 1, "file_name": "a.jpg"}]}
    content["annotations"] = [{"image_id": 7, "caption": "a plane"}]
    (tmp_path / "mine" / "captions.json").write_text(json.dumps(content))
    assert "1 images have no caption" in load(tmp_path / "mine", tmp_path).problems


def test_numbers_beside_images_are_no_captions(tmp_path):
    """Boxes, as YOLO has them."""
    draw(tmp_path / "mine" / "a.jpg")
    (tmp_path / "mine" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    ds = load(tmp_path / "mine", tmp_path)
    assert ds.captions.empty and not ds.problems
