"""What is known of images beside their captions: a dataset goes in, a table comes out (date, place,
ground sample distance, and any columns of the tables that lie beside the images), and filters on
it.
"""

from trsllava_extras.metadata.filters import parse_bbox, select
from trsllava_extras.metadata.known import load_metadata, metadata_of

__all__ = ["load_metadata", "metadata_of", "parse_bbox", "select"]
