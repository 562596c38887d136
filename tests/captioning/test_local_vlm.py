"""Captioner ``transformers:``: real architectures without weights through the whole path."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import tifffile
import torch
import xgrammar
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from xgrammar.contrib.hf import LogitsProcessor as Grammar

from tests import tiny_models
from tests.conftest import captions_file, draw
from trsllava_extras.local_vlm import (
    Draw,
    Rows,
    TransformersCaptioner,
    closing_tokens,
    longest_edge,
)
from trsllava_utils.captioner import Question, Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.prompts import LIMITS


def asked(seed: int, *facts: str, side: int = 48, temperature: float = 0.7) -> Question:
    picture = np.random.default_rng(seed).integers(0, 255, (side, 48, 3), np.uint8)
    return Question({"true colour": picture}, seed, temperature, facts)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny_models.llava_next(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def idefics(tmp_path_factory):
    return tiny_models.idefics3(tmp_path_factory.mktemp("idefics"))


@pytest.fixture
def ten(tmp_path):
    for i in range(10):
        draw(tmp_path / "ten" / f"scene_{i}.png", i, size=48)
    return load_dataset(str(tmp_path / "ten"), str(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "prompt"), [("llava", "rsrt"), ("llava", "style"), ("idefics", "rsrt")]
)
def test_ten_images_through_transformers(architecture, prompt, ten, request, tmp_path):
    """Random weights babble, and the gate refuses what is too long, but every reply has the form
    asked for."""
    folder, phrases = request.getfixturevalue(architecture), tmp_path / "phrases.txt"
    phrases.write_text("a red barn\nboats at a quay")
    settings = Settings(
        prompt=prompt, style_file=str(phrases), variants=2, batch_size=10, language="", attempts=30
    )
    captions = caption_dataset(ten, f"transformers:{folder}", settings)
    assert len(captions.records) == 10 and not captions.files[0].read_rejected()
    assert set(captions.report.retries) <= {"too long", "too short", "no words", "cut off"}
    for record in captions.records.values():
        assert len(record.variants) == 2
        assert all(v.structured == (prompt == "rsrt") for v in record.variants)
        assert all(len(t) <= 1.25 * LIMITS[f] for v in record.variants for f, t in v.fields.items())
    assert len({r.variants[0].caption for r in captions.records.values()}) == 10
    assert captions.report.usage["output tokens"] > 1000
    assert json.loads(captions.files[0].manifest()["example"]["reply"], strict=False)["variants"]


def test_words_do_not_depend_on_the_batch_nor_on_memory(llava, monkeypatch):
    """Five images at once, one at a time, and halved when memory runs out: the same words."""
    pictures = [np.full((48, 48, 3), 40 * i, np.uint8) for i in range(5)]
    questions = [
        Question({"true colour": p}, seed=i, temperature=0.7) for i, p in enumerate(pictures)
    ]
    captioner = TransformersCaptioner(f"transformers:{llava}", Settings(variants=1, batch_size=5))
    together = [r.text for r in captioner.describe(questions)]
    assert [captioner.describe([q])[0].text for q in questions] == together
    assert len(set(together)) == 5
    generate = captioner._loaded.model.generate
    sizes = []

    def small_memory(**inputs):
        if "pixel_values" in inputs:  # the prompt and the pictures, before the rows
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("out of memory")
        return generate(**inputs)

    monkeypatch.setattr(captioner._loaded.model, "generate", small_memory)
    assert [r.text for r in captioner.describe(questions)] == together
    assert sizes == [5, 2, 3, 1, 2] and captioner.batch_size <= 2


def test_two_pictures_of_an_image(llava, tmp_path):
    (tmp_path / "bands").mkdir()
    values = np.random.default_rng(0).integers(0, 4000, (4, 40, 40), np.uint16)
    tifffile.imwrite(tmp_path / "bands" / "a.tif", values, photometric="minisblack")
    draw(tmp_path / "bands" / "b.png")
    ds = load_dataset(str(tmp_path / "bands"), str(tmp_path))
    settings = Settings(variants=1, batch_size=2, language="", attempts=30)
    assert len(caption_dataset(ds, f"transformers:{llava}", settings).records) == 2


def test_no_such_model(ten, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="give the folder of a checkpoint or a hub id"):
        caption_dataset(ten, "transformers:nobody/has-this-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="give the folder of a checkpoint"):
        caption_dataset(ten, f"transformers:{tmp_path / 'empty'}")
    with pytest.raises(InputError, match="transformers:MODEL"):
        captions_file(ten, "transformers:")


def test_quantisation_says_what_it_needs(llava):
    pytest.importorskip("transformers")
    from transformers.utils import is_bitsandbytes_available

    if is_bitsandbytes_available():
        pytest.skip("bitsandbytes is installed")
    captioner = TransformersCaptioner(f"transformers:{llava}", Settings(quantize="4bit"))
    question = Question({"true colour": np.zeros((48, 48, 3), np.uint8)}, 0, 0.7)
    with pytest.raises(MissingError, match="pip install bitsandbytes accelerate"):
        captioner.describe([question])


# — one reading, a row for each variant —


def row_by_itself(captioner: TransformersCaptioner, question: Question, n: int) -> str:
    """A row whose picture, prompt and closing sentence are read in one go, without the others."""
    loaded = captioner._loaded
    head, tail = captioner._around(loaded, question)
    pictures = [[Image.fromarray(p) for p in question.pictures.values()]]
    edge = longest_edge(loaded.processor, question)
    size = {"size": {"longest_edge": edge}} if edge else {}
    inputs = loaded.processor(text=[head], images=pictures, images_kwargs=size, return_tensors="pt")
    end = closing_tokens(loaded, [closing + tail for closing in captioner._rows.closings])[
        n : n + 1
    ]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], end], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(end)], 1)
    alone = Question(question.pictures, question.seed + n, question.temperature)
    processors = [Grammar(loaded.grammar), Draw([alone], 1, torch.device("cpu"))]
    with torch.inference_mode():
        made = loaded.model.generate(
            **inputs, generation_config=loaded.generation, logits_processor=processors
        ).sequences
    answer = made[:, inputs["input_ids"].shape[1] :]
    return loaded.processor.tokenizer.batch_decode(answer, skip_special_tokens=True)[0]


@pytest.mark.parametrize("architecture", ["llava", "idefics"])
def test_rows_say_what_separate_runs_say(architecture, request):
    """Token for token, for pictures and prompts of unequal length in one batch."""
    folder = request.getfixturevalue(architecture)
    captioner = TransformersCaptioner(f"transformers:{folder}", Settings(batch_size=3))
    captioner._loaded.generation.max_new_tokens = 60  # rounding may turn one draw in 100,000
    questions = [asked(0), asked(1, "One pixel is about 3 m."), asked(2, side=30)]
    for question, reply in zip(questions, captioner.describe(questions), strict=True):
        rows = [row_by_itself(captioner, question, n) for n in range(5)]
        assert len(set(rows)) == 5 and reply.text == captioner._rows.joined(rows)


def test_an_image_is_looked_at_once(idefics, monkeypatch):
    captioner = TransformersCaptioner(f"transformers:{idefics}", Settings())
    vision, seen = captioner._loaded.model.model.vision_model, []
    forward = vision.forward
    monkeypatch.setattr(
        vision,
        "forward",
        lambda **given: seen.append(len(given["pixel_values"])) or forward(**given),
    )
    captioner.describe([asked(0)])
    assert seen == [5]  # 48 pixels are 2 x 2 tiles of 32, and the whole


def test_prompts_that_ask_for_the_whole_answer_have_one_row(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Describe {n} times, as JSON")
    assert Rows(Settings(prompt="query")).closings == [""]
    rows = Rows(Settings(prompt_file=str(own), variants=3))
    assert rows.closings == [""] and rows.text == "Describe 3 times, as JSON"
    assert rows.schema["properties"]["variants"]["minItems"] == 3
    apart = [Rows(Settings()), Rows(Settings(variants=4)), Rows(Settings(language="de")), rows]
    assert len({rows.fingerprint for rows in apart}) == 4
    assert len(set(apart[0].closings)) == 5 and "in German" in apart[2].text


def test_the_draw_follows_the_probabilities_and_passes_over_what_is_forbidden():
    scores = torch.full((1, 50), -torch.inf)
    scores[0, [3, 10, 49]] = torch.tensor([0.5, 0.3, 0.2]).log()
    draw_one = Draw([Question({}, 7, 1.0)], 1, torch.device("cpu"))
    drawn = torch.stack([draw_one(None, scores.clone())[0] for _ in range(4000)]).argmax(1)
    counts = torch.bincount(drawn, minlength=50) / 4000
    assert counts[[3, 10, 49]].tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert counts.sum() == counts[[3, 10, 49]].sum()
    likeliest = Draw([Question({}, 7, 0.0)], 1, torch.device("cpu"))
    assert all(likeliest(None, scores.clone()).argmax() == 3 for _ in range(20))


# — tiles —


@pytest.mark.parametrize(
    ("side", "edge", "tiles"),
    [
        (224, 512, 1),
        (256, 512, 1),
        (512, 512, 1),
        (600, 1024, 5),
        (1024, 1024, 5),
        (3000, 2048, 17),
    ],
)
def test_idefics3_and_smolvlm_read_no_tiles_without_new_pixels(side, edge, tiles):
    class Processor:
        image_processor = Idefics3ImageProcessorPil(
            size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
        )

    picture = np.zeros((side, side, 3), np.uint8)
    assert longest_edge(Processor, Question({"true colour": picture}, 0, 0)) == edge
    size = {"longest_edge": edge}
    read = Processor.image_processor([[picture]], size=size, return_tensors="pt")
    assert read["pixel_values"].shape[:2] == (1, tiles)  # 64 tokens each
    today = Processor.image_processor([[picture]], return_tensors="pt")
    assert today["pixel_values"].shape[1] == 17


@pytest.mark.parametrize(("side", "crops"), [(224, 3), (256, 3), (512, 5), (600, 5), (1024, 5)])
def test_llava_next_has_nothing_to_gain(side, crops):
    """It takes the grid that wastes least; sizes of the published checkpoint."""

    class Processor:
        image_processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": 336},
            crop_size=336,
            image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        )

    picture = np.zeros((side, side, 3), np.uint8)
    assert longest_edge(Processor, Question({"true colour": picture}, 0, 0)) == 0
    read = Processor.image_processor([picture], return_tensors="pt")
    assert read["pixel_values"].shape[1] == crops


# — quotation marks, control characters —


def matched(text: str) -> bool:
    """Whether the grammar of a structured variant takes a text to its end."""
    words = tiny_models.tokenizer()
    info = xgrammar.TokenizerInfo.from_huggingface(words, vocab_size=len(words))
    compiler = xgrammar.GrammarCompiler(info)
    grammar = compiler.compile_json_schema(Rows(Settings()).schema, any_whitespace=False)
    matcher = xgrammar.GrammarMatcher(grammar)
    return matcher.accept_string(text) and matcher.is_completed()


@pytest.mark.parametrize(
    ("caption", "taken"),
    [
        (r"A helipad marked \"H\" beside a river.", True),
        (r"Ein Flu\u00df.", True),
        ("a" * 3000, True),
        ("A helipad\x01.", False),
        ("A helipad\x00.", False),
        ("A helipad\t.", False),
    ],
)
def test_the_grammar_takes_quotation_marks_and_no_raw_control_characters(caption, taken):
    assert matched(f'{{"one_sentence": "x", "feature": "y", "caption": "{caption}"}}') is taken


# — precision —


@pytest.mark.parametrize(
    ("device", "quantize", "dtype"),
    [("cpu", "", torch.float32), ("cpu", "8bit", torch.float32), ("mps", "", torch.float16)],
)
def test_precision_fits_the_processor(device, quantize, dtype, llava, monkeypatch):
    monkeypatch.setattr("trsllava_extras.local_vlm.device", lambda: device)
    captioner = TransformersCaptioner(f"transformers:{llava}", Settings(quantize=quantize))
    assert captioner._precision() == {"dtype": dtype}


def test_int8_on_a_cpu(llava):
    """Its own identity, nearly the same numbers, and the same words whatever the batch."""
    full = TransformersCaptioner(f"transformers:{llava}", Settings(variants=2))
    int8 = TransformersCaptioner(f"transformers:{llava}", Settings(variants=2, quantize="8bit"))
    assert int8.identity != full.identity and int8.batch_size == 1
    questions = [asked(seed) for seed in range(2)]
    replies = [int8.describe([question])[0].text for question in questions]
    assert len(set(replies)) == 2 and int8.describe(questions[:1])[0].text == replies[0]
    kinds = Counter(map(type, int8._loaded.model.modules()))
    assert kinds[torch.nn.Linear] == 0 < kinds[torch.ao.nn.quantized.dynamic.Linear]
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        logits = [c._loaded.model(input_ids=tokens).logits[0, -1] for c in (full, int8)]
    assert torch.cosine_similarity(*logits, dim=0) > 0.99
