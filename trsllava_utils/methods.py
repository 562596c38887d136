"""Names of scoring rules: a method as text goes in, its checked steps and settings come out.

A method is written as the steps it takes, in their order, joined by ``+``; settings stand in
brackets: ``max``, ``texts(plain)+centroid``, ``centred+hybrid+querybank(k=10)``. What each step
computes is in ``formulas.py``, how steps follow each other in ``scoring.py``. More steps come as
plug-ins (``trsllava.steps``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from trsllava_utils import plugins
from trsllava_utils.files import InputError, check_choice
from trsllava_utils.records import text_forms


@dataclass(frozen=True)
class Step:
    """One step of a method.

    Attributes:
        place: where it stands in the order; of each place a method has at most one step. 0 which
            texts of an image are compared, 1 vectors, 2 how an image's texts are taken together, 3
            where scores come from (cosine unless another is named), 4 late fusion, 5 hubs.
        settings: their defaults.
        bank: whether it needs training captions.
        transductive: directions in which it looks at the other test queries.
        grid: settings tried on the validation split (see ``tune``), the default first.
        without: steps that have no effect beside it; a method with both is refused.
        vectors: of a plug-in: ``vectors(sources, what)`` gives unit vectors in a space of its own,
            what = "images", "reference", "bank" (Embeddings) or a query.
        compare: of a plug-in: ``compare(score, queries, items, settings)`` gives a score made of
            these vectors (``Side.second``) and of the score so far.
    """

    place: int
    settings: dict[str, float] = field(default_factory=dict)
    bank: bool = False
    transductive: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    vectors: Callable | None = None
    compare: Callable | None = None


def _each(name: str, *values: float) -> tuple[str, ...]:
    return tuple(f"({name}={value})" for value in values)


_FORMS = ("joined", "plain", "one_sentence", "caption", "one_sentence+caption", "fields")
_TEMPERATURES = (0.05, 0.01, 0.02, 0.1, 0.2)
_BOTH = ("t2i", "i2t")


@cache
def steps() -> dict[str, Step]:
    """All steps by name."""
    texts = tuple(f"({form})" for form in (*_FORMS, "one_sentence,caption,joined"))
    bank = _each("temperature", *_TEMPERATURES) + _each("k", 5, 10, 50)
    core = {
        "texts": Step(0, grid=texts),
        "centred": Step(1, bank=True, transductive=("i2t",)),
        "max": Step(2),
        "mean": Step(2),
        "centroid": Step(2),
        "lexical": Step(3, {"k1": 1.2, "b": 0.75}, without=("centred",)),
        "hybrid": Step(
            3, {"weight": 0.5, "k": 60.0}, grid=("", *_each("weight", 0.1, 0.2, 0.3, 0.5, 0.7))
        ),
        "reference": Step(3),
        "querybank": Step(5, {"temperature": 0.05, "k": 10.0}, bank=True, grid=bank),
        "csls": Step(5, {"k": 10.0}, transductive=_BOTH, grid=_each("k", 10, 5, 20, 50)),
        "dual_softmax": Step(
            5,
            {"temperature": 0.05},
            transductive=_BOTH,
            grid=_each("temperature", *_TEMPERATURES),
        ),
    }
    return dict(sorted((core | plugins.load_all("steps")).items(), key=lambda item: item[1].place))


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
            self._add(text, *match.groups(), part)
        for step in self.steps:
            others = set(self.steps) - {step} if step == "reference" else set(steps()[step].without)
            if useless := sorted(self.steps.keys() & others):
                raise InputError(
                    f"method {text!r}: {useless[0]} has no effect together with {step}"
                )

    def _add(self, text: str, step: str, settings: str | None, part: str) -> None:
        check_choice("step of a method" if "+" in self.name else "method", step, steps())
        place = steps()[step].place
        if after := next((s for s in self.steps if steps()[s].place >= place), ""):
            places: dict[int, list[str]] = {}
            for name, one in steps().items():
                places.setdefault(one.place, []).append(name)
            order = ", ".join(" | ".join(names) for names in places.values())
            raise InputError(
                f"method {text!r}: {step} cannot follow {after}; the order is {order}, at most one "
                "of each"
            )
        self.written[step], self.steps[step], self._given[step] = part, {}, set()
        if step == "texts":  # its setting is a list of forms
            self.texts = ",".join(text_forms(settings)) if settings else ""
            self._given[step] = {"forms"} if settings else set()
            return
        given = dict(_setting(text, step, s) for s in (settings or "").split(",") if s)
        self.steps[step], self._given[step] = {**steps()[step].settings, **given}, set(given)

    def given(self, step: str, setting: str) -> bool:
        """Whether the setting was written out."""
        return setting in self._given.get(step, ())

    @property
    def needs_bank(self) -> bool:
        """Whether it needs training captions."""
        return any(steps()[step].bank for step in self.steps)

    @property
    def plugged(self) -> dict[str, Step]:
        """Its steps that come from plug-ins, with vectors of their own."""
        return {step: steps()[step] for step in self.steps if steps()[step].vectors}

    def transductive(self, direction: str) -> bool:
        """Whether ranking a query looks at the other test queries."""
        return any(direction in steps()[step].transductive for step in self.steps)

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
        grid = () if self._given[step] else steps()[step].grid
        return [Method("+".join({**self.written, step: step + s}.values())) for s in grid]


def _setting(text: str, step: str, setting: str) -> tuple[str, float]:
    name, _, value = setting.partition("=")
    check_choice(f"setting of {step}", name, steps()[step].settings or ["(none)"])
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
