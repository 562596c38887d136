"""What the documents say: examples run, links lead somewhere, and the captioner of ten lines that
docs/extending.md shows is found in a package that is not ours."""

from __future__ import annotations

import doctest
import re
import tempfile
from pathlib import Path

import nbformat
import pytest

import trsllava_utils
from tests.conftest import scenes
from trsllava_utils import caption_dataset, plugins
from trsllava_utils.captioner import Settings
from trsllava_utils.files import PROJECT_ROOT

README = PROJECT_ROOT / "README.md"
PAGES = [README, *sorted(PROJECT_ROOT.glob("*/README.md")), *sorted(PROJECT_ROOT.glob("docs/*.md"))]
NOTEBOOKS = sorted(PROJECT_ROOT.glob("notebooks/*.ipynb"))
PUBLIC = [n for n in trsllava_utils.__all__ if n != "Sources"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_has_an_example_that_runs(name, monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    function = getattr(trsllava_utils, name)
    around = {n: getattr(trsllava_utils, n) for n in trsllava_utils.__all__}
    around |= {"tempfile": tempfile, "Path": Path}
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=around)
    assert len(example.examples) in (1, 2)
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert results.attempted and not results.failed


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """The package of docs/extending.md as pip would leave it."""
    text = (PROJECT_ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code, metadata = re.search(r"```python\n(.*?)```.*?```toml\n(.*?)```", text, re.S).groups()
    assert len(code.strip().splitlines()) <= 16
    entry = metadata.replace(
        '[project.entry-points."trsllava.captioners"]', "[trsllava.captioners]"
    )
    installed = tmp_path / "site" / "my_captioner-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-captioner\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(entry.replace('"', ""))
    (tmp_path / "site" / "my_captioner.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "site")
    kept = (plugins._points, plugins.find)
    for cache in kept:
        cache.cache_clear()
    yield
    for cache in kept:
        cache.cache_clear()


def test_a_captioner_of_another_package(other_package, tmp_path):
    examples = tmp_path / "style.txt"
    examples.write_text("a bright scene\na dark scene\n")
    settings = Settings(prompt="style", style_file=str(examples), variants=1)
    dataset = scenes(tmp_path / "in", 3)
    captions = caption_dataset(dataset, "grey:any", settings)
    texts = [record.variants[0].text() for record in captions.records.values()]
    assert len(texts) == 3 and all("medium brightness" in text for text in texts)
    assert caption_dataset(dataset, "grey:any", settings).report.already == 3


def anchors(path: Path) -> set[str]:
    """The headings of a page, as GitHub links them, or JupyterLab those of a notebook."""
    titles = re.findall(r"^#+ (.*)$", markdown(path), re.M)
    if path.suffix == ".ipynb":
        return {title.replace(" ", "-") for title in titles}
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_links_inside_the_project_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown(path)):
        if not re.match(r"https?:|mailto:", target):
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{path.name}: {target}"


def test_the_readme_is_short_and_names_no_repository_that_is_not_there():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= 1800
    for path in [README, *NOTEBOOKS, PROJECT_ROOT / "pyproject.toml"]:
        assert not re.search(r"github\.com/[^)\s]*trsllava|colab\.research|mybinder", markdown(path)
                             if path.suffix != ".toml" else path.read_text(), re.I)  # fmt: skip
