"""Captioner ``rsrt``: the captions that come with a dataset or this project, and the default."""

from __future__ import annotations

import json

import pytest

from tests.conftest import draw, nested
from trsllava_extras import quality
from trsllava_extras.shards import caption_shard
from trsllava_utils import captioning
from trsllava_utils.captioner import Settings
from trsllava_utils.captions import choose_captioner, load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError, MissingError
from trsllava_utils.records import read_records

DATA = PROJECT_ROOT / "data"
VARIANT = {"one_sentence": "A port.", "feature": "boats; a quay", "caption": "Boats at a quay."}


@pytest.mark.parametrize(
    ("file", "images", "variants", "distinct"),
    [
        ("sample/rsrt.jsonl", 210, 1050, 1050),
        ("sample/style.jsonl", 210, 1050, 1050),
        ("sample/query.jsonl", 210, 210, 210),
        ("rsrt/rsicd_test.jsonl", 1093, 1598, 1598),
        ("rsrt/rsicd_val108.jsonl", 108, 108, 108),
        ("style/rsicd_test.jsonl", 1093, 10575, 9438),
        ("style/rsicd_val108.jsonl", 108, 1039, 1008),
    ],
)
def test_counts_of_the_cards_and_the_quality_gate(file, images, variants, distinct):
    records, problems = read_records(DATA / file)
    assert not problems and len(records) == images
    texts = [variant.text() for record in records.values() for variant in record.variants]
    assert (len(texts), len(set(texts))) == (variants, distinct)
    for record in records.values():
        quality.check(record.variants)
        assert all(variant.structured == ("rsrt" in file) for variant in record.variants)


def test_rsicd_is_described_without_pixels(tmp_path):
    root = tmp_path / "rsicd"
    root.mkdir()
    names = [("industrial_43.jpg", "test"), ("new_1.jpg", "test"), ("new_2.jpg", "train")]
    entries = [(name, split, ["a factory"]) for name, split in names]
    (root / "dataset_rsicd.json").write_text(nested(entries), encoding="utf-8")
    test = load_dataset("rsicd", str(tmp_path))
    assert choose_captioner(test) == "rsrt" and choose_captioner(test, "pixels") == "pixels"
    captions = load_captions(test)
    assert captions.captioner == "rsrt" and list(captions.records) == ["industrial_43"]
    first = captions.records["industrial_43"].variants[0]
    assert first.one_sentence.startswith("An industrial and commercial strip")
    (problem,) = captions.problems
    assert "1 images of RSICD (test) have no caption in rsicd_test.jsonl and" in problem
    assert "new_1" in problem
    assert captions.records == captioning.caption_dataset(test).records
    assert choose_captioner(load_dataset("rsicd", str(tmp_path), "train")) == "pixels"


def test_a_dataset_may_bring_its_own_and_without_any_the_ways_are_named(data_dir):
    dataset = load_dataset("rsitmd", str(data_dir))
    assert choose_captioner(dataset) == "pixels"
    for captioner in ("rsrt", ""):
        with pytest.raises(MissingError) as error:
            load_captions(dataset, captioner)
        for way in ("transformers:MODEL", "openai:MODEL", "pixels", "file:PATH.jsonl"):
            assert way in str(error.value)
    record = {"image": "port_1.png", "model": "m", "variants": [VARIANT]}
    (data_dir / "rsitmd" / "rsrt.jsonl").write_text(json.dumps(record), encoding="utf-8")
    assert choose_captioner(dataset) == "rsrt"
    captions = load_captions(dataset)
    assert captions.records["port_1"].variants[0].caption == VARIANT["caption"]
    assert dataset.captions["text"].nunique() == 8  # not taken for reference captions
    train = load_dataset("rsitmd", str(data_dir), "train")
    assert choose_captioner(train) == "pixels"  # it describes no image of this split
    (data_dir / "rsitmd" / "rsrt.jsonl").write_text('{"image": "port_1.png"', encoding="utf-8")
    with pytest.raises(InputError, match=r"rsrt.jsonl holds no usable caption line.*line 1"):
        load_captions(dataset)


def test_a_name_that_several_images_share_decides_nothing(tmp_path):
    names = ("forest/1.png", "forest/2.png", "port/1.png", "port/2.png", "port/3.png", "port/4.png")
    for n, name in enumerate(names):
        draw(tmp_path / "mine" / name, n)
    dataset = load_dataset(str(tmp_path / "mine"), str(tmp_path))
    described = ["forest/1.png", "2.png", "./elsewhere//3.jpg", "a/4.png", "b/4.png"]
    lines = [{"image": name, "caption": f"words for {name}"} for name in described]
    (tmp_path / "mine" / "rsrt.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captions = load_captions(dataset)
    said = {i: record.variants[0].caption for i, record in captions.records.items()}
    words = {"forest/1": "forest/1.png", "port/3": "./elsewhere//3.jpg"}
    assert said == {image_id: f"words for {name}" for image_id, name in words.items()}
    assert "4 images" in captions.problems[1]
    assert "3 captions may be of any" in captions.problems[0]


def test_a_file_that_names_no_image_is_noticed_and_added_to_the_shipped_ones(data_dir, tmp_path):
    own = data_dir / "rsitmd" / "rsrt.jsonl"
    own.write_text(json.dumps({"image": "other.png", "caption": "a port"}))
    with pytest.raises(InputError, match=r"rsrt.jsonl: none of its 1 images is in RSITMD"):
        load_captions(load_dataset("rsitmd", str(data_dir)))
    root = tmp_path / "rsicd"
    root.mkdir()
    entries = [("industrial_43.jpg", "test", ["a"]), ("mine.jpg", "test", ["b"])]
    (root / "dataset_rsicd.json").write_text(nested(entries))
    (root / "rsrt.jsonl").write_text(json.dumps({"image": "mine.jpg", "caption": "a field"}))
    assert len(load_captions(load_dataset("rsicd", str(tmp_path))).records) == 2


def test_captions_that_exist_answer_no_other_prompt_and_need_no_shards():
    dataset = load_dataset("sample", split="train")
    assert choose_captioner(dataset, prompt="query") == "query"
    with pytest.raises(InputError, match="prompt='query'"):
        captioning.caption_dataset(dataset, "rsrt", Settings(prompt="query"))
    with pytest.raises(InputError, match="shard='shard-1-of-2'"):
        caption_shard(dataset, "rsrt", shard="1/2")
