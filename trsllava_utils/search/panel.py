"""The search panel of notebook 03: ask by words, a picture or marks, look, select, save.

The browser draws (``static/panel.js``, an anywidget), Python searches. Where there is nobody to
click (papermill, nbconvert, nbval) the first result is shown without widgets.
"""

from __future__ import annotations

import io
import mimetypes
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets
from PIL import Image

from trsllava_utils.artefacts import InputError, MissingError, check_choice, shown, slug, user_path
from trsllava_utils.datasets import load_dataset, read_image
from trsllava_utils.datasets.dataset import KNOWN
from trsllava_utils.datasets.imagery import IMAGE_SUFFIXES, jpeg
from trsllava_utils.pages import data_uri
from trsllava_utils.retrieval import Method, Sources
from trsllava_utils.search.found import STATIC, Found, read_settings
from trsllava_utils.search.index import Index
from trsllava_utils.search.picture import describe, describer_of
from trsllava_utils.search.world import WorldMap

METHODS = ("max", "centroid", "texts(fields)", "lexical", "hybrid")
PAGE_SIZES = (4, 8, 12, 24, 48)
MOST = 200  # images on a saved page
ENLARGED = 1024  # side of a picture in the lightbox, in pixels
_ASKED = ("query", "k", "page", "right", "wrong", "picture", "where", "bbox", "label", "method")


def search_panel(sources: Sources, query: str, method: str = "max", k: int = 8) -> Panel | Found:
    """The panel, or the first result where nobody can click.

    Args:
        sources: what is searched.
        query: the first query.
        method: the rule used first, if it can rank a single query; others can be chosen.
        k: images per page.
    """
    method = next(m for m in (method, *METHODS) if Method(m).ranks_one_query)
    if interactive():
        return Panel(sources, {"query": query, "method": method, "k": k})
    return Index(sources, method).find(query, k)


def reopen(page: str | Path, dataset: str = "", data_dir: str = "") -> Panel | Found:
    """A saved page as a panel again: its query, filters, marks, rule and captions.

    Args:
        page: an HTML file that a result was saved as.
        dataset: where its images are; empty: where the page says, which a folder of your own has
            to be told.
        data_dir: see :func:`trsllava_utils.datasets.load_dataset`.

    Raises:
        InputError: it is no such page.
        MissingError: the images or captions are not there.
    """
    path = user_path(page)
    settings = read_settings(path.read_text(encoding="utf-8"), path.name)
    request = settings.pop("request")
    name, split = dataset or str(settings.pop("dataset", "")), str(settings.pop("split", "test"))
    settings.pop("dataset", "")
    if not dataset and name not in KNOWN:
        raise InputError(f"{path.name} searched {name!r}; say where: reopen(page, '/path/to/it')")
    tiling = {n: settings.pop(n) for n in ("tile", "overlap") if n in settings}
    sources = Sources(load_dataset(name, data_dir, split, **tiling), **settings)
    if interactive():
        return Panel(sources, request)
    index = Index(sources, str(request.pop("method", "max")))
    return index.find(**{n: v for n, v in request.items() if n in _ASKED})


def interactive() -> bool:
    """Whether there is a person before the widgets: Jupyter servers, VS Code and Colab say so in
    the environment; papermill, nbconvert and nbval do not."""
    attended = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")
    return any(name in os.environ for name in attended)


class Screen(anywidget.AnyWidget):
    """What the browser and Python share."""

    _esm = "\n".join((STATIC / n).read_text("utf-8") for n in ("lightbox.js", "panel.js"))
    _css = "\n".join((STATIC / n).read_text("utf-8") for n in ("lightbox.css", "panel.css"))
    choices = traitlets.Dict().tag(sync=True)  # what can be chosen, once
    request = traitlets.Dict().tag(sync=True)  # what is asked; "asked" counts up to ask again
    shown = traitlets.Dict().tag(sync=True)  # the result
    selected = traitlets.List().tag(sync=True)  # ids of images, across queries and pages
    history = traitlets.List().tag(sync=True)  # queries, the last first


class Panel:
    """The panel at work; ``found`` is the result that is shown.

    Args:
        sources: what is searched.
        request: what is asked first: arguments of :meth:`Index.find`, a ``method``, ``selected``.
    """

    def __init__(self, sources: Sources, request: dict[str, Any]) -> None:
        self.sources, self.found = sources, None
        self._indices: dict[str, Index] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="trsllava")  # for pictures dropped here
        self._asks: dict[str, str] = {}  # of the picture that is asked with
        self._seen = 0
        self._map: WorldMap | None = None
        self.screen = self.view = Screen(choices=self._choices(request))
        if "geometry" in sources.metadata:
            self._map = WorldMap(sources.metadata, lambda box: self.ask(bbox=box, page=1))
            self.view = ipywidgets.VBox([self.screen, self._map.view])
        self.screen.on_msg(self._on_message)
        self.screen.observe(self._on_request, "request")
        self.load(request)

    def _choices(self, request: dict[str, Any]) -> dict[str, Any]:
        known = self.sources.metadata
        columns = ", ".join(column for column in known if column != "geometry")
        methods = [str(request.get("method", "max")), *METHODS]
        methods += ["clip", "fusion"] if self.sources.clip else []
        return {
            "methods": list(dict.fromkeys(methods)),
            "labels": sorted(set(self.sources.dataset.images["label"]) - {""}),
            "sizes": sorted({*PAGE_SIZES, int(request.get("k", 8))}),
            "where_hint": f"as in SQL, on {columns}" if columns else "no column is known",
            "has_places": "geometry" in known,
            "has_captions": len(self.sources.dataset.captions) > 0,
        }

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = self.view._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if self.found and data:  # for frontends without widgets, and for the saved notebook
            data["text/html"] = self.found._repr_html_()
        return bundle

    def ask(self, **changes: Any) -> None:
        """Search with these changes to what was asked before; an error is shown."""
        request = {**self.screen.request, **changes}
        self.screen.request = {**request, "asked": int(request.get("asked", 0)) + 1}

    def load(self, request: dict[str, Any]) -> None:
        """Ask what a page asked, and select what it had selected."""
        wanted = {name: request[name] for name in _ASKED if name in request and name != "picture"}
        if selected := [str(name) for name in request.get("selected", ())]:
            self.screen.selected = selected
        if "query" in wanted:
            start = {"k": 8, "page": 1, "method": "max", "right": [], "wrong": [], "where": ""}
            self.ask(**{**start, "bbox": "", "label": "", "picture": "", **wanted})
        else:
            self._select()

    # — what the browser says —

    def _on_request(self, change: dict) -> None:
        if change["new"].get("asked", 0) != self._seen:  # marks alone wait for the next search
            self._seen = change["new"].get("asked", 0)
            self._try(self._search)

    def _on_message(self, _: Any, message: dict, buffers: list) -> None:
        command = check_choice("command", message.pop("command", ""), _COMMANDS)
        if command == "load":
            message["content"] = bytes(buffers[0])
        self._try(lambda: getattr(self, f"_{command}")(**message))

    def _try(self, action: Any) -> None:
        try:
            action()
        except (InputError, MissingError) as error:
            self._tell(**{**self.screen.shown, "error": str(error)})

    def _search(self) -> None:
        request = {n: v for n, v in self.screen.request.items() if n in _ASKED}
        start, query = time.perf_counter(), request["query"]
        index = self._index(str(request.pop("method")))
        if label := request.pop("label", ""):
            label = f"label = '{label.replace(chr(39), 2 * chr(39))}'"
            where = request["where"].strip()
            request["where"] = f"{label} and ({where})" if where else label
        self._asks = self._asks if request.get("picture") else {}
        self.found = index.find(**request)
        self._show(1000 * (time.perf_counter() - start))
        self.screen.history = [query, *(q for q in self.screen.history if q != query)][:50]

    def _index(self, method: str) -> Index:
        if method not in self._indices:
            self._indices[method] = Index(self.sources, method)
        return self._indices[method]

    def _show(self, milliseconds: float = 0.0) -> None:
        found = self.found
        last = max(1, -(-found.total // found.request.get("k", max(found.total, 1))))
        values = {"tiles": found.tiles, "query": found.query.text, "total": found.total}
        values |= {"notes": found.notes, "suggestion": found.query.suggestion, "last": last}
        self._tell(**values, picture=self._asks, milliseconds=round(milliseconds))
        if self._map:
            self._map.show(found, str(found.request.get("bbox", "")))

    def _tell(self, **values: Any) -> None:
        self.screen.shown = {"error": "", **values, "at": time.time()}  # so that it differs

    def _open(self, number: int) -> None:
        card = self.found.card(self._name(number), ENLARGED, with_path=True)
        self.screen.send({"card": card, "number": number})

    def _name(self, number: int) -> str:
        return self.found.table["image_id"].iloc[number]

    def _original(self, number: int) -> Path:
        file = self.sources.dataset.file_of(self._name(number))
        if not file:
            raise MissingError(f"{self._name(number)}: no pixels on disk")
        return Path(file.path)

    def _path(self, number: int) -> None:
        self.screen.send({"path": str(self._original(number))})

    def _file(self, number: int, open: bool = False) -> None:
        path = self._original(number)
        if open:
            file = self.sources.dataset.file_of(self._name(number))
            picture = Image.fromarray(read_image(file, self.sources.dataset.rendering))
            self._give(f"{path.stem}.jpg", "image/jpeg", jpeg(picture), open=True)
        else:
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            self._give(path.name, kind, path.read_bytes())

    def _give(self, name: str, kind: str, content: bytes, open: bool = False) -> None:
        """Send a file to the browser, wherever it runs."""
        self.screen.send({"file": name, "type": kind, "open": open}, buffers=[content])

    def _caption(self) -> None:
        captions = self.sources.dataset.captions
        captions = captions[captions["image_id"].isin(list(self.sources.captions.records))]
        self.ask(query=captions["text"].sample(1).iloc[0], page=1, right=[], wrong=[], picture="")

    def _select(self) -> None:
        """Show the selection."""
        if not self.screen.selected:
            raise InputError("nothing is selected")
        self.found = self._index("max").pick(self.screen.selected)
        self._show()

    def _save(self, kind: str, selection: bool) -> None:
        """The selection or the whole ranking (as a page, its first images) as a file."""
        found = self._chosen(self.found.total if kind in ("csv", "geojson") else MOST, selection)
        name = slug(found.query.text)[:40] or "search"
        if kind == "folder":
            stamp = time.strftime("%Y%m%d_%H%M%S")
            folder = self.sources.dataset.derived / "selections" / f"{name}_{stamp}"
            note = f"{len(found.table):,} images are in {shown(found.save(folder, kind))}"
            self._tell(**{**self.screen.shown, "notes": [note]})
            return
        types = {"csv": "text/csv", "html": "text/html", "geojson": "application/geo+json"}
        check_choice("kind of file", kind, types)
        self._give(f"{name}.{kind}", types[kind], found.as_text(kind).encode())

    def _chosen(self, most: int, selection: bool) -> Found:
        """The selection, or the result shown from its first image on."""
        request = dict(self.found.request)
        index = self._index(str(request.pop("method", "max")))
        if selection or "query" not in request:
            if not self.screen.selected:
                raise InputError("nothing is selected")
            return index.pick(self.screen.selected)
        found = index.find(**{**request, "k": min(most, self.found.total), "page": 1})
        found.request.update(k=request["k"], selected=self.screen.selected)
        return found

    def _load(self, name: str, content: bytes) -> None:
        """A file dropped on the panel: a picture to search with, a saved page or selection."""
        suffix = Path(name).suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            try:
                self.load(read_settings(content.decode("utf-8-sig"), name)["request"])
            except UnicodeDecodeError:
                raise InputError(f"{name}: neither a picture nor a page, CSV or GeoJSON") from None
            return
        path = Path(self._folder.name) / f"{slug(Path(name).stem)}{suffix}"
        path.write_bytes(content)
        query, who = describe(str(path), self.sources), describer_of(self.sources)
        small = io.BytesIO()
        picture = Image.fromarray(read_image(path, self.sources.dataset.rendering, 192))
        picture.save(small, "JPEG")
        text = f"{name}, described by {who}: the words above can be edited"
        if who == "pixels":
            text += " (pixels is often wrong; name a model as query_captioner)"
        self._asks = {
            "picture": data_uri(small.getvalue(), "image/jpeg"),
            "name": name,
            "text": text,
        }
        self.ask(query=query, picture=str(path), page=1, right=[], wrong=[])


_COMMANDS = ("open", "path", "file", "caption", "select", "save", "load")
