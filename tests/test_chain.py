"""``run``: what it shows while notebooks work, how it stops, and what it says at the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import nbformat
import pytest

from tests.conftest import draw
from trsllava_extras.cli import run as chain
from trsllava_utils import parameters
from trsllava_utils.captions import choose_captioner, load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError

BAR = "\rcaptioning (pixels):  55%|█████▌    | 22/40 [00:01<00:00, 21.65image/s, failed=0, rejected=0]"


class Terminal:
    """Standard output that is one, or is none."""

    def __init__(self, is_one: bool) -> None:
        self.text, self.isatty = "", lambda: is_one

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("is_one", [True, False])
def test_the_bars_of_a_notebook_are_shown_on_one_line(is_one, monkeypatch):
    terminal, clock = Terminal(is_one), iter(range(0, 1000, 50))
    monkeypatch.setattr(chain.sys, "stdout", terminal)
    monkeypatch.setattr(chain.time, "monotonic", lambda: next(clock))
    monkeypatch.setenv("COLUMNS", "150")
    line = chain.StatusLine("mine  01 …")
    line.write("a warning\n")  # no bar
    for _ in range(3):
        line.write(BAR)
    line.end("24.4 s")
    shown = "mine  01 … captioning (pixels):  55% · 22/40 [00:01<00:00, 21.65image/s, failed=0"
    assert shown in terminal.text and "warning" not in terminal.text
    assert terminal.text.count("\n") == (1 if is_one else 2)  # a log gets a line a minute
    assert terminal.text.rstrip().endswith("mine  01 … 24.4 s" if is_one else " 24.4 s")


def test_executed_notebooks_keep_the_last_state_of_a_bar(tmp_path):
    text = "\rx:   0%|  | 0/3\rx:  50%|# | 2/3\rx: 100%|##| 3/3\nwords\n"
    output = nbformat.v4.new_output("stream", name="stderr", text=text)
    cell = nbformat.v4.new_code_cell("x", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    chain._without_bars(tmp_path / "a.ipynb")
    kept = nbformat.read(tmp_path / "a.ipynb", 4).cells[0].outputs[0].text
    assert kept == "x: 100%|##| 3/3\nwords\n"


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_ctrl_c_gives_one_sentence(tmp_path):
    words = ["-u", "-m", "trsllava_utils", "run", "sample", "--to", "00", "-p", "data_dir"]
    process = subprocess.Popen(
        [sys.executable, *words, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=PROJECT_ROOT,
        start_new_session=True,
        # a shell's background jobs ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    read = b""
    while b"00_dataset_loading" not in read:
        read += process.stdout.read(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130
    assert re.fullmatch(
        r"(?: …)?\s+stopped\. Captions, .* are safe on disk; .* from there\s+", said
    )


def test_own_images_without_captions_are_told_of_pixels(tmp_path, monkeypatch, capsys):
    draw(tmp_path / "mine" / "a.png")
    monkeypatch.setattr(chain, "_run_one", lambda *args: None)
    given = {"data_dir": str(tmp_path / "data")}
    chain.run_chain([str(tmp_path / "mine")], given, last="01")
    told = capsys.readouterr().out
    assert "often wrong" in told and "transformers:HuggingFaceTB/SmolVLM" in told
    chain.run_chain([str(tmp_path / "mine")], {**given, "captioner": "pixels"}, last="01")
    chain.run_chain(["sample"], {}, last="01")
    assert not capsys.readouterr().out


def test_the_timeout_reaches_the_encoder_too(monkeypatch):
    monkeypatch.setenv("OPENAI_TIMEOUT", "")
    monkeypatch.setattr(chain, "_run_one", lambda *args: None)
    chain.run_chain(["sample"], {"timeout": 7.5}, last="01")
    assert os.environ["OPENAI_TIMEOUT"] == "7.5"


@pytest.mark.parametrize("notebook", ["00_dataset_loading", "04_evaluation_visualisation"])
def test_papermill_refuses_a_parameter_that_no_notebook_has(notebook):
    cells = nbformat.read(PROJECT_ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"][:2]
    for line, told in {
        'datset = "rsicd"': "unknown parameter 'datset'.*Did you mean 'dataset'",
        "temperature = 0.5": "unknown parameter 'temperature'",
    }.items():
        with pytest.raises(InputError, match=told):
            parameters.check({"In": ["", *code, f"# Parameters\n{line}\n"]})
    parameters.check({"In": ["", *code, '# Parameters\ndataset = "rsicd"\n'], "dataset": "rsicd"})
    parameters.check({"In": ["", *code, "# My parameters\nmine = 3\n"]})  # a cell of the user's


def test_a_captions_file_is_looked_for_beside_the_images(tmp_path, monkeypatch):
    draw(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "words.jsonl").write_text('{"image": "a.png", "caption": "a field"}\n')
    dataset = load_dataset(str(tmp_path / "mine"), str(tmp_path / "data"))
    assert load_captions(dataset, "file:words.jsonl").records["a"].variants[0].caption == "a field"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "words.jsonl").write_text('{"image": "a.png", "caption": "a road"}\n')
    monkeypatch.chdir(tmp_path / "here")  # what lies here comes first
    assert choose_captioner(dataset, "file:words.jsonl") == "file:words.jsonl"
