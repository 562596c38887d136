"""A picture as a query: a captioner puts it into words, CLIP into a vector."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from trsllava_utils.artefacts import InputError, MissingError, user_path
from trsllava_utils.captioning.captioner import Captioner, Question, Settings
from trsllava_utils.captioning.captions import open_captioner
from trsllava_utils.captioning.names import exists, names_in, prompt_and_model
from trsllava_utils.captioning.prompts import make_prompt
from trsllava_utils.captioning.run import Job, judge
from trsllava_utils.datasets.imagery import ImageFile, read_pictures
from trsllava_utils.embedding import ClipEncoder, unit_vectors
from trsllava_utils.retrieval import Sources

_open = lru_cache(maxsize=1)(open_captioner)  # the weights stay for the next picture


def describer_of(sources: Sources) -> str:
    """Who can describe a new picture: the query captioner or, of the gallery's captioners, the
    first that looks at pictures; else ``pixels``."""
    names = [*names_in(sources.query_captioner), *names_in(sources.captioner)]
    models = [prompt_and_model(name)[1] for name in names]
    return next((model for model in models if model and not exists(model)), "pixels")


def describe(picture: str, sources: Sources, captioner: str = "") -> str:
    """A description of a picture to search with, by the prompt "query".

    Args:
        picture: an image file.
        sources: what will be searched; rasters are shown as there.
        captioner: who describes it; empty: see :func:`describer_of`.

    Raises:
        MissingError: there is no such file.
        InputError: the file is no picture, or the captioner's replies cannot be used.
    """
    path, settings = user_path(picture), Settings(prompt="query")
    if not path.is_file():
        raise MissingError(f"image {picture!r} not found")
    describer: Captioner = _open(captioner or describer_of(sources), settings)
    pictures = read_pictures(ImageFile(str(path)), sources.dataset.rendering, settings.max_side)
    job, prompt, problem = Job(path.name, ImageFile(str(path)), ""), make_prompt(settings), ""
    for attempt in range(describer.attempts):
        seed, heat = settings.seed_of(path.name, attempt), settings.temperature_of(attempt)
        reply = describer.describe([Question(pictures.by_name, seed, heat)])[0]
        outcome = judge(job, reply, prompt, settings.language, "")
        if outcome.record:
            return outcome.record.variants[0].caption
        problem = outcome.detail
    raise InputError(f"{path.name}: the captioner's reply cannot be used, {problem}")


def picture_vector(picture: str, sources: Sources) -> np.ndarray:
    """CLIP's unit vector of an image file, ``(1, dim) float32``; errors as for CLIP's images."""
    file = ImageFile(str(user_path(picture)))
    encoder = ClipEncoder(sources.clip, {file.sha256: file}, sources.dataset.rendering)
    return unit_vectors([file.sha256], encoder, "image")
