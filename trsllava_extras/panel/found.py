"""What a search found: a table, to be looked at as pictures, or kept as a page or files.

A page is self-contained (pictures inside), needs no network, and carries what was asked, so that
:func:`trsllava_extras.panel.reopen` asks again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from trsllava_extras.metadata import metadata_of
from trsllava_extras.metadata.filters import what_there_is
from trsllava_extras.metadata.shapes import for_files
from trsllava_extras.pages import LARGE, data_uri, in_scene, jpeg, marked, picture_uri, render, said
from trsllava_extras.panel import folders
from trsllava_extras.panel.query import Query
from trsllava_extras.panel.uncaptioned import not_searched, uncaptioned
from trsllava_extras.results import csv_text
from trsllava_extras.stac import collection
from trsllava_utils.files import (
    NAMED,
    InputError,
    atomic_path,
    check_choice,
    escaped,
    parse_json,
    read_text,
    user_path,
    write_text,
)
from trsllava_utils.folder import name_as_text
from trsllava_utils.images import view
from trsllava_utils.parameters import check
from trsllava_utils.records import Variant
from trsllava_utils.sources import Sources

if TYPE_CHECKING:
    import geopandas

# what a result is saved as
KINDS = ("html", "csv", "geojson", "geoparquet", "stac", "coco", "folder", "imagefolder")
EXCERPT = 180  # characters of a caption under a picture
FILTERS = ("label", "where", "bbox")
KNOWN_BY = 5  # pictures by which a saved page knows its archive
FEW = 8.0  # percentile below which nothing seems to fit
STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True, repr=False)
class Found:
    """One page of a result. Jupyter shows it as pictures with their captions.

    Attributes:
        query: what was asked.
        table: ``rank, image_id, score, percentile, label, variant, text, hit``, then what is known
            of each image: ``date, gsd, lat, lon`` and columns of tables beside the images.
            ``percentile`` (of a plain sentence): of 100 short phrases from the captions, how many
            find a first image that scores less. ``variant`` (from 1) and ``text`` are the
            captioner's nearest to the query; ``hit`` says whether the query is a reference caption
            of this image (NA: it is no reference caption at all).
        total: images that were searched.
        sources: the images and captions that were searched.
        request: the arguments of :meth:`Index.find`, and the method.
    """

    query: Query
    table: pd.DataFrame
    total: int
    sources: Sources
    request: dict[str, Any]

    def __repr__(self) -> str:
        columns = ["rank", "image_id", "score", "percentile", "label", "date", "lat", "lon"]
        table = self.table[[c for c in columns if c in self.table]].dropna(axis=1, how="all")
        table = table.round({"score": 3, "percentile": 1, "lat": 4, "lon": 4})
        shown = [table.to_string(index=False)] if len(table) else []
        return escaped("\n".join([*shown, *(f"· {note}" for note in self.notes)]))

    def _repr_html_(self) -> str:
        """The images of a result as a fragment, for a notebook."""
        return render("result.html", found=self, tiles=self.tiles)

    @property
    def notes(self) -> list[str]:
        """What should be known of the query and its result, in sentences."""
        notes = list(self.query.notes)
        if bare := uncaptioned(self.sources):
            of = f"{bare:,} of {len(self.sources.captions.records):,} images"
            notes.append(f"{of} have no caption yet and are found by CLIP alone")
        if self.nothing_fits and not notes:
            notes.append(
                f"nothing like this in {len(self.sources.captions.records):,} images, it seems: "
                f"{100 - FEW:.0f} of 100 short phrases from their captions find a first image that "
                "scores higher. Is it there? Does the encoder know the language?"
            )
        if "selected" not in self.request:
            told = self.sources.once(not_searched, self.sources)  # the same for every query
            odd = self.sources.captions.problems[:NAMED]
            notes += [*self._condition, *([told] if told else []), *odd]
        return notes

    @property
    def _condition(self) -> list[str]:
        """How many images meet the filters; where none does, what there is."""
        if not self._filters:
            return []
        every = len(self.sources.captions.records)
        if self.total:
            return [f"{self.total:,} of {every:,} images meet the condition"]
        there = what_there_is(metadata_of(self.sources.dataset), **self._filters)
        return [f"no image meets the condition (0 of {every:,}){there}"]

    @property
    def nothing_fits(self) -> bool:
        """Whether nearly every phrase of the captions finds a first image that scores higher. (A
        filter may leave out what does fit; then this says nothing.)"""
        is_whole = self.request.get("page") == 1 and not self._filters
        known = "percentile" in self.table and is_whole
        return known and not (self.table["percentile"][:1] >= FEW).any()  # or all are left out

    def fitting(self) -> Found:
        """Without the images that score less than nearly every phrase of the captions would.

        Raises:
            InputError: scores are compared with nothing here.
        """
        if "percentile" not in self.table:
            raise InputError(
                "whether an image fits is known of a plain sentence, by a rule without CLIP, among "
                "captions with twenty phrases at least"
            )
        kept = self.table[self.table["percentile"] >= FEW].reset_index(drop=True)
        return replace(self, table=kept)

    @property
    def _filters(self) -> dict[str, str]:
        given = {name: str(self.request.get(name, "")).strip() for name in FILTERS}
        return {name: text for name, text in given.items() if text}

    @property
    def has_places(self) -> bool:
        """Whether the place of any of these images is known."""
        return "lat" in self.table and bool(self.table[["lat", "lon"]].notna().all(axis=1).any())

    @property
    def settings(self) -> dict[str, Any]:
        """All that it takes to search again."""
        dataset = self.sources.dataset
        where = {"dataset": dataset.name, "title": dataset.title, "split": dataset.split}
        files = [dataset.file_of(image_id) for image_id in self.table["image_id"][:KNOWN_BY]]
        where["pictures"] = [file.sha256 for file in files if file and Path(file.path).is_file()]
        chosen = self.sources.chosen()
        request = {**self.request, "picture": ""}  # its path is of this machine
        return {**where, **dataset.tiling, **chosen, "request": request}

    def save(self, path: str | Path, kind: str = "") -> Path:
        """Write the result.

        Args:
            path: where to.
            kind: "html" (a page with the pictures and all their captions that needs no network),
                "csv" (with full paths), "geojson" or "geoparquet" (footprints and the table, for
                QGIS and the like), "stac" (an item collection with all captions, of images with a
                date), "coco" (captions as COCO has them), "folder" (links to the files; copies
                where links cannot be made, and of windows the picture), "imagefolder" (copies with
                captions and tags, for Hugging Face's datasets); empty: by the suffix (.parquet is
                GeoParquet, .json COCO).

        Raises:
            InputError: an unknown kind, one with places where none is known, a folder that is not
                empty, or images that are gone from the disk.
        """
        kind = kind or Path(path).suffix.lower().lstrip(".") or "folder"
        kind = {"parquet": "geoparquet", "json": "coco"}.get(kind, kind)
        kind = check_choice("kind of file", kind, KINDS)
        if kind in ("folder", "imagefolder"):
            save = folders.save_files if kind == "folder" else folders.save_imagefolder
            return save(self.table, self.sources, user_path(path))
        if kind != "geoparquet":
            return write_text(user_path(path), self.as_text(kind))
        with atomic_path(user_path(path)) as tmp:
            self.on_map().to_parquet(tmp)
        return user_path(path)

    def as_text(self, kind: str) -> str:
        """The content of a page, a CSV or a GeoJSON file; errors as for :meth:`save`."""
        if kind == "html":
            return result_page(self)
        if kind == "csv":
            return csv_text(self._with_files(), index=False)
        if kind == "coco":
            return folders.coco(self.table, self.sources, self.query.text)
        if kind == "stac":
            records = self.sources.captions.records
            captions = {i: [v.fields for v in records[i].variants] for i in self.table["image_id"]}
            return json.dumps(collection(self._with_places(), captions), ensure_ascii=False)
        table = self.on_map()
        return table.set_geometry(table.geometry.map(for_files)).to_json(drop_id=True, na="null")

    def on_map(self) -> geopandas.GeoDataFrame:
        """The images of which the place is known, with their footprints, WGS 84.

        Raises:
            InputError: there are none.
        """
        import geopandas

        table = self._with_places()
        table = table[table["geometry"].notna()]
        if table.empty:
            raise InputError("no place is known of these images (see data/README.md#metadata)")
        return geopandas.GeoDataFrame(table.convert_dtypes(), geometry="geometry", crs=4326)

    def _with_places(self) -> pd.DataFrame:
        places = metadata_of(self.sources.dataset).get("geometry", pd.Series(dtype=object))
        places = self.table["image_id"].map(places).astype(object)
        return self._with_files().assign(geometry=places.where(places.notna(), None))

    def _with_files(self) -> pd.DataFrame:
        dataset = self.sources.dataset
        files = [dataset.file_of(image_id) for image_id in self.table["image_id"]]
        first = {"query": self.query.text, "method": self.request.get("method", "")}
        last = {
            "path": [name_as_text(file.path) if file else None for file in files],
            "window": [",".join(map(str, file.window or ())) if file else None for file in files],
        }
        return self.table.assign(**first, **last)[[*first, *self.table, *last]]

    @cached_property
    def tiles(self) -> list[dict]:
        """What is shown of each image: its picture, score and nearest caption."""
        return [self._tile(row) for row in self.table.itertuples()]

    def _tile(self, row) -> dict:
        record, words = self.sources.captions.records[row.image_id], self.query.words
        variant = record.variants[row.variant - 1]
        tile = {name: getattr(row, name) for name in ("rank", "image_id", "label", "variant")}
        tile["score"] = "" if pd.isna(row.score) else f"{row.score:.3f}"
        percentile = getattr(row, "percentile", None)
        tile["percentile"] = "" if percentile is None else f"{percentile:.0f}"
        tile["of"] = len(record.variants)
        tag = getattr(row, "tag", None)
        tile["tags"] = tag if isinstance(tag, str) else ""
        tile["verdict"] = "" if row.hit is pd.NA else "hit" if row.hit else "miss"
        tile["picture"] = picture_uri(self.sources.dataset, row.image_id)
        tile["said"] = variant.one_sentence or said(record)
        tile["words"] = marked(_excerpt(variant, row.text, words), words)
        return tile

    @cached_property
    def _cards(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
        """What is known of the images found, by image id: their rows here and in the dataset, and
        their reference captions. The dataset is searched once, not once for each card."""
        images, captions = (
            table[table["image_id"].isin(self.table["image_id"])]
            for table in (self.sources.dataset.images, self.sources.dataset.captions)
        )
        texts = captions.groupby("image_id")["text"].agg(list)
        hits, images = (t.set_index("image_id", drop=False) for t in (self.table, images))
        return hits, images, texts

    def card(self, image_id: str, side: int = LARGE, with_path: bool = False) -> str:
        """Everything that is known of one image, as a fragment: its pictures, all its captions with
        the words of the query marked, its reference captions; its full path where that is asked."""
        sources = self.sources
        hits, images, texts = self._cards
        row = hits.loc[image_id]
        file = sources.dataset.file_of(image_id)
        pictures, size = _pictures(sources, image_id, side)
        above = ("rank", "image_id", "score", "percentile", "label", "variant", "text", "hit")
        known = row.drop([c for c in (*above, "lat", "lon") if c in row]).dropna()
        return render(
            "card.html",
            row=row,
            image=images.loc[image_id],
            record=sources.captions.records[image_id],
            query=self.query.words,
            pictures=pictures,
            known={"size": size, **known.to_dict()},
            reference=texts.get(image_id, []),
            place=format_coordinates(row.get("lat"), row.get("lon")),
            path=name_as_text(file.path) if file and with_path else "",
        )


def format_coordinates(lat: float | None, lon: float | None) -> str:
    """``48.1234° N, 11.5678° E``; empty where it is not known."""
    if pd.isna(lat) or pd.isna(lon):
        return ""
    return f"{abs(lat):.4f}° {'S' if lat < 0 else 'N'}, {abs(lon):.4f}° {'W' if lon < 0 else 'E'}"


def _excerpt(variant: Variant, text: str, query: str) -> str:
    """What fits under a picture: of a joined text, the field with most words of the query."""
    fields = list(variant.fields.values())
    if text not in fields:  # the fields joined
        fields = [field for field in fields if field in text] or fields
        text = max(fields, key=lambda field: sum(hit for _, hit in marked(field, query)))
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " …"


def _pictures(sources: Sources, image_id: str, side: int) -> tuple[dict[str, str], str]:
    """All pictures of an image that the captioner saw, and its scene, by what they show; and its
    size in words."""
    dataset = sources.dataset
    file = dataset.file_of(image_id)
    try:
        read = view(file, dataset.rendering, side) if file else None
    except InputError:
        read = None
    if not read:
        return {"": ""}, ""
    names = ["", *list(read.by_name)[1:]]
    shown = (data_uri(jpeg(p), "image/jpeg") for p in read.by_name.values())
    pictures = dict(zip(names, shown, strict=True))
    height, width = (round(n * read.scale) for n in next(iter(read.by_name.values())).shape[:2])
    if file.window:
        scene = jpeg(np.asarray(in_scene(file, side, dataset.rendering)))
        pictures[f"in {Path(file.path).name}"] = data_uri(scene, "image/jpeg")
        return pictures, f"window of {width:,} × {height:,} pixels"
    return pictures, f"{width:,} × {height:,} pixels, {Path(file.path).stat().st_size:,} bytes"


def result_page(found: Found) -> str:
    """A page by itself: the images, each opens enlarged beside its captions, and all captions."""
    where = None
    if found.has_places:
        from trsllava_extras.figures import place_map, png

        figure = place_map(found.table, f"Where the {len(found.table)} images are")
        where = data_uri(png(figure), "image/png")
    cards = [
        {"rank": row.rank, "html": Markup(found.card(row.image_id))}
        for row in found.table.itertuples()
    ]
    settings = json.dumps(found.settings).replace("<", "\\u003c")  # so that it ends no script
    script = "\n".join(read_text(STATIC / name) for name in ("lightbox.js", "page.js"))
    digest = hashlib.sha256(script.encode()).digest()  # the only script that the page may run
    values = {"script": Markup(script), "script_hash": base64.b64encode(digest).decode()}
    values |= {"map": where, "today": date.today(), "settings": Markup(settings)}
    values["style"] = Markup(read_text(STATIC / "lightbox.css"))
    return render("search.html", found=found, tiles=found.tiles, cards=cards, **values)


def read_settings(text: str, name: str) -> dict[str, Any]:
    """What a file of a result holds: of a page, what :attr:`Found.settings` gave it; of CSV and
    GeoJSON, ``{"request": {"selected": […]}}``, the ids of the images.

    Raises:
        InputError: it is none of them, or holds something else than was saved.
    """
    settings: Any = None
    with suppress(ValueError, KeyError, TypeError, IndexError):
        if text.lstrip()[:15].lower().startswith("<!doctype html"):
            inside = text.split('<script type="application/json" id="search">')[1]
            settings = parse_json(inside.split("</script>")[0], name)
        elif text.lstrip().startswith("{"):
            ids = [f["properties"]["image_id"] for f in parse_json(text, name)["features"]]
            settings = {"request": {"selected": list(dict.fromkeys(ids))}}
        else:
            given = {"dtype": str, "keep_default_na": False, "usecols": ["image_id"]}
            ids = pd.read_csv(io.StringIO(text), **given)["image_id"].unique()
            settings = {"request": {"selected": [i.removeprefix("'") for i in ids]}}  # csv_text
    try:
        request = settings["request"]
        check(**{n: v for n, v in settings.items() if n != "request"}, **request)
        if not (request.get("query") or request.get("selected")):
            raise KeyError
        return settings
    except (KeyError, TypeError):
        raise InputError(
            f"{name}: no page, CSV (with a column image_id) or GeoJSON file of a search result"
        ) from None
