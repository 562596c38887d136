"""Search: words, weights, a picture or marked images go in, the images found come out."""

from importlib import import_module
from typing import Any

_WHERE = {"Found": "found", "Index": "index", "search": "index"}
_WHERE |= dict.fromkeys(("Panel", "reopen", "search_panel"), "panel")
__all__ = ["Found", "Index", "Panel", "reopen", "search", "search_panel"]


def __getattr__(name: str) -> Any:
    """What is named is imported when it is used: a search in the terminal needs no widgets."""
    if name not in _WHERE:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
