"""A CLIP finds the images that nobody has described yet."""

from __future__ import annotations

import json
import shutil

import pytest

from tests import tiny_models
from tests.captioning.test_choice import in_the_cache
from tests.conftest import scenes
from trsllava_extras import choice
from trsllava_extras.panel import Index, search
from trsllava_utils.files import MissingError
from trsllava_utils.sources import Sources


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(tiny_models.clip(tmp_path_factory.mktemp("models") / "clip"))


def unit_interval(scores):
    return (scores - scores.min()) / (scores.max() - scores.min())


def test_before_there_is_any_caption(tmp_path, clip, static_encoder):
    ds = scenes(tmp_path, 6)
    where = {"dataset": str(ds.root), "data_dir": str(tmp_path), "encoder": static_encoder}
    found = search("white boats", k=6, clip=clip, **where)
    assert found.request["method"] == "fusion" and set(found.table["text"]) == {"no caption yet"}
    by_clip = search("white boats", k=6, clip=clip, method="clip", **where).table
    assert found.table["image_id"].tolist() == by_clip["image_id"].tolist()
    assert "6 of 6 images have no caption yet and are found by CLIP alone" in str(found)
    page = found.save(tmp_path / "found.html").read_text()
    assert page.count("no caption yet") > 6
    with pytest.raises(MissingError, match="no captions by 'pixels'"):
        search("white boats", **where)


def test_described_images_count_by_text_and_clip_the_others_by_clip(tmp_path, clip, static_encoder):
    ds = scenes(tmp_path, 5)
    texts = ["white boats at a pier", "a red roof", "rows of trees"]
    lines = [{"image": f"scene_{i}.png", "caption": text} for i, text in enumerate(texts)]
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    how = {"captioner": f"file:{file}", "encoder": static_encoder, "clip": clip}
    where = {"dataset": str(ds.root), "data_dir": str(tmp_path)}
    found = search("white boats", k=5, **how, **where)
    assert "2 of 5 images have no caption yet" in found.notes[0]
    scores = found.table.set_index("image_id")["score"]
    by_clip = unit_interval(Index(found.sources, "clip").scores("white boats"))
    by_text = unit_interval(Index(found.sources, "max").scores("white boats"))
    for image_id, score in scores.items():
        described = image_id in {"scene_0", "scene_1", "scene_2"}
        weighted = (by_clip[image_id] + by_text[image_id]) / 2 if described else by_clip[image_id]
        assert score == pytest.approx(weighted, abs=1e-6)
    assert len(Index(Sources(ds, **how), "fusion").image_ids) == 5
    assert Index(Sources(ds, **how), "max").image_ids == ["scene_0", "scene_1", "scene_2"]


def test_a_clip_of_the_cache_is_taken_where_nobody_has_described_anything(
    tmp_path, clip, static_encoder, monkeypatch
):
    ds = scenes(tmp_path, 3)
    monkeypatch.setattr(choice, "CACHE", tmp_path / "hub")
    in_the_cache(tmp_path / "hub", "somebody/clip", shutil.copytree(clip, tmp_path / "clip"))
    assert choice.clip() == "somebody/clip"
    monkeypatch.setattr(choice, "clip", lambda: clip)  # the client looks in its own cache
    where = {"dataset": str(ds.root), "data_dir": str(tmp_path), "encoder": static_encoder}
    assert search("white boats", **where).sources.clip == clip
