"""A picture as a query: a captioner puts it into words."""

from __future__ import annotations

from functools import lru_cache

from trsllava_extras.quality import gate
from trsllava_utils.captioner import (
    Captioner,
    Question,
    Settings,
    exists,
    names_in,
    open_captioner,
    prompt_and_model,
)
from trsllava_utils.captioning import Job, judge
from trsllava_utils.files import InputError, MissingError, user_path
from trsllava_utils.images import ImageFile, view
from trsllava_utils.prompts import make_prompt
from trsllava_utils.sources import Sources

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
    pictures = view(ImageFile(str(path)), sources.dataset.rendering, settings.max_side)
    job, prompt, problem = Job(path.name, ImageFile(str(path)), ""), make_prompt(settings), ""
    for attempt in range(describer.attempts):
        seed, heat = settings.seed_of(path.name, attempt), settings.temperature_of(attempt)
        reply = describer.describe([Question(pictures.by_name, seed, heat)])[0]
        outcome = judge(job, reply, prompt, [gate(settings)])
        if outcome.record:
            return outcome.record.variants[0].caption
        problem = outcome.detail
    raise InputError(f"{path.name}: the captioner's reply cannot be used, {problem}")
