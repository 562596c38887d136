"""Names of scoring rules: a method as text goes in, its checked steps and settings come out.

A method is written as the steps it takes, in their order, joined by ``+``; settings stand in
brackets: ``max``, ``texts(plain)+centroid``, ``centred+hybrid+querybank(k=10)``. What each step
computes is in ``formulas.py``, how steps follow each other in ``scoring.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trsllava_utils.artefacts import InputError, check_choice
from trsllava_utils.captioning.records import text_forms


@dataclass(frozen=True)
class Step:
    """One step of a method."""

    place: int  # where it stands in the order; of each place a method has at most one step
    settings: dict[str, float]  # their defaults
    bank: bool = False  # whether it needs training captions
    clip: bool = False  # whether it needs CLIP's weights
    transductive: tuple[str, ...] = ()  # directions in which it looks at the other test queries


# 0 which texts of an image are compared, 1 vectors, 2 how an image's texts are taken together,
# 3 where scores come from (cosine unless another is named), 4 late fusion, 5 hubs
STEPS = {
    "texts": Step(0, {}),
    "centred": Step(1, {}, bank=True, transductive=("i2t",)),
    "max": Step(2, {}),
    "mean": Step(2, {}),
    "centroid": Step(2, {}),
    "lexical": Step(3, {"k1": 1.2, "b": 0.75}),
    "hybrid": Step(3, {"weight": 0.5, "k": 60.0}),
    "clip": Step(3, {}, clip=True),
    "reference": Step(3, {}),
    "fusion": Step(4, {"weight": 0.5}, clip=True),
    "querybank": Step(5, {"temperature": 0.05, "k": 10.0}, bank=True),
    "csls": Step(5, {"k": 10.0}, transductive=("t2i", "i2t")),
    "dual_softmax": Step(5, {"temperature": 0.05}, transductive=("t2i", "i2t")),
}
# refused combinations: the first step does not use the others
_IDLE = {
    "reference": set(STEPS) - {"reference"},
    "lexical": {"centred"},
    "clip": {"texts", "centred", "max", "mean", "centroid", "fusion"},
}
# Settings tried on the validation split (see experiments.py), the default first.
GRIDS = {
    "texts": (
        *("(joined)", "(plain)", "(one_sentence)", "(caption)", "(one_sentence+caption)"),
        *("(fields)", "(one_sentence,caption,joined)"),
    ),
    "hybrid": ("", *(f"(weight={w})" for w in (0.1, 0.2, 0.3, 0.5, 0.7))),
    "fusion": tuple(f"(weight={w})" for w in (0.5, 0.3, 0.7, 0.9)),
    "querybank": (
        *(f"(temperature={t})" for t in (0.05, 0.01, 0.02, 0.1, 0.2)),
        *(f"(k={k})" for k in (5, 10, 50)),
    ),
    "csls": tuple(f"(k={k})" for k in (10, 5, 20, 50)),
    "dual_softmax": tuple(f"(temperature={t})" for t in (0.05, 0.01, 0.02, 0.1, 0.2)),
}


class Method:
    """A parsed method.

    Attributes:
        name: its text without blanks.
        steps: the name of each step -> all its settings.
        written: the name of each step -> its text, settings included.
        texts: the forms of an image's texts that it compares (see ``records.py``); "" where it
            leaves that to its sources.

    Raises:
        InputError: an unknown step or setting, a wrong order, or steps that cancel each other.
    """

    def __init__(self, text: str) -> None:
        self.name = re.sub(r"\s+", "", text)
        self.name = {"human": "reference"}.get(self.name, self.name)  # its earlier name
        self.steps: dict[str, dict[str, float]] = {}
        self.written: dict[str, str] = {}
        self.texts = ""
        self._given: dict[str, set[str]] = {}
        for part in re.split(r"\+(?![^(]*\))", self.name):
            match = re.fullmatch(r"(\w*)(?:\((.*)\))?", part)
            if not match:
                raise InputError(f"method {text!r}: {part!r} is not NAME or NAME(setting=number)")
            step, settings = match.groups()
            check_choice("step of a method" if "+" in self.name else "method", step, STEPS)
            after = next((s for s in self.steps if STEPS[s].place >= STEPS[step].place), "")
            if after:
                raise InputError(
                    f"method {text!r}: {step} cannot follow {after}; the order is texts, centred, "
                    "max | mean | centroid, lexical | hybrid | clip, fusion, "
                    "querybank | csls | dual_softmax, at most one of each"
                )
            if step == "texts":  # its setting is a list of forms
                self.texts = ",".join(text_forms(settings)) if settings else ""
                self.steps[step], self.written[step] = {}, part
                self._given[step] = {"forms"} if settings else set()
                continue
            given = dict(_setting(text, step, s) for s in (settings or "").split(",") if s)
            self.steps[step] = {**STEPS[step].settings, **given}
            self.written[step], self._given[step] = part, set(given)
        for step, without in _IDLE.items():
            useless = sorted(self.steps.keys() & without) if step in self.steps else []
            if useless:
                raise InputError(
                    f"method {text!r}: {useless[0]} has no effect together with {step}"
                )

    def given(self, step: str, setting: str) -> bool:
        """Whether the setting was written out."""
        return setting in self._given.get(step, ())

    @property
    def needs_bank(self) -> bool:
        """Whether it needs training captions."""
        return any(STEPS[step].bank for step in self.steps)

    @property
    def needs_clip(self) -> bool:
        """Whether it needs CLIP's vectors."""
        return any(STEPS[step].clip for step in self.steps)

    def transductive(self, direction: str) -> bool:
        """Whether ranking a query looks at the other test queries."""
        return any(direction in STEPS[step].transductive for step in self.steps)

    @property
    def ranks_one_query(self) -> bool:
        """Whether a query of one's own can be ranked: neither other queries nor reference
        captions are needed."""
        return not self.transductive("t2i") and "reference" not in self.steps

    @property
    def label(self) -> str:
        """The name in tables, marked where the method looks at the other test queries: † in both
        directions, ‡ in image-to-text only."""
        if self.name == "reference":
            return "reference captions"
        return self.name + ("†" if self.transductive("t2i") else "‡" * self.transductive("i2t"))

    def candidates(self, step: str) -> list[Method]:
        """The method with every setting of the grid of ``step``; nothing if the step's settings
        are written out or it has no grid."""
        if self._given[step]:
            return []
        return [
            Method("+".join({**self.written, step: step + settings}.values()))
            for settings in GRIDS.get(step, ())
        ]


def _setting(text: str, step: str, setting: str) -> tuple[str, float]:
    name, _, value = setting.partition("=")
    check_choice(f"setting of {step}", name, STEPS[step].settings or ["(none)"])
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    whole = name == "k" and step != "hybrid"
    positive = whole or name in ("temperature", "k")
    if not 0 <= number < float("inf") or (positive and number == 0) or (whole and number % 1):
        kind = (
            "a whole number from 1" if whole else "a positive number" if positive else "0 or more"
        )
        raise InputError(f"method {text!r}: {name} must be {kind}, not {value!r}")
    if name in ("weight", "b") and number > 1:
        raise InputError(f"method {text!r}: {name} must lie between 0 and 1, not {value}")
    return name, number
