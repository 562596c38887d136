"""The project itself: sample data, notebooks, pins, the command line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

from tests.conftest import draw
from trsllava_extras import figures
from trsllava_extras.cli import run as chain
from trsllava_utils.__main__ import main
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))


def pins() -> dict[str, str]:
    files = (PROJECT_ROOT / f"requirements{part}.txt" for part in ("", "-test", "-no-deps"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def declared() -> list[Requirement]:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["test"]
    ]


def test_pins_pyproject_and_environment_agree():
    versions = pins()
    for requirement in declared():
        assert versions[requirement.name] in requirement.specifier, requirement
    for name in versions:  # the pins hold for the oldest Python that pyproject.toml admits
        assert "3.10" in SpecifierSet(metadata.metadata(name).get("Requires-Python", "")), name
    environment = (PROJECT_ROOT / "environment.yml").read_text()
    for what in ("--requirement requirements.txt", "--editable ."):
        assert what in environment
    for conda, name in {"pytorch-cpu": "torch", "xgrammar": "xgrammar"}.items():
        assert f"- {conda}={versions[name].rpartition('.')[0]}\n" in environment
    users = (PROJECT_ROOT / "requirements.txt").read_text()
    assert not any(f"\n{tool}==" in users for tool in ("playwright", "pytest", "ruff"))
    assert not any(name.startswith("nvidia") for name in versions)  # no CUDA by way of a pin


def test_sample_data_card():
    ds = load_dataset("sample", split="all")
    assert len(ds.with_pixels) == 210 and ds.images["label"].nunique() == 21
    assert ds.split_sizes == {"train": 42, "val": 63, "test": 105} and not ds.problems
    assert ds.captions["text"].nunique() == len(ds.captions) == 1050
    captions = load_captions(ds)
    assert captions.captioner == "rsrt" and not captions.problems
    assert [len(record.variants) for record in captions.records.values()] == [5] * 210


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean(path):
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not any(
        o.output_type == "error" or o.get("name") == "stderr" for c in code for o in c.outputs
    )
    text = json.dumps([c.outputs for c in code])
    assert not any(
        f'"{root}' in text or f" {root}" in text for root in ("/home/", "/root/", "/work/", "/tmp/")
    )
    assert path.stat().st_size < 1_500_000


def test_pictures_have_alternative_texts():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
                    assert output.metadata[kind]["alt"] == output.data["text/plain"] != ""


def test_photographs_are_saved_as_jpeg_and_charts_as_png(tmp_path):
    dataset = replace(load_dataset("sample", split="train", limit=2), figures=tmp_path)
    for name, file, kind in (("photos.jpg", "photos.jpg", "jpeg"), ("chart", "chart.png", "png")):
        figure = figures.image_grid(dataset, dataset.images["image_id"].tolist())
        picture = figures.save(figure, dataset, name)
        with Image.open(tmp_path / file) as saved:
            assert saved.format == kind.upper() and saved.width > 500
        assert picture.format == kind and "agricultural82" in picture.alt
    assert (tmp_path / "photos.jpg").stat().st_size < (tmp_path / "chart.png").stat().st_size / 2


def test_every_parameter_is_typed_and_commented():
    import papermill

    for path in NOTEBOOKS:
        for name, parameter in papermill.inspect_notebook(str(path)).items():
            assert parameter["inferred_type_name"] != "None" and parameter["help"], (
                path.stem,
                name,
            )


def test_unknown_parameter_and_order_are_refused():
    with pytest.raises(InputError, match="Did you mean 'method'"):
        chain.run_chain(["sample"], {"metod": "max"})
    with pytest.raises(InputError, match="comes after"):
        chain.run_chain(["sample"], {}, "03", "01")


def run(*words: str, cwd: Path = PROJECT_ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def commands(text: str) -> list[list[str]]:
    """The commands that a text tells the user to run."""
    lines = re.findall(r"(?:next: |^  )((?:python -m trsllava_utils|papermill) .*)", text, re.M)
    return [shlex.split(line) for line in lines]


def results_are_whole(derived: Path) -> Path:
    """What notebook 04 left; returns the page."""
    (results,) = (p for p in (derived / "results").glob("*.json"))
    result = json.loads(results.read_text())
    assert result["n_images"] == 4 and list(result["methods"]) == [
        *("max", "mean", "csls†", "hybrid(weight=0.3)", "texts(caption,feature)"),
        *("lexical", "reference captions"),
    ]
    assert not result["left_out"]  # nothing that was asked for
    low, high = result["methods"]["max"]["interval"]["mR"]
    assert low <= result["methods"]["max"]["mR"] <= high
    for table in ("*.csv", "*.tex", "*.ablation.csv", "summary.tex"):
        assert list((derived / "results").glob(table)), table
    (page,) = (derived / "results").glob("*.html")
    html = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 5_000_000 and 'src="http' not in html and "import " not in html
    for part in ("95 % of mR", "Successes", "-p query_captioner file:", "csls†", "data:image/png"):
        assert part in html, part
    return page


COUNT = """
import os, sys
log = os.open(f"{os.environ['COUNTS']}/{os.getpid()}.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        if not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            os.write(log, os.fsencode(arguments[0]) + b"\\n")
sys.addaudithook(note)
"""


def most_reads(counts: Path, folder: Path) -> list[int]:
    """How often each process that :data:`COUNT` watched read one file of a folder, at most. (A
    picture is read once for its hash, and once for each size in which it is shown.)"""
    most = []
    for path in counts.glob("*.txt"):
        reads = Counter(path.read_text().splitlines())
        of_data = [n for name, n in reads.items() if name.startswith(str(folder))
                   and not name.endswith(".png")]  # fmt: skip
        most += [max(of_data)] if of_data else []
    return most


def test_a_run_and_every_command_that_it_prints(data_dir, tmp_path, static_encoder, monkeypatch):
    """Notebooks 00 to 04 with a captioner that asks; then whatever they tell the user to run next,
    which makes nothing anew."""
    dataset = load_dataset("rsitmd", str(data_dir))
    lines = [{"image": name, "caption": f"view {name}"} for name in dataset.images["filename"]]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asking = f"file:{tmp_path / 'q.jsonl'}"
    how = {"data_dir": str(data_dir), "encoder": static_encoder, "query_captioner": asking}
    how["methods"] = "[mean, csls, hybrid(weight=0.3), texts(caption,feature)]"
    how["figures_dir"] = str(tmp_path / "f")
    given = [word for item in how.items() for word in ("-p", *item)]
    counts = tmp_path / "counts"
    counts.mkdir()
    (counts / "sitecustomize.py").write_text(COUNT)
    with monkeypatch.context() as counting:
        counting.setenv("PYTHONPATH", str(counts))
        counting.setenv("COUNTS", str(counts))
        first = run("-m", "trsllava_utils", "run", "rsitmd", *given)
    assert first.returncode == 0, first.stderr
    reads = most_reads(counts, data_dir)
    assert len(reads) >= 5 and max(reads) <= 2  # five notebooks
    derived = data_dir / "rsitmd" / "derived"
    page = results_are_whole(derived)

    written = first.stdout
    for path in sorted((derived / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        outputs = (out for cell in cells for out in cell.get("outputs", ()))
        written += "".join(f"\n{out.text}" for out in outputs if out.output_type == "stream")
    printed = commands(written)
    assert {words[1].split("_")[0] for words in printed if words[0] == "papermill"} == {
        *("01", "02", "03", "04")
    }
    asked = {words[3] for words in printed if words[0] == "python"}
    assert asked >= {"report", "search"}
    captions = next(derived.glob("captions/*.jsonl"))
    rankings = sorted(derived.glob("rankings/**/*.parquet"))
    before = captions.read_bytes(), [path.stat().st_mtime_ns for path in rankings]
    assert len(rankings) > 5
    page.unlink()
    for words in printed:
        words = [str(tmp_path / "out.ipynb") if word == "out.ipynb" else word for word in words]
        words = ["-m", *words] if words[0] == "papermill" else words[1:]
        done = run(*words, cwd=PROJECT_ROOT / "notebooks" if "papermill" in words else PROJECT_ROOT)
        assert done.returncode == 0, (words, done.stderr)
    assert page.is_file()
    assert (captions.read_bytes(), [path.stat().st_mtime_ns for path in rankings]) == before


def test_own_folder_searches_without_captions_and_says_what_evaluation_needs(
    tmp_path, static_encoder, capsys
):
    for i in range(3):
        draw(tmp_path / "mine" / f"{i}.png", i)
    mine, data_dir = str(tmp_path / "mine"), str(tmp_path / "d")
    caption_dataset(load_dataset(mine, data_dir))
    how = ("-p", "data_dir", data_dir, "-p", "encoder", static_encoder)
    out = run("-m", "trsllava_utils", "run", mine, *how, "--from", "03")
    assert out.returncode == 1 and not out.stdout  # said before the first notebook starts
    assert "no reference captions" in out.stderr and "--to 03" in out.stderr
    assert (
        run("-m", "trsllava_utils", "run", mine, *how, "--from", "03", "--to", "03").returncode == 0
    )
    assert main(["search", mine, "a field", *how]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("folder", ["notebooks", "."])
def test_papermill_stops_with_one_sentence(folder, tmp_path):
    """The exact command of the README, where rsitmd is not there."""
    notebook = "03_retrieval.ipynb" if folder == "notebooks" else "notebooks/03_retrieval.ipynb"
    words = (
        "-m",
        "papermill",
        notebook,
        str(tmp_path / "out.ipynb"),
        "-p",
        "dataset",
        "rsitmd",
        "-p",
        "data_dir",
        str(tmp_path),
    )
    out = run(*words, cwd=PROJECT_ROOT / folder)
    assert out.returncode == 1
    assert (
        "see data/README.md#rsitmd" in out.stderr
        and "File " not in out.stderr.split("MissingError")[0][-200:]
    )
