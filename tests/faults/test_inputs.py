"""What people bring: image files, folders, annotations and parameters of every odd kind. The rest is
used, and one sentence names what is not."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import rasterio
import tifffile
from PIL import Image

from tests.conftest import draw
from trsllava_extras.cli import shell
from trsllava_extras.gallery.gallery import Gallery
from trsllava_extras.metadata import load_metadata
from trsllava_extras.panel import search
from trsllava_extras.shards import caption_shard
from trsllava_utils import __main__ as command_line
from trsllava_utils import parameters
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError, MissingError
from trsllava_utils.images import Rendering, read_image
from trsllava_utils.parameters import check
from trsllava_utils.rankings import rank_dataset
from trsllava_utils.sources import Sources

IMAGES = pytest.mark.fault("Image files")
SIZE = (60, 48)


def photograph(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize(SIZE)


def raster(path: Path, driver: str, dtype: str = "uint16", **how: object) -> None:
    shape = {"width": SIZE[0], "height": SIZE[1], "count": 3}
    values = np.moveaxis(np.asarray(photograph()), -1, 0).astype(dtype)
    with rasterio.open(path, "w", driver=driver, dtype=dtype, **shape, **how) as file:
        file.write(values)


MAKERS = {
    "a.jpg": lambda path: photograph().save(path),
    "a.png": lambda path: photograph().save(path),
    "a.webp": lambda path: photograph().save(path),
    "a.bmp": lambda path: photograph().save(path),
    "a.tif": lambda path: raster(path, "GTiff"),
    "b.tif": lambda path: raster(path, "GTiff", compress="deflate", tiled=True),
    "c.tif": lambda path: raster(path, "GTiff", "uint8", compress="lzw"),
    "a.jp2": lambda path: raster(path, "JP2OpenJPEG", "uint8"),
    "a.img": lambda path: raster(path, "HFA"),
}


def mutations(content: bytes, seed: int):
    """Cut, flipped, overwritten, doubled: forty copies with a fault each."""
    rng = random.Random(seed)
    for n in range(40):
        damaged = bytearray(content)
        if n % 4 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        for _ in range(rng.choice((1, 4, 30)) if n % 4 == 1 else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        for _ in range(rng.choice((1, 8)) if n % 4 == 2 else 0):  # in the header
            damaged[rng.randrange(min(200, len(damaged)))] = rng.randrange(256)
        if n % 4 == 3:
            start = rng.randrange(len(damaged))
            damaged[start : start + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        yield bytes(damaged)


@pytest.mark.fault("Image files")
@pytest.mark.parametrize("name", MAKERS)
def test_damaged_images_are_pictures_or_sentences(tmp_path, name):
    MAKERS[name](tmp_path / name)
    content, path = (tmp_path / name).read_bytes(), tmp_path / f"x{Path(name).suffix}"
    for damaged in mutations(content, zlib.crc32(name.encode())):
        path.write_bytes(damaged)
        try:
            picture = read_image(path, max_side=64)
            assert picture.dtype == np.uint8 and picture.shape[2] == 3
        except InputError as error:
            assert path.name in str(error)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.png")


def circle(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def outside(path: Path) -> None:
    path.symlink_to(draw(path.parents[1] / "secret.png"))


def folder_outside(path: Path) -> None:
    draw(path.parents[1] / "other" / "secret.png")
    path.with_suffix("").symlink_to(path.parents[1] / "other")


def folder_circle(path: Path) -> None:
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "up").symlink_to(path.parent)


def many_links(path: Path) -> None:
    here = path.parent
    for _ in range(15):
        (here / "deeper").mkdir()
        (here / "one").symlink_to("deeper")
        (here / "two").symlink_to("deeper")
        here = here / "deeper"


def a_folder(path: Path) -> None:
    path.mkdir()


def not_utf8(path: Path) -> None:
    os.rename(draw(path.parent / "gr.png"), os.fsencode(path.parent) + b"/gr\xfcn.png")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def postscript(path: Path) -> None:
    path.with_suffix(".jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def elsewhere(path: Path) -> None:
    """An OME-TIFF whose pixels are said to be in another file."""
    draw(path.parents[1] / "secret.tif")
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="9" SizeY="9" SizeC="1" SizeZ="1" '
        'SizeT="2"><TiffData IFD="0"><UUID FileName="../secret.tif">urn:uuid:1</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(path.with_suffix(".tif"), np.zeros((9, 9), np.uint8), description=xml)


def unreadable(path: Path) -> None:
    draw(path).chmod(0)


def virtual(text: str):
    def odd(path: Path) -> None:
        draw(path.parent / "z.png")
        path.with_suffix(".vrt").write_text(text)

    odd.__name__ = f"vrt {text[:30]}"
    return odd


SOURCE = (
    '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1">'
    '<SimpleSource><SourceFilename relativeToVRT="1">{}</SourceFilename></SimpleSource>'
    "</VRTRasterBand></VRTDataset>"
)
VIRTUAL = [
    virtual(f'<?xml version="1.0" encoding="{name}"?><VRTDataset/>') for name in ("foo", "hex")
]
VIRTUAL += [
    virtual(SOURCE.format(name)) for name in ("x" * 300, "../../secret.png", "\0", "odd.vrt")
]
ODD = [
    *VIRTUAL,
    fifo,
    a_socket,
    dangling,
    circle,
    device,
    outside,
    folder_outside,
    folder_circle,
    many_links,
]
ODD += [a_folder, not_utf8, empty, postscript, elsewhere, unreadable]


@IMAGES
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.__name__)
def test_one_odd_file_stops_nothing(tmp_path, odd):
    """Loading, checking and captioning go on; nothing outside the folder is read."""
    for n in range(3):
        draw(tmp_path / "mine" / f"good_{n}.png", n)
    odd(tmp_path / "mine" / "odd.png")
    started = time.perf_counter()
    ds = load_dataset(str(tmp_path / "mine"), str(tmp_path / "d"))
    captions = caption_dataset(ds, "pixels", Settings(variants=1))
    assert {f"good_{n}" for n in range(3)} <= captions.records.keys()
    assert not any("secret" in image_id for image_id in captions.records)
    assert time.perf_counter() - started < 10
    if odd in (folder_circle, many_links, not_utf8, unreadable, a_folder, elsewhere):
        return  # nothing to say, or read all the same (by root, say)
    assert ds.problems or captions.problems, odd.__name__


def bomb(width: int, height: int, count: int, **tags: object):
    """A TIFF of a few bytes that asks for gigabytes."""

    def make(path: Path) -> None:
        raster(path, "GTiff", "uint8", photometric="minisblack")
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            page = file.pages[0].tags
            for name, value in (("ImageWidth", width), ("ImageLength", height)):
                tag = page[name]
                size = 2 if tag.dtype == 3 else 4
                content[tag.valueoffset : tag.valueoffset + size] = value.to_bytes(size, "little")
            for name, value in (("RowsPerStrip", height), ("SamplesPerPixel", count)):
                tag = page[name]
                content[tag.valueoffset : tag.valueoffset + 2] = value.to_bytes(2, "little")
        path.write_bytes(content)

    make.__name__ = f"{width}x{height}x{count}"
    return make


def many_bands(path: Path) -> None:
    shape = {"width": 1100, "height": 1100, "count": 3000}
    options = {"dtype": "float64", "tiled": True, "interleave": "band", "SPARSE_OK": True}
    with rasterio.open(path, "w", "GTiff", **shape, **options):
        pass


BOMBS = [many_bands, bomb(60_000, 50_000, 3), bomb(65_000, 65_000, 1), bomb(65_000, 60_000, 60_000)]
BOMBS += [bomb(40_000, 40_000, 9), bomb(65_535, 3, 65_000)]


@IMAGES
@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_small_files_that_ask_for_gigabytes(tmp_path, make):
    path = tmp_path / "a.tif"
    make(path)
    code = (
        "import resource, sys\n"
        "from trsllava_utils.files import InputError\n"
        "from trsllava_utils.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_image(sys.argv[1], max_side=512)\n"
        "except InputError as error:\n    print(error)\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 1_500_000, grown\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# — annotations and captions made elsewhere —

TEXT = pytest.mark.fault("Annotations and captions")
VALUES = {
    "thousands of digits": "9" * 5000,
    "deep nesting": "[" * 100_000 + "]" * 100_000,
    "unclosed nesting": '{"a":' * 50_000,
    "a number": "7",
    "a text": '"text"',
    "null": "null",
    "not a number": "NaN",
    "a list of lists": "[[[]]]",
    "an empty object": "{}",
    "torn": '{"images": [{"filename": "good_0.png"',
    "binary": "\x00\x01\x02",
    "half a character": '{"images": [{"filename": "good_0.png", "sentences": [{"raw": "\\ud83d"}]}]}',
    "images are a text": '{"images": "good_0.png"}',
    "images are null": '{"images": null}',
    "an image is a list": '{"images": [["good_0.png"]]}',
    "a name is a list": '{"images": [{"filename": ["good_0.png"], "sentences": []}]}',
    "a name has a null": '{"images": [{"filename": "good\\u0000.png", "sentences": ["a"]}]}',
    "a name leads out": '{"images": [{"filename": "../../secret.png", "sentences": ["a"]}]}',
    "an absolute name": '{"images": [{"filename": "/etc/passwd", "sentences": ["a"]}]}',
    "a split is a list": '{"images": [{"filename": "good_0.png", "split": [1], "sentences": ["a"]}]}',
    "sentences are numbers": '{"images": [{"filename": "good_0.png", "sentences": [1, null]}]}',
    "a name of dots": '{"images": [{"filename": "./", "sentences": ["a"]}]}',
    "coco by lists": '{"images": [{"id": [1], "file_name": "good_0.png"}], "annotations": [{"image_id":'
    ' [1], "caption": "a"}]}',
    "an open polygon": '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": '
    '{"image": "good_0.png"}, "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]}',
    "sentences are objects": '{"images": [{"filename": "good_0.png", "sentences": [{"raw": {}}]}]}',
}
NAMES = ["dataset_mine.json", "captions.jsonl", "captions.json", "metadata.json", "more.geojson"]


@TEXT
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_annotations_of_any_shape_are_read_or_refused(tmp_path, name, value):
    draw(tmp_path / "secret.png")
    for n in range(2):
        draw(tmp_path / "mine" / f"good_{n}.png", n)
    (tmp_path / "mine" / name).write_text(value, encoding="utf-8")
    started = time.perf_counter()
    try:
        ds = load_dataset(str(tmp_path / "mine"), str(tmp_path / "d"), "all")
        load_metadata(ds)
        assert not any("secret" in path or "passwd" in path for path in ds.images["path"])
    except (InputError, MissingError) as error:
        assert str(error)
    assert time.perf_counter() - started < 5


LINES = {**VALUES, "a caption is a list": '{"image": "good_0.png", "caption": ["a"]}'}
LINES |= {"variants are a number": '{"image": "good_0.png", "variants": 5}'}
LINES |= {"half a character": '{"image": "good_0.png", "caption": "\\ud83d"}'}
LINES |= {"a model is a list": '{"image": "good_0.png", "caption": "a boat", "model": [1]}'}


@TEXT
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_caption_lines_of_any_shape_cost_themselves_alone(tmp_path, line):
    for n in range(2):
        draw(tmp_path / "mine" / f"good_{n}.png", n)
    ds = load_dataset(str(tmp_path / "mine"), str(tmp_path / "d"))
    good = json.dumps({"image": "good_1.png", "caption": "Boats in a port."})
    (tmp_path / "c.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    captions = load_captions(ds, f"file:{tmp_path / 'c.jsonl'}")
    assert captions.records["good_1"].variants[0].caption == "Boats in a port."
    assert any("line 2" in problem for problem in captions.problems)


@TEXT
@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"a,b\n\x80", b'"', b"\0" * 99, b"a" * 99])
@pytest.mark.parametrize(
    "name", ["a.csv", "a.parquet", "metadata.csv", "metadata.parquet", "x.tsv"]
)
def test_tables_that_are_none(tmp_path, content, name):
    draw(tmp_path / "mine" / "good_0.png")
    (tmp_path / "mine" / name).write_bytes(content)
    ds = load_dataset(str(tmp_path / "mine"), str(tmp_path / "d"))
    load_metadata(ds)
    assert ds.images["image_id"].tolist() == ["good_0"]


@pytest.mark.fault("Annotations and captions")
@pytest.mark.parametrize("name", ["captions.parquet", "metadata.parquet"])
def test_damaged_parquet_is_read_or_refused(tmp_path, name):
    draw(tmp_path / "mine" / "good_0.png")
    table = pd.DataFrame({"image": ["good_0.png"], "caption": ["a boat"], "cloud": [3]})
    path = tmp_path / "mine" / name
    table.drop(columns="caption" if "meta" in name else "cloud").to_parquet(path)
    content = path.read_bytes()
    for damaged in [*mutations(content, 1), *mutations(content, 2)][:60]:
        path.write_bytes(damaged)
        try:
            load_metadata(load_dataset(str(tmp_path / "mine"), str(tmp_path / "d")))
        except InputError as error:
            assert name in str(error)


@TEXT
@pytest.mark.parametrize("name", ["dataset_mine.json", "captions.jsonl", "a.csv", "rsrt.jsonl"])
def test_pipes_in_place_of_tables_do_not_hang(tmp_path, name):
    draw(tmp_path / "mine" / "good_0.png")
    os.mkfifo(tmp_path / "mine" / name)
    done = threading.Event()

    def load():
        ds = load_dataset(str(tmp_path / "mine"), str(tmp_path / "d"))
        load_metadata(ds)
        caption_dataset(ds, "pixels")
        done.set()

    threading.Thread(target=load, daemon=True).start()
    assert done.wait(10)


# — parameters —

PARAMETERS = pytest.mark.fault("Parameters")
WRONG = [
    *(("limit", v) for v in (-1, "ten", float("nan"), 2.5, True, None, 10**12, [1])),
    *(("variants", v) for v in ("three", 0, 11, 2.0, [1, 2])),
    *(("top_k", v) for v in (0, -1, 2.5, "10")),
    *(("query", v) for v in (42, "", " \n", "\0", "a" * 10_000, "half \ud83d", None)),
    *(("dataset", v) for v in ("", " ", 7, "a\0b", None)),
    *(("shard", v) for v in (0.5, 2)),
    *(("encoder", v) for v in (5, None, ["a"])),
    *(("price_in", v) for v in ("free", -1, float("inf"), float("nan"))),
    *(("price_out", v) for v in (-0.01, "1")),
    *(("bands", v) for v in ("9" * 10_000, 4, [4, 3, 2])),
    *(("methods", v) for v in ("mean", ["max", 3], [""], None)),
    *(("compare_with", v) for v in ("rsrt", 5)),
    *(("variant_counts", v) for v in (3, [], [0], ["1"])),
    *(("timeout", v) for v in (0, -1, "2", float("inf"))),
    *(("temperature", v) for v in (-0.1, 2.1, "warm")),
    *(("concurrency", v) for v in (0, 5000, 2.5)),
    *(("split", v) for v in ("", 1)),
    *(("tile", v) for v in (-1, 2.5, "1024")),
    *(("seed", v) for v in (1.5, 10**30, "0")),
    *(("prompt", v) for v in ("rsrd", 1)),
    *(("precision", v) for v in ("float16", 32)),
    *(("gsd", v) for v in (-1, 0, [1])),
    *(("k", v) for v in (0, -3, 2.5)),
]


@PARAMETERS
@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda v: str(v)[:20])
def test_wrong_values_are_named_in_one_sentence(name, value):
    with pytest.raises(InputError) as caught:
        check(**{name: value})
    said = str(caught.value)
    assert name in said and len(said) < 400 and "\n" not in said


CALLS = {
    "load_dataset(limit=-1)": lambda: load_dataset("sample", limit=-1),
    "load_dataset('')": lambda: load_dataset(""),
    "load_dataset(tile='a')": lambda: load_dataset("sample", tile="a"),
    "Settings(price_in=-1)": lambda: Settings(price_in=-1),
    "Settings(variants='three')": lambda: Settings(variants="three"),
    "Settings(timeout=nan)": lambda: Settings(timeout=float("nan")),
    "Sources(variants=-1)": lambda: Sources(load_dataset("sample"), variants=-1),
    "Sources(encoder=5)": lambda: Sources(load_dataset("sample"), encoder=5),
    "rank_dataset(top_k=2.5)": lambda: rank_dataset("max", Sources(load_dataset("sample")), 2.5),
    "search('')": lambda: search(""),
    "search(42)": lambda: search(42),
    "search(k=0)": lambda: search("boats", k=0),
    "search(where=5)": lambda: search("boats", where=5),
    "nobody's home": lambda: load_dataset("~nosuchuser/x"),
    "nobody's data": lambda: load_dataset("sample", "~nosuchuser/x"),
    "nobody's figures": lambda: load_dataset("sample", figures_dir="~nosuchuser/x"),
    "nobody's captions": lambda: load_captions(load_dataset("sample"), "file:~nosuchuser/x"),
    "a long dataset": lambda: load_dataset("x" * 300),
    "a long data_dir": lambda: load_dataset("sample", "/x" + "y" * 300),
    "a long captioner": lambda: load_captions(load_dataset("sample"), "openai:" + "x" * 300),
    "a long file": lambda: load_captions(load_dataset("sample"), "file:" + "x" * 300),
    "a long encoder": lambda: Sources(load_dataset("sample"), encoder="x" * 300).embed_captions(),
    "a long shard": lambda: caption_shard(
        load_dataset("sample"), "pixels", shard="9" * 4000 + "/1"
    ),
    "Gallery('')": lambda: Gallery("").find("boats"),
    "Gallery(dtype='int8')": lambda: Gallery("/tmp/none", dtype="int8"),
    "Gallery.find('')": lambda: Gallery("/tmp/none").find(""),
    "Rendering(bands)": lambda: read_image(
        next(iter(load_dataset("sample").with_pixels["path"])), Rendering("9" * 300)
    ),
}


@PARAMETERS
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_python_functions_check_what_they_are_given(call):
    try:
        call()
    except (InputError, MissingError) as error:
        assert len(str(error)) < 1000
    else:
        assert call is CALLS["Rendering(bands)"]  # a photograph has no bands to choose


SHELL = [
    ("run", "sample", "-p", "limit", "ten"),
    ("run", "sample", "-p", "limit", "-1"),
    ("run", "sample", "-p", "top_k", "2.5"),
    ("run", "sample", "-p", "price_in", "free"),
    ("run", "sample", "-p", "variants", "three"),
    ("run", "", "--to", "00"),
    ("run", "sample", "--from", "03", "--to", "01"),
    ("search", "sample", ""),
    ("search", "sample", "boats", "--k", "0"),
    ("search", "sample", "boats", "--bbox", "1,2"),
    ("search", "sample", "boats", "-p", "encoder", ""),
    ("report", "sample", "-p", "split", "tset"),
    ("gallery", "foo://x", "--find", "boats"),
    ("gallery", "/tmp/no-such-gallery", "--find", ""),
    ("gallery", "/tmp/no-such-gallery", "--find", "boats", "--k", "-1"),
    ("get", "rsicd", "--split", "valid"),
]


@PARAMETERS
@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_the_command_line_says_one_sentence(words, capsys):
    assert command_line.main([*words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("\nerror: ") and "Traceback" not in said and said.count("\n") == 2


@PARAMETERS
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("query", "42", "42"),
        ("methods", "mean", ["mean"]),
        ("methods", "[max, texts(plain,joined)+max]", ["max", "texts(plain,joined)+max"]),
        ("variant_counts", "[1, 2]", [1, 2]),
        ("variants", "3", 3),
        ("temperature", "0", 0.0),
        ("gsd", "0.3", "0.3"),
        ("captioner", "__import__('os')", "__import__('os')"),
        ("dataset", "2024", "2024"),
    ],
)
def test_the_shell_gives_what_the_parameter_takes(name, text, value):
    assert shell.from_shell(name, text) == value


@PARAMETERS
@pytest.mark.parametrize(
    ("notebook", "given"),
    [("00_dataset_loading", {"limit": float("nan")}), ("03_retrieval", {"query": 42})],
)
def test_papermill_stops_at_the_first_cell(tmp_path, notebook, given):
    path = PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            str(path), str(tmp_path / "out.ipynb"), given, progress_bar=False, cwd=str(tmp_path)
        )
    (name,) = given
    assert caught.value.ename == "InputError" and name in caught.value.evalue
    assert "\n" not in caught.value.evalue


@PARAMETERS
def test_every_notebook_parameter_is_in_the_model():
    for path in (PROJECT_ROOT / "notebooks").glob("0*.ipynb"):
        known = papermill.inspect_notebook(str(path))
        assert known.keys() <= parameters.Parameters.__annotations__.keys()
        check({name: eval(p["default"]) for name, p in known.items()})  # literals of our own
        assert "parameters.check(globals())" in path.read_text()
