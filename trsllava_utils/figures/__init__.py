"""Figures of all notebooks: images and tables go in, a matplotlib figure comes out, to be saved."""

from trsllava_utils.figures.pictures import (
    dataset_overview,
    image_grid,
    place_map,
    png,
    query_results,
    save,
    show_image,
)
from trsllava_utils.figures.charts import (
    embedding_map,
    geometry,
    grid,
    histograms,
    label_recall,
    lines,
    max_and_centroid,
    methods,
)
