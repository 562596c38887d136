"""Training-free, text-to-text retrieval of remote-sensing images: one folder per notebook.

Imports run one way, down this list: artefacts, cluster, openai_api; ``datasets`` (notebook 00);
``captioning`` (01), ``embedding`` (02); protocols; ``retrieval`` (03); ``evaluation`` (04);
``figures``; ``search``; report; __main__.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader

__version__ = "0.1.0"

# Modules that used to lie here -> where they are now.
_MOVED = {
    "annotations": "datasets.annotations",
    "imagery": "datasets.imagery",
    "places": "datasets.places",
    "encoders": "embedding.encoders",
    "clip": "embedding.clip",
    "methods": "retrieval.methods",
    "sources": "retrieval.sources",
    "geometry": "retrieval.geometry",
    "gallery": "retrieval.gallery",
    "statistics": "evaluation.statistics",
    "breakdown": "evaluation.breakdown",
    "experiments": "evaluation.experiments",
    "visualisation": "figures",
    "charts": "figures",
    "panel": "search.panel",
}


class _Moved(MetaPathFinder, Loader):
    """Keeps imports of the old names working: each gives the module of today."""

    def find_spec(self, name, path=None, target=None):
        package, _, module = name.rpartition(".")
        return spec_from_loader(name, self) if package == __name__ and module in _MOVED else None

    def exec_module(self, module):
        target = _MOVED[module.__name__.rpartition(".")[2]]
        sys.modules[module.__name__] = import_module(f"{__name__}.{target}")


sys.meta_path.append(_Moved())
