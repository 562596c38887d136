"""Notebook 01: images go in, structured captions (RSRT) come out, one JSON line per image."""

from trsllava_utils.captioning.captioner import Settings
from trsllava_utils.captioning.names import captioner_id
from trsllava_utils.captioning.imported import reference_captions
from trsllava_utils.captioning.captions import (
    caption_dataset,
    load_captions,
    choose_captioner,
    captions_file,
    merge,
    seen_by,
    Captions,
)
