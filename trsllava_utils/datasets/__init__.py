"""Notebook 00: a name or a folder goes in, a checked dataset comes out."""

from trsllava_utils.datasets.dataset import (
    load_dataset,
    check_images,
    statistics,
    other_split,
    Dataset,
)
from trsllava_utils.datasets.download import get
from trsllava_utils.datasets.metadata import load_metadata
from trsllava_utils.datasets.imagery import ImageFile, read_image, read_pictures
from trsllava_utils.datasets.rendering import Rendering
