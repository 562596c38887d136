"""Which way is up: an open raster goes in; how its pictures are turned comes out, so that north is
up within 45° and no picture is a mirror image."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
from rasterio.io import DatasetReader

from trsllava_extras.rasters.opening import ORIENTATION, tiff_tag
from trsllava_extras.rasters.places import Steps


class Turn(NamedTuple):
    """Rows and columns change places; then the order of rows and of columns is reversed."""

    transpose: bool = False
    rows: bool = False
    columns: bool = False

    def picture(self, shown: np.ndarray) -> np.ndarray:
        """``(H, W, …)``, turned."""
        shown = shown.swapaxes(0, 1) if self.transpose else shown
        return shown[:: -1 if self.rows else 1, :: -1 if self.columns else 1]

    def box(self, window: tuple, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """A window (column, row, width, height) of a raster of that width and height, turned."""
        if self.transpose:
            (y, x, height, width), (down, across) = window, size
        else:
            (x, y, width, height), (across, down) = window, size
        x = across - x - width if self.columns else x
        return x, down - y - height if self.rows else y, width, height


# by the TIFF tag Orientation: what the first row and the first column are
_TAGGED = {
    2: Turn(columns=True),
    3: Turn(rows=True, columns=True),
    4: Turn(rows=True),
    5: Turn(transpose=True),
    6: Turn(transpose=True, columns=True),
    7: Turn(True, True, True),
    8: Turn(transpose=True, rows=True),
}


def turn_of(raster: DatasetReader, found: Steps | None) -> Turn:
    """How the pictures of a raster are turned: by its place on the ground, which
    :func:`~.places.steps` tells, or else by the orientation that a TIFF says."""
    if found is None:
        return _TAGGED.get(tiff_tag(raster, ORIENTATION), Turn())

    _, own, metres = found
    axes = own if metres is None else metres  # of another planet: the map's own axes
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)

    def fit(turn: Turn) -> float:
        across, down = axes[::-1] if turn.transpose else axes
        return across[0] * (-1 if turn.columns else 1) - down[1] * (-1 if turn.rows else 1)

    # of equal ones the first, which turns least
    return max((Turn(*how) for how in product((False, True), repeat=3)), key=fit)
