"""Training-free, text-to-text retrieval of remote-sensing images: one folder a notebook.

Imports run one way, down this list: artefacts, cluster, openai_api; ``datasets`` (notebook 00);
``captioning`` (01), ``embedding`` (02); ``retrieval`` (03); ``evaluation`` (04); ``figures``;
``search``; report; __main__.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader

__version__ = "0.1.0"

# Modules that used to lie here -> the folder that holds them now.
_MOVED = {
    **dict.fromkeys(("annotations", "imagery", "places"), "datasets"),
    **dict.fromkeys(("encoders", "clip"), "embedding"),
    **dict.fromkeys(("sources", "methods", "geometry", "gallery"), "retrieval"),
    **dict.fromkeys(("statistics", "breakdown", "experiments"), "evaluation"),
    **dict.fromkeys(("visualisation", "charts"), "figures"),
    **dict.fromkeys(("pages", "panel"), "search"),
}


class _Moved(MetaPathFinder, Loader):
    """Keeps imports of the old names working: each gives the folder of today."""

    def find_spec(self, name, path=None, target=None):
        package, _, module = name.rpartition(".")
        return spec_from_loader(name, self) if package == __name__ and module in _MOVED else None

    def exec_module(self, module):
        folder = _MOVED[module.__name__.rpartition(".")[2]]
        sys.modules[module.__name__] = import_module(f"{__name__}.{folder}")


sys.meta_path.append(_Moved())
