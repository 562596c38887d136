"""Notebook 01: images go in, structured captions (RSRT) come out, one JSON line per image."""

from trsllava_utils.captioning.captioner import Settings
from trsllava_utils.captioning.captions import (
    Captions,
    caption_dataset,
    captioner_id,
    captions_file,
    human_captions,
    load_captions,
    merge,
)
