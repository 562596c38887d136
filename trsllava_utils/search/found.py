"""What a search found: a table, to be looked at as pictures, or kept as a page or a file.

Pages are self-contained (pictures inside) and escaped throughout, so that a caption or a file name
is shown as the text it is. The templates lie in ``templates/``; Jinja escapes what is put into
them.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from trsllava_utils.artefacts import (
    InputError,
    atomic_path,
    check_choice,
    csv_text,
    shown,
    write_text,
)
from trsllava_utils.captioning.records import Variant
from trsllava_utils.datasets.imagery import in_scene, jpeg, read_pictures, thumbnail
from trsllava_utils.datasets.rasters import RASTER_SUFFIXES, name_as_text
from trsllava_utils.figures import place_map, png
from trsllava_utils.retrieval import Sources

if TYPE_CHECKING:
    import geopandas

KINDS = ("html", "csv", "geojson", "geoparquet")  # of files that a result is written to
SMALL, LARGE = 192, 512  # sides of a picture on a tile and on a card, in pixels
EXCERPT = 180  # characters of a caption under a picture
_PLURALS = {"ies": "y", "sses": "ss", "ches": "ch", "shes": "sh", "xes": "x", "ss": "ss", "s": ""}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("trsllava_utils.search"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


@dataclass(frozen=True, repr=False)
class Found:
    """One page of a result. Jupyter shows it as pictures with their captions.

    Attributes:
        query: the sentence, or the id of the query image.
        by_image: whether the query is an image.
        method: the scoring rule.
        table: ``rank, image_id, score, label, variant, text, hit``, then what is known of each
            image: ``date, gsd, lat, lon`` and columns of tables beside the images. ``variant``
            (from 1) and ``text`` are the captioner's nearest to the query; ``hit`` says whether the
            query is a reference caption of this image (NA: it is no reference caption at all).
        total: images that were ranked.
        sources: the images and captions that were searched.
    """

    query: str
    by_image: bool
    method: str
    table: pd.DataFrame
    total: int
    sources: Sources

    def __repr__(self) -> str:
        columns = ["rank", "image_id", "score", "label", "date", "lat", "lon"]
        table = self.table[[c for c in columns if c in self.table]]
        return table.round({"score": 3, "lat": 4, "lon": 4}).to_string(index=False)

    def _repr_html_(self) -> str:
        return result_fragment(self)

    @property
    def has_places(self) -> bool:
        """Whether the place of any of these images is known."""
        return "lat" in self.table and bool(self.table[["lat", "lon"]].notna().all(axis=1).any())

    def save(self, path: str | Path, kind: str = "") -> Path:
        """Write the result.

        Args:
            path: where to.
            kind: "html" (a page with the pictures and all their captions that needs no network),
                "csv", "geojson" or "geoparquet" (footprints and the table, for QGIS and the like);
                empty: by the suffix (.parquet is GeoParquet).

        Raises:
            InputError: an unknown kind, or one with places where none is known.
        """
        kind = kind or Path(path).suffix.lower().lstrip(".")
        kind = check_choice("kind of file", {"parquet": "geoparquet"}.get(kind, kind), KINDS)
        if kind == "html":
            return write_text(path, result_page(self))
        if kind == "csv":
            return write_text(path, self.csv())
        if kind == "geojson":
            return write_text(path, self.geojson())
        with atomic_path(path) as tmp:
            self.on_map().to_parquet(tmp)
        return Path(path)

    def csv(self) -> str:
        """The table as CSV, with the query and the files."""
        return csv_text(self._with_files(), index=False)

    def geojson(self) -> str:
        """The images of which the place is known as GeoJSON; errors as for :meth:`on_map`."""
        return self.on_map().to_json(drop_id=True, na="null")

    def on_map(self) -> geopandas.GeoDataFrame:
        """The images of which the place is known, with their footprints, WGS 84.

        Raises:
            InputError: there are none.
        """
        import geopandas

        places = self.sources.metadata.get("geometry", pd.Series(dtype=object))
        table = self._with_files().assign(geometry=self.table["image_id"].map(places))
        table = table[table["geometry"].notna()]
        if table.empty:
            raise InputError("no place is known of these images (see data/README.md#metadata)")
        return geopandas.GeoDataFrame(table.convert_dtypes(), geometry="geometry", crs=4326)

    def _with_files(self) -> pd.DataFrame:
        dataset = self.sources.dataset
        files = [dataset.file_of(image_id) for image_id in self.table["image_id"]]
        first = {"query": self.query, "method": self.method}
        last = {
            "path": [name_as_text(shown(file.path)) if file else None for file in files],
            "window": [",".join(map(str, file.window or ())) if file else None for file in files],
        }
        return self.table.assign(**first, **last)[[*first, *self.table, *last]]


def render(template: str, **values: Any) -> str:
    """A template filled in; everything but :class:`markupsafe.Markup` is escaped."""
    return _TEMPLATES.get_template(template).render(marked=marked, **values)


def result_fragment(found: Found) -> str:
    """The images of a result as a fragment, for a notebook."""
    return render("result.html", found=found, tiles=tiles(found))


def result_page(found: Found) -> str:
    """The same as a page by itself, with the captions of every image."""
    where = None
    if found.has_places:
        figure = place_map(found.table, f"Where the {len(found.table)} images are")
        where = data_uri(png(figure), "image/png")
    cards = [
        {"rank": row.rank, "html": Markup(card(found, row.image_id))}
        for row in found.table.itertuples()
    ]
    values = {"tiles": tiles(found), "cards": cards, "map": where, "today": date.today()}
    return render("search.html", found=found, **values)


def tiles(found: Found) -> list[dict]:
    """What is shown of each image: its picture, score and nearest caption."""
    out = []
    for row in found.table.itertuples():
        variants = found.sources.captions.records[row.image_id].variants
        text = _excerpt(variants[row.variant - 1], row.text, _query_words(found))
        tile = {name: getattr(row, name) for name in ("rank", "image_id", "label", "variant")}
        tile |= {"score": f"{row.score:.3f}", "of": len(variants)}
        tile["verdict"] = "" if row.hit is pd.NA else "hit" if row.hit else "miss"
        tile["picture"] = picture_uri(found.sources, row.image_id, SMALL)
        tile["said"] = variants[row.variant - 1].one_sentence or text
        tile["words"] = marked(text, _query_words(found))
        out.append(tile)
    return out


def card(found: Found, image_id: str) -> str:
    """Everything that is known of one image, as a fragment: its picture, all its captions with the
    words of the query marked, its reference captions."""
    sources = found.sources
    images, captions = sources.dataset.images, sources.dataset.captions
    row = found.table[found.table["image_id"] == image_id].iloc[0]
    return render(
        "card.html",
        row=row,
        image=images[images["image_id"] == image_id].iloc[0],
        record=sources.captions.records[image_id],
        query=_query_words(found),
        pictures=_pictures(sources, image_id),
        known={name: row[name] for name in ("date", "gsd") if not pd.isna(row.get(name))},
        reference=captions.loc[captions["image_id"] == image_id, "text"].tolist(),
        place=format_coordinates(row.get("lat"), row.get("lon")),
    )


def format_coordinates(lat: float | None, lon: float | None) -> str:
    """``48.1234° N, 11.5678° E``; empty where it is not known."""
    if pd.isna(lat) or pd.isna(lon):
        return ""
    return f"{abs(lat):.4f}° {'S' if lat < 0 else 'N'}, {abs(lon):.4f}° {'W' if lon < 0 else 'E'}"


def _query_words(found: Found) -> str:
    """The words that are marked: those of the sentence; none if the query is an image."""
    return "" if found.by_image else found.query


def marked(text: str, query: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is a word of the query (in singular or plural; words
    such as "the" and "with" do not count)."""
    wanted = {_stem(word) for word in re.findall(r"\w+", query)} - {""}
    pieces = ((piece, _stem(piece) in wanted) for piece in re.split(r"(\w+)", text) if piece)
    runs = groupby(pieces, key=itemgetter(1))
    return [("".join(piece for piece, _ in run), hit) for hit, run in runs]


def _stem(word: str) -> str:
    """A word in lower case and singular; "" for a stop word."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # half a second to import

    word = word.lower()
    if word in ENGLISH_STOP_WORDS:
        return ""
    for ending, singular in _PLURALS.items():
        if len(word) > 3 and word.endswith(ending):
            return word.removesuffix(ending) + singular
    return word


def _excerpt(variant: Variant, text: str, query: str) -> str:
    """What fits under a picture: of a joined text, the field with most words of the query."""
    fields = list(variant.fields.values())
    if text not in fields:  # the fields joined
        fields = [field for field in fields if field in text] or fields
        text = max(fields, key=lambda field: sum(hit for _, hit in marked(field, query)))
    return text if len(text) <= EXCERPT else text[:EXCERPT].rsplit(" ", 1)[0] + " …"


def picture_uri(sources: Sources, image_id: str, side: int) -> str:
    """The picture of an image as a ``data:`` address; empty where there is no readable file."""
    dataset = sources.dataset
    file = dataset.file_of(image_id)
    if not file:
        return ""
    try:
        return data_uri(thumbnail(file, side, dataset.rendering), "image/jpeg")
    except InputError:
        return ""


def _pictures(sources: Sources, image_id: str) -> dict[str, str]:
    """All pictures of an image that the captioner saw, and its scene, by what they show."""
    dataset = sources.dataset
    pictures = {"": picture_uri(sources, image_id, LARGE)}
    file = dataset.file_of(image_id)
    if pictures[""] and Path(file.path).suffix.lower() in RASTER_SUFFIXES:
        further = read_pictures(file, dataset.rendering, LARGE).by_name
        for name in list(further)[1:]:
            pictures[name] = data_uri(jpeg(Image.fromarray(further[name])), "image/jpeg")
        if file.window:
            scene = jpeg(in_scene(file, LARGE, dataset.rendering))
            pictures[f"in {Path(file.path).name}"] = data_uri(scene, "image/jpeg")
    return pictures


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
