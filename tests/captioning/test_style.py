"""Captions in the manner of examples, names of captioners, and several captioners together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import scenes
from trsllava_extras.quality import check
from trsllava_extras.schema import schema
from trsllava_extras.shards import caption_shard
from trsllava_utils.captioner import Settings, captioner_id, in_style
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import choose_captioner, load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.examples import EXAMPLES, with_examples
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.prompts import ReplyError, make_prompt, parse_reply
from trsllava_utils.records import Variant

STYLE = Settings(prompt="style")


@pytest.fixture
def ten(tmp_path):
    """Ten photographs of the sample's test split."""
    return load_dataset("sample", str(tmp_path), "test", limit=10)


def test_examples_are_a_seeded_sample_of_training_captions(ten):
    drawn = with_examples(STYLE, ten).examples
    assert len(drawn) == len(set(drawn)) == EXAMPLES == 40
    assert set(drawn) <= set(ten.on("train").captions["text"])
    assert not set(drawn) & set(ten.captions["text"])
    assert with_examples(STYLE, load_dataset("sample", split="val")).examples == drawn
    other = with_examples(replace(STYLE, seed=1), ten).examples
    assert set(other) != set(drawn)
    prompts = [make_prompt(replace(STYLE, examples=several)) for several in (drawn, other)]
    assert prompts[0].fingerprint != prompts[1].fingerprint
    assert all(f"\n- {text}\n" in prompts[0].text for text in drawn)
    assert prompts[0].rules == prompts[1].rules and "Write 5 captions" in prompts[0].rules
    assert with_examples(Settings(), ten) == Settings()
    for split in ("train", "all"):  # the examples would be among the queries
        with pytest.raises(MissingError, match="no training captions apart from its queries"):
            with_examples(STYLE, load_dataset("sample", split=split))


def test_examples_of_ones_own(tmp_path):
    folder, phrases = scenes(tmp_path, 1), tmp_path / "phrases.txt"
    with pytest.raises(MissingError, match="pass -p style_file FILE"):
        with_examples(STYLE, folder)
    phrases.write_text("- a red barn\n\n- \n-\nboats, {n} of them\n")
    own = with_examples(replace(STYLE, style_file=str(phrases)), folder)
    assert own.examples == ("a red barn", "boats, {n} of them")
    assert "- boats, {n} of them\n" in make_prompt(own).text
    with pytest.raises(MissingError, match=r"style_file: .* not found"):
        with_examples(replace(STYLE, style_file=str(tmp_path / "none.txt")), folder)
    phrases.write_text("\n".join(f"barn {n}" for n in range(1000)))
    assert len(with_examples(replace(STYLE, style_file=str(phrases)), folder).examples) == EXAMPLES
    phrases.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"line 1: byte 0xff is not UTF-8"):
        with_examples(replace(STYLE, style_file=str(phrases)), folder)
    with pytest.raises(InputError, match="needs example captions"):
        make_prompt(STYLE)


def test_replies_in_style_are_plain_captions():
    prompt = make_prompt(replace(STYLE, variants=2, examples=("a barn",)))
    assert list(schema(prompt)["properties"]["variants"]["items"]["properties"]) == ["caption"]
    plain = [Variant(caption="a port"), Variant(caption="a quay with boats")]
    for reply in (
        {"variants": [{"caption": "a port"}, {"caption": "a quay with boats"}]},
        [{"caption": "a port", "one_sentence": "x"}, {"caption": "a quay with boats"}],
        ["a port", "a quay with boats"],
    ):
        assert parse_reply(json.dumps(reply), prompt) == plain
    for reply in (["a port"], [{"text": "a port"}, {"caption": "a quay"}], [1, 2]):
        with pytest.raises(ReplyError, match="wrong schema"):
            parse_reply(json.dumps(reply), prompt)


def test_examples_may_be_met_but_not_recited():
    said = ["Many boats lie in the harbour.", "A grey pier with boats.", "A quay beside a road."]
    variants = [Variant(caption=text) for text in said]
    check(variants, examples=["many boats lie in the harbour", "a forest"])
    with pytest.raises(ReplyError, match="copied from the prompt: 2 examples"):
        check(variants, examples=[text.upper() for text in said[:2]])


def test_ten_images_in_style_and_samples_never_mix(serve, ten):
    server = serve()
    first = caption_dataset(ten, "openai:vlm", STYLE)
    assert first.captioner == "openai-vlm.style" and len(first.records) == 10
    assert all(len(r.variants) == 5 for r in first.records.values())
    assert not any(v.structured for r in first.records.values() for v in r.variants)
    asked = server.requests[0]["messages"][0]["content"][0]["text"]
    assert with_examples(STYLE, ten).examples[0] in asked
    structured = caption_dataset(ten, "openai:vlm", Settings(variants=2))
    assert structured.files[0].path != first.files[0].path
    file = first.files[0]
    kept = file.path.read_text()
    other = caption_dataset(ten, "style:openai:vlm", Settings(seed=1))  # another sample
    assert other.report.captioned == 10 and other.files != first.files
    assert {r.settings for r in other.records.values()}.isdisjoint(
        {r.settings for r in first.records.values()}
    )
    again = caption_dataset(ten, "openai:vlm", STYLE)  # the first ones come back, unasked
    assert again.report.already == 10 and file.path.read_text() == kept
    assert load_captions(ten, "style:openai:vlm").records == again.records


def test_several_captioners_describe_one_gallery(serve, ten):
    serve()
    both = caption_dataset(ten, "openai:vlm + style:openai:vlm", Settings(variants=2))
    assert both.captioner == "openai-vlm+openai-vlm.style" and both.report.captioned == 20
    record = next(iter(both.records.values()))
    assert [v.structured for v in record.variants] == [True] * 2 + [False] * 2
    shipped = load_captions(ten, "rsrt + style")
    corpus = shipped.corpus("one_sentence,joined")
    first = corpus[corpus["image_id"] == corpus["image_id"][0]]
    assert first["source"].tolist() == ["rsrt"] * 10 + ["style"] * 5
    assert first["variant"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 1, 2, 3, 4]
    assert first["field"].tolist() == ["one_sentence", "full"] * 5 + ["caption"] * 5
    runs = (corpus["image_id"] != corpus["image_id"].shift()).sum()
    assert runs == len(shipped.records) == 10  # the texts of an image are adjacent
    assert shipped.most_variants == 5 and len(shipped.paths) == 2


def test_the_gallery_is_what_all_captioners_describe(ten, tmp_path):
    lines = [{"image": name, "caption": f"scene {n}"} for n, name in enumerate("ab")]
    lines += [{"image": ten.images["filename"][n], "caption": f"scene {n}"} for n in (3, 1)]
    path = tmp_path / "a+style.jsonl"  # a plus in a path separates nothing
    path.write_text("\n".join(map(json.dumps, lines)))
    captions = load_captions(ten, f"rsrt + file:{path}")
    assert list(captions.records) == [ten.images["image_id"][n] for n in (1, 3)]
    assert any(
        "8 images are left out, which not all of" in problem for problem in captions.problems
    )
    with pytest.raises(MissingError, match="no captions 'style' come with"):
        load_captions(scenes(tmp_path, 1), f"style + file:{path}")
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"image": ten.images["filename"][5], "caption": "a scene"}))
    with pytest.raises(InputError, match="no image is described by all of"):
        load_captions(ten, f"file:{path} + file:{others}")


def test_captions_of_a_model_with_a_similar_name_are_not_taken(serve, ten):
    serve()
    caption_dataset(ten, "openai:org/m", Settings(variants=1))
    with pytest.raises(MissingError, match="holds captions by 'openai:org/m', not by"):
        load_captions(ten, "openai:org-m")


def test_shards_of_several_captioners(serve, ten):
    serve()
    both, settings = "openai:vlm + style:openai:vlm", Settings(variants=1)
    for shard in ("1/2", "2/2"):
        caption_shard(ten, both, settings, shard)
    assert len(load_captions(ten, both).records) == 10


def test_names_of_captioners(ten, tmp_path):
    folder = scenes(tmp_path, 1)
    assert choose_captioner(ten) == "rsrt" and choose_captioner(ten, prompt="style") == "style"
    assert choose_captioner(folder) == "pixels"
    assert choose_captioner(folder, prompt="query") == "query:pixels"
    assert choose_captioner(ten, "openai:x+rsrt", "style") == "style:openai:x + rsrt"
    assert choose_captioner(ten, "query:openai:x", "style") == "query:openai:x"
    assert choose_captioner(ten, "style:file:x.jsonl") == "file:x.jsonl"
    assert choose_captioner(ten, "rsrt:openai:x", "query") == "openai:x"
    assert captioner_id("style:openai:a/b") == "openai-a-b.style"
    assert captioner_id("rsrt+style") == captioner_id("rsrt  + style") == "rsrt+style"
    for name, says in {
        "rsrt + rsrt": "names a captioner twice",
        "rsrt + pixel": "Did you mean 'pixels'",
        "stile": "Did you mean 'style'",
        "openai:m + trasformers:x": "unknown captioner",
        "style:openai:": "name the model",
    }.items():
        with pytest.raises(InputError, match=says):
            captioner_id(name)
    marked = {"style": True, "rsrt+style": True, "style:openai:x": True, "file:style.jsonl": False}
    assert {name: in_style(name) for name in marked} == marked
    with pytest.raises(InputError, match="pixels has words of its own"):
        caption_dataset(folder, "pixels", replace(STYLE, style_file=str(Path(__file__))))
