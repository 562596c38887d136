"""The house: imports run one way, nothing is a circle, and every file can be read in one sitting."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from trsllava_utils.files import PROJECT_ROOT

PACKAGE = PROJECT_ROOT / "trsllava_utils"
FILES = sorted(PACKAGE.rglob("*.py"))
LEVELS = [
    {"artefacts"},
    {"storage", "parameters"},
    {"cluster", "openai_api"},
    {"datasets"},
    {"captioning", "embedding"},
    {"retrieval"},
    {"evaluation"},
    {"figures"},
    {"pages"},
    {"search"},
    {"report"},
    {"chain"},
    {"__main__"},
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports anywhere, inside functions too."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= {b if b in MODULES else node.module for b in below}
    return {name for name in targets if name.split(".")[0] == "trsllava_utils"} - {"trsllava_utils"}


def level(module: str) -> int:
    room = module.split(".")[1]
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def test_imports_run_downwards():
    for name, path in MODULES.items():
        if name == "trsllava_utils":
            continue
        for target in imports(path):
            same = name.split(".")[1] == target.split(".")[1]
            assert same or level(target) < level(name), f"{name} imports {target}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imports(path) for name, path in MODULES.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 400
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert lines <= 26, "a face is a list of what a notebook calls"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short_and_take_few_arguments_by_position(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            names = [arg.arg for arg in node.args.args if arg.arg not in ("self", "cls")]
            assert len(names) <= 5, node.name
            docstring = ast.get_docstring(node, clean=False) or ""
            assert node.end_lineno - node.lineno - docstring.count("\n") <= 50, node.name


def test_the_whole_stays_small():
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in FILES) < 12000
