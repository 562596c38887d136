"""Notebook 03: vectors go in, rankings come out."""

from trsllava_utils.retrieval.methods import Method
from trsllava_utils.retrieval.sources import Sources
from trsllava_utils.retrieval.geometry import Geometry, alignment, k_occurrence, measure, uniformity
from trsllava_utils.retrieval.ranking import (
    Rankings,
    caption_texts,
    query_ids,
    rank_dataset,
    rank_methods,
    retrieve,
    sides,
)
from trsllava_utils.retrieval.gallery import Gallery
