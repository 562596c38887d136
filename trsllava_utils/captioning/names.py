"""Names of captioners.

``rsrt`` (the captions that come with a dataset or this project), ``file:PATH`` (captions made
elsewhere), ``transformers:MODEL`` (a vision-language model on this machine), ``openai:MODEL`` (one
behind a server), ``pixels`` (reads the picture, no weights). Captions by another prompt
(``prompts.py``) have it in front, ``style:openai:MODEL``; those that come with the data are just
``style``. Several captioners describe one gallery together as ``rsrt + style``.
"""

from __future__ import annotations

import re
from pathlib import Path

from trsllava_utils.artefacts import InputError, check_choice, fingerprint, slug, user_path
from trsllava_utils.parameters import PROMPTS

KINDS = ("rsrt", "pixels", "transformers:MODEL_ID_OR_FOLDER", "openai:MODEL", "file:PATH.jsonl")
_MODELS = {kind.partition(":")[0]: kind for kind in KINDS if ":" in kind}
_STARTS = "|".join((*PROMPTS, "pixels", *_MODELS))
_PLUS = re.compile(rf"\s*\+\s*(?=(?:{_STARTS})(?:[:+\s]|$))")  # and not a plus in a path


def names_in(captioner: str) -> list[str]:
    """``"rsrt + style"`` -> ``["rsrt", "style"]``."""
    return _PLUS.split(captioner.strip())


def prompt_and_model(captioner: str) -> tuple[str, str]:
    """``"style:openai:MODEL"`` -> ``("style", "openai:MODEL")``; the prompt is "rsrt" where none is
    named."""
    prompt, _, model = captioner.partition(":")
    return (prompt, model) if model and prompt in PROMPTS else ("rsrt", captioner)


def beside(captioner: str, root: Path) -> str:
    """``file:NAME`` with its full path, where it is not found from here but in the dataset's
    folder."""
    kind, _, name = captioner.partition(":")
    found = kind == "file" and not user_path(name).is_file() and (root / name).is_file()
    return f"file:{root / name}" if found else captioner


def with_prompt(captioner: str, prompt: str) -> str:
    """The captioner's name with a prompt in front, unless it names one itself or its captions
    exist."""
    named, model = prompt_and_model(captioner)
    kind = named if captioner.startswith(f"{named}:") else prompt
    return model if kind == "rsrt" or exists(model) else f"{kind}:{model}"


def in_style(captioner: str) -> bool:
    """Whether one of these captioners read example captions; results mark them with °."""
    return any("style" in (name, prompt_and_model(name)[0]) for name in names_in(captioner))


def exists(captioner: str) -> bool:
    """Whether its captions exist, in a file that is only read."""
    return captioner in PROMPTS or captioner.startswith("file:")


def captioner_id(captioner: str) -> str:
    """The short id for file names: "rsrt", "openai-gpt-4.1", "openai-gpt-4.1.style",
    "file-NAME-xxxxxx" or, for several, "rsrt+style".

    Raises:
        InputError: no such captioner, or one that comes twice.
    """
    ids = [_one_id(name) for name in names_in(captioner)]
    if len(set(ids)) < len(ids):
        raise InputError(f"captioner {captioner!r} names a captioner twice")
    return "+".join(ids)


def _one_id(captioner: str) -> str:
    prompt, model = prompt_and_model(captioner)
    suffix = "" if prompt == "rsrt" else f".{prompt}"
    if model in (*PROMPTS, "pixels"):
        return model + suffix
    kind, _, rest = model.partition(":")
    if kind not in _MODELS or (kind != "file" and " + " in rest):
        check_choice("captioner", captioner, (*KINDS, *PROMPTS[1:]))
    if not rest or model in KINDS:
        raise InputError(f"captioner {captioner!r}: name the model or the file, as {_MODELS[kind]}")
    path = user_path(rest)
    if kind == "file" or path.is_dir():  # two files may share a name
        rest = f"{path.stem}-{fingerprint(str(path))[:6]}"
    return f"{kind}-{slug(rest)}{suffix}"
