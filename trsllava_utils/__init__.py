"""Training-free, text-to-text retrieval of remote-sensing images: the method.

A frozen vision-language model writes several structured captions an image; a frozen text encoder
puts captions and queries on one sphere; an image scores the best of its captions. Below are the
calls of the notebooks, in their order. Whoever wants to read the method, from a picture to its
recall, takes nine files, an evening:

    data → images → records → prompts → captioning → encoders → scoring → ranking → recall

``captioner`` says what a captioner is; ``captions``, ``vectors``, ``rankings`` and ``sources``
store and gather; ``search`` takes one query to its pictures.

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
