"""A map that can be panned, zoomed and clicked, by ipyleaflet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from trsllava_utils.files import InputError

if TYPE_CHECKING:
    import pandas as pd

    from trsllava_extras.panel.found import Found

FOUND = {"color": "#D55E00", "weight": 3, "fill_opacity": 0.15}
CHOSEN = {"color": "#0072B2", "weight": 1, "dash_array": "4", "fill_opacity": 0.05}
NEAR = 1 / 8  # side of the box around a click, of the extent of all images
SMALLEST = 0.02  # degrees


class WorldMap:
    """The images found, as footprints; a click gives a box around it.

    Args:
        places: ``geometry`` of all images, see ``load_metadata``.
        near: called with the box of a click, ``"west,south,east,north"``.
    """

    def __init__(self, places: pd.DataFrame, near: Callable[[str], None]) -> None:
        import ipyleaflet
        import shapely

        west, south, east, north = shapely.total_bounds(places["geometry"].dropna().to_numpy())
        extent = max(east - west, north - south, SMALLEST)
        self._half = max(NEAR * extent, SMALLEST) / 2
        self._near, self._leaflet = near, ipyleaflet
        middle = (south + north) / 2, (west + east) / 2
        zoom = min(int(math.log2(360 / extent)), 17)  # the whole world is level 0
        self.view = ipyleaflet.Map(center=middle, zoom=zoom, scroll_wheel_zoom=True)
        self.view.layout.height = "420px"
        self._shown, self._box = ipyleaflet.LayerGroup(), ipyleaflet.LayerGroup()
        self.view.add(self._shown)
        self.view.add(self._box)
        self.view.on_interaction(self._on_interaction)

    def show(self, found: Found, bbox: str) -> None:
        """Draw the footprints of a result, with rank and name under the pointer; if the search
        has no box, that of the last click is removed."""
        if not bbox.strip():
            self._box.layers = ()
        try:
            table = found.on_map()
        except InputError:  # none of these has a place
            self._shown.layers = ()
            return
        w = self._leaflet
        layers = []
        for row in table.itertuples():
            middle = row.geometry.centroid
            title = f"{row.rank}. {row.image_id}"
            layers.append(w.Marker(location=(middle.y, middle.x), title=title, draggable=False))
            if row.geometry.area > 0:
                outline = [(lat, lon) for lon, lat in row.geometry.convex_hull.exterior.coords]
                layers.append(w.Polygon(locations=outline, **FOUND))
        self._shown.layers = tuple(layers)

    def _on_interaction(self, **event) -> None:
        if event.get("type") != "click":
            return
        lat, lon = event["coordinates"]
        south, north = (min(max(lat + d, -90), 90) for d in (-self._half, self._half))
        west, east = lon - self._half, lon + self._half
        box = self._leaflet.Rectangle(bounds=((south, west), (north, east)), **CHOSEN)
        self._box.layers = (box,)
        west, east = ((degrees + 180) % 360 - 180 for degrees in (west, east))
        self._near(f"{west:.4f},{south:.4f},{east:.4f},{north:.4f}")
