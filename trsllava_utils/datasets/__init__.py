"""Notebook 00: a name or a folder goes in, a checked dataset comes out."""

from trsllava_utils.datasets.dataset import (
    Dataset,
    check_images,
    load_dataset,
    other_split,
    statistics,
)
from trsllava_utils.datasets.imagery import read_image, read_renderings
from trsllava_utils.datasets.places import locate

__all__ = [
    "Dataset",
    "check_images",
    "load_dataset",
    "locate",
    "other_split",
    "read_image",
    "read_renderings",
    "statistics",
]
