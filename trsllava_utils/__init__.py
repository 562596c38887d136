"""Training-free, text-to-text retrieval of remote-sensing images: the method.

A frozen vision-language model writes several structured captions an image; a frozen text encoder
puts captions and queries on one sphere; an image scores the best of its captions. These are the
calls, in the order of the notebooks; each is shown in its docstring. The evening path, which is the
whole method from a picture to its recall and from a query to its pictures:

    data → images → records → prompts → captioning → encoders → scoring → ranking → recall

``captioner`` says what a captioner is; ``captions``, ``vectors``, ``rankings`` and ``sources``
store and gather; ``search`` asks one query.

Everything beside the method is in ``trsllava_extras`` and plugs in (``plugins.py``).
"""

from trsllava_utils.data import load_dataset
from trsllava_utils.images import read_image
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.vectors import embed_corpus
from trsllava_utils.sources import Sources
from trsllava_utils.rankings import rank_dataset
from trsllava_utils.recall import metrics
from trsllava_utils.search import search

__version__ = "0.1.0"
__all__ = [
    "Sources",
    "caption_dataset",
    "embed_corpus",
    "load_captions",
    "load_dataset",
    "metrics",
    "rank_dataset",
    "read_image",
    "search",
]
