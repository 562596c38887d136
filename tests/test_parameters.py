"""The paper's protocol: what it sets, and its way from captions in files to results."""

from __future__ import annotations

import json

import pytest

from trsllava_extras.protocols import PROTOCOLS, choose
from trsllava_utils.__main__ import main
from trsllava_utils.captioner import Settings
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError
from trsllava_utils.parameters import MINILM


def test_a_protocol_fills_what_is_empty_and_names_what_departs():
    given = {"captioner": "", "query_captioner": "", "encoder": "", "method": "max"}
    assert choose("", given) == ({**given, "encoder": MINILM}, "")
    chosen, note = choose("paper", {**given, "temperature": 0.3})
    assert chosen["captioner"] == "openai:gpt-4.1"
    assert chosen["query_captioner"].startswith("description:transformers:llava-hf/llava-v1.6")
    assert chosen["encoder"] == "openai:text-embedding-3-small"
    assert note.startswith("protocol paper: captioner openai:gpt-4.1, query_captioner description:")
    assert "temperature 0.3, method max" in note and "departs" not in note
    chosen, note = choose("paper", {**given, "encoder": MINILM, "method": "mean"})
    assert chosen["encoder"] == MINILM and chosen["method"] == "mean"
    assert note.endswith(f"departs from it: encoder {MINILM}, method mean")
    assert "temperature 0" in choose("paper", {"temperature": 0})[1].split("departs")[1]
    assert Settings().temperature == PROTOCOLS["paper"]["temperature"]
    with pytest.raises(InputError, match=r"unknown protocol 'papr'.*Did you mean 'paper'"):
        choose("papr", given)


def test_the_papers_protocol_on_files(data_dir, tmp_path, static_encoder):
    """The gallery by one captioner, the image queries by another, evaluated and reported."""
    dataset = load_dataset("rsitmd", str(data_dir))
    own = dataset.captions.groupby("image_id")["text"].first()
    names = dataset.images.set_index("image_id")["filename"]
    for name, more in {"gpt": " and its surroundings", "llava": ""}.items():
        lines = [{"image": names[i], "caption": text + more} for i, text in own.items()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["-p", "data_dir", str(data_dir), "-p", "captioner", f"file:{tmp_path / 'gpt.jsonl'}"]
    words += ["-p", "query_captioner", f"file:{tmp_path / 'llava.jsonl'}", "-p"]
    words += ["encoder", static_encoder]
    run = ["run", "rsitmd", "--from", "04", "-p", "protocol", "paper", "-p", "methods", "[mean]"]
    assert main([*run, *words]) == 0
    (path,) = (data_dir / "rsitmd" / "derived" / "results").glob("*.json")
    result = json.loads(path.read_text())
    assert ", asked by file-llava-" in result["captioner"] and "asked-by-file-llava" in path.name
    # the image queries are reference captions word for word, so each finds its own first
    assert result["methods"]["max"]["i2t"]["R@1"] > 99
    assert main(["report", "rsitmd", *words]) == 0
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "asked by file-llava-" in page and "-p query_captioner file:" in page
    # one option less is another setting, with a page of its own
    assert main(["report", "rsitmd", *words[:6], *words[-3:]]) == 0
    assert path.with_suffix(".html").read_text(encoding="utf-8") == page
    assert len(list(path.parent.glob("*.html"))) == 2
