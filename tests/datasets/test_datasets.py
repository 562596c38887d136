"""Datasets: layouts, quirks and bad input."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from tests.conftest import draw, nested
from trsllava_extras.labels import labels
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.images import Rendering, read_image


def test_official_layout(data_dir):
    ds = load_dataset("rsitmd", str(data_dir), "test")
    assert ds.split_sizes == {"test": 4, "train": 1}
    assert ds.images["label"].tolist() == ["port", "river", "park", "beach"]
    assert list(ds.captions.columns) == ["image_id", "source", "variant", "field", "text"]
    assert len(ds.captions) == 8 and len(ds.with_pixels) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", json.dumps([{"image": "test/a_1.png", "caption": ["one", "two"]}])),
        (
            "captions.jsonl",
            '{"image": "test/a_1.png", "caption": "one"}\n{"image": "test/a_1.png", "caption": "two"}\n',
        ),
        ("all.csv", "filename,title,split\na_1.png,one,test\na_1.png,two,test\n"),
    ],
)
def test_flat_layouts(tmp_path, name, content):
    draw(tmp_path / "ucm" / "imgs" / "a_1.png")
    (tmp_path / "ucm" / name).write_text(content, encoding="utf-8")
    ds = load_dataset("ucm", str(tmp_path), "test")
    assert ds.captions["text"].tolist() == ["one", "two"] and len(ds.with_pixels) == 1


def test_text_pairs_and_parquet(tmp_path):
    draw(tmp_path / "ucm" / "imgs" / "a_1.png")
    (tmp_path / "ucm" / "test_caps.txt").write_text("one\ntwo\n")
    (tmp_path / "ucm" / "test_filename.txt").write_text("a_1.png\n")
    assert load_dataset("ucm", str(tmp_path)).captions["text"].tolist() == ["one", "two"]
    draw(tmp_path / "sydney" / "imgs" / "a_1.png")
    table = pd.DataFrame({"filename": ["a_1.png"], "captions": [["one", "two"]]})
    table.to_parquet(tmp_path / "sydney" / "test-00000.parquet")
    assert load_dataset("sydney", str(tmp_path)).captions["text"].tolist() == ["one", "two"]


def test_own_folder(tmp_path):
    draw(tmp_path / "mine" / "a" / "1.png")
    draw(tmp_path / "mine" / "b" / "1.png")
    ds = load_dataset(str(tmp_path / "mine"), str(tmp_path / "data"))
    assert ds.images["image_id"].tolist() == ["a/1", "b/1"] and ds.split == "all"
    assert ds.derived.is_relative_to(tmp_path / "data")


@pytest.mark.parametrize(
    ("dataset", "split", "words"),
    [
        ("rsitm", "test", "Did you mean 'rsitmd'"),
        ("rsitmd", "tset", "Did you mean 'test'"),
        ("rsitmd", "val", "unknown split of rsitmd 'val'"),
    ],
)
def test_unknown_names(data_dir, dataset, split, words):
    with pytest.raises(InputError, match=words):
        load_dataset(dataset, str(data_dir), split)


def test_missing_dataset_names_the_command(tmp_path):
    with pytest.raises(MissingError, match="data_dir DIR"):
        load_dataset("rsicd", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', "line 1, column"),
        ('{"pictures": []}', "expected .*images"),
        ('{"images": [{"file": 1}]}', "entry 0"),
        ('"text"', "expected"),
    ],
)
def test_broken_annotations(data_dir, text, words):
    (data_dir / "rsitmd" / "dataset_RSITMD.json").write_text(text)
    with pytest.raises(InputError, match=words):
        load_dataset("rsitmd", str(data_dir))


def test_quirks_are_listed_and_survived(data_dir):
    root = data_dir / "rsitmd"
    (data_dir / "secret.png").write_bytes((root / "images" / "port_1.png").read_bytes())
    entries = [
        ("port_1.png", "test", ["  a port ", "", "a port"]),
        ("port_1.png", "test", ["again"]),
        ("../../secret.png", "test", ["outside"]),
        ("/etc/passwd", "test", ["outside"]),
        ("gone_9.png", "test", ["no such file"]),
        ("port_1.jpg", "test", ["same stem"]),
    ]
    (root / "dataset_RSITMD.json").write_text("\ufeff" + nested(entries), encoding="utf-8")
    ds = load_dataset("rsitmd", str(data_dir))
    said = " ".join(ds.problems)
    assert ds.images["image_id"].tolist() == ["port_1", "secret", "passwd", "gone_9", "port_1.jpg"]
    assert ds.with_pixels["image_id"].tolist() == ["port_1"]  # and nothing outside the folder
    assert ds.captions.query("image_id == 'port_1'")["text"].tolist() == [
        "a port",
        "a port",
        "again",
    ]
    for words in (
        "more than once",
        "empty captions",
        "no file on disk",
        "stem",
    ):
        assert words in said


def test_link_out_of_the_folder_is_left_out(data_dir, tmp_path):
    outside = draw(tmp_path / "outside.png")
    (data_dir / "rsitmd" / "images" / "train_5.png").symlink_to(outside)
    assert load_dataset("rsitmd", str(data_dir), "train").with_pixels.empty


def test_broken_images_are_named(data_dir):
    images = data_dir / "rsitmd" / "images"
    (images / "port_1.png").write_bytes(b"")
    (images / "river_2.png").write_bytes((images / "park_3.png").read_bytes()[:150])
    (images / "park_3.png").write_text("<html>not found</html>")
    ds = load_dataset("rsitmd", str(data_dir))
    said = {"port_1": "port_1.png is empty", "river_2": "river_2.png", "park_3": "park_3.png"}
    for image_id, name in said.items():
        with pytest.raises(InputError, match=name):
            read_image(ds.file_of(image_id))
    assert read_image(ds.file_of("beach_4")).shape == (64, 64, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA"])
def test_image_modes(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (20, 10), (200, 30, 30)).convert(mode).save(path)
    array = read_image(path)
    assert array.shape == (10, 20, 3) and array.dtype == np.uint8


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_multiband_tiff(tmp_path, layout, dtype):
    bands = np.stack([np.linspace(0, 3000 + k, 600).reshape(20, 30) for k in range(7)]).astype(
        dtype
    )
    bands[5] = bands[5][::-1]
    array = bands if layout == "CHW" else np.moveaxis(bands, 0, -1)
    planar = {"planarconfig": "separate"} if layout == "CHW" else {"planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="minisblack", **planar)
    rgb = read_image(tmp_path / "x.tif", Rendering("6,1,2"))
    assert rgb.shape == (20, 30, 3)
    assert rgb[0, 0, 0] > 200 and rgb[0, 0, 1] < 40  # band 6 runs the other way
    with pytest.raises(InputError, match="has 7 band"):
        read_image(tmp_path / "x.tif", Rendering("9,1,1"))


def test_sixteen_bit_png_and_giants(tmp_path):
    Image.fromarray(np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)).save(
        tmp_path / "x.png"
    )
    assert read_image(tmp_path / "x.png").max() > 200
    Image.new("1", (20000, 20000)).save(tmp_path / "big.png")
    with pytest.raises(InputError, match=r"big\.png.*into tiles"):
        read_image(tmp_path / "big.png")


def test_a_folder_whose_annotations_have_no_rows_is_a_folder_of_images(tmp_path):
    draw(tmp_path / "mine" / "a_1.png")
    (tmp_path / "mine" / "notes.csv").write_text("filename,title\n")
    ds = load_dataset(str(tmp_path / "mine"), str(tmp_path))
    assert ds.images["image_id"].tolist() == ["a_1"] and ds.captions.empty
    assert ds.problems == ("notes.csv: no annotation found in it",)


def test_blank_names_are_refused_and_unusual_line_ends_belong_to_captions(tmp_path):
    draw(tmp_path / "mine" / "a.png")
    table = tmp_path / "mine" / "c.csv"
    table.write_text("filename,image,title\n,a.png,by the second name\n,,nobody's\n")
    with pytest.raises(InputError, match="row 2: expected an image name"):
        load_dataset(str(tmp_path / "mine"), str(tmp_path))
    table.unlink()
    line = json.dumps({"image": "a.png", "caption": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "mine" / "captions.jsonl").write_text(line + "\n", encoding="utf-8")
    ds = load_dataset(str(tmp_path / "mine"), str(tmp_path))
    assert ds.captions["text"].tolist() == ["a\u2028b"]


FOLDERS = {
    "forest/7.png": "forest",
    "forest/images/7.png": "forest",
    "raw/forest/train/7.png": "forest",
    "train/images/7.png": "",
    "7.png": "",
    "2021/06/7.png": "",
    "S2B_MSIL1C_20230823T095559.SAFE/GRANULE/L1C_T34UCF/IMG_DATA/TCI.png": "",
    "S2A_MSIL2A_20180818T094031.SAFE/GRANULE/L2A_T34VFJ/IMG_DATA/R10m/TCI.png": "",
    "S1A_IW_GRDH_1SDV_20210809T173953.SAFE/measurement/vv.png": "",
    "order_1/PSScene/visual.png": "",
    "20170831_162740_ssc1d1/visual.png": "",
    "LC08_L2SP_193027_20210601_20210608_02_T1/rgb.png": "",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_classes(tmp_path, name):
    assert labels([name], "mine", tmp_path) == [FOLDERS[name]]
