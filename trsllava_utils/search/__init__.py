"""Search: words, weights, a picture or marked images go in, the images found come out."""

from trsllava_utils.search.index import Index, search
from trsllava_utils.search.found import Found
from trsllava_utils.search.panel import Panel, reopen, search_panel
