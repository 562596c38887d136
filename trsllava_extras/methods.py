"""Scoring rules made of steps: a method as text goes in, a rule with checked settings comes out.

A method is written as the steps it takes, in their order, joined by ``+``; settings stand in
brackets: ``max``, ``texts(plain)+centroid``, ``centred+hybrid+querybank(k=10)``. What each step
computes is in ``rules.py`` and ``clip.py``, or in another package (``trsllava.steps``);
:class:`Scorer` puts the steps one behind the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pandas as pd

from trsllava_utils import plugins
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, MissingError, check_choice
from trsllava_utils.parameters import check
from trsllava_utils.ranking import NamedSide, Sides, described, of_images, sides
from trsllava_utils.records import text_forms
from trsllava_utils.scoring import Score, Side, best_cosine, blocks, one_each
from trsllava_utils.sources import Sources
from trsllava_utils.vectors import Embeddings


@dataclass(frozen=True)
class Step:
    """One step of a method. The functions are those of plug-ins, see :class:`Scorer`.

    Attributes:
        place: where it stands in the order; of each place a method has at most one step. 0 which
            texts of an image are compared, 1 vectors, 2 how an image's texts are taken together, 3
            where scores come from (cosine unless another is named), 4 late fusion, 5 hubs.
        settings: their defaults.
        bank: whether it needs training captions.
        transductive: directions in which it looks at the other test queries.
        grid: settings tried on the validation split, the default first.
        without: steps that have no effect beside it; a method with both is refused.
        prepare: side -> side, with other vectors.
        together: side -> side, with one text of each group.
        index: (items, method) -> what ``compare`` needs and does not depend on the queries.
        compare: (score so far, queries, items, method, index) -> score.
        penalty: (blocks of scores, method, number of queries) -> ``(n_items,)``, subtracted from
            all scores; these queries are the bank, or the test queries where ``bank`` is False.
        vectors: (sources, what, query) -> unit vectors in a space of its own (``Side.second``): of
            "images", "reference", "bank" as Embeddings; of a "query" or "picture" ``(1, dim)``.
        captions_ask: whether reference captions stand on both sides.
    """

    place: int
    settings: dict[str, float] = field(default_factory=dict)
    bank: bool = False
    transductive: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    prepare: Callable | None = None
    together: Callable | None = None
    index: Callable | None = None
    compare: Callable | None = None
    penalty: Callable | None = None
    vectors: Callable | None = None
    captions_ask: bool = False


_FORMS = "joined plain one_sentence caption one_sentence+caption fields one_sentence,caption,joined"


@cache
def steps() -> dict[str, Step]:
    """All steps by name, in their order."""
    core = {"texts": Step(0, grid=tuple(f"({form})" for form in _FORMS.split()))}
    core["max"] = Step(2)
    return dict(sorted((core | plugins.load_all("steps")).items(), key=lambda item: item[1].place))


class Method:
    """A parsed method, a :class:`~trsllava_utils.ranking.Rule`.

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
        check(method=text)
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
            if useless := sorted(self.steps.keys() & set(steps()[step].without)):
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

    def is_given(self, step: str, setting: str = "") -> bool:
        """Whether the setting, or any, was written out."""
        given = self._given.get(step, set())
        return setting in given if setting else bool(given)

    @property
    def parts(self) -> dict[str, Step]:
        """Its steps by name."""
        return {name: steps()[name] for name in self.steps}

    @property
    def needs_bank(self) -> bool:
        """Whether it needs training captions."""
        return any(step.bank for step in self.parts.values())

    @property
    def plugged(self) -> dict[str, Step]:
        """Its steps with vectors of their own."""
        return {name: step for name, step in self.parts.items() if step.vectors}

    @property
    def captions_ask(self) -> bool:
        """Whether reference captions stand on both sides."""
        return any(step.captions_ask for step in self.parts.values())

    def transductive(self, direction: str) -> bool:
        """Whether ranking a query looks at the other test queries."""
        return any(direction in step.transductive for step in self.parts.values())

    @property
    def ranks_one_query(self) -> bool:
        """Whether a query of one's own can be ranked: neither other queries nor reference
        captions are needed."""
        return not self.transductive("t2i") and not self.captions_ask

    @property
    def label(self) -> str:
        """The name in tables, marked where the method looks at the other test queries: † in both
        directions, ‡ in image-to-text only."""
        if self.name == "reference":
            return "reference captions"
        return self.name + ("†" if self.transductive("t2i") else "‡" * self.transductive("i2t"))

    def inputs(self, sources: Sources) -> list[Embeddings]:
        """All that it draws on; what is missing is embedded."""
        made = [sources.embed_reference(), sources.embed_captions(self.texts)]
        made.append(sources.embed_image_queries(self.texts))
        made += [embed_bank(sources)] if self.needs_bank else []
        for step in self.plugged.values():
            also = ["bank"] if self.needs_bank else []
            made += [step.vectors(sources, what) for what in ("images", "reference", *also)]
        return made

    def sides(self, sources: Sources, images: list[str]) -> Sides:
        """The two sides of both directions for these images, with the vectors of plug-ins, means
        and the bank, where its steps need them."""
        both, bank, image_bank, mean = sides(sources, images, self.texts), None, None, None
        if self.captions_ask:
            itself = described(sources.embed_reference(), images)
            return Sides(itself, both.references, both.references)
        second = dict.fromkeys(("images", "reference", "bank"))
        for name, step in self.plugged.items():
            embedded = step.vectors(sources, "images")
            if blind := set(images) - set(embedded.rows["image_id"]):
                raise MissingError(
                    f"{len(blind):,} of {len(images):,} images of the gallery have no "
                    f"pixels for {name} to look at"
                )
            second["images"] = of_images(embedded, images)[1]
            asked_about = sources.asked_about(images)
            second["reference"] = of_images(step.vectors(sources, "reference"), asked_about)[1]
            second["bank"] = step.vectors(sources, "bank").vectors if self.needs_bank else None
        if self.needs_bank:
            made = embed_bank(sources)
            once = ~made.rows["text"].duplicated().to_numpy()  # over all images
            texts, mean = made.rows["text"].to_numpy()[once], made.vectors[once].mean(axis=0)
            own = None if second["bank"] is None else second["bank"][once]
            bank = one_each(texts, made.vectors[once], own, mean)
            if not self.plugged:  # whose vectors are of pixels, which training images need not have
                everyone = list(dict.fromkeys(made.rows["image_id"]))
                image_bank = replace(described(made, everyone).side, mean=mean)

        def more(named: NamedSide) -> NamedSide:
            own = named.side.vectors.mean(axis=0) if self.needs_bank else None
            return replace(named, side=replace(named.side, second=second["images"], mean=own))

        own = replace(both.references.side, second=second["reference"], mean=mean)
        items = more(both.images)
        asking = items if both.image_queries is both.images else more(both.image_queries)
        return Sides(items, replace(both.references, side=own), asking, bank, image_bank)

    def scorer(self, items: Side, bank: Side | None = None) -> Scorer:
        """See :class:`Scorer`."""
        return Scorer(self, items, bank)


def _setting(text: str, step: str, setting: str) -> tuple[str, float]:
    name, _, value = setting.partition("=")
    check_choice(f"setting of {step}", name, steps()[step].settings or ["(none)"])
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    whole = name == "k" and step != "hybrid" and not (step == "querybank" and 0 < number < 1)
    positive = whole or name in ("temperature", "k")
    if not 0 <= number < float("inf") or (positive and number == 0) or (whole and number % 1):
        kind = (
            "a whole number from 1" if whole else "a positive number" if positive else "0 or more"
        )
        raise InputError(f"method {text!r}: {name} must be {kind}, not {value!r}")
    if name in ("weight", "b") and number > 1:
        raise InputError(f"method {text!r}: {name} must lie between 0 and 1, not {value}")
    return name, number


class Scorer:
    """A method over a set of items; what does not depend on the queries is computed once, here.

    ``scorer(queries)`` gives their scoring function: a slice -> ``(n_in_slice, n_items) float32``.
    The order: vectors are prepared, the texts of an image taken together (by ``mean`` and
    ``centroid``; by ``max`` they stay apart), both sides compared, and hubs, items near to very
    many queries, pay a penalty.

    Args:
        method: the scoring rule.
        items: what is ranked.
        bank: training captions, by which some steps measure hubs; None leaves these without
            effect.
    """

    def __init__(self, method: Method, items: Side, bank: Side | None = None) -> None:
        self.method = method
        self.texts = self.prepare(items)  # the items before their texts are taken together
        self.items = self._together(self.texts)
        self._states = {
            name: step.index(self.items, method)
            for name, step in method.parts.items()
            if step.index
        }
        banked = [s for s in method.parts.values() if s.penalty and s.bank and bank is not None]
        self._penalty = self._charge(banked, self._together(self.prepare(bank))) if banked else None

    def __call__(self, queries: Side) -> Score:
        queries = self._together(self.prepare(queries))
        score, penalty = self._compare(queries), self._penalty
        if asked := [s for s in self.method.parts.values() if s.penalty and not s.bank]:
            penalty = self._charge(asked, queries)
        if penalty is None:
            return score
        return lambda block: score(block) - penalty

    def prepare(self, side: Side) -> Side:
        """The steps that move vectors."""
        for step in self.method.parts.values():
            side = step.prepare(side) if step.prepare else side
        return side

    def _together(self, side: Side) -> Side:
        """The steps that make one text of the texts of an image."""
        for step in self.method.parts.values():
            side = step.together(side) if step.together else side
        return side

    def _compare(self, queries: Side) -> Score:
        """The cosine, and what further steps make of it."""
        score = best_cosine(queries, self.items)
        for name, step in self.method.parts.items():
            if step.compare:
                state = self._states.get(name)
                score = step.compare(score, queries, self.items, self.method, state)
        return score

    def _charge(self, hubs: list[Step], asking: Side) -> np.ndarray:
        """The penalty of each item for being near to very many queries: ``(n_items,) float32``."""
        scores = map(self._compare(asking), blocks(asking.n, self.items.n))
        return hubs[0].penalty(scores, self.method, asking.n).astype(np.float32)


# — training captions —


def embed_bank(sources: Sources) -> Embeddings:
    """The bank: reference captions of the *training* split, as queries.

    Raises:
        MissingError: there are none apart from the queries.
    """
    return sources.embed(training_captions, sources.dataset, role="query")


def training_captions(dataset: Dataset) -> pd.DataFrame:
    """Captions of the training split, distinct for each image.

    Raises:
        MissingError: there are none apart from the queries.
    """
    try:
        captions = dataset.on("train").captions.drop_duplicates(["image_id", "text"])
    except InputError:
        captions = dataset.captions[:0]
    if captions.empty or dataset.split in ("train", "all"):
        raise MissingError(
            f"needs a bank of training captions, and {dataset.title} ({dataset.split}) has none "
            "apart from its queries"
        )
    return captions
