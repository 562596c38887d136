"""Parameters as they are typed in a shell, and back again."""

from __future__ import annotations

import ast
import json
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Mapping
from functools import partial
from typing import Any, get_origin, get_type_hints

from trsllava_utils.files import PROJECT_ROOT, check_choice
from trsllava_utils.parameters import MODEL, Arguments, checked

Parameters = dict[str, Any]
_TYPES = get_type_hints(Arguments)


def from_shell(name: str, text: str) -> Any:
    """A parameter as it is typed: ``10``, ``max``, ``[max, mean]``.

    Raises:
        InputError: the text is not what this parameter takes.
    """
    if name not in _TYPES:
        return text
    if get_origin(_TYPES[name]) is not list:
        return checked({name: text}, MODEL.validate_strings)[name]
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    parts = re.split(r",(?![^(]*\))", inside)  # not the commas of texts(plain,joined)
    parts = [part.strip().strip("'\"") for part in parts if part.strip()]
    return checked({name: parts}, partial(MODEL.validate_python, strict=False))[name]


def to_shell(command: str, dataset: str, parameters: Parameters) -> str:
    """The command line with every parameter that is set."""
    words = ["python -m trsllava_utils", command, shlex.quote(dataset)]
    for name, value in parameters.items():
        if value not in ("", [], None):
            text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
            words += ["-p", name, shlex.quote(text)]
    return " ".join(words)


def defaults(notebook: str) -> Parameters:
    """The parameters of a notebook, from its cell for papermill, which takes seconds to import."""
    path = PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    lines = ast.parse("".join(cell["source"])).body
    return {line.target.id: ast.literal_eval(line.value) for line in lines}


def next_notebook(here: str, there: str, given: Mapping[str, Any]) -> str:
    """The papermill command of the notebook ``there``, with the parameters that it shares with
    ``here`` as they are ``given``, where they are not its defaults."""
    mine, words = defaults(here), ["papermill", f"{there}.ipynb", "out.ipynb"]
    for name, default in defaults(there).items():
        if name in mine and given[name] != default:
            words += ["-p", name, shlex.quote(str(given[name]))]
    return " ".join(words)


def parser(command: str, about: str) -> ArgumentParser:
    """A parser of one command, which takes parameters as ``-p NAME VALUE``."""
    made = ArgumentParser(prog=f"python -m trsllava_utils {command}", description=about)
    parameter = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    made.add_argument("-p", dest="parameters", help="a notebook parameter", **parameter)
    return made


def parse(made: ArgumentParser, words: list[str], known: set[str] | None = None) -> tuple:
    """The arguments, and the parameters by name, all of them ``known``."""
    # argparse takes "-122.5,37.2,…" for an option, but not with a blank before it; and it finds a
    # query that stands behind the options only if they may be mixed
    words = [f" {w}" if re.match(r"-\d[\d.]*[-,]", w) else w for w in words]
    args = made.parse_intermixed_args(words)
    given = {name: from_shell(name, value) for name, value in args.parameters}
    for name in given if known is not None else ():
        check_choice("parameter", name, sorted(known))
    return args, given
