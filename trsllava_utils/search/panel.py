"""The search panel of notebook 03: type a query, see the images found, click one.

Built of plain ipywidgets. Where there is nobody to click (papermill, nbconvert, nbval), or no
widgets, the first result is shown without widgets.
"""

from __future__ import annotations

import os
import time
from functools import partial
from importlib.util import find_spec

from markupsafe import escape

from trsllava_utils.artefacts import InputError, MissingError
from trsllava_utils.figures import place_map, png
from trsllava_utils.retrieval import Method, Sources
from trsllava_utils.search import world
from trsllava_utils.search.found import (
    Found,
    card,
    data_uri,
    render,
    result_fragment,
    result_page,
    tiles,
)
from trsllava_utils.search.index import Index

METHODS = ("max", "centroid", "texts(fields)", "lexical", "hybrid")
PAGE_SIZES = (4, 8, 12, 24, 48)


def search_panel(sources: Sources, query: str, method: str = "max", k: int = 8) -> Panel | Found:
    """The panel, or the first result where nobody can click.

    Args:
        sources: what is searched.
        query: the first query.
        method: the rule used first, if it can rank a single query; others can be chosen.
        k: images per page.
    """
    methods = [m for m in dict.fromkeys((method, *METHODS)) if Method(m).ranks_one_query]
    return (Panel if interactive() else _static)(sources, query, methods, k)


def _static(sources: Sources, query: str, methods: list[str], k: int) -> Found:
    return Index(sources, methods[0]).find(query, k)


def interactive() -> bool:
    """Whether there are widgets and a person before them: Jupyter servers, VS Code and Colab say so
    in the environment; papermill, nbconvert and nbval do not."""
    attended = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")
    return any(name in os.environ for name in attended) and bool(find_spec("ipywidgets"))


class Panel:
    """Query, pictures and card, wired together; ``found`` is what is shown.

    Args:
        sources, query, k: see :func:`search_panel`.
        methods: the rules to choose from; the first is used at once.
    """

    def __init__(self, sources: Sources, query: str, methods: list[str], k: int) -> None:
        import ipywidgets as w

        self._sources, self._w = sources, w
        self._indices: dict[str, Index] = {}
        self._tiles: list = []
        self._busy = False
        self._world: world.WorldMap | None = None
        self.found: Found | None = None
        self._make_controls(query, methods, k)
        self._make_result()
        row = w.Layout(flex_flow="row wrap", align_items="center")
        buttons = [self.previous, self.page, self.next, self.export, self._links]
        self.view = w.VBox(
            [
                self._style,
                w.HBox([self.query, self.any_caption], layout=row),
                w.HBox([self.method, self.label, self.k, self.history], layout=row),
                w.HBox([self.where, self.bbox], layout=row),
                self.status,
                self.pictures,
                w.HBox(buttons, layout=row),
                self._detail,
                self.map,
            ]
        )
        self.view.add_class(self._name)
        self._wire()
        self._show(query)

    def _make_controls(self, query: str, methods: list[str], k: int) -> None:
        """What the user types and chooses."""
        w = self._w
        long, short = w.Layout(flex="1 1 320px"), w.Layout(width="160px")
        labels = sorted(set(self._sources.dataset.images["label"]) - {""})
        hint = "what the image should show, then Enter"
        self.query = w.Text(
            query, placeholder=hint, description="query", continuous_update=False, layout=long
        )
        tip = "take a reference caption as the query, so that hits can be told from misses"
        self.any_caption = self._button("a caption of the dataset", tooltip=tip)
        self.method = w.Dropdown(options=methods, description="method")
        classes = [("all", ""), *((label, label) for label in labels)]
        self.label = w.Dropdown(options=classes, description="class")
        sizes = sorted({*PAGE_SIZES, k})
        self.k = w.Dropdown(options=sizes, value=k, description="images", layout=short)
        self.history = w.Dropdown(options=[], description="history", layout=long)
        known = self._sources.metadata
        hint = "as in SQL, on " + ", ".join(c for c in known if c != "geometry")
        self.where = self._filter("where", hint, len(known.columns) > 0)
        hint = "west,south,east,north in degrees, or click the map"
        self.bbox = self._filter("box", hint, "geometry" in known)
        self.previous = self._button("‹ previous", disabled=True)
        self.next = self._button("next ›", disabled=True)
        self.page = w.BoundedIntText(1, min=1, description="page", layout=short)
        self.export = self._button("export", tooltip="this page of the result as CSV and HTML")

    def _filter(self, name: str, hint: str, is_shown: bool):
        layout = self._w.Layout(flex="1 1 320px", display="" if is_shown else "none")
        how = {"continuous_update": False, "layout": layout}
        return self._w.Text(placeholder=hint, description=name, **how)

    def _make_result(self) -> None:
        """What is shown: tiles, the card of one image, a map."""
        w = self._w
        self.status, self.card, self.map, self._style, self._links = (w.HTML() for _ in range(5))
        if "geometry" in self._sources.metadata and find_spec("ipyleaflet"):
            near = partial(setattr, self.bbox, "value")  # a click: the same query, near there
            self._world = world.WorldMap(self._sources.metadata, near)
            self.map = self._world.view
        self.pictures = w.Box(layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))
        self.like, self.close = self._button("more like this"), self._button("close")
        self._detail = w.VBox([w.HBox([self.like, self.close]), self.card])
        self._detail.layout.display = "none"

    def _button(self, description: str, **options):
        layout = self._w.Layout(width="auto")
        return self._w.Button(description=description, layout=layout, **options)

    @property
    def _name(self) -> str:
        """A CSS class of this panel alone, for several may be open."""
        return f"trsllava-{id(self):x}"

    def _repr_mimebundle_(self, **kwargs) -> dict:
        bundle = self.view._repr_mimebundle_(**kwargs)
        if self.found:  # for frontends without widgets, and for the saved notebook
            bundle["text/html"] = result_fragment(self.found)
        return bundle

    def _wire(self) -> None:
        """Connect the widgets with what they do."""
        self.query.observe(lambda change: self._show(change.new), "value")
        for choice in (self.method, self.label, self.k, self.where, self.bbox):
            choice.observe(lambda _: self._again(), "value")
        self.page.observe(lambda change: self._again(change.new), "value")
        self.previous.on_click(lambda _: setattr(self.page, "value", self.page.value - 1))
        self.next.on_click(lambda _: setattr(self.page, "value", self.page.value + 1))
        self.history.observe(lambda change: change.new and self._show(*change.new), "value")
        self.any_caption.on_click(lambda _: self._take_caption())
        self.export.on_click(lambda _: self._export())
        self.like.on_click(lambda _: self._show(self._opened, True))
        self.close.on_click(lambda _: setattr(self._detail.layout, "display", "none"))

    def _take_caption(self) -> None:
        captions = self._sources.dataset.captions
        captions = captions[captions["image_id"].isin(list(self._sources.captions.records))]
        if captions.empty:
            self._say("these images have no reference captions")
        else:
            self.query.value = captions["text"].sample(1).iloc[0]

    def _again(self, page: int = 1) -> None:
        """The query shown, with other settings or another page."""
        if self.found and not self._busy:
            self._show(self.found.query, self.found.by_image, page)

    def _show(self, query: str, by_image: bool = False, page: int = 1) -> None:
        """Search and show the result; an error is shown in its place."""
        if self._busy:
            return
        self._busy = True  # setting the widgets below must not search again
        start = time.perf_counter()
        try:
            index = self._index(self.method.value)
            find = index.like if by_image else index.find
            only = {"where": self.where.value, "bbox": self.bbox.value}
            self.found = find(query, self.k.value, page, self.label.value, **only)
            self._fill()
            self._remember(query, by_image)
            last = max(1, -(-self.found.total // self.k.value))
            self.page.max, self.page.value = last, page
            self.previous.disabled, self.next.disabled = page == 1, page == last
            self._describe(1000 * (time.perf_counter() - start), last)
            self._draw_map()
        except (InputError, MissingError) as error:
            self._say(str(error), error=True)
        finally:
            self._busy = False

    def _index(self, method: str) -> Index:
        if method not in self._indices:
            self._say(f"preparing {method} …")
            self._indices[method] = Index(self._sources, method)
        return self._indices[method]

    def _fill(self) -> None:
        """The tiles of a page; an image is the background of a button, so that it can be clicked
        and reached by keyboard."""
        images = tiles(self.found)
        while len(self._tiles) < len(images):
            self._tiles.append(self._tile(len(self._tiles)))
        rules = [_RULES.replace("PANEL", self._name)]
        for number, (tile, box) in enumerate(zip(images, self._tiles, strict=False)):
            button, text = box.children
            button.tooltip = f"{tile['image_id']}: {tile['said']}"
            button.description = "" if tile["picture"] else "no pixels on disk"
            colour = "#009E73" if tile["verdict"] == "hit" else "transparent"
            rules.append(
                f".{self._name} .tile-{number} {{ background-image: url('{tile['picture']}'); "
                f"border: 3px solid {colour}; }}"
            )
            text.value = render("caption.html", tile=tile)
        self._style.value = f"<style>{' '.join(rules)}</style>"
        self.pictures.children = self._tiles[: len(images)]
        self._detail.layout.display = "none"
        self._links.value = ""

    def _tile(self, number: int):
        """An image and what is said of it, to be filled again and again."""
        button, text = self._w.Button(), self._w.HTML()
        button.add_class("tile").add_class(f"tile-{number}")
        button.on_click(lambda _: self.open(self.found.table["image_id"].iloc[number]))
        layout = self._w.Layout(width="180px", margin="4px")
        return self._w.VBox([button, text], layout=layout)

    def open(self, image_id: str) -> None:
        """Show the card of an image of the page."""
        self._opened = image_id
        self.card.value = card(self.found, image_id)
        self._detail.layout.display = ""

    def _remember(self, query: str, by_image: bool) -> None:
        entry = (f"like {query}" if by_image else query, (query, by_image))
        self.history.options = [entry, *(o for o in self.history.options if o != entry)][:50]
        self.history.value = entry[1]
        if not by_image:
            self.query.value = query

    def _describe(self, milliseconds: float, last: int) -> None:
        found = self.found
        what = f"images like {found.query}" if found.by_image else found.query
        text = f"<b>{escape(what)}</b> · {found.total:,} images, {last:,} pages · "
        text += f"{milliseconds:.0f} ms"
        if found.table["hit"].notna().any():
            text += " · a reference caption of this dataset: its own images are framed in green"
        self._say(text, html=True)

    def _say(self, text: str, error: bool = False, html: bool = False) -> None:
        colour = "color:#D55E00" if error else ""
        self.status.value = f'<div style="{colour}">{text if html else escape(text)}</div>'

    def _draw_map(self) -> None:
        places = self._sources.metadata
        if self._world:
            self._world.show(self.found, self.bbox.value)
            return
        if "geometry" not in places:
            return
        title = f"Where they are: {self.found.query}"
        figure = place_map(self.found.table, title, places)
        address = data_uri(png(figure), "image/png")
        self.map.value = f'<img src="{address}" alt="map of the images found" width="640">'

    def _export(self) -> None:
        """Links that hold the files: they can be saved wherever the browser runs."""
        files = {
            "csv": data_uri(self.found.csv().encode(), "text/csv"),
            "html": data_uri(result_page(self.found).encode(), "text/html"),
        }
        if self.found.has_places:
            files["geojson"] = data_uri(self.found.geojson().encode(), "application/geo+json")
        self._links.value = " · ".join(
            f'<a download="search.{kind}" href="{address}"><u>save as {kind.upper()}</u></a>'
            for kind, address in files.items()
        )


_RULES = """
.PANEL .tile { width: 180px; height: 180px; margin: 0; background-size: cover;
  background-position: center; background-color: #ddd; cursor: pointer; }
.PANEL .tile:focus-visible { outline: 3px solid #0072B2; }
"""
