"""Which captioner describes images when none is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests import tiny_models
from tests.conftest import KEY, scenes
from trsllava_extras import choice
from trsllava_utils import plugins
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import choose_captioner
from trsllava_utils.data import load_dataset
from trsllava_utils.files import MissingError


def in_the_cache(cache: Path, name: str, checkpoint: Path) -> None:
    """Lay a checkpoint out as the hub's client does."""
    folder = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(checkpoint, folder / "snapshots" / ("a" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "blobs").mkdir()


def test_captions_that_come_with_the_images_first(serve):
    serve(lambda n: "good")
    assert choose_captioner(load_dataset("sample")) == "rsrt"
    assert choice.told(load_dataset("sample")) == ""


def test_then_captions_made_earlier_and_pixels_only_if_there_are_no_others(tmp_path, serve):
    ds = scenes(tmp_path, 3)
    caption_dataset(ds, "pixels", Settings(variants=1))
    serve(lambda n: "good")
    assert choose_captioner(ds) == "pixels"  # or what is found would depend on a server being up
    caption_dataset(ds, "openai:mine", Settings())
    caption_dataset(ds, "openai:mine", Settings(prompt="query"))
    caption_dataset(ds, "pixels", Settings(variants=2))  # as notebook 01 does, to compare
    assert choose_captioner(ds) == "openai:mine"
    assert choose_captioner(ds, prompt="query") == "query:openai:mine"


def test_then_the_first_model_of_the_server(tmp_path, serve, monkeypatch):
    ds = scenes(tmp_path, 2)
    serve(lambda n: "good")
    assert choose_captioner(ds) == "openai:vlm"
    assert choice.told(ds) == "no captioner is named, so captions are by openai:vlm"
    get = choice.Server.get
    for answer in ({"data": [{"id": KEY}]}, {"data": [{"id": 7}]}, {"data": []}, {"data": {}}, {}):
        monkeypatch.setattr(choice.Server, "get", lambda self, path, answer=answer: answer)
        assert choose_captioner(ds) == "pixels"  # a key that came back is shown nowhere
    monkeypatch.setattr(choice.Server, "get", get)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:9/v1")  # nobody listens
    assert choose_captioner(ds) == "pixels"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert choose_captioner(ds) == "pixels"


def test_then_the_vision_language_model_that_was_used_last(tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr(choice, "CACHE", cache)
    ds, model = scenes(tmp_path, 2), tiny_models.idefics3(tmp_path / "idefics3")
    assert choose_captioner(ds) == "pixels"  # there is no cache
    in_the_cache(cache, "somebody/clip", tiny_models.clip(tmp_path / "clip"))
    in_the_cache(cache, "somebody/half", model)
    for file in cache.glob("models--somebody--half/snapshots/*/*.safetensors"):
        file.unlink()
    assert choose_captioner(ds) == "pixels"
    for name, last in (("somebody/new", 2e9), ("somebody/old", 1e9)):
        in_the_cache(cache, name, model)
        for file in cache.glob(f"models--{name.replace('/', '--')}/**/*"):
            os.utime(file, (last, last))
    assert choose_captioner(ds) == "transformers:somebody/new"


def test_else_pixels_with_a_line_on_what_is_better(tmp_path):
    line = choice.told(scenes(tmp_path, 2))
    assert "often wrong" in line and "transformers:HuggingFaceTB/SmolVLM" in line
    assert len(line.split()) < 25


def test_without_the_extras_the_error_says_how_to_get_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "find", lambda group, name: None)
    with pytest.raises(MissingError, match=r"no captions come with scenes: write them with"):
        choose_captioner(scenes(tmp_path, 1))
