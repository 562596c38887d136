"""Dates, places and tables as people and cameras write them, tested by value."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from PIL import Image, TiffImagePlugin
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from rasterio.warp import transform

from tests.conftest import draw
from trsllava_extras.metadata import load_metadata, select
from trsllava_extras.metadata.shapes import for_files
from trsllava_extras.rasters import places
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError
from trsllava_utils.images import ImageFile


@pytest.fixture
def known(tmp_path):
    """What is known of the images of a folder, and the sentences on it."""

    def load(names=(), split="all", tile=1024):
        folder = tmp_path / "mine"
        for seed, name in enumerate(names):
            draw(folder / name, seed)
        return load_metadata(load_dataset(str(folder), str(tmp_path / "data"), split, tile=tile))

    (tmp_path / "mine").mkdir()
    return load


def raster(path, size=(64, 64), **profile):
    values = np.random.default_rng(0).integers(1, 255, (1, *size), np.uint8)
    how = {"driver": "GTiff", "height": size[0], "width": size[1], "count": 1, "dtype": "uint8"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **how, **profile) as made:
        made.write(values)
    return path


# — tables —


def test_ids_are_text(tmp_path, known):
    (tmp_path / "mine" / "metadata.csv").write_text("id,cloud\n0010,12\n10,40\n")
    assert known(["0010.jpg", "10.jpg"])[0]["cloud"].to_dict() == {"0010": 12, "10": 40}


def test_gaps_make_no_fractions_of_ids(tmp_path, known):
    pd.DataFrame({"scene": [101, None, 102], "cloud": [1, 2, 3]}).to_parquet(
        tmp_path / "mine" / "m.parquet"
    )
    table, problems = known(["101.jpg", "102.jpg"])
    assert table["cloud"].to_dict() == {"101": 1, "102": 3}
    assert any("1 of 3 rows match no image: (no name)" in told for told in problems)


@pytest.mark.parametrize(
    "written, numbers",
    [
        (("9,5", "100,0", "15"), (9.5, 100, 15)),
        (("1.234,5", "12,0", "1.000"), (1234.5, 12, 1000)),
        (("1,234", "12,345.5", "7"), (1234, 12345.5, 7)),
        (("12 %", "5%", "-"), (12, 5, None)),
        (("1 234", "12", "unknown"), (1234, 12, None)),
        (("-3.5", "1e3", ""), (-3.5, 1000, None)),
        (("0.5", "9,5", "2"), (0.5, 9.5, 2)),
    ],
)
def test_numbers_as_people_write_them(tmp_path, known, written, numbers):
    rows = [f"{name}.jpg;{text}" for name, text in zip("abc", written, strict=True)]
    (tmp_path / "mine" / "metadata.csv").write_text("\n".join(["image;cloud", *rows]))
    table, problems = known(["a.jpg", "b.jpg", "c.jpg"])
    assert not problems
    assert [None if pd.isna(v) else v for v in table["cloud"]] == list(numbers)


def test_text_is_not_compared_with_a_number(tmp_path, known):
    rows = "image,cloud,flag,code\na.jpg,low,true,007\nb.jpg,high,false,070\n"
    (tmp_path / "mine" / "metadata.csv").write_text(rows)
    table, _ = known(["a.jpg", "b.jpg"])
    for where in ("cloud < 20", '"cloud">= 2', "cloud between 1 and 3", "code < 8"):
        with pytest.raises(InputError, match="holds text"):
            select(table, where=where)
    assert select(table, where="cloud = 'low' and flag") == {"a"}
    assert select(table, where="code = '007'") == {"a"}


def test_a_line_for_excel_and_separators_in_quotes(tmp_path, known):
    text = 'sep=;\nimage;"note, long";cloud\na.jpg;"x;y, z";12\nb.jpg;none;40\n'
    (tmp_path / "mine" / "metadata.csv").write_text(text)
    table, problems = known(["a.jpg", "b.jpg"])
    assert table.loc["a"].to_dict() == {"note, long": "x;y, z", "cloud": 12} and not problems
    (tmp_path / "mine" / "metadata.csv").write_text('image;"a,b,c,d";cloud\na.jpg;1;12\n')
    assert list(known()[0].columns) == ["a,b,c,d", "cloud"]


@pytest.mark.parametrize("name, column", [("m.parquet", "geom"), ("m.geoparquet", "geometry")])
def test_geoparquet_of_any_name(tmp_path, known, name, column):
    points = geopandas.points_from_xy([11, 12], [48, 49])
    table = geopandas.GeoDataFrame({"image": ["a.jpg", "b.jpg"]}, geometry=points, crs=4326)
    table = table.rename_geometry(column) if column != "geometry" else table
    table.to_parquet(tmp_path / "mine" / name)
    table, problems = known(["a.jpg", "b.jpg"])
    assert table[["lat", "lon"]].values.tolist() == [[48, 11], [49, 12]] and not problems


def test_dates_are_days(tmp_path, known):
    rows = "image,date\na.jpg,2021-06-01T10:15:30Z\nb.jpg,2.6.2021\nc.jpg,2021-02-30\nd.jpg,\n"
    (tmp_path / "mine" / "metadata.csv").write_text(rows)
    table, problems = known(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    assert table["date"].dropna().to_dict() == {"a": "2021-06-01", "b": "2021-06-02"}
    assert select(table, where="date <= '2021-06-01'") == {"a"}
    assert any("1 values are not dates" in told and "2021-02-30" in told for told in problems)


def test_rows_and_images_without_each_other_are_named(tmp_path, known):
    rows = "image,cloud\na.jpg,1\nb.jpg,2\nx.jpg,3\ny.jpg,4\nx.jpg,5\n"
    (tmp_path / "mine" / "metadata.csv").write_text(rows)
    _, problems = known(["a.jpg", "b.jpg", "c.jpg"])
    told = " ".join(problems)
    assert "3 of 5 rows match no image: x.jpg, y.jpg" in told
    assert "1 images have no row: c" in told and "1 rows name an image again" in told


def test_other_splits_are_no_rows_without_an_image(tmp_path, known):
    (tmp_path / "mine" / "captions.csv").write_text(
        "image,caption,split\na.jpg,x,train\nb.jpg,y,val"
    )
    (tmp_path / "mine" / "metadata.csv").write_text("image,cloud\na.jpg,1\nb.jpg,2\n")
    table, problems = known(["a.jpg", "b.jpg"], split="val")
    assert table["cloud"].to_dict() == {"b": 2} and not problems


# — photographs —


def photograph(path, date="2023:06:01 10:10:10", gps=True):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = date
    if gps:
        ratio = TiffImagePlugin.IFDRational
        where = {1: "S", 2: (ratio(48), ratio(30), ratio(0)), 3: "E"}
        where[4] = (ratio(11), ratio(15), ratio(36))
        exif.get_ifd(0x8825).update(where)
    Image.new("RGB", (32, 32), "green").save(path, exif=exif)


def test_what_cameras_note(tmp_path, known):
    folder = tmp_path / "mine"
    photograph(folder / "a.jpg")
    photograph(folder / "b_20200101.jpg", "0000:00:00 00:00:00", gps=False)
    (folder / "c.jpg").write_bytes(b"damaged")
    table, _ = known(["d.png"])
    assert table["date"].dropna().to_dict() == {"a": "2023-06-01", "b_20200101": "2020-01-01"}
    assert table.loc["a", ["lat", "lon"]].tolist() == pytest.approx([-48.5, 11.26])
    assert table.loc[["b_20200101", "c", "d"], "lat"].isna().all()
    assert select(table, bbox="11,-49,12,-48") == {"a"}
    photograph(folder / "a.jpg", "2024:07:01 10:10:10")  # looked at again
    assert known()[0].loc["a", "date"] == "2024-07-01"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("crs", [".prj", ".aux.xml", ""])
def test_world_files(tmp_path, known, suffix, crs):
    path = tmp_path / "mine" / f"a{suffix}"
    Image.new("RGB", (64, 64), "green").save(path)
    path.with_suffix(f".{suffix[1]}gw").write_text("2\n0\n0\n-2\n500001\n5399999\n")
    wkt = rasterio.crs.CRS.from_epsg(32632).to_wkt()
    if crs == ".prj":
        path.with_suffix(crs).write_text(wkt)
    elif crs:
        path.with_name(path.name + crs).write_text(f"<PAMDataset><SRS>{wkt}</SRS></PAMDataset>")
    table, _ = known()
    if not crs:  # of which system is not said
        assert table.empty or table.loc["a"].isna().all()
        return
    assert table.loc["a", "gsd"] == 2
    lon, lat = transform("EPSG:32632", "EPSG:4326", [500064], [5399936])
    assert table.loc["a", ["lon", "lat"]].tolist() == pytest.approx([lon[0], lat[0]], abs=1e-6)


@pytest.mark.parametrize(
    "name, beside",
    [
        ("scene.tif", "scene.tfw"),
        ("scene.tif", "scene.IMD"),
        ("scene.tif", "scene.prj"),
        ("LC08_L1TP_193027_20210601_20210608_01_T1_B4.TIF", "{}_MTL.txt"),
        (
            "IMG_PHR1A_MS_201309130947094_ORT_1-001_R1C1.tif",
            "DIM_PHR1A_MS_201309130947094_ORT_1-001.XML",
        ),
        ("20240601_101112_3B_AnalyticMS.tif", "20240601_101112_3B_AnalyticMS_metadata.xml"),
    ],
)
def test_files_of_a_product_belong_to_its_images(tmp_path, name, beside):
    path = raster(tmp_path / name)
    before = ImageFile(str(path)).sha256
    beside = tmp_path / beside.format(path.stem.removesuffix("_B4"))
    beside.write_text("1\n")
    assert ImageFile(str(path)).sha256 != before
    beside.unlink()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "other.tfw").write_text("x")
    assert ImageFile(str(path)).sha256 == before


# — places —


def test_points_that_no_plane_fits(tmp_path, known):
    """The grid of a swath; an affine is 1 km off."""

    def ground(column, row):
        u, v = column / 1000, row / 1000
        return (
            10 + 2.5 * u - 0.4 * v + 0.06 * u * v + 0.03 * v**2,
            60 + 0.25 * u - 1.6 * v - 0.05 * u**2,
        )

    at = [(r, c) for r in np.linspace(0, 1000, 10) for c in np.linspace(0, 1000, 21)]
    points = [GroundControlPoint(r, c, *ground(c, r)) for r, c in at]
    raster(tmp_path / "mine" / "swath.tif", (1000, 1000), gcps=points, crs="EPSG:4326")
    table, _ = known(tile=100)
    for row, column in ((0, 0), (900, 400)):
        middle = table.loc[f"swath@{row}_{column}", "geometry"].centroid
        lon, lat = ground(column + 50, row + 50)
        assert (middle.x, middle.y) == pytest.approx((lon, lat), abs=2e-4)


def test_points_on_both_sides_of_the_date_line(tmp_path, known):
    at = {(0, 0): (179.95, 66), (0, 64): (-179.95, 66), (64, 0): (179.95, 65.9)}
    at[64, 64] = (-179.95, 65.9)
    points = [GroundControlPoint(*pixel, *place) for pixel, place in at.items()]
    raster(tmp_path / "mine" / "a.tif", gcps=points, crs="EPSG:4326")
    found = known()[0].loc["a"]
    assert found["geometry"].bounds == pytest.approx((179.95, 65.9, 180.05, 66), abs=1e-6)
    assert abs(found["lon"]) == pytest.approx(180) and found["gsd"] == pytest.approx(111.3, abs=0.5)


def test_rational_polynomials_give_a_rough_place(tmp_path, known):
    """Line and sample are 1 - latitude and longitude, scaled."""
    one, lon, lat = ([float(n == k) for n in range(20)] for k in range(3))
    rpc = RPC(
        height_off=100, height_scale=500, lat_off=48.5, lat_scale=0.5, long_off=11.5, long_scale=0.5,
        line_off=32, line_scale=32, samp_off=32, samp_scale=32,
        line_num_coeff=[-n for n in lat], line_den_coeff=one, samp_num_coeff=lon, samp_den_coeff=one,
    )  # fmt: skip
    raster(tmp_path / "mine" / "a.tif", rpcs=rpc)
    found = known()[0].loc["a"]
    assert found["geometry"].bounds == pytest.approx((11, 48, 12, 49), abs=0.02)


@pytest.mark.parametrize("crs, pole", [("EPSG:3413", 90), ("EPSG:3031", -90)])
def test_around_a_pole(tmp_path, known, crs, pole):
    place = from_origin(-1e6, 1e6, 2e4, 2e4)
    raster(tmp_path / "mine" / "pole.tif", (100, 100), crs=crs, transform=place)
    beside = from_origin(1e5, -1e5, 1e4, 1e4)
    raster(tmp_path / "mine" / "beside.tif", (100, 100), crs=crs, transform=beside)
    table, _ = known()
    assert table.loc["pole", "lat"] == pytest.approx(pole)
    assert table.loc["pole", "gsd"] == pytest.approx(2e4, rel=0.05)
    at = 85 if pole > 0 else -85.1
    assert select(table, bbox=f"-100,{at},-99,{at + 0.1}") == {"pole"}  # beside is elsewhere
    assert select(table, bbox=f"-180,{at},180,{at + 0.1}") == {"pole", "beside"}
    written = for_files(table.loc["pole", "geometry"])
    assert (
        written.bounds[0] == -180
        and written.bounds[2] == 180
        and abs(written.bounds[1 + 2 * (pole > 0)]) == 90
    )


def test_bent_edges(tmp_path, known):
    """A tile of MODIS: by its corners alone it is 75 km off."""
    radius = 6_371_007.181
    sinusoidal = f"+proj=sinu +lon_0=0 +R={radius} +units=m"
    side = radius * np.radians(10)
    raster(
        tmp_path / "mine" / "h18v03.tif", (1200, 1200),
        crs=sinusoidal, transform=from_origin(0, 6 * side, side / 1200, side / 1200),
    )  # fmt: skip
    shape = known(tile=0)[0].loc["h18v03", "geometry"]
    assert shape.bounds == pytest.approx((0, 50, 20, 60), abs=0.2)
    right = max(x for x, y in shape.exterior.coords if abs(y - 55.0) < 0.4)
    assert right == pytest.approx(10 / np.cos(np.radians(55)), abs=0.25)


@pytest.mark.parametrize(
    "crs, gsd",
    [
        ("EPSG:3395", 0.501),
        ("EPSG:3857", 0.501),
        ("EPSG:4087", 0.708),
        ("EPSG:32632", 1),
        ("EPSG:3035", 1),
    ],
)
def test_metres_are_those_on_the_ground(tmp_path, crs, gsd):
    """At 60 degrees north Mercator's metres are two."""
    x, y = transform("EPSG:4326", crs, [10], [60])
    path = raster(tmp_path / "a.tif", crs=crs, transform=from_origin(x[0], y[0], 1, 1))
    with rasterio.open(path) as opened:
        assert places.ground_sample_distance(places.steps(opened)) == pytest.approx(gsd, abs=0.002)


def box(west, south, east, north):
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


@pytest.mark.parametrize(
    "shape",
    [
        {
            "type": "MultiPolygon",
            "coordinates": [[box(178, -18, 180, -16)], [box(-180, -18, -179, -16)]],
        },
        {"type": "Polygon", "coordinates": [box(178, -18, -179, -16)]},
        {"type": "Polygon", "coordinates": [box(178, -18, 181, -16)]},
    ],
)
def test_shapes_across_180_degrees(tmp_path, known, shape):
    features = [
        {"type": "Feature", "properties": {"image": f"{name}.jpg"}, "geometry": where}
        for name, where in {
            "a": shape,
            "b": {"type": "Polygon", "coordinates": [box(10, 47, 11, 48)]},
        }.items()
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (tmp_path / "mine" / "places.geojson").write_text(text)
    table, _ = known(["a.jpg", "b.jpg"])
    assert table.loc["a", ["lon", "lat"]].tolist() == pytest.approx([179.5, -17])
    assert select(table, where="lon > 170 or lon < -170") == {"a"}
    assert (
        select(table, bbox="179,-20,-179.5,-10")
        == {"a"}
        == select(table, bbox="-179.9,-20,-179.5,-10")
    )
    written = for_files(table.loc["a", "geometry"])
    assert written.bounds == (-180, -18, 180, -16) and len(written.geoms) == 2
    assert all(part.exterior.is_ccw for part in written.geoms)
    assert written.area == pytest.approx(6)


def test_the_world_is_no_jump(tmp_path, known):
    world = {"type": "Polygon", "coordinates": [box(-180, -90, 180, 90)]}
    feature = {"type": "Feature", "properties": {"image": "a.jpg"}, "geometry": world}
    text = json.dumps({"type": "FeatureCollection", "features": [feature]})
    (tmp_path / "mine" / "places.geojson").write_text(text)
    found = known(["a.jpg"])[0].loc["a"]
    assert found["geometry"].equals(shapely.box(-180, -90, 180, 90)) and found["lat"] == 0
