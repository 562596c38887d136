"""The notebooks as a student uses them: run from the top, then every folded solution."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from trsllava_utils.files import PROJECT_ROOT

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("0*.ipynb"))


def solutions(notebook: nbformat.NotebookNode) -> list[str]:
    """The Python of the folded part of the exercises, one text a solution."""
    exercises = [c.source for c in notebook.cells if "## Try it yourself" in c.source]
    folded = [source.partition("<details>")[2] for source in exercises if "<details>" in source]
    assert len(folded) == 1, "one cell of exercises, with its solutions folded"
    return re.findall(r"```python\n(.*?)```", folded[0], re.DOTALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_solutions_run(path: Path, capsys, monkeypatch, static_encoder, tmp_path):
    """With a small encoder; nbval runs the notebooks with the real one."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # bars go to stderr
    # IPython puts a module of its own there, without what multiprocessing looks for
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    notebook = nbformat.read(path, as_version=4)
    exercises = next(c.source for c in notebook.cells if "## Try it yourself" in c.source)
    asked = re.findall(r"^\d\. ", exercises.partition("<details>")[0], re.MULTILINE)
    answers = solutions(notebook)
    assert 2 <= len(asked) == len(answers)
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    given = {"encoder": static_encoder, "data_dir": str(tmp_path), "figures_dir": str(tmp_path)}
    if path.stem.startswith("01"):  # it has no encoder of its own: what is on disk will do
        del given["data_dir"]
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        shell.run_cell(cell.source).raise_error()
        if "parameters" in cell.metadata.get("tags", ()):
            shell.push({name: value for name, value in given.items() if name in shell.user_ns})
    for source in answers:
        shell.run_cell(source).raise_error()
    assert capsys.readouterr().err == ""
