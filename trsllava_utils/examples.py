"""The examples that the prompt ``style`` shows: captions as the users of a dataset write them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trsllava_utils.captioner import Settings
from trsllava_utils.data import Dataset
from trsllava_utils.files import MissingError
from trsllava_utils.prompts import read_words

EXAMPLES = 40  # of many, so many are shown


def with_examples(settings: Settings, dataset: Dataset) -> Settings:
    """The settings with the examples that the prompt "style" shows: the lines of ``style_file`` or
    the distinct training captions; of many, a sample drawn with ``seed``. Other prompts have none.

    Raises:
        MissingError: ``style_file`` is not there, or there are no training captions.
        InputError: ``style_file`` is empty or not text.
    """
    if settings.prompt != "style":
        return settings
    texts = []
    if settings.style_file:
        lines = read_words("style_file", settings.style_file).split("\n")
        texts = [text for line in lines if (text := line.strip().removeprefix("-").strip())]
    elif dataset.split not in ("train", "all") and "train" in dataset.split_sizes:
        texts = sorted(set(dataset.on("train").captions["text"]))
    if not texts:
        raise MissingError(
            f"prompt='style' needs examples, and {dataset.title} ({dataset.split}) has no training "
            "captions apart from its queries; put captions or queries as your users write them "
            "into a text file, one per line, and pass -p style_file FILE"
        )
    if len(texts) > EXAMPLES:
        order = np.random.default_rng(settings.seed).permutation(len(texts))
        texts = [texts[i] for i in order[:EXAMPLES]]
    return replace(settings, examples=tuple(texts))
