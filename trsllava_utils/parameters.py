"""Parameters: one model of all that notebooks, ``run`` and Python functions are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from reprlib import Repr
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from trsllava_utils.files import InputError, check_choice

MINILM = "all-MiniLM-L6-v2"
PROMPTS = ("rsrt", "style", "query", "description")
MAX_VARIANTS = 10  # of an image, by one captioner
TILE = 1024  # pixels
TILING = ("tile", "overlap")  # the parameters that windows depend on


def _one_of(what: str, valid: tuple[str, ...]):
    return Annotated[str, AfterValidator(lambda value: check_choice(what, value, valid))]


_text = partial(StringConstraints, max_length=4096, pattern=r"^[^\x00]*$")
Text = Annotated[str, _text()]
Filled = Annotated[str, _text(pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")]  # with something in it
Count = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Price = Annotated[float, Field(ge=0)]
Numbers = Annotated[list[Positive], Field(min_length=1)]


@with_config(ConfigDict(strict=True, allow_inf_nan=False))
class Parameters(TypedDict, total=False):
    """Every notebook parameter, its type and its limits; what it means stands in the notebooks."""

    dataset: Filled
    data_dir: Text
    figures_dir: Text
    split: Filled
    limit: Count
    shard: Text
    bands: Text
    stretch: Text
    false_colour: Text
    tile: Count
    overlap: Count
    remote: bool
    max_side: Annotated[int, Field(ge=32, le=100_000)]
    gsd: Text | Annotated[float, Field(gt=0)]
    captioner: Text
    query_captioner: Text
    protocol: _one_of("protocol", ("", "paper"))
    ask_with: list[Filled]
    compare_with: list[Filled]
    prompt: _one_of("prompt", PROMPTS)
    prompt_file: Text
    style_file: Text
    variants: Annotated[int, Field(ge=1, le=MAX_VARIANTS)]
    variant_counts: Numbers
    language: Text
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    temperature: Annotated[float, Field(ge=0, le=2)]
    attempts: Annotated[int, Field(ge=1, le=100)]
    concurrency: Annotated[int, Field(ge=1, le=1024)]
    max_requests: Count
    timeout: Annotated[float, Field(gt=0)]
    price_in: Price
    price_out: Price
    batch_size: Annotated[int, Field(ge=0, le=4096)]
    quantize: _one_of("quantize", ("", "8bit", "4bit"))
    scheduler: Text
    texts: Text
    encoder: Text
    encoders: list[Filled]
    precision: _one_of("precision", ("float32", "bfloat16", "auto"))
    query: Filled
    method: Filled
    methods: list[Filled]
    clip: Text
    top_k: Positive


class Arguments(Parameters, total=False):
    """Those of Python functions and the command line alone."""

    url: Filled
    dtype: _one_of("dtype", ("float32", "float16"))
    k: Positive
    page: Positive
    label: Text
    where: Text
    bbox: Text
    picture: Text
    right: list[Filled]
    wrong: list[Filled]
    selected: list[Filled]


MODEL = TypeAdapter(Arguments)


def check(variables: Mapping[str, object] | None = None, /, **given: object) -> None:
    """Stop at the first value that is not what its parameter takes.

    Args:
        variables: a notebook's, ``check(globals())``; those that are no parameters are passed over.
        given: parameters by name.

    Raises:
        InputError: which parameter, its value, and what it should be.
    """
    variables = variables or {}
    _refuse_unknown(variables.get("In", []))
    known = {n: v for n, v in variables.items() if n in Parameters.__annotations__}
    checked({**known, **given}, MODEL.validate_python)


def _refuse_unknown(cells: Sequence[str]) -> None:
    """papermill sets parameters in a cell of its own, after that of their defaults; a name that
    appears there for the first time is a slip."""
    known: set[str] = set()
    for cell in cells:
        names = re.findall(r"^(\w+)(?:: [\w\[\], ]+)? = ", cell, re.MULTILINE)
        if cell.startswith("# Parameters\n"):
            for name in names:
                check_choice("parameter", name, sorted(known & Parameters.__annotations__.keys()))
        known |= set(names)


def checked(given: dict[str, object], validate: Callable) -> dict[str, Any]:
    """The values as ``validate`` of the model gives them; errors as for :func:`check`."""
    try:
        return validate(given)
    except ValidationError as error:
        first = error.errors()[-1]  # of a text or a number, what is wrong with the number
    if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
        raise cause
    name, kind = first["loc"][0], first["type"]
    reason = re.sub("^(Input|String|List|Value) should", "should", first["msg"])
    if kind == "string_pattern_mismatch":
        reason = "should not be empty, nor hold null characters"
    hint = f"; in papermill, write -r {name} {given[name]}" if kind == "string_type" else ""
    hint = f'; write ["{given[name]}"]' if kind == "list_type" else hint
    raise InputError(f"{name}={_SHORT.repr(given[name])} {reason}{hint}")


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60
