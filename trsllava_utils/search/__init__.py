"""Search: a sentence or an image goes in, the images found come out."""

from trsllava_utils.search.index import Found, Index, search
from trsllava_utils.search.panel import Panel, search_panel
