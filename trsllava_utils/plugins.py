"""Plug-ins: what other packages add to the core. They register it as entry points, as pytest's
plug-ins do; the core knows only their names. docs/extending.md shows one of ten lines.

    trsllava.captioners   the word before the colon -> captioner(name, settings)   captioner.py
    trsllava.defaults     "captioner" -> default(dataset, prompt), a captioner's name   captions.py
    trsllava.encoders     the word before the colon -> encoder(name, precision)    encoders.py
    trsllava.readers      kinds of image files that Pillow does not read           images.py
    trsllava.layouts      layouts of annotations                                   annotations.py
    trsllava.gates        gate(settings) -> what refuses bad captions              captioning.py
    trsllava.runners      many images under way at once                            captioning.py
    trsllava.homes        finds what was made of an archive that has moved         data.py
    trsllava.labels       classes of images                                        data.py
    trsllava.rules        every scoring rule beside max                            ranking.py
    trsllava.steps        steps of these rules                   trsllava_extras/methods.py
    trsllava.schedulers   where work is spread                                     vectors.py
    trsllava.views        results as pages                                         search.py
    trsllava.commands     commands of ``python -m trsllava_utils``                 __main__.py
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trsllava_utils.files import MissingError


@lru_cache
def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"trsllava.{group}")}


def names(group: str) -> list[str]:
    """Names of the plug-ins of a group, ``"captioners"`` for example."""
    return list(_points(group))


@lru_cache
def find(group: str, name: str) -> Any:
    """The plug-in of that name, loaded; None if there is none, or its package was deleted.

    Raises:
        MissingError: it needs a package that is not installed.
    """
    point = _points(group).get(name)
    try:
        return point and point.load()
    except ModuleNotFoundError as error:
        if error.name and point.module.startswith(error.name):
            return None
        raise MissingError(
            f"{name} needs the package {error.name}, which is not installed: pip install "
            f"{error.name}"
        ) from error


def load_all(group: str) -> dict[str, Any]:
    """All plug-ins of a group that are there, by name."""
    found = {name: find(group, name) for name in names(group)}
    return {name: plugin for name, plugin in found.items() if plugin is not None}
