"""What a captioner is, and how it is named.

A captioner gets pictures and gives a reply, which ought to be RSRT JSON. ``rsrt``, ``style`` and
``query`` are captions that come with the data, ``file:PATH`` captions made elsewhere; every other
kind is a plug-in (``trsllava.captioners``), named by the word before the colon: ``openai:MODEL``.
Captions by another prompt have it in front, ``style:openai:MODEL``. Several captioners describe one
gallery together as ``rsrt + style``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np

from trsllava_utils import plugins
from trsllava_utils.files import (
    InputError,
    MissingError,
    check_choice,
    fingerprint,
    slug,
    user_path,
)
from trsllava_utils.parameters import PROMPTS, check

SINGLE = ("query", "description")  # prompts that ask for one description, and no list


@dataclass(frozen=True)
class Settings:
    """Settings of a captioning run. Captions made with other settings go into other files.

    Attributes:
        prompt: "rsrt" (structured captions), "style" (plain captions in the manner of examples),
            "query" (a short description to search with) or "description" (a long one, the paper's
            image-to-text query).
        prompt_file: a text file that replaces the prompt; ``{n}``, ``{language}`` and
            ``{examples}`` are filled in.
        style_file: a text file with examples for "style", one per line; empty: training captions;
            examples: those, see ``examples.with_examples``.
        variants: captions per image, 1 to 10.
        language: two-letter code of the language asked for; the quality gate checks it.
        seed: of the sampling; every image and every retry has its own, derived from it.
        temperature: of the sampling; 0 takes the likeliest word.
        max_side: pictures are scaled down until no side is longer, in pixels.
        gsd: ground sample distance that the model is told, in metres a pixel; "file": what each
            file says, where it does; empty: none.
        quantize: "4bit" or "8bit" weights, for ``transformers:`` captioners.
        attempts: how often an image is tried before it is set aside. This and the settings below
            shape the run, not the captions.
        concurrency: requests under way at once, for ``openai:`` captioners.
        max_requests: stop after so many requests, repeated ones too (0: no limit).
        timeout: seconds a request may take.
        batch_size: images per batch, for ``transformers:`` captioners (0: as many as memory holds).
        price_in, price_out: US dollars for a million tokens in and out, to estimate the cost.
    """

    prompt: str = "rsrt"
    prompt_file: str = ""
    style_file: str = ""
    examples: tuple[str, ...] = ()
    variants: int = 5
    language: str = "en"
    seed: int = 0
    temperature: float = 0.3
    max_side: int = 1024
    gsd: str = ""
    quantize: str = ""
    attempts: int = 3
    concurrency: int = 8
    max_requests: int = 0
    timeout: float = 120.0
    batch_size: int = 0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        check(vars(self))
        if self.gsd not in ("", "file") and not re.fullmatch(r"\d*\.?\d+", str(self.gsd)):
            raise InputError(f"gsd={self.gsd!r}: give metres a pixel, 'file', or nothing")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, object]) -> Settings:
        """The settings among a notebook's variables, ``Settings.from_parameters(globals())``."""
        return cls(**{f.name: parameters[f.name] for f in fields(cls) if f.name in parameters})

    @property
    def n(self) -> int:
        """Descriptions per image: one where the image itself is to be a query."""
        return 1 if self.prompt in SINGLE else self.variants

    def seed_of(self, filename: str, attempt: int) -> int:
        """The seed (31 bits) of one image's ``attempt``, the same on every machine and shard."""
        digest = hashlib.sha256(os.fsencode(f"{self.seed}/{filename}/{attempt}")).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def temperature_of(self, attempt: int) -> float:
        """Retries use at least 0.5: at temperature 0 they would repeat the refused answer."""
        return self.temperature if attempt == 0 else max(self.temperature, 0.5)


@dataclass(frozen=True)
class Question:
    """One image as a captioner gets it."""

    pictures: dict[str, np.ndarray]  # (H, W, 3) uint8 by what they show
    seed: int
    temperature: float
    facts: tuple[str, ...] = ()  # sentences on this image that go with the prompt


@dataclass(frozen=True)
class Reply:
    """What a model answered."""

    text: str
    model: str  # its name
    problem: str = ""  # why the text cannot be used: "reason" or "reason: detail"


class NoAnswerError(InputError):
    """These images got no answer; others may."""


class BudgetSpentError(InputError):
    """``max_requests`` is reached; the remaining images wait for the next run."""


class Captioner(Protocol):
    """Describes pictures."""

    identity: dict  # what the captions depend on beside the pictures, as JSON values
    prompt_text: str  # what is asked; "" for captioners that read no prompt
    concurrency: int  # how many calls may be under way at once, each from its own thread
    batch_size: int  # how many images a call should hold now; may change during a run
    attempts: int  # how often an image may be tried
    usage: dict[str, int]  # requests and tokens spent so far
    notes: list[str]  # what the user should know at the end of the run
    on_wait: Callable[[str], None]  # is told when a server makes a request wait

    def describe(self, questions: list[Question]) -> list[Reply]:
        """A reply for each question, in order.

        Raises:
            NoAnswerError: none of these images got an answer; others may.
            BudgetSpentError: no more may be asked.
            InputError, MissingError: it is useless to go on (wrong key, no weights, …).
        """


def open_captioner(captioner: str, settings: Settings) -> Captioner:
    """The captioner of that name. Weights are loaded when the first image is described.

    Raises:
        InputError: no such captioner.
        MissingError: its weights or its key are not there.
    """
    captioner_id(captioner)  # refuses unknown names
    model = prompt_and_model(captioner)[1]
    make = plugins.find("captioners", model.partition(":")[0])
    if make is None:
        raise MissingError(f"captioner {captioner!r} needs the package trsllava_extras")
    return make(model, settings)


# — names —


def names_in(captioner: str) -> list[str]:
    """``"rsrt + style"`` -> ``["rsrt", "style"]``."""
    starts = "|".join((*PROMPTS, "file", *plugins.names("captioners")))
    # a plus before a captioner, and none in a path
    return re.split(rf"\s*\+\s*(?=(?:{starts})(?:[:+\s]|$))", captioner.strip())


def prompt_and_model(captioner: str) -> tuple[str, str]:
    """``"style:openai:MODEL"`` -> ``("style", "openai:MODEL")``; the prompt is "rsrt" where none is
    named."""
    prompt, _, model = captioner.partition(":")
    return (prompt, model) if model and prompt in PROMPTS else ("rsrt", captioner)


def exists(captioner: str) -> bool:
    """Whether its captions exist, in a file that is only read."""
    return captioner in PROMPTS or captioner.startswith("file:")


def with_prompt(captioner: str, prompt: str) -> str:
    """The captioner's name with a prompt in front, unless it names one itself or its captions
    exist."""
    named, model = prompt_and_model(captioner)
    kind = named if captioner.startswith(f"{named}:") else prompt
    return model if kind == "rsrt" or exists(model) else f"{kind}:{model}"


def beside(captioner: str, root: Path) -> str:
    """``file:NAME`` with its full path, where it is not found from here but in the dataset's
    folder."""
    kind, _, name = captioner.partition(":")
    found = kind == "file" and not user_path(name).is_file() and (root / name).is_file()
    return f"file:{root / name}" if found else captioner


def in_style(captioner: str) -> bool:
    """Whether one of these captioners read example captions; results mark them with °."""
    return any("style" in (name, prompt_and_model(name)[0]) for name in names_in(captioner))


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
    kinds = {**dict.fromkeys(PROMPTS, ""), "pixels": "", "file": ":PATH.jsonl"}
    kinds = {name: ":MODEL" for name in plugins.names("captioners")} | kinds
    kind, _, rest = model.partition(":")
    valid = [name + form for name, form in kinds.items()]
    if model in kinds and not kinds[model]:
        return model + suffix
    if not kinds.get(kind) or (kind != "file" and " + " in rest):
        check_choice("captioner", captioner, valid)
    if not rest or model in valid:
        form = f"{kind}{kinds[kind]}"
        raise InputError(f"captioner {captioner!r}: name the model or the file, as {form}")
    path = user_path(rest)
    if kind == "file" or path.is_dir():  # two files may share a name
        rest = f"{path.stem}-{fingerprint(str(path))[:6]}"
    return f"{kind}-{slug(rest)}{suffix}"
