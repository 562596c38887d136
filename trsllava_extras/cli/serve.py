"""The search panel in a browser, without notebooks: three cells that nobody sees, a notebook in a
folder of its own, behind Voilà (pip install "trsllava-utils[serve]")."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import nbformat

from trsllava_extras.cli.shell import Parameters
from trsllava_extras.panel.index import index_of
from trsllava_utils.files import InputError, MissingError


def serve(dataset: str, given: Parameters, query: str, port: int, browser: bool = True) -> None:
    """Serve the panel on 127.0.0.1 until Ctrl-C, to whoever has the token in the address printed.

    Raises:
        MissingError: Voilà is not installed, or there is nothing to search; see ``index_of``.
        InputError: see ``index_of``.
    """
    if find_spec("voila") is None:
        raise MissingError('serve needs Voilà: pip install "trsllava-utils[serve]"')
    index_of(dataset, **given)  # what is wrong is said here, and what takes time is done
    cells = [
        f"import os; os.chdir({os.getcwd()!r})\nfrom trsllava_extras.panel import index, panel",
        f"found = index.index_of({dataset!r}, **{given!r})",
        f"panel.search_panel(found.sources, {query!r}, found.method.name)",
    ]
    with tempfile.TemporaryDirectory(prefix="trsllava") as folder:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        nbformat.write(notebook, Path(folder) / "search.ipynb")
        options = {"ip": "127.0.0.1", "port": port, "auto_token": True, "root_dir": folder}
        options |= {"open_browser": browser}
        words = [f"--Voila.{name}={value}" for name, value in options.items()]
        words.append("--VoilaConfiguration.file_allowlist=[]")  # no file is served
        command = [sys.executable, "-m", "voila", f"{folder}/search.ipynb", *words]
        with suppress(KeyboardInterrupt):
            if code := subprocess.run(command, check=False).returncode:
                raise InputError(f"Voilà ended with the code {code}; its last lines say why")
