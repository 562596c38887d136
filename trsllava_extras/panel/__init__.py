"""Search: words, weights, a picture or marked images go in, the images found come out."""

from trsllava_extras.panel.found import Found
from trsllava_extras.panel.index import Index, search
from trsllava_extras.panel.panel import Panel, reopen, search_panel

__all__ = ["Found", "Index", "Panel", "reopen", "search", "search_panel"]
