"""What a captioner is: pictures and a seed go in, a reply comes out, which ought to be RSRT JSON.

``prompts.parse_reply`` and ``quality.py`` decide whether a reply can be used, in the same way for
every captioner.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from trsllava_utils.artefacts import InputError
from trsllava_utils.parameters import MAX_VARIANTS, check

SINGLE = ("query", "description")  # those that ask for one description, and no list
Pictures = dict[str, np.ndarray]  # name of a rendering -> (H, W, 3) uint8


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
            examples: those, see ``prompts.with_examples``.
        variants: captions per image, 1 to 5.
        language: two-letter code of the language asked for; the quality gate checks it.
        seed: of the sampling; every image and every retry has its own, derived from it.
        temperature: of the sampling; 0 takes the likeliest word. Retries use at least 0.5.
        max_side: pictures are scaled down until no side is longer, in pixels. How multi-band files
            are shown is the dataset's ``rendering``.
        gsd: ground sample distance that the model is told, in metres a pixel; "file": what each
            file says, where it does; empty: none.
        quantize: "4bit" or "8bit" weights by bitsandbytes, for ``transformers:`` captioners.
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
    variants: int = MAX_VARIANTS
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

    pictures: Pictures
    seed: int
    temperature: float
    facts: str = ""  # sentences on this image that go with the prompt


@dataclass(frozen=True)
class Reply:
    """What a model answered."""

    text: str
    model: str  # its name
    problem: str = ""  # why the text cannot be used: "reason" or "reason: detail"


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
            ServerError, RefusedError: none of these images got an answer; others may.
            BudgetSpentError: no more may be asked.
            InputError, MissingError: it is useless to go on (wrong key, no weights, …).
        """
