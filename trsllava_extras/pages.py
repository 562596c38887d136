"""Pictures and captions as HTML, for notebooks and for pages: images and texts go in, escaped HTML
comes out, with the pictures inside. It reflows, so that it can be read on a phone.

The templates lie in ``templates/``; Jinja escapes what is put into them, so that a caption or a
file name is shown as the text it is.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image, ImageDraw

from trsllava_extras.rasters.opening import open_raster
from trsllava_extras.rasters.places import steps
from trsllava_extras.rasters.upright import turn_of
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError
from trsllava_utils.images import DEFAULT, ImageFile, Rendering, read_image
from trsllava_utils.parameters import MAX_VARIANTS
from trsllava_utils.ranking import query_ids
from trsllava_utils.rankings import Rankings
from trsllava_utils.records import Record, Variant
from trsllava_utils.search import Hits
from trsllava_utils.sources import Sources
from trsllava_utils.vectors import Embeddings

if TYPE_CHECKING:
    from IPython.display import HTML

SMALL, LARGE = 240, 512  # sides of a picture on a tile and on a card, in pixels
_PLURALS = {"ies": "y", "sses": "ss", "ches": "ch", "shes": "sh", "xes": "x", "ss": "ss", "s": ""}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("trsllava_extras"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def render(template: str, **values: Any) -> str:
    """A template filled in; everything but :class:`markupsafe.Markup` is escaped."""
    return _TEMPLATES.get_template(template).render(marked=marked, **values)


def marked(text: str, query: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it is a word of the query (in singular or plural; words
    such as "the" and "with" do not count)."""
    wanted = _stems(query)
    pieces = ((piece, _stem(piece) in wanted) for piece in re.split(r"(\w+)", text) if piece)
    runs = groupby(pieces, key=itemgetter(1))
    return [("".join(piece for piece, _ in run), hit) for hit, run in runs]


@lru_cache(maxsize=64)
def _stems(query: str) -> set[str]:
    return {_stem(word) for word in re.findall(r"\w+", query)} - {""}


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


def _html(text: str) -> HTML:
    from IPython.display import HTML  # takes a third of a second to import

    return HTML(text)


def thumbnail(file: ImageFile, side: int = 192, rendering: Rendering = DEFAULT) -> bytes:
    """A small JPEG of an image that fits into a square of ``side`` pixels; made once in a session.

    Raises:
        InputError: see :func:`trsllava_utils.images.view`.
    """
    return _thumbnail(file, file.sha256, side, rendering)


@lru_cache(maxsize=4096)
def _thumbnail(file: ImageFile, sha256: str, side: int, rendering: Rendering) -> bytes:
    return jpeg(read_image(file, rendering, side))


def jpeg(picture: np.ndarray) -> bytes:
    """``(H, W, 3) uint8`` as the content of a JPEG file."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=80, optimize=True)
    return content.getvalue()


def in_scene(file: ImageFile, side: int = 384, rendering: Rendering = DEFAULT) -> Image.Image:
    """The whole scene of a window, the window framed."""
    scene = ImageFile(file.path, None, file.percentiles)
    picture = Image.open(io.BytesIO(thumbnail(scene, side, rendering)))
    with open_raster(file.path) as raster:
        scale = max(picture.size) / max(raster.width, raster.height)
        window = turn_of(raster, steps(raster)).box(file.window, (raster.width, raster.height))
    column, row, width, height = (n * scale for n in window)
    frame = (column, row, column + width, row + height)
    ImageDraw.Draw(picture).rectangle(frame, outline="#D55E00", width=3)
    return picture


def picture_uri(dataset: Dataset, image_id: str, side: int = SMALL) -> str:
    """The picture of an image as a ``data:`` address; empty where there is no readable file."""
    file = dataset.file_of(image_id)
    if not file:
        return ""
    try:
        return data_uri(thumbnail(file, side, dataset.rendering), "image/jpeg")
    except InputError:
        return ""


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def said(record: Record) -> str:
    """The first variant's one sentence, or its caption if it has none."""
    return record.variants[0].one_sentence or record.variants[0].caption


def hits_page(hits: Hits) -> str:
    """What :func:`trsllava_utils.search` found, as pictures with their captions."""
    tiles = []
    for hit in hits.table.itertuples():
        tile = {"rank": hit.rank, "image_id": hit.image_id, "score": f"{hit.score:.3f}"}
        tile |= {
            "label": hit.label,
            "said": hit.text[:180],
            "verdict": "",
            "percentile": "",
            "of": 1,
        }
        tile |= {"picture": picture_uri(hits.sources.dataset, hit.image_id)}
        tiles.append({**tile, "words": marked(hit.text[:180], hits.query)})
    return render("hits.html", query=hits.query, tiles=tiles)


def table(frame: pd.DataFrame) -> HTML:
    """A table with whole texts, aligned at the left; what is not known is a dash."""
    rows = frame.reset_index().astype(object).where(lambda cells: cells.notna(), "–")
    rows = rows.to_numpy(dtype=object).tolist()
    names = [frame.index.name or "", *frame.columns]
    return _html(render("table.html", names=names, rows=rows))


def captions_beside(
    dataset: Dataset, image_ids: Sequence[str], sides: dict[str, dict[str, Record]]
) -> HTML:
    """Images beside what is said of them. One captioner: all its variants. Several: of each, its
    first structured variant, or all its plain captions.

    Args:
        dataset: whose images.
        image_ids: which of them.
        sides: records by image id, by the captioner's name.
    """
    items = []
    for image_id in image_ids:
        columns = {}
        for name, records in sides.items():
            variants = records[image_id].variants
            short = len(sides) > 1 and variants[0].structured
            columns[name] = [variant.fields for variant in (variants[:1] if short else variants)]
        picture = picture_uri(dataset, image_id, LARGE)
        items.append({"image_id": image_id, "picture": picture, "columns": columns})
    return _html(render("captions.html", items=items))


def caption_texts(queries: Embeddings) -> dict[str, str]:
    """The text of every reference caption by its id ``<image_id>#<variant>``."""
    return dict(zip(query_ids(queries.rows), queries.rows["text"], strict=True))


def reference_captions(dataset: Dataset) -> dict[str, Record]:
    """The dataset's own captions as records (the first five per image), to compare with."""
    names = dataset.images.set_index("image_id")["filename"]
    records = {}
    for image_id, texts in dataset.captions.groupby("image_id", sort=False)["text"]:
        variants = [Variant(caption=text) for text in texts[:MAX_VARIANTS]]
        records[image_id] = Record(image=names[image_id], model="reference", variants=variants)
    return records


def query_examples(queries: pd.DataFrame, ranking: Rankings, sources: Sources, k: int = 4) -> HTML:
    """Text to image: each query with its own image and the first ``k`` images found.

    Args:
        queries: columns ``query_id, image_id, rank``, as ``extremes`` of notebook 04 gives them.
        ranking: where they were ranked, of these sources.
    """
    texts = caption_texts(sources.embed_reference())
    top = ranking.top[(ranking.top["direction"] == "t2i") & (ranking.top["rank"] <= k)]
    first = dict(iter(top.groupby("query_id")))
    items = [
        {
            "query": texts[q.query_id],
            "rank": round(q.rank),
            "own": _picture(sources, q.image_id),
            "found": [
                {**_picture(sources, row.image_id), "score": f"{row.score:.3f}", "hit": row.hit}
                for row in first[q.query_id].itertuples()
            ],
        }
        for q in queries.itertuples()
    ]
    return _html(render("examples.html", items=items))


def image_examples(image_ids: Sequence[str], ranking: Rankings, sources: Sources) -> HTML:
    """Image to text: each image with the first reference captions found for it."""
    texts = caption_texts(sources.embed_reference())
    top = ranking.top[(ranking.top["direction"] == "i2t") & (ranking.top["rank"] <= 5)]
    images = top["query_id"].str.partition("#")[0]
    items = [
        {**_picture(sources, image_id), "captions": top[images == image_id].to_dict("records")}
        for image_id in image_ids
    ]
    return _html(render("image_examples.html", items=items, texts=texts))


def _picture(sources: Sources, image_id: str) -> dict:
    """An image with the first thing that the captioner says of it."""
    record = sources.captions.records[image_id]
    picture = picture_uri(sources.dataset, image_id)
    return {"image_id": image_id, "picture": picture, "said": said(record)}


def notebook_page(path: Path, title: str, command: str) -> str:
    """An executed notebook as one page that needs no network: its headings, notes in italics and
    outputs, without the code and the lessons.

    Args:
        path: the notebook; title: of the page; command: which makes it again.
    """
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = [line for line in cell.source.splitlines() if re.match(r"#{2,} |\*[^*]", line)]
            notes = (re.match(r"\*[^*]+\*", line) for line in lines)
            kept = zip(lines, notes, strict=True)
            cell.source = "\n\n".join(note[0] if note else line for line, note in kept)
        else:  # a progress bar is no result
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    body = HTMLExporter(template_name="basic", exclude_input=True, exclude_anchor_links=True)
    html = body.from_notebook_node(notebook)[0]
    return render(
        "report.html", title=title, command=command, body=Markup(html), today=date.today()
    )
