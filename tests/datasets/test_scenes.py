"""Scenes as windows, places, metadata and filters."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

from tests.conftest import draw
from tests.datasets.test_rasters import write
from trsllava_extras.metadata import load_metadata, select
from trsllava_extras.panel.index import Index
from trsllava_extras.panel.panel import Panel
from trsllava_extras.rasters import dates, scenes
from trsllava_utils.__main__ import main
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.images import Rendering, read_image
from trsllava_utils.sources import Sources

PLACE = from_origin(600_000, 5_300_000, 10, 10)


@pytest.fixture
def archive(tmp_path):
    """One scene of 200 x 150 pixels, its east without data, and a chip."""
    rng = np.random.default_rng(0)
    bands = rng.integers(200, 3000, (4, 150, 200)).astype(np.uint16)
    bands[:, :, 120:] = 0
    (tmp_path / "mine").mkdir()
    names = ("Blue", "Green", "Red", "NIR")
    where = {"crs": "EPSG:32632", "transform": PLACE, "nodata": 0}
    write(tmp_path / "mine" / "scene_20230601.tif", bands, names, **where)
    draw(tmp_path / "mine" / "chip.png")
    return tmp_path


def load(archive, **how):
    how = {"tile": 64, **how}
    return load_dataset(str(archive / "mine"), str(archive / "data"), **how)


def test_windows_cover_the_scene_and_those_without_data_are_left_out(archive):
    ds = load(archive)
    names = [f"scene_20230601@{r}_{c}" for r in (0, 64, 86) for c in (0, 64)]
    assert ds.images["image_id"].tolist() == ["chip", *names]
    assert ds.images["filename"][1] == "scene_20230601@0_0.tif"
    assert "6 windows without data were left out" in ds.problems
    with rasterio.open(archive / "mine" / "scene_20230601.tif") as raster:
        whole = raster.read((3, 2, 1)).astype(float)
    low, high = np.percentile(whole[:, :, :120], (2, 98), axis=(1, 2))
    for image_id in names[:4]:
        column, row, width, height = ds.file_of(image_id).window
        part = whole[:, row : row + height, column : column + width]
        expected = np.clip((part - low[:, None, None]) / (high - low)[:, None, None], 0, 1) * 255
        keep = part.min(axis=0) > 0
        shown = read_image(ds.file_of(image_id)).astype(float)
        assert np.abs(shown - np.moveaxis(expected, 0, -1))[keep].max() < 3  # one for all windows
        assert (shown[~keep] == 255).all()
    assert len(load(archive, tile=0).images) == len(load(archive, tile=1024).images) == 2


@pytest.mark.parametrize(("width", "height"), [(100, 100), (64, 200), (1000, 65), (64, 64)])
@pytest.mark.parametrize("overlap", [0, 10, 32])
def test_every_pixel_is_in_a_window(width, height, overlap):
    seen = np.zeros((height, width), int)
    for column, row, w, h in scenes.grid(width, height, 64, overlap):
        assert (w, h) == (64, 64) and column + w <= width and row + h <= height
        seen[row : row + h, column : column + w] += 1
    assert seen.min() == 1


def test_the_table_is_made_once_and_mended(archive, monkeypatch):
    load(archive)
    looked = []
    look = scenes._look
    monkeypatch.setattr(scenes, "_look", lambda path, *how: looked.append(path) or look(path, *how))
    load(archive)
    assert not looked
    write(archive / "mine" / "new.tif", np.ones((1, 8, 8), np.uint8))
    load(archive)
    assert [path.name for path in looked] == ["new.tif"]
    (next((archive / "data").glob("*/derived/rasters-64-0.json"))).write_bytes(b"damaged")
    assert len(load(archive).images) == 8 and len(looked) == 3


def test_footprints_to_a_pixel(archive):
    known = load_metadata(load(archive))[0]
    row, column = 64, 64
    x, y = 600_000 + 10 * column, 5_300_000 - 10 * row
    corners = [(x, y - 640), (x + 640, y - 640), (x + 640, y), (x, y), (x, y - 640)]
    square = {"type": "Polygon", "coordinates": [corners]}
    expected = shapely.geometry.shape(transform_geom("EPSG:32632", "EPSG:4326", square))
    found = known.loc[f"scene_20230601@{row}_{column}"]
    assert found["geometry"].equals_exact(expected, 1e-7)
    assert found["gsd"] == pytest.approx(10) and found["date"] == "2023-06-01"
    assert found["lat"] == pytest.approx(expected.centroid.y)
    assert known.loc["chip"].isna().all()


def test_coordinates_of_other_kinds(tmp_path):
    bands = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine / "degrees.tif", bands, crs="EPSG:4326", transform=from_origin(11, 48, 0.1, 0.1))
    write(mine / "none.tif", bands)
    points = [
        rasterio.control.GroundControlPoint(r, c, 11 + c / 10, 48 - r / 10)
        for r, c in ((0, 0), (0, 8), (8, 0), (8, 8))
    ]
    write(mine / "gcps.tif", bands, gcps=points, crs="EPSG:4326")
    write(mine / "feet.tif", bands, crs="EPSG:2263", transform=from_origin(98e4, 2e5, 1, 1))
    write(mine / "dateline.tif", bands, crs="EPSG:4326", transform=from_origin(179.9, 0, 0.1, 0.1))
    known = load_metadata(load_dataset(str(mine), str(tmp_path)))[0]
    for name in ("degrees", "gcps"):
        assert known.loc[name, "geometry"].bounds == pytest.approx((11, 47.2, 11.8, 48))
        assert known.loc[name, "gsd"] == pytest.approx(9143.8, abs=3)
    assert known.loc["none"].isna().all()
    assert known.loc["feet", "gsd"] == pytest.approx(0.3048, abs=1e-4)
    assert known.loc["dateline", "lon"] == pytest.approx(-179.7)
    assert select(known, bbox="179.5,-1,-179.5,1") == {"dateline"}


def test_dates_from_tags_and_names(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, tag in (("S2A_20210601T103031.tif", ""), ("b.tif", "2020:05:04 10:00:00")):
        path = write(tmp_path / "mine" / name, np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
        with rasterio.open(path, "r+") as raster:
            raster.update_tags(TIFFTAG_DATETIME=tag or "1999:01:01 00:00:00")
    with rasterio.open(tmp_path / "mine" / "b.tif", "r+") as raster:
        raster.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2019-12-24 11:00:00")
    draw(tmp_path / "mine" / "port_1920211301.png")  # no month 13
    dates = load_metadata(load_dataset(str(tmp_path / "mine"), str(tmp_path)))[0]["date"]
    assert dates.dropna().to_dict() == {"S2A_20210601T103031": "2021-06-01", "b": "2019-12-24"}


def test_windows_are_captioned_resumed_and_searched(archive):
    ds = load(archive)
    done = caption_dataset(ds, "pixels")
    assert done.report.captioned == 7 and load_captions(ds, "pixels").records.keys() == set(
        ds.images["image_id"]
    )
    lines = done.files[0].path.read_text().splitlines(keepends=True)
    done.files[0].path.write_text("".join(lines[:3]))  # killed half way
    assert caption_dataset(ds, "pixels").report.captioned == 4
    with pytest.raises(MissingError, match="pass -p tile 64 -p overlap 0"):
        load_captions(load(archive, tile=1024), "pixels")
    caption_dataset(load(archive, tile=100), "pixels")
    assert caption_dataset(ds, "pixels").report.captioned == 0  # kept beside the others
    scene = archive / "mine" / "scene_20230601.tif"
    with rasterio.open(scene, "r+") as raster:
        raster.write(raster.read()[:, ::-1])
    again = caption_dataset(load(archive), "pixels").report
    assert (again.captioned, again.already) == (6, 1)


def test_pictures_beside_captions_are_those_the_captioner_saw(archive):
    how = Rendering(bands="1,2,3", stretch="0-4000")
    caption_dataset(load(archive, rendering=how), "pixels")
    sources = Sources(load(archive), "pixels")
    assert sources.dataset.rendering == how
    image_id = "scene_20230601@0_0"
    expected = read_image(sources.dataset.file_of(image_id), how)
    assert (
        read_image(sources.dataset.file_of(image_id), sources.dataset.rendering) == expected
    ).all()
    assert caption_dataset(load(archive), "pixels").report.captioned == 7  # another identity


def test_results_leave_with_their_places(archive, static_encoder):
    ds = load(archive)
    caption_dataset(ds, "pixels")
    index = Index(Sources(ds, "pixels", static_encoder))
    found = index.find("a field", 20)
    for name in ("a.geojson", "a.parquet"):
        found.save(archive / name)
    text = json.loads((archive / "a.geojson").read_text())["features"][0]
    assert text["geometry"]["type"] == "Polygon"
    for table in (
        geopandas.read_file(archive / "a.geojson"),
        geopandas.read_parquet(archive / "a.parquet"),
    ):
        assert len(table) == 6 and table.crs.to_epsg() == 4326  # the chip has no place
        geometry = load_metadata(found.sources.dataset)[0]["geometry"]
        for row in table.itertuples():
            assert row.geometry.equals_exact(geometry[row.image_id], 1e-7)
            assert row.window == ",".join(map(str, ds.file_of(row.image_id).window))
            assert row.path.endswith("scene_20230601.tif") and row.text
    page = found.save(archive / "a.html").read_text()
    assert "in scene_20230601.tif" in page and "false colour" in page and "10 m a pixel" in page
    with pytest.raises(InputError, match="unknown kind of file 'shp'"):
        found.save(archive / "a.shp")
    chip = index.find("a field", 20, where="gsd is null")
    assert chip.table["image_id"].tolist() == ["chip"]
    with pytest.raises(InputError, match="no place is known"):
        chip.save(archive / "b.geojson")
    like = index.find("[chip]", 20, bbox="10.34,47.84,10.35,47.85").table["image_id"]
    assert 0 < len(like) < 6 and "chip" not in set(like)
    assert index.find("a field", where="gsd > 99").table.empty


def test_tables_beside_the_images_become_columns(archive):
    mine = archive / "mine"
    (mine / "metadata.csv").write_text(
        "file;cloud;sensor;date\nscene_20230601.tif;3.5;S2;2023-06-02\nchip.png;80;Löwe;\n", "utf-8"
    )
    square = shapely.box(11, 48, 12, 49)
    frame = {"image": ["chip"], "country": ["DE"], "geometry": [square]}
    utm = geopandas.GeoDataFrame(frame, crs=4326).to_crs(32632)
    utm.to_parquet(mine / "places.parquet")
    (mine / "nothing.csv").write_text("a,b\n1,2\n")
    (mine / "latin.csv").write_bytes("image,name\nchip,Löwe\n".encode("latin-1"))
    known, problems = load_metadata(load(archive))
    windows = known.index.str.startswith("scene")
    assert (known.loc[windows, "cloud"] == 3.5).all()
    assert (known.loc[windows, "date"] == "2023-06-02").all()  # comes before the file's name
    assert known.loc["chip", ["cloud", "country", "sensor"]].tolist() == [80, "DE", "Löwe"]
    assert known.loc["chip", "geometry"].equals_exact(square, 1e-6)
    said = " ".join(problems)
    assert "nothing.csv names no image" in said and "latin.csv, line 2" in said
    assert select(known, "sensor = 'S2' and cloud < 20 and date >= '2023-06-01'") == set(
        known.index[windows]
    )
    assert select(known, "cloud > 50", "11.5,48.5,13,50") == {"chip"}
    assert select(known, "country in ('DE', 'CH') or sensor like 'S%'") == set(known.index)


@pytest.mark.parametrize(
    "where",
    [
        "clud < 3",
        "cloud <",
        "cloud < 3; drop table metadata",
        "image_id in (select load_extension('x'))",
        "cloud < 3) union select load_extension('x') --",
        "load_extension('/tmp/x.so')",
        "1) ; attach database '/tmp/stolen.db' as b; --",
    ],
)
def test_a_condition_does_nothing_but_choose(where):
    known = pd.DataFrame({"cloud": [1, 2]}, index=["a", "b"])
    with pytest.raises(InputError, match="columns are image_id, cloud"):
        select(known, where)


@pytest.mark.parametrize("bbox", ["1,2,3", "a,b,c,d", "1,5,2,3", "0,-91,1,0"])
def test_boxes_that_are_none(bbox):
    known = pd.DataFrame({"geometry": [shapely.Point(1, 2)]}, index=["a"])
    with pytest.raises(InputError, match="west,south,east,north"):
        select(known, bbox=bbox)
    assert select(known, bbox="0,0,2,3") == {"a"}
    with pytest.raises(InputError, match="no place is known"):
        select(known.drop(columns="geometry"), bbox="0,0,1,1")


def test_places_in_a_table(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / "mine" / name)
    table = tmp_path / "mine" / "coordinates.csv"
    table.write_text("Image,Latitude,Lng\na.png,48.1,-348.5\nb,95,11\n")
    known, problems = load_metadata(load_dataset(str(tmp_path / "mine"), str(tmp_path)))
    assert known.loc["a", ["lat", "lon"]].tolist() == pytest.approx([48.1, 11.5])
    assert known.loc[["b", "c"], "geometry"].isna().all()
    assert "coordinates.csv, line 3: expected a latitude" in problems[0]


# names as products have them; the last ones hold no day
DATES = {
    "MOD09GA.A2021152.h18v04.061.2021154031234_sur_refl_b01": "2021-06-01",
    "VNP09GA.A2021152.h18v04.001.2021153091225_M5": "2021-06-01",
    "HLS.S30.T10TET.2021152T190911.v2.0.B04": "2021-06-01",
    "LC81930272015152LGN00_B4": "2015-06-01",
    "LT51930271986152KIS00_B4": "1986-06-01",
    "LC08_L1TP_193027_20210601_20210615_02_T1_B4": "2021-06-01",
    "OR_ABI-L1b-RadC-M6C01_G16_s20211521000209_e20211521002582_c20211521003020": "2021-06-01",
    "DJI_20230601101010_0001_D": "2023-06-01",
    "IMG_PHR1A_MS_201309130947094_ORT_1234567890-001_R1C1": "2013-09-13",
    "CAPELLA_C02_SP_GEO_HH_20201109060434_20201109060437": "2020-11-09",
    "K3_20130320013518_04421_18831228_L1R": "2013-03-20",
    "S1A_IW_GRDH_1SDV_20210601T052622_20210601T052647_038125_047FD5_1A2B": "2021-06-01",
    "T32UPU_20210601T101031_B04_10m": "2021-06-01",
    "GF2_PMS1_E113.9_N22.6_20210601_L1A0005678901-MSS1": "2021-06-01",
    "13SEP13094709-M2AS-052827563010_01_P001": "2013-09-13",
    "flood_01Jun2021": "2021-06-01",
    "flood_2021-June-01": "2021-06-01",
    "scene_19700101": "",
    "A2021400.tile": "",
    "tile_20211301": "",
    "123456789012345": "",
}


@pytest.mark.parametrize("name", DATES)
def test_dates_in_the_names_of_products(name):
    assert dates.acquired({}, f"{name}.tif") == DATES[name]


TAGS = {
    "SENSING_TIME": "2021-06-01T10:10:31.123456Z",
    "DATE_ACQUIRED": "2021-06-01",
    "time_coverage_start": "2021-06-01T00:00:00Z",
    "RANGEBEGINNINGDATE": "2021-06-01",
    "datetime": "2021-06-01T10:10:10Z",
    "acquisition_time": "2021-06-01T10:10:10Z",
    "PRODUCT_START_TIME": "2021-06-01T10:10:10Z",
    "EXIF_DateTimeOriginal": "2021:06:01 10:10:10",
}


@pytest.mark.parametrize("tag", TAGS)
def test_dates_in_the_tags_of_products(tag):
    others = {"PROCESSING_START_TIME": "2023-02-12T05:43:21Z", "ORIGINAL_FILE_DATE": "2024-01-01"}
    others |= {"GENERATION_TIME": "2023-02-12", "TIFFTAG_DATETIME": "2022:02:02 02:02:02"}
    assert dates.acquired({**others, tag: TAGS[tag]}, "scene.tif") == "2021-06-01"
    epoch = {"ACQUISITIONDATETIME": "1970-01-01 00:00:00"}  # of Landsat Collection 1, by GDAL
    assert dates.acquired({**epoch, tag: TAGS[tag]}, "scene.tif") == "2021-06-01"
    assert dates.acquired({**others, **epoch}, "scene_20210601.tif") == "2021-06-01"


@pytest.mark.parametrize(
    "how", [{"tile": 8}, {"tile": -1}, {"tile": 64, "overlap": 40}, {"overlap": -1}]
)
def test_sizes_that_make_no_windows(archive, how):
    with pytest.raises(InputError, match=r"(tile|overlap)="):
        load(archive, **how)


def test_dates_are_no_offsets(tmp_path):
    names = {"tile_2048_1024": None, "x20210231": None, "y2021-06-01": "2021-06-01"}
    names |= {"scene_2019.05.04_b": "2019-05-04", "z3021-06-01": None}
    for name in names:
        draw(tmp_path / "mine" / f"{name}.png")
    known = load_metadata(load_dataset(str(tmp_path / "mine"), str(tmp_path)))[0]
    assert known["date"].where(known["date"].notna(), None).to_dict() == names


def test_places_at_the_edges_of_the_map(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, crs, place in (
        ("world", 4326, from_origin(-180, 90, 45, 22.5)),
        ("east", 4326, from_origin(200, 48, 0.1, 0.1)),  # 160° W
        ("fiji", 32701, from_origin(100_000, 8_000_000, 20_000, 20_000)),
        ("mercator", 3857, from_origin(1e6, 8_399_737, 0.597, 0.597)),
    ):
        path = tmp_path / "mine" / f"{name}.tif"
        write(path, np.ones((1, 8, 8), np.uint8), crs=f"EPSG:{crs}", transform=place)
    known = load_metadata(load_dataset(str(tmp_path / "mine"), str(tmp_path)))[0]
    assert select(known, bbox="0,0,5,10") == {"world"}
    assert select(known, bbox="-160,40,-150,50") == {"world", "east"}
    for bbox in ("-180,-30,-179,0", "179,-30,180,0", "179,-30,-179,0"):
        assert select(known, bbox=bbox) == {"world", "fiji"}
    assert known.loc["mercator", "gsd"] == pytest.approx(0.2985, abs=1e-3)


def test_tables_that_are_not_clean(tmp_path):
    for name in "123":
        draw(tmp_path / "mine" / f"{name}.png")
    table = tmp_path / "mine" / "metadata.csv"
    (tmp_path / "mine" / "folder.csv").mkdir()
    table.write_text(
        "cloud,filename,site,Date,geometry\n3,1.png,A,20210601,x\n1,2.png,B,01.06.2022,y\n"
        "none at all,3.png,C,15/03/2023,z\n5,3.png,D,,\n"
    )
    known, problems = load_metadata(load_dataset(str(tmp_path / "mine"), str(tmp_path)))
    assert known["site"].tolist() == ["A", "B", "C"]  # by their names, not by their clouds
    assert known["date"].tolist() == ["2021-06-01", "2022-06-01", None]
    assert select(known, "cloud < 20") == {"1", "2"}
    said = " ".join(problems)
    for words in ("1 rows name an image again", "'none at all'", "'15/03/2023'", "2021-06-01"):
        assert words in said
    with pytest.raises(InputError, match="no such column: clouds"):
        select(known, '"clouds" > 20')
    assert select(known, '"site" = \'A"B\' or "cloud" = 1') == {"2"}


def test_names_of_windows_are_their_own(archive):
    write(archive / "mine" / "scene_20230601@0_0.tif", np.ones((1, 8, 8), np.uint8))
    Image.new("RGB", (300, 300)).save(archive / "mine" / "photograph.tif", format="JPEG")
    ds = load(archive)
    assert ds.images["image_id"].is_unique and "photograph" in set(ds.images["image_id"])
    assert "has the name of a window" in " ".join(ds.problems)
    assert ds.file_of("scene_20230601@0_0").window == (0, 0, 64, 64)


def test_a_click_on_the_map_asks_for_what_is_near(archive, static_encoder):
    ds = load(archive)
    caption_dataset(ds, "pixels")
    panel = Panel(Sources(ds, "pixels", static_encoder), {"query": "a field"})
    assert panel.found.total == 7 and len(panel._map._shown.layers) == 12  # pins and outlines
    places = load_metadata(panel.found.sources.dataset)[0].loc["scene_20230601@86_0"]
    panel._map._half = 1e-4
    panel._map._on_interaction(type="click", coordinates=[places["lat"], places["lon"]])
    assert "scene_20230601@86_0" in set(panel.found.table["image_id"]) and panel.found.total < 7
    panel.search(bbox="")
    assert panel.found.total == 7 and not panel._map._box.layers
    panel.search(where="nonsense <")
    assert "The columns are" in panel.screen.result["error"]
    sent = []
    panel.screen.send = lambda content, buffers=(): sent.append((content, *buffers))
    panel.search(where="gsd is null")
    assert panel.found.table["image_id"].tolist() == ["chip"]
    panel._on_message(None, {"command": "save", "kind": "geojson", "selection": False}, [])
    assert "no place is known" in panel.screen.result["error"] and not sent
    panel.search(where="")
    panel._on_message(None, {"command": "save", "kind": "geojson", "selection": False}, [])
    assert len(json.loads(sent[-1][1])["features"]) == 6
    number = panel.found.table["image_id"].str.startswith("scene").to_numpy().argmax()
    panel._on_message(None, {"command": "open", "number": int(number)}, [])
    assert "in scene_20230601.tif" in sent[-1][0]["card"]  # a window beside its scene


def test_reference_captions_of_windows_are_evaluated_and_reported(archive, static_encoder):
    names = [f"scene_20230601@{row}_{column}" for row in (0, 64, 86) for column in (0, 64)]
    rows = [
        {"image": f"{name}.tif", "caption": f"view {n} of fields"} for n, name in enumerate(names)
    ]
    lines = "".join(
        json.dumps(row) + "\n" for row in [*rows, {"image": "chip.png", "caption": "a chip"}]
    )
    (archive / "mine" / "captions.jsonl").write_text(lines)
    ds = load(archive)
    assert len(ds.with_pixels) == 7 and ds.file_of(names[1]).window == (64, 0, 64, 64)
    assert (read_image(ds.file_of(names[1])) != read_image(ds.file_of(names[0]))).any()
    caption_dataset(ds, "pixels")
    words = ["run", str(archive / "mine"), "--from", "04", "-p", "tile", "64", "-p", "encoder"]
    words += [static_encoder, "-p", "data_dir", str(archive / "data"), "-p", "captioner", "pixels"]
    assert main([*words, "-p", "methods", "[mean]", "-p", "compare_with", "[]"]) == 0
    page = next((archive / "data").glob("*/derived/results/*.html")).read_text()
    assert all(name in page for name in names[:2])
