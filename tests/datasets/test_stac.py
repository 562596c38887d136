"""STAC, in and out: items on disk, catalogues, files elsewhere, images found as items."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from tests.conftest import draw
from trsllava_extras.metadata import load_metadata, select
from trsllava_extras.panel.index import Index
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.images import read_image, view
from trsllava_utils.sources import Sources

NAMES = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "B11": "swir16"}
REFLECTANCE = {"B02": 0.03, "B03": 0.06, "B04": 0.1, "B08": 0.3, "B11": 0.2}
SEEN = (89.1, 69.4, 48.5)  # red, green, blue by the curve of sRGB
PLACE = [[11, 48], [11.1, 48], [11.1, 48.1], [11, 48.1], [11, 48]]


def band(path, value, res=10):
    """A single-band file of Sentinel-2, with a dark and a bright half."""
    n = 128 * 10 // res
    values = np.full((1, n, n), round((value + 0.1) * 10_000), np.uint16)
    values[:, : n // 2] //= 2
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"driver": "GTiff", "width": n, "height": n, "count": 1, "dtype": "uint16"}
    place = from_origin(600_000, 5_300_000, res, res)
    with rasterio.open(path, "w", crs="EPSG:32632", transform=place, **how) as raster:
        raster.write(values)


def item(name, prefix="./", version="1.0.0"):
    about = {"nodata": 0, "scale": 1e-4, "offset": -0.1}
    assets = {}
    for code, colour in NAMES.items():
        asset = {"href": f"{prefix}{code}.tif", "type": "image/tiff", "roles": ["data"]}
        if version == "1.1.0":
            scaled = {f"raster:{k}": v for k, v in about.items() if k != "nodata"}
            asset["bands"] = [{"name": code, "eo:common_name": colour, "nodata": 0, **scaled}]
        else:
            asset["eo:bands"] = [{"name": code, "common_name": colour}]
            asset["raster:bands"] = [about]
        assets[colour] = asset
    assets["thumbnail"] = {"href": f"{prefix}thumbnail.jpg", "roles": ["thumbnail"]}
    properties = {"datetime": "2021-06-01T10:10:31Z", "eo:cloud_cover": 12.5, "platform": "s2a"}
    return {
        "type": "Feature",
        "stac_version": version,
        "id": name,
        "geometry": {"type": "Polygon", "coordinates": [PLACE]},
        "bbox": [11, 48, 11.1, 48.1],
        "properties": properties,
        "links": [],
        "assets": assets,
    }


def load(tmp_path, **how):
    return load_dataset(str(tmp_path / "mine"), str(tmp_path / "data"), **how)


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
@pytest.mark.parametrize("how", ["item", "collection", "catalogue"])
def test_several_files_are_one_image(tmp_path, how, version):
    folder = tmp_path / "mine" / "scene"
    for code, value in REFLECTANCE.items():
        band(folder / f"{code}.tif", value, 20 if code == "B11" else 10)
    made = item("S2A_32UPU_20210601_0_L2A", version=version)
    content = {"type": "FeatureCollection", "features": [made]} if how == "collection" else made
    (folder / "it.json").write_text(json.dumps(content))
    if how == "catalogue":
        deep = tmp_path / "mine" / "a" / "b" / "scene"
        deep.parent.mkdir(parents=True)
        folder.rename(deep)
        child = {"type": "Catalog", "stac_version": version, "id": "c", "description": "c"}
        child["links"] = [
            {"rel": "item", "href": "scene/it.json"},
            {"rel": "child", "href": "c.json"},
        ]
        (deep.parent / "c.json").write_text(json.dumps(child))
        root = {**child, "links": [{"rel": "child", "href": "./a/b/c.json"}]}
        (tmp_path / "mine" / "catalog.json").write_text(json.dumps(root))
    draw(tmp_path / "mine" / "photograph.jpg")
    ds = load(tmp_path)
    assert sorted(ds.images["image_id"]) == ["S2A_32UPU_20210601_0_L2A", "photograph"]
    assert not ds.problems
    pictures = view(ds.file_of("S2A_32UPU_20210601_0_L2A")).by_name
    assert list(pictures) == ["true colour", "false colour"]
    shown = pictures["true colour"][-1, -1].astype(float)
    assert np.abs(shown - SEEN).max() <= 1  # surface reflectance
    table, problems = load_metadata(ds)
    known = table.loc["S2A_32UPU_20210601_0_L2A"]
    assert (known["date"], known["cloud"], known["gsd"]) == ("2021-06-01", 12.5, 10)
    assert known["geometry"].bounds == (11, 48, 11.1, 48.1) and known["platform"] == "s2a"
    assert select(table, where="cloud < 20") == {known.name} and not problems
    assert caption_dataset(ds, "pixels").report.captioned == 2
    assert caption_dataset(load(tmp_path), "pixels").report.already == 2


def test_radar_of_two_files(tmp_path):
    """Sentinel-1 GRD: control points alone, the first column in the east."""
    at = {(r, c): (12 - c / 100, 48 - r / 100) for r in (0, 32, 64) for c in (0, 32, 64)}
    points = [GroundControlPoint(*pixel, *place) for pixel, place in at.items()]
    for n, name in enumerate(("vh", "vv")):
        values = np.full((1, 64, 64), 100 * (n + 1), np.uint16)
        values[:, :, :32] *= 3  # the east is bright
        how = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint16"}
        path = tmp_path / "mine" / f"{name}.tiff"
        path.parent.mkdir(exist_ok=True)
        with rasterio.open(path, "w", gcps=points, crs="EPSG:4326", **how) as raster:
            raster.write(values)
    made = item("S1A")
    made["assets"] = {n: {"href": f"{n}.tiff", "roles": ["data"]} for n in ("vh", "vv")}
    made["geometry"] = None
    (tmp_path / "mine" / "item.json").write_text(json.dumps(made))
    ds = load(tmp_path)
    assert ds.images["image_id"].tolist() == ["S1A"]
    (shown,) = view(ds.file_of("S1A")).by_name.values()
    assert (shown[:, 40:, 0] > shown[:, :20, 0].max()).all()  # the east is on the right
    place = load_metadata(ds)[0].loc["S1A", "geometry"]
    assert place.bounds == pytest.approx((11.36, 47.36, 12, 48))


def test_products_come_with_the_items_of_their_web_site(tmp_path):
    """Landsat's are: addresses on the web, the files beside them."""
    for code, value in REFLECTANCE.items():
        band(tmp_path / "mine" / f"{code}.tif", value)
    draw(tmp_path / "mine" / "thumbnail.jpg")
    made = item("x", "https://127.0.0.1:9/a/")
    made["properties"]["eo:bands"] = [
        asset.pop("eo:bands")[0] for asset in [*made["assets"].values()][:5]
    ]
    for number, asset in enumerate([*made["assets"].values()][:5]):  # as in STAC 0.7
        asset["eo:bands"] = [number]
    (tmp_path / "mine" / "x_stac.json").write_text(json.dumps(made))
    ds = load(tmp_path)
    assert ds.images["image_id"].tolist() == ["x"] and not ds.problems


def test_items_beside_their_images(tmp_path):
    """One file each: the image keeps its name, and what its item says is known of it."""
    for name in ("S2A_1", "S2A_2"):
        draw(tmp_path / "mine" / f"{name}_visual.png")
        made = item(name)
        made["assets"] = {"visual": {"href": f"{name}_visual.png", "roles": ["visual"]}}
        made["properties"]["datetime"] = f"2021-06-0{name[-1]}T10:00:00Z"
        (tmp_path / "mine" / f"{name}.json").write_text(json.dumps(made))
    planet = item("20240601_101112_24_24aa")
    del planet["stac_version"], planet["assets"]
    planet["properties"] = {"acquired": "2024-06-01T10:11:12Z", "cloud_cover": 0.06}
    draw(tmp_path / "mine" / "20240601_101112_24_24aa_3B_Visual.png")
    (tmp_path / "mine" / "20240601_101112_24_24aa_metadata.json").write_text(json.dumps(planet))
    table, problems = load_metadata(load(tmp_path))
    assert table["date"].to_dict() == {
        "20240601_101112_24_24aa_3B_Visual": "2024-06-01",
        "S2A_1_visual": "2021-06-01",
        "S2A_2_visual": "2021-06-02",
    }
    assert table.loc["20240601_101112_24_24aa_3B_Visual", "cloud"] == 0.06 and not problems


def test_nothing_outside_the_folder_is_opened(tmp_path):
    for code, value in REFLECTANCE.items():
        band(tmp_path / "other" / f"{code}.tif", value)
    draw(tmp_path / "mine" / "a.png")
    for name, prefix in {"up": "../other/", "whole": f"{tmp_path}/other/"}.items():
        (tmp_path / "mine" / f"{name}.json").write_text(json.dumps(item(name, prefix)))
    links = [{"rel": "item", "href": "../other/out.json"}, {"rel": "child", "href": "catalog.json"}]
    links += [{"rel": "child", "href": "https://127.0.0.1:9/catalog.json"}, "odd", {"rel": "item"}]
    (tmp_path / "other" / "out.json").write_text(json.dumps(item("out", "./")))
    catalogue = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": links}
    (tmp_path / "mine" / "catalog.json").write_text(json.dumps(catalogue))
    ds = load(tmp_path)
    assert ds.images["image_id"].tolist() == ["a"]
    assert ds.problems == ("2 STAC items: no picture that can be read (up, whole)",)


@pytest.mark.parametrize(
    "odd", ['{"stac_version": 1', '{"stac_version": "1.0.0", "features": {"a": 1}, "links": 5}',
            '{"stac_version": "1.0.0", "type": "Feature", "id": 7, "assets": [], "properties": []}',
            '{"stac_version": "1.0.0", "type": "Feature", "id": "x", "geometry": {"type": "Nil"},'
            ' "assets": {"a": {"href": 5}, "b": {"href": "a.png", "roles": 3, "eo:bands": 1}}}'],
)  # fmt: skip
def test_odd_items_leave_the_images_usable(tmp_path, odd):
    draw(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "odd.json").write_text(odd)
    ds = load(tmp_path)
    assert ds.images["image_id"].tolist() == ["a"]
    load_metadata(ds)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server of files that answers for parts of them, and counts."""

    sent = 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            self.send_response(404)
            self.end_headers()
            return
        with open(path, "rb") as file:
            body = file.read()
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        self.send_response(206 if asked else 200)
        if asked:
            first, last, size = int(asked[1]), int(asked[2] or len(body) - 1), len(body)
            body = body[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{min(last, size - 1)}/{size}")
        Ranges.sent += len(body)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_files_elsewhere_are_read_where_the_user_says_so(tmp_path):
    for code, value in REFLECTANCE.items():
        band(tmp_path / "far" / f"{code}.tif", value)
    handler = lambda *args: Ranges(*args, directory=str(tmp_path / "far"))  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "mine").mkdir()
    made = item("S2A_x_L2A", f"http://127.0.0.1:{server.server_port}/")
    (tmp_path / "mine" / "item.json").write_text(json.dumps(made))
    try:
        with pytest.raises(MissingError, match="-p remote yes reads them"):
            load(tmp_path)
        assert not Ranges.sent
        ds = load(tmp_path, remote=True)
        shown = read_image(ds.file_of("S2A_x_L2A"))[-1, -1].astype(float)
        assert np.abs(shown - SEEN).max() <= 1 and Ranges.sent
        assert load(tmp_path).images["image_id"].tolist() == ["S2A_x_L2A"]  # allowed once
    finally:
        server.shutdown()


def test_images_found_leave_as_items(tmp_path, static_encoder):
    for name in ("a_20210601", "b"):
        draw(tmp_path / "mine" / f"{name}.png")
    rows = "image,lat,lon,cloud\na_20210601.png,48,179.5,12\nb.png,1,2,3\n"
    (tmp_path / "mine" / "metadata.csv").write_text(rows)
    ds = load(tmp_path)
    caption_dataset(ds, "pixels")
    found = Index(Sources(ds, "pixels", static_encoder)).find("a field", 5)
    content = json.loads(found.save(tmp_path / "found.json", "stac").read_text())
    made = pystac.ItemCollection.from_dict(content)
    assert [one.id for one in made] == ["a_20210601"]  # b has no date
    (one,) = made
    assert one.validate() and one.geometry["coordinates"] == [179.5, 48]
    assert one.properties["start_datetime"] == "2021-06-01T00:00:00Z"
    records = load_captions(ds, "pixels").records
    assert one.properties["captions"] == [v.fields for v in records["a_20210601"].variants]
    assert one.properties["cloud"] == 12 and one.assets["image"].href.endswith("a_20210601.png")
    # and come back
    (tmp_path / "back").mkdir()
    draw(tmp_path / "back" / "a_20210601.png")
    (tmp_path / "back" / "found.json").write_text(json.dumps(content))
    again = load_metadata(load_dataset(str(tmp_path / "back"), str(tmp_path / "data")))[0]
    assert again.loc["a_20210601", ["date", "lat", "cloud"]].tolist() == ["2021-06-01", 48, 12]
    (tmp_path / "mine" / "a_20210601.png").rename(tmp_path / "mine" / "c.png")
    ds = load(tmp_path)
    caption_dataset(ds, "pixels")
    with pytest.raises(InputError, match="STAC items need a date"):
        Index(Sources(ds, "pixels", static_encoder)).find("a field", 5).as_text("stac")
