"""The search panel of notebook 03: ask by words, a picture or marks, look, select, save.

The browser draws (``static/panel.js``, an anywidget), Python searches. Without a person at the
browser (papermill, nbconvert, nbval) the first result is shown without widgets.
"""

from __future__ import annotations

import mimetypes
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import pandas as pd
import traitlets

from trsllava_extras.homes import archive_of
from trsllava_extras.metadata import metadata_of
from trsllava_extras.methods import Method
from trsllava_extras.pages import SMALL, data_uri, jpeg, thumbnail
from trsllava_extras.panel.found import STATIC, Found, read_settings
from trsllava_extras.panel.index import Index
from trsllava_extras.panel.picture import describe, describer_of
from trsllava_extras.panel.world import WorldMap
from trsllava_extras.tags import tag, untag
from trsllava_utils import plugins
from trsllava_utils.captions import load_captions
from trsllava_utils.data import KNOWN, Dataset, load_dataset
from trsllava_utils.files import (
    InputError,
    MissingError,
    check_choice,
    read_json,
    read_text,
    resolve_data_dir,
    shown,
    slug,
    user_path,
)
from trsllava_utils.images import ImageFile, image_suffixes, read_image
from trsllava_utils.parameters import MINILM, TILING
from trsllava_utils.sources import SETTING, Sources
from trsllava_utils.vectors import vector_path

METHODS = ("max", "centroid", "texts(fields)", "lexical", "hybrid")
PAGE_SIZES = (4, 8, 12, 24, 48)
MOST = 200  # images on a saved page
ENLARGED = 1024  # side of a picture in the lightbox, in pixels
LARGEST = 100_000_000  # bytes of a file that is sent to the browser
START = {"query": "", "k": 8, "page": 1, "right": [], "wrong": [], "picture": ""}
START |= {"label": "", "where": "", "bbox": "", "method": "max"}


def search_panel(sources: Sources, query: str, method: str = "max", k: int = 8) -> Panel | Found:
    """The panel, or the first result where nobody can click.

    Args:
        sources: what is searched.
        query: the first query.
        method: the rule used first, if it can rank a single query; others can be chosen.
        k: images per page.
    """
    method = next(m for m in (method, *METHODS) if Method(m).ranks_one_query)
    return _open(sources, {"query": query, "method": method, "k": k})


def reopen(page: str | Path, dataset: str = "", data_dir: str = "", **how: str) -> Panel | Found:
    """A saved page as a panel again: its query, filters, marks, rule and captions, or its
    selection. It may come from anybody: of models it may name only what was used here before.

    Args:
        page: an HTML file that a result was saved as (or, with a dataset, CSV or GeoJSON).
        dataset: where its images are; empty: the one that the page names, also a folder that was
            searched from here, or moved since.
        data_dir: see :func:`trsllava_utils.load_dataset`.
        how: captioner, encoder, clip and so on (see ``Sources``), in place of the page's.

    Raises:
        InputError: it is no such page, or names a model that was not used here for these images.
        MissingError: the page, the images or the captions are not there.
    """
    path = user_path(page)
    if not path.is_file():
        raise MissingError(f"{path} not found; give a page that a result was saved as")
    settings = read_settings(read_text(path), path.name)
    name = dataset or settings.get("dataset", "")
    if not dataset and name not in KNOWN:
        name = archive_of(settings, resolve_data_dir(data_dir))
        if not name:
            searched = settings.get("title") or settings.get("dataset")
            raise InputError(
                f"{path.name} searched the folder {searched}, which is not known here any more; "
                "say where it is: reopen(page, '/path/to/it')"
            )
    where = {n: settings[n] for n in ("split", *TILING) if n in settings}
    loaded = load_dataset(name, data_dir, **where)
    named = {n: settings[n] for n in SETTING if settings.get(n) and n not in how}
    for what, model in named.items():
        if what not in ("texts", "precision") and not _was_used(what, model, loaded):
            raise InputError(
                f"{path.name} names the {what} {model!r}, which was not used here for these images "
                f"(or is a server); if you trust it, reopen(page, {what}={model!r})"
            )
    return _open(Sources(loaded, **named, **how), settings["request"])


def _was_used(what: str, model: str, dataset: Dataset) -> bool:
    """Whether this machine has captions by a captioner, or vectors of a model that runs here."""
    if what in ("encoder", "clip"):
        kept = (vector_path(model, p, dataset.derived) for p in ("float32", "bfloat16"))
        made_by = (str(read_json(f"{path}.json").get("encoder")) for path in kept)
        own = model == MINILM or any(by.startswith((f"{model}@", f"{model} ")) for by in made_by)
        return own and not model.startswith(tuple(f"{kind}:" for kind in plugins.names("encoders")))
    with suppress(InputError, MissingError):
        return bool(load_captions(dataset, model).records)
    return False


def _open(sources: Sources, request: dict[str, Any]) -> Panel | Found:
    if interactive():
        return Panel(sources, request)
    index = Index(sources, request.get("method", "max"))
    if not request.get("query"):
        return index.pick(request["selected"])
    return index.find(**{n: v for n, v in request.items() if n in START and n != "method"})


def interactive() -> bool:
    """Whether there is a person before the widgets: Jupyter servers, VS Code, Colab and Voilà say
    so in the environment; papermill, nbconvert and nbval do not."""
    attended = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG", "VOILA_REQUEST_URL")
    return any(name in os.environ for name in attended)


class Screen(anywidget.AnyWidget):
    """What the browser and Python share."""

    _esm = "\n".join((STATIC / n).read_text("utf-8") for n in ("lightbox.js", "panel.js"))
    _css = "\n".join((STATIC / n).read_text("utf-8") for n in ("lightbox.css", "panel.css"))
    choices = traitlets.Dict().tag(sync=True)  # what can be chosen, once
    request = traitlets.Dict().tag(sync=True)  # arguments of find; "count" goes up with each search
    marks = traitlets.Dict().tag(sync=True)  # {"right": ids, "wrong": ids} for the next search
    selected = traitlets.List().tag(sync=True)  # ids of images, across queries and pages
    history = traitlets.List().tag(sync=True)  # queries, the last first
    result = traitlets.Dict().tag(sync=True)  # what is shown


class Panel:
    """The panel at work; ``found`` is the result that is shown.

    Args:
        sources: what is searched.
        request: what is searched first: arguments of :meth:`Index.find`, a ``method``, and
            ``selected``, ids of images; see ``START``.
    """

    def __init__(self, sources: Sources, request: dict[str, Any]) -> None:
        self.sources, self.found = sources, None
        self._index = cache(lambda method: Index(sources, method))
        self._folder = tempfile.TemporaryDirectory(prefix="trsllava")  # for pictures dropped here
        self._picture: dict[str, str] = {}  # the query picture: thumbnail, name, sentence
        self._count = 0
        self._map: WorldMap | None = None
        self.screen = self.view = Screen(choices=self._choices(request), request=START)
        if "geometry" in metadata_of(sources.dataset):
            self._map = WorldMap(
                metadata_of(sources.dataset), lambda box: self.search(bbox=box, page=1)
            )
            self.view = ipywidgets.VBox([self.screen, self._map.view])
        self.screen.on_msg(self._on_message)
        self.screen.observe(self._on_request, "request")
        self.load({"request": request})

    def _choices(self, request: dict[str, Any]) -> dict[str, Any]:
        known = metadata_of(self.sources.dataset)
        columns = ", ".join([*(c for c in known if c not in ("geometry", "tag")), "tag"])
        methods = [request.get("method", "max"), *METHODS]
        methods += ["clip", "fusion"] if self.sources.clip else []
        return {
            "methods": list(dict.fromkeys(methods)),
            "labels": sorted(set(self.sources.dataset.images["label"]) - {""}),
            "sizes": sorted({*PAGE_SIZES, request.get("k", 8)}),
            "where_hint": f"as in SQL, on {columns}",
            "has_places": "geometry" in known,
            "has_captions": len(self._captions) > 0,
        }

    @property
    def _captions(self) -> pd.Series:
        """The reference captions of the images searched."""
        captions = self.sources.dataset.captions
        return captions.loc[captions["image_id"].isin(self.sources.captions.records), "text"]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = self.view._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if self.found and data:  # for frontends without widgets, and for the saved notebook
            data["text/html"] = self.found._repr_html_()
        return bundle

    def search(self, **changes: Any) -> None:
        """Search with these changes to the last request; an error is shown."""
        request = {**self.screen.request, **changes}
        self.screen.request = {**request, "count": request.get("count", 0) + 1}

    def load(self, settings: dict[str, Any]) -> None:
        """Search what a page searched, or show the selection that a file holds; see
        ``read_settings``.

        Raises:
            InputError: the page is of other images, or a selected one is not here.
        """
        dataset, request = self.sources.dataset, settings["request"]
        split, name = settings.get("split", dataset.split), settings.get("dataset", dataset.name)
        is_here = name == dataset.name or (
            archive_of(settings, dataset.derived.parent.parent) == str(dataset.root)
        )
        if not is_here or split != dataset.split:
            raise InputError(
                f"this page searched {settings.get('title', name)} ({split}), and here is "
                f"{dataset.title} ({dataset.split}); trsllava_extras.panel.reopen opens it"
            )
        selected = request.get("selected")
        picked = self._index("max").pick(selected) if selected else None
        if picked:
            self.screen.selected = picked.table["image_id"].tolist()
        if request.get("query"):
            wanted = {n: v for n, v in request.items() if n in START and n != "picture"}
            self.screen.marks = {n: wanted.get(n, []) for n in ("right", "wrong")}
            self.search(**{**START, **wanted})
        elif picked:
            self._show(picked)

    # — what the browser says —

    def _on_request(self, change: dict) -> None:
        if change["new"].get("count", 0) != self._count:
            self._count = change["new"]["count"]
            self._or_tell(self._search)

    def _on_message(self, _: Any, message: dict, buffers: list) -> None:
        command = check_choice("command", message.pop("command", ""), _COMMANDS)
        if command == "load":
            message["content"] = bytes(buffers[0])
        self._or_tell(lambda: getattr(self, f"_{command}")(**message))

    def _or_tell(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (InputError, MissingError) as error:
            self._tell(error=str(error))

    def _tell(self, **changes: Any) -> None:
        """Show these changes. The last error is cleared unless a new one is given."""
        now = {"at": time.time()}  # a new value, so that the browser draws again
        self.screen.result = {**self.screen.result, "error": "", **changes, **now}

    def _search(self) -> None:
        request = {n: v for n, v in self.screen.request.items() if n in START}
        start = time.perf_counter()
        found = self._index(request.pop("method")).find(**request)
        self._picture = self._picture if request["picture"] else {}
        self._show(found, milliseconds=round(1000 * (time.perf_counter() - start)))
        query = request["query"]
        self.screen.history = [query, *(q for q in self.screen.history if q != query)][:50]

    def _show(self, found: Found, milliseconds: int = 0) -> None:
        self.found = found
        page, k = found.request.get("page", 1), found.request.get("k", max(found.total, 1))
        pages = {"page": page, "pages": max(1, -(-found.total // k)), "total": found.total}
        words = {"query": found.query.text, "suggestion": found.query.suggestion}
        about = {**pages, **words, "notes": found.notes, "milliseconds": milliseconds}
        self._tell(tiles=found.tiles, picture=self._picture, **about)
        if self._map:
            self._map.show(found, found.request.get("bbox", ""))

    def _open(self, number: int) -> None:
        card = self.found.card(self._image(number), ENLARGED, with_path=True)
        self.screen.send({"card": card, "number": number})

    def _image(self, number: int) -> str:
        if not 0 <= number < len(self.found.table):
            raise InputError(f"there is no image {number + 1} on this page")
        return self.found.table["image_id"].iloc[number]

    def _original(self, number: int) -> ImageFile:
        file = self.sources.dataset.file_of(self._image(number))
        if not file or not Path(file.path).is_file():
            raise MissingError(f"{self._image(number)}: its file is not on the disk")
        return file

    def _path(self, number: int) -> None:
        self.screen.send({"path": self._original(number).path})

    def _picture_of(self, number: int) -> None:
        """The whole image, for a new tab."""
        picture = read_image(self._original(number), self.sources.dataset.rendering)
        content, name = jpeg(picture), slug(self._image(number))
        self._send(f"{name}.jpg", "image/jpeg", content, in_tab=True)

    def _download(self, number: int) -> None:
        path = Path(self._original(number).path)
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is too large to be sent to a browser; copy it from there")
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        self._send(path.name, kind, path.read_bytes())

    def _send(self, name: str, kind: str, content: bytes, in_tab: bool = False) -> None:
        """Send a file to the browser, wherever it runs."""
        self.screen.send({"file": name, "type": kind, "in_tab": in_tab}, buffers=[content])

    def _caption(self) -> None:
        if self._captions.empty:
            raise InputError("these images have no reference captions")
        self.search(**{**START, "query": self._captions.sample(1).iloc[0]})

    def _tag(self, word: str, remove: bool = False) -> None:
        """A word is kept with the selected images, or taken from them."""
        dataset, names = self.sources.dataset, list(self.screen.selected)
        if not names:
            raise InputError("nothing is selected: s, or the button under a picture, selects it")
        if remove:
            told = f"{untag(dataset, names, word):,} images had the tag {word!r}"
        else:
            tag(dataset, names, word, self.found.query.text)
            told = f"{len(names):,} images have the tag {word!r}: where tag = '{word}'"
        (self._search if "query" in self.found.request else self._select)()  # with the tags of now
        self._tell(notes=[told, *self.found.notes])

    def _select(self) -> None:
        self._show(self._selection(self._index("max")))

    def _selection(self, index: Index) -> Found:
        if not self.screen.selected:
            raise InputError("nothing is selected")
        return index.pick(self.screen.selected)

    def _save(self, kind: str, selection: bool) -> None:
        """The selection or the whole ranking (as a page, its first images) as a file."""
        found = self._chosen(MOST if kind == "html" else self.found.total, selection)
        name = slug(found.query.text)[:40] or "search"
        if kind in ("folder", "imagefolder"):
            parent = self.sources.dataset.derived / "selections"
            parent.mkdir(parents=True, exist_ok=True)
            folder = found.save(tempfile.mkdtemp(prefix=f"{name}_", dir=parent), kind)
            number = f"{len(found.table):,} of {found.total:,} images"
            self._tell(notes=[f"{number} are in {shown(folder)}"])
            return
        types = {"csv": "text/csv", "html": "text/html", "geojson": "application/geo+json"}
        types["coco"] = "application/json"
        check_choice("kind of file", kind, types)
        suffix = {"coco": "coco.json"}.get(kind, kind)
        self._send(f"{name}.{suffix}", types[kind], found.as_text(kind).encode())
        self._tell(notes=[f"saved {len(found.table):,} of {found.total:,} images"])

    def _chosen(self, most: int, selection: bool) -> Found:
        """The selection, or the result shown from its first image on."""
        request = {n: v for n, v in self.found.request.items() if n in START}
        index = self._index(request.pop("method", "max"))
        if selection or "query" not in request:
            return self._selection(index)
        found = index.find(**{**request, "k": max(1, min(most, self.found.total)), "page": 1})
        asked_again = {"k": request["k"], "selected": self.screen.selected}
        return replace(found, request={**found.request, **asked_again})

    def _load(self, name: str, content: bytes) -> None:
        """A file dropped on the panel: a picture to search with, a saved page or selection."""
        if Path(name).suffix.lower() in image_suffixes():
            self._search_by_picture(name, content)
            return
        try:
            self.load(read_settings(content.decode("utf-8-sig"), name))
        except UnicodeDecodeError:
            raise InputError(f"{name}: neither a picture nor a page, CSV or GeoJSON") from None

    def _search_by_picture(self, name: str, content: bytes) -> None:
        path = Path(self._folder.name) / f"{slug(Path(name).stem)}{Path(name).suffix.lower()}"
        path.write_bytes(content)
        who = describer_of(self.sources)
        query = describe(str(path), self.sources, who)
        picture = thumbnail(ImageFile(str(path)), SMALL, self.sources.dataset.rendering)
        text = f"{name}, described by {who}: the words above can be edited"
        if who == "pixels":
            text += " (pixels is often wrong; name a model as query_captioner)"
        self._picture = {"address": data_uri(picture, "image/jpeg"), "name": name, "text": text}
        kept = {n: self.screen.request[n] for n in ("k", "method")}
        self.search(**{**START, **kept, "query": query, "picture": str(path)})


_COMMANDS = ("open", "path", "picture_of", "download", "caption", "select", "tag")
_COMMANDS += ("save", "load")
