"""Pictures of rasters, tested by value against a picture that is known."""

from __future__ import annotations

import os
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from PIL import Image, ImageOps
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from tests.conftest import draw
from tests.openai_server import LocalServer
from trsllava_extras.pages import thumbnail
from trsllava_extras.rasters.opening import open_raster
from trsllava_extras.rasters.upright import Turn
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError
from trsllava_utils.images import ImageFile, Rendering, read_image, view

RNG = np.random.default_rng(0)
KNOWN = np.asarray(Image.fromarray(RNG.integers(0, 255, (9, 9, 3), np.uint8)).resize((64, 64)))
REFLECTANCE = np.moveaxis(KNOWN.astype(np.uint16) * 11 + 200, -1, 0)  # (3, 64, 64)
R, G, B = REFLECTANCE
NIR = R[::-1]


def write(path, bands, names=(), interp=None, mask=None, **profile):
    """A raster as GDAL writes it."""
    bands = np.asarray(bands)
    size = {"width": bands.shape[2], "height": bands.shape[1], "count": len(bands)}
    profile = {"driver": "GTiff", "dtype": bands.dtype, **size, **profile}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(bands)
        for number, name in enumerate(names, 1):
            raster.set_band_description(number, name)
        if interp:
            raster.colorinterp = [ColorInterp[name] for name in interp]
        if mask is not None:
            raster.write_mask(mask)
    return path


def stretched(bands, keep=None, low=2, high=98):
    """The formula of notebook 00, by itself."""
    out = []
    for band in np.asarray(bands, float):
        limits = np.percentile(band if keep is None else band[keep], (low, high))
        out.append(np.clip((band - limits[0]) / (limits[1] - limits[0]), 0, 1) * 255)
    return np.stack(out, axis=-1)


def together(bands, keep=None):
    """One range for the colours."""
    bands = np.asarray(bands, float)
    low, high = np.percentile(bands if keep is None else bands[:, keep], (2, 98))
    return np.moveaxis(np.clip((bands - low) / (high - low), 0, 1) * 255, 0, -1)


def as_camera(light):
    """The curve of sRGB, of light from 0 to 1."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def same(shown, expected, within=1.01):
    assert shown.dtype == np.uint8 and np.abs(shown - expected).max() <= within


PLAIN = {
    "deflate.tif": {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 32},
    "planar.tif": {"interleave": "band", "compress": "lzw"},
    "zstd.tif": {"compress": "zstd", "bigtiff": "YES"},
    "lerc.tif": {"compress": "lerc", "dtype": "float32"},
    "cog.tif": {"driver": "COG"},
    "erdas.img": {"driver": "HFA"},
    "plain.jp2": {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"},
    "deep.png": {"driver": "PNG"},
    "rgb.tif": {"photometric": "RGB"},
}


@pytest.mark.parametrize("name", PLAIN)
def test_sixteen_bits_in_any_container(tmp_path, name):
    bands = REFLECTANCE.astype(PLAIN[name].get("dtype", "uint16"))
    shown = read_image(write(tmp_path / name, bands, **PLAIN[name]))
    same(shown, together(REFLECTANCE))
    assert abs(shown.mean() - 126) < 15  # not the 6 of a high byte cut off


@pytest.mark.parametrize("dtype", ["int16", "uint32", "float32", "float64"])
def test_types_of_numbers(tmp_path, dtype):
    bands = (REFLECTANCE.astype(float) - 1500) if dtype != "uint32" else REFLECTANCE * np.uint32(9)
    same(read_image(write(tmp_path / "x.tif", bands.astype(dtype))), together(REFLECTANCE))


def test_eight_bits_are_shown_as_they_are(tmp_path):
    bands = np.moveaxis(KNOWN, -1, 0)
    for name, options in {
        "a.tif": {"compress": "lzw"},
        "b.jp2": {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"},
        "c.tif": {"interleave": "band", "tiled": True, "blockxsize": 32, "blockysize": 32},
    }.items():
        assert (read_image(write(tmp_path / name, bands, **options)) == KNOWN).all()
    blue_first = write(tmp_path / "bgr.tif", bands[::-1], interp=("blue", "green", "red"))
    assert (read_image(blue_first) == KNOWN).all()
    for mode, name in (("CMYK", "d.tif"), ("P", "e.tif"), ("1", "f.tif"), ("L", "g.tif")):
        image = Image.fromarray(KNOWN).convert(mode)
        image.save(tmp_path / name)
        assert (read_image(tmp_path / name) == np.asarray(image.convert("RGB"))).all()


def test_white_is_zero(tmp_path):
    grey = np.repeat(KNOWN[..., :1], 3, axis=2)
    tifffile.imwrite(tmp_path / "8.tif", 255 - KNOWN[..., 0], photometric="miniswhite")
    assert (read_image(tmp_path / "8.tif") == grey).all()
    tifffile.imwrite(tmp_path / "16.tif", 65535 - R, photometric="miniswhite")
    same(read_image(tmp_path / "16.tif"), stretched([R, R, R]), 2)


@pytest.mark.parametrize("nodata", [0, 65535, -9999, np.nan, "mask", "alpha"])
def test_pixels_without_data_take_no_part_and_are_white(tmp_path, nodata):
    keep = np.ones((64, 64), bool)
    keep[:, :14] = False
    bands, how = REFLECTANCE.astype("float32" if nodata in (-9999,) else "uint16"), {}
    if nodata == "mask":
        how["mask"] = keep.astype(np.uint8) * 255
    elif nodata == "alpha":
        bands = np.concatenate([bands, keep[None].astype(np.uint16) * 65535])
        how["interp"] = ("red", "green", "blue", "alpha")
    elif np.isnan(nodata):
        bands = np.where(keep, REFLECTANCE, np.nan).astype(np.float32)
    else:
        bands = np.where(keep, bands, nodata).astype(bands.dtype)
        how["nodata"] = nodata
    pictures = view(write(tmp_path / "x.tif", bands, **how))
    shown = next(iter(pictures.by_name.values()))
    same(shown[keep], together(REFLECTANCE, keep)[keep])
    assert (shown[~keep] == 255).all() and pictures.blank == pytest.approx(14 / 64)


def test_scale_and_offset_change_nothing(tmp_path):
    path = write(tmp_path / "x.tif", REFLECTANCE)
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (1e-4,) * 3, (-0.1,) * 3
    same(read_image(path), together(REFLECTANCE))


def test_stretches(tmp_path):
    path = write(tmp_path / "x.tif", REFLECTANCE)
    fixed = np.clip(np.moveaxis(REFLECTANCE, 0, -1) / 3000, 0, 1) * 255
    same(read_image(path, Rendering(stretch="0-3000")), fixed)
    same(read_image(path, Rendering(stretch="minmax")), stretched(REFLECTANCE, low=0, high=100))
    same(read_image(path, Rendering(stretch="10-90")), stretched(REFLECTANCE, low=10, high=90))
    same(read_image(path, Rendering(stretch="none")), np.moveaxis(REFLECTANCE, 0, -1) / 257)
    for wrong in ("98-2", "2", "a-b", "2..98"):
        with pytest.raises(InputError, match="percentiles"):
            Rendering(stretch=wrong)


@pytest.mark.parametrize(
    "names",
    [
        ("Blue", "Green", "Red", "NIR"),
        ("B02", "B03", "B04", "B08"),
        ("SR_B2", "SR_B3", "SR_B4", "SR_B5"),
        ("blue (490 nm)", "green (560 nm)", "red (665 nm)", "near infrared (842 nm)"),
    ],
)
def test_names_of_bands_come_before_their_order(tmp_path, names):
    path = write(tmp_path / "x.tif", [B, G, R, NIR], names)
    pictures = view(path).by_name
    assert list(pictures) == ["true colour", "false colour"]
    same(pictures["true colour"], together([R, G, B]))
    same(pictures["false colour"], stretched([NIR, R, G]))


def test_red_edge_is_not_red_and_alpha_that_is_named_is_data(tmp_path):
    names = ("coastal blue", "red edge", "blue", "green", "red")
    path = write(tmp_path / "x.tif", [NIR, NIR, B, G, R], names)
    same(read_image(path), together([R, G, B]))
    bands = [KNOWN[..., 2], KNOWN[..., 1], KNOWN[..., 0], KNOWN[::-1, :, 0]]
    kinds = ("red", "green", "blue", "alpha")  # what many programs write for any four bands
    path = write(tmp_path / "y.tif", bands, ("b", "Green", "Red", "NIR"), kinds)
    assert list(view(path).by_name) == ["true colour", "false colour"]


def test_bands_are_for_files_of_many_bands(tmp_path):
    chosen = Rendering(bands="3,2,1")
    photograph = draw(tmp_path / "a.jpg")
    assert (read_image(photograph, chosen) == read_image(photograph)).all()
    rgb = write(tmp_path / "b.tif", np.moveaxis(KNOWN, -1, 0), photometric="RGB")
    assert (read_image(rgb, chosen) == KNOWN).all()
    many = write(tmp_path / "c.tif", [B, G, R, NIR, NIR], ("a", "b", "c", "d", "e"))
    same(read_image(many, chosen), together([R, G, B]))
    same(read_image(many, Rendering(bands="c,b,a")), together([R, G, B]))
    with pytest.raises(InputError, match=r"c\.tif has 5 band.*a, b, c.*bands=9,1,1"):
        read_image(many, Rendering(bands="9,1,1"))
    for wrong in ("4", "1,2,3,4", "0,1,2", "1,,2"):
        with pytest.raises(InputError, match="three bands"):
            Rendering(bands=wrong)


def test_radar(tmp_path):
    power = KNOWN[..., 0] / 255 * 0.3 + 0.001
    cross = power * np.linspace(0.1, 0.5, 64)
    linear = write(tmp_path / "a.tif", np.float32([power, cross]), ("VV", "VH"))
    shown = view(linear).by_name["radar"]
    decibels = 10 * np.log10([power, cross])
    same(shown[..., :2], stretched(decibels), 2)
    same(shown[..., 2], np.clip((decibels[0] - decibels[1]) / 15, 0, 1) * 255, 2)
    already = write(tmp_path / "b.tif", np.float32(decibels), ("VV", "VH"))
    same(read_image(already), shown.astype(float), 2)
    fixed = read_image(already, Rendering(stretch="-25-0"))
    same(fixed[..., 0], np.clip((decibels[0] + 25) / 25, 0, 1) * 255, 2)
    unnamed = write(tmp_path / "c.tif", np.float32([power, cross]))
    assert list(view(unnamed).by_name) == ["grey"]  # nobody says that it is radar
    assert list(view(unnamed, Rendering(bands="1,2")).by_name) == ["radar"]


def test_index_pictures(tmp_path):
    near, red = np.full((64, 64), 3000, np.uint16), np.full((64, 64), 3000, np.uint16)
    red[:, :32] = 300  # the west is green
    path = write(tmp_path / "x.tif", [red, red, red, near], ("Blue", "Green", "Red", "NIR"))
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (1e-4,) * 4, (0.0,) * 4
    shown = view(path, Rendering(false_colour="ndvi")).by_name["NDVI"]
    west, east = shown[0, 0].astype(int), shown[0, -1].astype(int)
    assert west[1] > west[0] + 50 and np.ptp(east) < 12 and east.min() > 230  # green, white
    dry = view(path, Rendering(false_colour="ndwi")).by_name["NDWI"][0, 0].astype(int)
    assert dry[0] > dry[2] + 50  # brown
    three = write(tmp_path / "y.tif", REFLECTANCE)
    assert list(view(three, Rendering(false_colour="ndvi")).by_name) == ["true colour"]


def test_pages_of_one_size_are_bands(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.stack([R, G, B, NIR]), photometric="minisblack")
    same(read_image(tmp_path / "x.tif"), together([R, G, B]))
    shown = view(tmp_path / "x.tif").by_name["false colour"]
    same(shown, stretched([NIR, R, G]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes each
    image, exif = Image.fromarray(KNOWN), Image.Exif()
    exif[0x0112] = orientation
    if orientation > 1:
        image = image.transpose(Image.Transpose(back[orientation]))
    image.save(tmp_path / "x.png", exif=exif)
    assert (read_image(tmp_path / "x.png") == KNOWN).all()


def test_transparent_pixels_of_photographs_are_white(tmp_path):
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[:, :20] = 0
    Image.fromarray(np.dstack([KNOWN, alpha])).save(tmp_path / "x.png")
    shown = read_image(tmp_path / "x.png")
    assert (shown[:, :20] == 255).all() and (shown[:, 20:] == KNOWN[:, 20:]).all()


def test_a_large_raster_is_read_reduced(tmp_path):
    bands = np.kron(REFLECTANCE, np.ones((1, 8, 8), np.uint16))  # 512 x 512
    bands[:, :8, :8] = 0
    shown = read_image(write(tmp_path / "x.tif", bands, nodata=0), max_side=64)
    assert shown.shape == (64, 64, 3) and (shown[0, 0] == 255).all()
    keep = np.ones((64, 64), bool)
    keep[0, 0] = False
    same(shown[keep], together(REFLECTANCE, keep)[keep])


def virtual(path, source):
    band = f"<SimpleSource><SourceFilename>{source}</SourceFilename></SimpleSource>"
    text = f'<VRTRasterBand dataType="UInt16" band="1">{band}</VRTRasterBand>'
    path.write_text(f'<VRTDataset rasterXSize="64" rasterYSize="64">{text}</VRTDataset>')


def test_virtual_rasters_stay_in_their_folder(tmp_path):
    mine = tmp_path / "mine"
    (mine / "tiles").mkdir(parents=True)
    write(mine / "tiles" / "a.tif", REFLECTANCE[:1])
    write(tmp_path / "secret.tif", REFLECTANCE[:1])
    virtual(mine / "inside.vrt", mine / "tiles" / "a.tif")
    virtual(mine / "outside.vrt", tmp_path / "secret.tif")
    virtual(mine / "web.vrt", "/vsicurl/http://127.0.0.1:9/a.tif")
    virtual(mine / "nested.vrt", "outside.vrt")
    virtual(mine / "fake.tif", tmp_path / "secret.tif")
    (mine / "net.tif").write_text('<GDAL_WMS><Service name="TMS"/></GDAL_WMS>')
    virtual(mine / "again.vrt", mine / "again.vrt")
    ds = load_dataset(str(mine), str(tmp_path))
    assert ds.images["image_id"].tolist() == ["inside", "tiles/a"]
    same(read_image(ds.file_of("inside")), stretched([R, R, R]))
    said = " ".join(ds.problems)
    for name in ("outside.vrt refers to", "web.vrt refers to", "nested.vrt refers to", "again.vrt"):
        assert name in said
    assert "fake.tif is not a readable image" in said and "net.tif is not a readable" in said


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    whole = write(tmp_path / "x.tif", REFLECTANCE, compress="deflate").read_bytes()
    for content in (b"", b"II*\0", whole[: len(whole) // 2], b"hello"):
        (tmp_path / "x.tif").write_bytes(content)
        with pytest.raises(InputError, match=r"^x\.tif is (empty|not a readable image)"):
            read_image(tmp_path / "x.tif")


def one_value(path, value, **profile):
    return write(path, np.full((1, 64, 64), value, np.uint8), **profile)


def test_a_file_leads_to_no_other(tmp_path):
    secret = one_value(tmp_path / "secret.tif", 222)
    keys = [
        f'<Item name="SUBDATASET_{i}_NAME" domain="SUBDATASETS">{secret}</Item>' for i in (1, 2)
    ]
    forged = f"<GDALMetadata>{''.join(keys)}</GDALMetadata>"
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "a.tif"
    values = np.full((64, 64), 5, np.uint8)
    tifffile.imwrite(path, values, metadata=None, extratags=[(42112, "s", 0, forged, True)])
    with pytest.raises(InputError, match=r"a\.tif is not a readable image"):
        read_image(path)
    for number, source in enumerate(
        (
            f"<sourcefilename>{secret}</sourcefilename>",
            '<SourceFilename relativeToVRT="1">../secret.tif</SourceFilename>',
            "<SourceFilename>mine/a.tif</SourceFilename>",  # of which folder?
            '<SourceFilename relativeToVRT="1">wms.xml</SourceFilename>',
            "<Argument name='dataset_filename'>a.tif</Argument>",
        )
    ):
        virtual(tmp_path / "mine" / f"{number}.vrt", "X")
        text = (tmp_path / "mine" / f"{number}.vrt").read_text()
        text = text.replace("<SourceFilename>X</SourceFilename>", source)
        (tmp_path / "mine" / f"{number}.vrt").write_text(text)
    (tmp_path / "mine" / "wms.xml").write_text("<GDAL_WMS/>")
    path.unlink()
    one_value(path, 5)
    ds = load_dataset(str(tmp_path / "mine"), str(tmp_path))
    assert ds.images["image_id"].tolist() == ["a"] and len(ds.problems) == 5


class Counter(BaseHTTPRequestHandler):
    """Counts what is asked of an address."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def web():
    """A server on this machine, and what was asked of it."""
    with LocalServer(("127.0.0.1", 0), Counter) as server:
        server.asked = []
        yield server


@pytest.mark.parametrize("beside", ["a.tif.ovr", "a.tif.msk", "a.tif.aux.xml", "A.AUX"])
@pytest.mark.parametrize("to", ["file", "web", "link"])
def test_files_beside_a_raster_lead_nowhere(tmp_path, web, beside, to):
    """A picture elsewhere, and an address on the web, are named by a file beside a plain raster, or
    by one beside a source of a virtual raster: neither is opened, and the raster is left out."""
    mine, secret = tmp_path / "mine", tmp_path / "secret.tif"
    (mine / "tiles").mkdir(parents=True)
    write(secret, np.full((3, 256, 256), 222, np.uint8))
    wanted = f"/vsicurl/http://127.0.0.1:{web.server_port}/a.tif" if to == "web" else str(secret)
    for folder in (mine, mine / "tiles"):
        write(folder / "a.tif", np.full((3, 512, 512), 5, np.uint8))
        write(folder / "b.tif", np.full((3, 512, 512), 7, np.uint8))
        if to == "link":
            (folder / beside).symlink_to(secret)
        elif beside.endswith(".xml"):
            named = f'<MDI key="OVERVIEW_FILE">{wanted}</MDI>'
            text = f'<PAMDataset><Metadata domain="OVERVIEWS">{named}</Metadata></PAMDataset>'
            (folder / beside).write_text(text)
        else:
            virtual(folder / beside, wanted)
    virtual(mine / "c.vrt", mine / "tiles" / "a.tif")
    virtual(mine / "d.vrt", mine / "tiles" / "b.tif")
    ds = load_dataset(str(mine), str(tmp_path))
    assert ds.images["image_id"].tolist() == ["b", "d", "tiles/b"]
    assert read_image(ds.file_of("b")).max() == 7
    said = " ".join(ds.problems)
    assert f"a.tif is not opened: {beside} beside a.tif may lead to other files; remove it" in said
    assert f"a.tif, and {beside} beside that may lead to other files" in said and not web.asked


def test_what_a_raster_says_of_itself_leads_nowhere(tmp_path, web):
    """Overviews that its own metadata name, text beside it that is a link, parts of a virtual
    raster that are not read here."""
    mine = tmp_path / "mine"
    mine.mkdir()
    secret = write(tmp_path / "secret.tif", np.full((3, 256, 256), 222, np.uint8))
    for name in ("a.tif", "b.tif", "c.tif", "d.tif"):
        write(mine / name, np.full((3, 512, 512), 5, np.uint8))
    with rasterio.open(mine / "a.tif", "r+") as raster:
        raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(secret))
    (tmp_path / "b.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    (mine / "b.tfw").symlink_to(tmp_path / "b.tfw")
    virtual(mine / "e.vrt", mine / "c.tif")
    text = (mine / "e.vrt").read_text()
    (mine / "f.vrt").write_text(
        text.replace("<SimpleSource>", f'<SimpleSource SourceFilename="{secret}">')
    )
    (mine / "g.vrt").write_text(text.replace("<VRTRasterBand", '<VRTRasterBand subclass="X"'))
    far = f"/vsicurl/http://127.0.0.1:{web.server_port}/a.tif"
    (mine / "h.vrt").write_text(text.replace("<VRTDataset", f'<VRTDataset x="{far}"'))
    ds = load_dataset(str(mine), str(tmp_path))
    assert ds.images["image_id"].tolist() == ["c", "d", "e"]
    said = " ".join(ds.problems)
    for told in ("a.tif is not opened", "b.tif is not opened: b.tfw", "f.vrt holds <SimpleSource Source",
                 "g.vrt holds <VRTRasterBand subclass>", "h.vrt holds <VRTDataset x>"):  # fmt: skip
        assert told in said
    with open_raster(mine / "e.vrt") as raster:
        assert raster.read(1).max() == 5 and not web.asked


def test_plain_files_beside_a_raster_are_used(tmp_path, web):
    """Overviews, masks and metadata of the common kinds."""
    write(tmp_path / "a.tif", np.full((3, 512, 512), 5, np.uint8))
    with rasterio.open(tmp_path / "a.tif") as raster:  # read-only: they are built beside it
        assert raster.overviews(1) == []
    with rasterio.Env(TIFF_USE_OVR="YES"), rasterio.open(tmp_path / "a.tif", "r+") as raster:
        raster.build_overviews([2, 4])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(tmp_path / "a.tif", "r+") as r:
        r.write_mask(np.arange(512)[None].repeat(512, 0) < 256)
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">:::BASE:::a.tif.ovr</MDI>'
        '</Metadata><Metadata><MDI key="who">me</MDI></Metadata></PAMDataset>'
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        f"a.tif{e}" for e in ("", ".ovr", ".msk", ".aux.xml")
    }
    with open_raster(tmp_path / "a.tif") as raster:
        assert raster.overviews(1) == [2, 4] and raster.tags()["who"] == "me"
        assert raster.dataset_mask().mean() == pytest.approx(127.5)
    assert (read_image(tmp_path / "a.tif")[:, -1] == 255).all()


def test_files_beside_an_image_are_part_of_it(tmp_path):
    one_value(tmp_path / "z.tif", 5)
    virtual(tmp_path / "a.vrt", "z.tif")
    text = (
        (tmp_path / "a.vrt")
        .read_text()
        .replace("<SourceFilename>", '<SourceFilename relativeToVRT="1">')
    )
    (tmp_path / "a.vrt").write_text(text)
    file = ImageFile(str(tmp_path / "a.vrt"))
    before, small = file.sha256, thumbnail(file)
    one_value(tmp_path / "z.tif", 250)
    assert file.sha256 != before and thumbnail(file) is not small


def test_a_value_that_is_nodata_in_one_band_is_a_colour(tmp_path):
    bands = np.full((3, 64, 64), 100, np.uint8)
    bands[0, 5, 5], bands[:, :3] = 255, 255
    shown = read_image(write(tmp_path / "x.tif", bands, nodata=255))
    assert shown[5, 5].tolist() == [255, 100, 100] and (shown[:3] == 255).all()


@pytest.mark.parametrize(
    ("names", "colours", "further"),
    [
        ([f"SR_B{i}" for i in (1, 2, 3, 4, 5, 7)], (3, 2, 1), (4, 3, 2)),
        ([f"SR_B{i}" for i in (1, 2, 3, 4, 5, 6, 7)], (4, 3, 2), (5, 4, 3)),
        ([f"sur_refl_b0{i}" for i in range(1, 8)], (1, 4, 3), (2, 1, 4)),
        ([f"B{i}" for i in range(1, 12)], (4, 3, 2), (5, 4, 3)),
        (["B2", "B3", "B4", "B8", "B11"], (3, 2, 1), (4, 3, 2)),
        (["blue", "green", "red", "rededge"], (3, 2, 1), None),
        (["Red", "Green", "Blue", "DSM"], (1, 2, 3), None),
        ([""] * 4, (1, 2, 3), (4, 1, 2)),
    ],
)
def test_bands_by_satellite(tmp_path, names, colours, further):
    values = np.arange(1, len(names) + 1, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    path = write(tmp_path / "x.tif", values, names, photometric="MINISBLACK")
    pictures = view(path).by_name
    assert tuple(pictures["true colour"][0, 0]) == colours
    assert further is None or tuple(pictures["false colour"][0, 0]) == further
    assert ("false colour" in pictures) == bool(further)


def test_shapes_and_sizes_that_are_rare(tmp_path):
    assert read_image(
        write(tmp_path / "a.tif", np.ones((1, 10, 5000), np.uint8)), max_side=192
    ).shape
    bands = np.zeros((1, 300, 3000), np.uint8)
    bands[:, :, 1800:] = 200
    shown = read_image(write(tmp_path / "b.tif", bands), max_side=16)
    assert 0.35 < (shown > 100).mean() < 0.5
    four_bits = (np.arange(64, dtype=np.uint8) % 16).reshape(1, 8, 8)
    assert read_image(write(tmp_path / "c.tif", four_bits, nbits=4)).max() == 255
    north = np.zeros((1, 8, 8), np.uint8)
    north[0, -1] = 200  # rows run from south to north
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 5e5, 0, 10, 5.3e6)}
    assert read_image(write(tmp_path / "d.tif", north, **place))[0].min() == 200
    write(tmp_path / "e.img", np.ones((1, 64, 64), np.uint8), driver="ENVI")
    assert read_image(tmp_path / "e.img").shape == (64, 64, 3)
    with open(tmp_path / "e.img", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(InputError, match=r"e\.img is not a readable"):
        read_image(tmp_path / "e.img")
    small = (np.arange(64).reshape(1, 8, 8) * 1e-9).astype(np.float32)
    assert read_image(write(tmp_path / "f.tif", small)).max() == 255
    name = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnchen.tif")
    write(tmp_path / "g.tif", REFLECTANCE).rename(name)
    same(read_image(name), together(REFLECTANCE))


QUARTER = np.full((1, 64, 48), 40, np.uint8)
QUARTER[:, :32, :24] = 220  # north-west is bright
TURNS = [Turn(*how) for how in product((False, True), repeat=3)]


def stored(turn: Turn) -> np.ndarray:
    """The picture as a file would hold it that needs this turn."""
    shown = QUARTER[0][:: -1 if turn.rows else 1, :: -1 if turn.columns else 1]
    return (shown.T if turn.transpose else shown)[None]


def upright(path: Path) -> bool:
    shown = read_image(path)
    return shown.shape == (64, 48, 3) and (shown[..., 0] == QUARTER[0]).all()


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_north_is_up_by_transform_and_by_ground_control_points(tmp_path, turn):
    """Every way in which rows and columns can lie on the ground: Sentinel-1 has most of them."""
    raw = stored(turn)
    height, width = raw.shape[1:]
    corners = np.array([(0, 0), (48, 0), (0, 64), (48, 64)])  # of the picture, column and row
    x, y = corners.T
    at_x, at_y = (48 - x if turn.columns else x), (64 - y if turn.rows else y)
    at = np.stack([at_y, at_x] if turn.transpose else [at_x, at_y], axis=1)  # in the file
    lon, lat = 11 + x * 0.01, 48.64 - y * 0.01
    points = [
        GroundControlPoint(row, column, *place)
        for (column, row), *place in zip(at.tolist(), lon, lat, strict=True)
    ]
    assert upright(write(tmp_path / "gcps.tif", raw, gcps=points, crs="EPSG:4326"))
    east, north = 600_000 + x * 10, 5_400_000 - y * 10
    place = np.linalg.lstsq(np.c_[at, np.ones(4)], np.c_[east, north], rcond=None)[0].T
    transform = rasterio.Affine(*place.round(6).ravel())
    assert upright(write(tmp_path / "utm.tif", raw, transform=transform, crs="EPSG:32632"))
    for degrees in (-40, 40):  # within 45
        turned = transform @ rasterio.Affine.rotation(degrees, (width / 2, height / 2))
        assert upright(write(tmp_path / "t.tif", raw, transform=turned, crs="EPSG:32632"))
    whole = ImageFile(str(tmp_path / "utm.tif"))
    left, top, wide, high = turn.box((0, 0, 8, 16), (width, height))
    part = read_image(replace(whole, window=(0, 0, 8, 16), percentiles=None))
    assert part.shape == (high, wide, 3)
    assert (part[..., 0] == QUARTER[0, top : top + high, left : left + wide]).all()


@pytest.mark.parametrize("code", range(1, 9))
def test_a_chip_without_a_place_is_turned_as_its_tag_says(tmp_path, code):
    picture = Image.fromarray(QUARTER[0])
    picture.save(tmp_path / "a.tif", tiffinfo={274: code})
    exif = Image.Exif()
    exif[274] = code
    picture.save(tmp_path / "a.png", exif=exif)
    right = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert (read_image(tmp_path / "a.tif")[..., 0] == right).all()


def test_a_coordinate_system_without_a_place_turns_nothing(tmp_path):
    assert upright(write(tmp_path / "a.tif", QUARTER, crs="EPSG:32632"))


FIVE = np.stack([B, G, R, NIR, NIR // 2])
# band names, and the bands shown as red, green, blue
NAMED = {
    "letters": (("B", "G", "R", "N"), (3, 2, 1)),
    "German": (("Blau", "Grün", "Rot", "Infrarot"), (3, 2, 1)),
    "French": (("Rouge", "Vert", "Bleu"), (1, 2, 3)),
    "Spanish": (("banda azul", "banda verde", "banda rojo"), (3, 2, 1)),
    "nanometres": (("442 nm", "490 nm", "560 nm", "665 nm", "842 nm"), (4, 3, 2)),
    "micrometres": (("0.48 µm", "0.56 µm", "0.66 µm", "0.86 µm"), (3, 2, 1)),
}


@pytest.mark.parametrize("who", NAMED)
def test_names_of_bands_that_people_write(tmp_path, who):
    names, (r, g, b) = NAMED[who]
    bands = FIVE[: len(names)]
    shown = read_image(write(tmp_path / "a.tif", bands, names))
    same(shown, together([bands[r - 1], bands[g - 1], bands[b - 1]]))


@pytest.mark.parametrize("how", ["ENVI", "IMAGERY", "band tags", "far away"])
def test_wavelengths_choose_the_bands(tmp_path, how):
    wavelengths = [460.0, 560.0, 660.0, 850.0, 1600.0]
    if how == "ENVI":
        path = tmp_path / "cube.img"
        path.write_bytes(FIVE.tobytes())
        path.with_suffix(".hdr").write_text(
            "ENVI\nsamples = 64\nlines = 64\nbands = 5\nheader offset = 0\ndata type = 12\n"
            "interleave = bsq\nbyte order = 0\nwavelength units = Nanometers\n"
            f"wavelength = {{{', '.join(map(str, wavelengths))}}}\n"
        )
    else:
        path = write(tmp_path / "a.tif", FIVE)
        with rasterio.open(path, "r+") as raster:
            for number, nm in enumerate(wavelengths, 1):
                nm = nm + 900 if how == "far away" else nm
                domain = {"ns": "IMAGERY"} if how == "IMAGERY" else {}
                tag = {"CENTRAL_WAVELENGTH_UM": nm / 1000} if domain else {"wavelength": nm}
                raster.update_tags(number, **domain, **tag)
    expected = [B, G, R] if how == "far away" else [R, G, B]  # nothing near: the first three
    same(read_image(path), together(expected))


def test_products_whose_bands_have_no_names(tmp_path):
    """PlanetScope's tag says RGB, its bands are B, G, R, NIR."""
    name = "20240601_101112_24_24aa_3B_AnalyticMS_SR.tif"
    path = write(tmp_path / name, FIVE[:4], photometric="RGB")
    same(read_image(path), as_camera(np.stack([R, G, B], -1) / 10_000))
    assert "false colour" in view(ImageFile(str(path))).by_name
    other = write(tmp_path / "visual.tif", FIVE[:4], photometric="RGB")
    same(read_image(other), together([B, G, R]))  # as its tag says
    names = [f"SR_B{n}" for n in (1, 2, 3, 4)]
    path = write(tmp_path / "LT05_L2SP_193027_20100601_20200823_02_T1_SR.tif", FIVE[:4], names)
    same(read_image(path), together([R, G, B]))  # Landsat 5: band 3 is red


def test_statistics_beside_a_raster_make_no_other_image_and_colours_do(tmp_path):
    """QGIS and gdalinfo write them; the image would be captioned, and paid for, again."""
    path = write(tmp_path / "a.tif", FIVE[:1])
    before = ImageFile(str(path)).sha256
    beside = tmp_path / "a.tif.aux.xml"
    beside.write_text(
        "<PAMDataset><PAMRasterBand band='1'><Histograms><HistItem><HistMin>0</HistMin>"
        "</HistItem></Histograms><Metadata><MDI key='STATISTICS_MEAN'>9</MDI></Metadata>"
        "</PAMRasterBand></PAMDataset>"
    )
    assert ImageFile(str(path)).sha256 == before
    beside.write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    assert ImageFile(str(path)).sha256 != before


def test_infrared_under_an_alpha_tag_is_data_and_an_alpha_is_none(tmp_path):
    """NAIP as rasterio writes it: water, whose infrared is 0, is no hole."""
    bands = np.stack([KNOWN[..., 0], KNOWN[..., 1], KNOWN[..., 2], KNOWN[::-1, :, 0] // 2 + 60])
    bands[3, :, :20] = 0
    kinds = ("red", "green", "blue", "alpha")
    shown = view(ImageFile(str(write(tmp_path / "naip.tif", bands, interp=kinds))))
    same(shown.by_name["true colour"], KNOWN)
    assert "false colour" in shown.by_name and shown.blank == 0
    bands[3] = 255
    bands[3, :, :20] = 0
    shown = view(ImageFile(str(write(tmp_path / "rgba.tif", bands, interp=kinds))))
    assert (shown.by_name["true colour"][:, :20] == 255).all() and len(shown.by_name) == 1


def test_a_guess_of_bands_is_told(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "a.tif", FIVE)
    write(tmp_path / "mine" / "b.tif", FIVE, ("Blue", "Green", "Red", "NIR", "SWIR"))
    dataset = load_dataset(str(tmp_path / "mine"), str(tmp_path))
    assert dataset.problems == (
        "1 rasters do not say what their bands hold: the first three are shown as red, green and "
        "blue, unless -p bands names others",
    )


def test_virtual_rasters_with_a_mask_or_ground_control_points(tmp_path):
    mask = np.full((64, 64), 255, np.uint8)
    mask[:9] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write(tmp_path / "masked.tif", np.moveaxis(KNOWN, -1, 0), mask=mask)
    corners = [(0, 0), (0, 64), (64, 0), (64, 64)]
    points = [GroundControlPoint(r, c, 11 - c / 1e4, 48 - r / 1e4) for r, c in corners]
    place = {"gcps": points, "crs": "EPSG:4326"}
    write(tmp_path / "points.tif", np.moveaxis(KNOWN, -1, 0), **place)
    for name in ("masked", "points"):
        source = tmp_path / f"{name}.tif"
        rasterio.shutil.copy(str(source), str(tmp_path / f"v_{name}.vrt"), driver="VRT")
        same(read_image(tmp_path / f"v_{name}.vrt"), read_image(source), 0)
    same(read_image(tmp_path / "v_points.vrt"), KNOWN[:, ::-1])  # columns run west
    assert (read_image(tmp_path / "v_masked.vrt")[:9] == 255).all()
    assert not load_dataset(str(tmp_path), str(tmp_path / "d")).problems


PLANETS = ["+proj=eqc +R=3396190 +units=m", "+proj=stere +lat_0=90 +R=1737400 +units=m"]


@pytest.mark.parametrize("crs", [*PLANETS, 'LOCAL_CS["arbitrary",UNIT["metre",1]]'])
def test_maps_of_another_planet_or_of_none_are_read_by_their_own_axes(tmp_path, crs):
    place = rasterio.Affine(10, 0, 1000, 0, 10, 2000)  # rows run from south to north
    how = {"crs": rasterio.CRS.from_string(crs), "transform": place}
    assert upright(write(tmp_path / "a.tif", QUARTER[:, ::-1], **how))


RAMP = np.tile(np.linspace(0, 1, 64), (1, 64, 1))


def test_large_numbers_keep_their_meaning(tmp_path):
    """Milliseconds since 1970, int32 around a billion: float32 has steps of 131,072 there."""
    for dtype, values in (("float64", 1.6e12 + RAMP * 2e4), ("int32", 1e9 + RAMP * 1000)):
        shown = read_image(write(tmp_path / f"{dtype}.tif", values.astype(dtype)))
        assert shown.min() == 0 and shown.max() == 255 and abs(shown.mean() - 127.5) < 1


@pytest.mark.parametrize("stored_as", [-3.4028235e38, -3.40282306e38, -9999.0001, 1e20])
@pytest.mark.parametrize("digits", [6, 7, 9])
def test_nodata_that_was_rounded_is_still_no_data(tmp_path, stored_as, digits):
    values = (100 + RAMP * 100).astype(np.float32)
    values[:, :16] = stored_as
    told = float(f"{stored_as:.{digits}e}")
    told = told if abs(told) < np.finfo(np.float32).max else stored_as
    shown = read_image(write(tmp_path / "a.tif", values, nodata=told))
    assert (shown[:16] == 255).all() and abs(shown[16:].mean() - 127.5) < 1


def test_zeros_at_the_edge_are_no_data_where_nothing_else_is_told(tmp_path):
    """A partial tile of Sentinel-2, as it comes: it looks as with nodata declared."""
    rng = np.random.default_rng(0)
    land = rng.integers(900, 1500, (3, 96, 96)).astype(np.uint16)
    row, column = np.mgrid[:96, :96]
    land[:, column + row // 3 < 50] = 0
    land[:, 60:64, 80:84] = 0  # a dark roof, not at the edge
    shown = read_image(write(tmp_path / "a.tif", land))
    declared = land.copy()
    declared[:, 60:64, 80:84] = 1
    right = read_image(write(tmp_path / "b.tif", declared, nodata=0))
    assert np.abs(shown.astype(int) - right).max() <= 1 and (shown[60:64, 80:84] < 5).all()
    sea = np.maximum(RAMP * 100 - 50, 0).astype(np.float32)  # heights: the sea is black
    assert (read_image(write(tmp_path / "sea.tif", sea))[:, :30] == 0).all()
    photograph = (land > 0).astype(np.uint8) * 90
    assert (read_image(write(tmp_path / "c.tif", photograph))[0, :9] == 0).all()


def test_amplitudes_of_complex_whole_numbers(tmp_path):
    """Sentinel-1's measurement files."""
    z = np.array([[[3 + 4j, 6 + 8j], [0, 30 + 40j]]], np.complex64)
    kinds = ("complex_int16", "complex64")
    shown = [read_image(write(tmp_path / f"{k}.tif", z, dtype=k)) for k in kinds]
    same(*shown)
    assert shown[0][..., 0].argsort(axis=None).tolist() == [2, 0, 1, 3]


def test_a_raster_without_any_data_says_so(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, size in (("small", 8), ("scene", 300)):
        path = write(
            tmp_path / "mine" / f"{name}.tif", np.zeros((1, size, size), np.uint16), nodata=0
        )
    with pytest.raises(InputError, match=r"small\.tif holds no data"):
        read_image(tmp_path / "mine" / "small.tif")
    draw(tmp_path / "mine" / "a.png")
    dataset = load_dataset(str(tmp_path / "mine"), str(tmp_path), tile=64)
    assert dataset.problems == ("scene.tif holds no data; it was left out",)
    assert path.name not in dataset.images["filename"].tolist()


def test_pages_keep_nodata_and_documents_stay_documents(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for band in REFLECTANCE.astype(np.float32):
            band[:, :14] = -9999
            tag = [(42113, "s", 0, "-9999", True)]
            tiff.write(band, photometric="minisblack", metadata=None, extratags=tag)
    keep = np.ones((64, 64), bool)
    keep[:, :14] = False
    same(read_image(tmp_path / "x.tif")[keep], together(REFLECTANCE, keep)[keep])
    page = Image.fromarray(np.eye(20, dtype=np.uint8) * 255).convert("1")
    page.save(tmp_path / "fax.tif", save_all=True, append_images=[page], compression="group4")
    assert (read_image(tmp_path / "fax.tif") == np.asarray(page.convert("RGB"))).all()


def photograph(name):
    """A photograph of the sample, and the same as reflectances: ``(H, W, 3)``, ``(3, H, W)``."""
    shown = read_image(f"data/sample/images/{name}.jpg")
    return shown, np.moveaxis(shown.astype(np.uint16) * 11 + 200, -1, 0)


@pytest.mark.parametrize("name", ["forest90", "beach95", "agricultural83"])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "float64"])
def test_colours_keep_their_hue(tmp_path, name, dtype):
    """A forest was grey, as each band was stretched by itself."""
    shown, stored = photograph(name)
    path = write(tmp_path / "a.tif", stored.astype(dtype))
    same(read_image(path), together(stored))
    true, seen = (p.reshape(-1, 3).mean(axis=0) for p in (shown, read_image(path)))
    assert (np.argsort(seen) == np.argsort(true)).all()
    if name == "forest90":
        assert np.abs(seen - (105, 157, 134)).max() < 1
        chosen = read_image(path, Rendering(bands="3,2,1"))  # nothing says that they are not
        assert (chosen == read_image(path)[..., ::-1]).all()
    for stretch in ("per-band", "2-98"):
        same(read_image(path, Rendering(stretch=stretch)), stretched(stored))
    assert (read_image(path, Rendering(stretch="together")) == read_image(path)).all()


def test_false_colours_and_what_is_no_colour_have_a_range_each(tmp_path):
    names = ("blue", "green", "red", "nir")
    path = write(tmp_path / "a.tif", [B, G, R, NIR * 3], names)
    same(view(path).by_name["false colour"], stretched([NIR, R, G]))
    same(read_image(path, Rendering(bands="nir,red,green")), stretched([NIR, R, G]))
    relief = [R.astype(float), G / 100, B / 1000]  # height, slope, aspect
    same(read_image(write(tmp_path / "b.tif", relief)), stretched(REFLECTANCE))


def test_windows_of_a_scene_share_their_colours(tmp_path):
    _, stored = photograph("forest90")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "scene.tif", np.tile(stored, (1, 2, 2)))
    ds = load_dataset(str(tmp_path / "in"), str(tmp_path), tile=256)
    assert ds.rendering.stretch == "together"
    pictures = [read_image(ds.file_of(name), ds.rendering) for name in ds.images["image_id"]]
    assert len(pictures) == 4
    for picture in pictures:
        assert (picture == pictures[0]).all()
        same(picture, together(stored), 7)  # percentiles of percentiles are close


@pytest.mark.parametrize(
    "name, scale, offset",
    [
        ("S2B_MSIL2A_20210601T101559_N0300_R065_T32UPU_20210601T132001.tif", 1e-4, 0),
        ("S2B_MSIL2A_20230601T101559_N0509_R065_T32UPU_20230601T132001.tif", 1e-4, -0.1),
        ("LC09_L2SP_193027_20230601_20230608_02_T1_SR.tif", 2.75e-5, -0.2),
        ("HLS.S30.T32UPU.2021152T101031.v2.0.tif", 1e-4, 0),
        ("20240601_101112_24_24aa_3B_AnalyticMS_SR_harmonized.tif", 1e-4, 0),
    ],
)
def test_scenes_of_surface_reflectance_compare(tmp_path, name, scale, offset):
    """The same ground looks the same beside a cloud, and in the next product."""
    ground = np.stack([np.full((32, 32), reflectance) for reflectance in (0.06, 0.12, 0.03, 0.2)])
    for cloud in (0, 10):
        scene = ground.copy()
        scene[:, :cloud] = 0.9
        stored = np.round((scene - offset) / scale).astype(np.uint16)
        bands = ("red", "green", "blue", "nir")
        shown = read_image(write(tmp_path / name, stored, bands))
        same(shown[20, 20], as_camera(np.array([0.06, 0.12, 0.03])))
        assert not cloud or (shown[0, 0] > 240).all()  # and snow is no white sheet


def test_haze_is_taken_away_and_the_blue_of_the_sea_is_not(tmp_path):
    """As in scenes of Level 1: it adds most to blue, everywhere."""
    shown, stored = photograph("denseresidential90")
    haze = np.uint16([0, 350, 700])[:, None, None]
    path = write(tmp_path / "a.tif", stored + haze)
    casts = []
    for picture in (shown, read_image(path), together(stored + haze)):
        red, _, blue = picture.reshape(-1, 3).mean(axis=0)
        casts.append(blue - red)
    assert abs(casts[1] - casts[0]) < 0.6 * (casts[2] - casts[0])
    _, beach = photograph("beach95")
    same(read_image(write(tmp_path / "b.tif", beach)), together(beach))


@pytest.mark.parametrize("declared, is_blank", [("none", False), ("0", True), ("nan", False)])
def test_nodata_that_is_no_number(tmp_path, declared, is_blank):
    """GDAL reads the text none as 0."""
    path = tmp_path / "a.tif"
    values = np.full((64, 64, 3), 90, np.uint8)
    values[:8] = 0
    tifffile.imwrite(path, values, photometric="rgb", extratags=[(42113, "s", 0, declared, True)])
    seen = view(path)
    assert (seen.blank > 0) == is_blank
    assert (seen.by_name["true colour"][0, 0] == (255 if is_blank else 0)).all()
