"""What captioners are asked, and how replies are read and judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from tests.conftest import draw
from tests.openai_server import GERMAN, answer
from trsllava_extras.quality import check
from trsllava_extras.schema import schema
from trsllava_utils.captioner import Question, Settings
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.images import Rendering, view
from trsllava_utils.prompts import ReplyError, make_prompt, parse_reply
from trsllava_utils.records import Variant

GOOD = [Variant(**v) for v in answer(1, 5)["variants"]]
TEXT = json.dumps(answer(1, 5))


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"Sure! [1] Here is the {{JSON}}:\n```json\n{TEXT}\n```\nAnything else?",
        json.dumps(answer(1, 5)["variants"]),
        json.dumps({"variants": answer(1, 5)["variants"] + answer(2, 5)["variants"]}),
        TEXT.replace(". A road", ".\n A road"),  # line breaks inside the strings
        '{"variants": "see below"} ' + TEXT,
    ],
)
def test_replies_that_can_be_read(text):
    assert [v.feature for v in parse_reply(text, make_prompt(Settings()))] == [
        v.feature for v in GOOD
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty reply"),
        (" \n", "empty reply"),
        ("I see a harbour.", "not JSON"),
        (TEXT[: len(TEXT) // 2], "not JSON"),
        (TEXT[:-1], "not JSON"),
        ('{"captions": []}', "wrong schema"),
        (json.dumps({"variants": []}), "wrong schema"),
        (json.dumps(answer(1, 4)), "wrong schema"),
        (json.dumps({"variants": [{"caption": "A harbour."}] * 5}), "wrong schema"),
        (json.dumps({"variants": [1, 2, 3, 4, 5]}), "wrong schema"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_replies_that_cannot(text, reason):
    with pytest.raises(ReplyError) as caught:
        parse_reply(text, make_prompt(Settings()))
    assert caught.value.reason == reason


def changed(**fields: str) -> list[Variant]:
    return [GOOD[0].model_copy(update=fields), *GOOD[1:]]


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        (changed(caption="… — 12 !"), "no words"),
        (changed(caption="A harbour with boats.\x00"), "control characters"),
        (changed(feature="boats in the north;\x0b a pier"), "control characters"),
        (changed(caption="A harbour with \ufffd\ufffd boats."), "control characters"),
        (changed(caption="A helipad marked"), "cut off"),
        (changed(one_sentence="A harbour with boats, a pier and"), "cut off"),
        (changed(feature="boats in the north; a pier in the"[:-3] + ","), "cut off"),
        (changed(one_sentence="A bay."), "too short"),
        (changed(caption="a pier and a boat in front of it " * 99), "too long"),
        (changed(caption="I'm sorry, but I can’t assist with that image."), "refusal"),
        (changed(caption="As an AI model I see a harbour with ships."), "refusal"),
        (changed(caption="There are trees and houses. " * 10), "loop"),
        (changed(caption="A road, a road, a road, a road, a road, a road, a road, a road"), "loop"),
        (changed(caption="一个港口和船" * 40), "loop"),
        (
            changed(caption="The variants describe the same image but differ in focus, surely."),
            "copied from the prompt",
        ),
        ([Variant(**GERMAN), *GOOD[1:]], "wrong language"),
        ([GOOD[0]] * 5, "equal variants"),
        (
            [
                GOOD[0].model_copy(update={"caption": GOOD[0].caption + f" Seen {w}."})
                for w in ("now", "well", "here", "so", "too")
            ],
            "equal variants",
        ),
    ],
)
def test_quality_gate(variants, reason):
    with pytest.raises(ReplyError) as caught:
        check(variants, "en", make_prompt(Settings()).text)
    assert caught.value.reason == reason


def test_quality_gate_lets_good_captions_pass():
    for seed in range(20):
        variants = [Variant(**v) for v in answer(seed, 5)["variants"]]
        check(variants, "en", make_prompt(Settings()).text)
    check([Variant(caption="a church is near a road")])  # few words, easily taken for Irish
    check([Variant(**GERMAN)], "de")
    check([Variant(**GERMAN)], "")
    check(changed(caption='It says "H".', feature="a pier\n- boats\tin rows"))
    check([Variant(caption="some planes are in an airport")])  # as people write them
    check([Variant(**{f: f"{t.strip('.')} ไม่มีจุด" for f, t in GERMAN.items()})], "")
    listed = "trees all over the scene; roads all over the scene; roofs all over the scene; lawns"
    check(changed(feature=listed))
    with pytest.raises(InputError, match="two-letter code"):
        check(GOOD, "english")


def test_prompts(tmp_path):
    prompt = make_prompt(Settings(variants=3, language="fr"))
    assert "Describe it 3 times in French" in prompt.text and '{"variants": [{' in prompt.text
    variants = schema(prompt)["properties"]["variants"]
    assert variants["minItems"] == variants["maxItems"] == 3
    assert "minItems" not in schema(prompt, counted=False)["properties"]["variants"]
    own = tmp_path / "prompt.txt"
    own.write_text('Describe {n} times in {language}: {"variants": …}')
    other = make_prompt(Settings(variants=3, prompt_file=str(own)))
    assert other.text == 'Describe 3 times in English: {"variants": …}'
    assert len({p.fingerprint for p in (prompt, other, make_prompt(Settings(prompt="query")))}) == 3
    own.write_text(" ")
    with pytest.raises(InputError, match="is empty"):
        make_prompt(Settings(prompt_file=str(own)))
    with pytest.raises(MissingError, match="not found"):
        make_prompt(Settings(prompt_file=str(tmp_path / "none.txt")))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", "rsr"),
        ("variants", 11),
        ("attempts", 0),
        ("temperature", -1),
        ("timeout", 0),
        ("quantize", "2bit"),
    ],
)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(InputError, match=name):
        Settings(**{name: value})


def test_renderings_of_multi_band_images(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, rng.integers(0, 4000, (4, 40, 60), np.uint16), photometric="minisblack")
    pictures = view(path, max_side=30).by_name
    assert list(pictures) == ["true colour", "false colour"]
    assert all(p.shape == (20, 30, 3) and p.dtype == np.uint8 for p in pictures.values())
    whole = view(path, Rendering(stretch="per-band")).by_name
    assert (whole["false colour"][..., 1:] == whole["true colour"][..., :2]).all()
    for how in ("none", "8,4,3"):  # there is no band 8
        assert list(view(path, Rendering(false_colour=how)).by_name) == ["true colour"]
    assert list(view(draw(tmp_path / "rgb.png")).by_name) == ["true colour"]
    prompt = make_prompt(Settings())
    text = prompt.for_question(Question(pictures, 0, 0.3))
    assert "2 pictures of the same place: true colour, false colour" in text
    radar = tmp_path / "radar.tif"
    tifffile.imwrite(radar, rng.random((2, 40, 60), np.float32), photometric="minisblack")
    seen = view(radar, Rendering(bands="1,2"))
    assert list(seen.by_name) == ["radar"] and "It is a radar picture" in seen.notes[0]
    text = prompt.for_question(Question(seen.by_name, 0, 0.3, (*seen.notes, "A pixel is 10 m.")))
    assert text.endswith(f"{seen.notes[0]}\n\nA pixel is 10 m.")
    index = Question({**pictures, "NDVI": pictures["true colour"]}, 0, 0.3)
    del index.pictures["false colour"]
    assert "2 pictures of the same place: true colour, NDVI." in prompt.for_question(index)
    assert prompt.for_question(Question({"true colour": whole["true colour"]}, 0, 0)) == prompt.text
