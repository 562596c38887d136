"""Vision-language models for real servers: tiny, without knowledge, but their sentences end and have
ten words, so that they pass the quality gate. They say nothing of the picture."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AddedToken, AutoModelForImageTextToText, AutoProcessor

from tests.tiny_models import idefics3

WORDS = 10  # of a sentence
# what one variant consists of beside its words; each is one token
JSON = ['{"variants": [{"one_sentence": "', '.", "feature": "', '.", "caption": "', '."}]}']


@torch.no_grad()
def speaker(folder: Path, free: bool = False) -> Path:
    """A model whose words form ten classes. Each word is followed by one of the next class, the last
    by a full stop and a quotation mark, a colon by a quotation mark: so a grammar gets sentences
    out of it. A ``free`` one needs none, and answers with one variant in JSON. The layers add
    nothing to that."""
    idefics3(folder, hidden_size=128, num_attention_heads=2)  # vLLM wants heads of 64
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    words = processor.tokenizer
    for layer in model.model.text_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    ids = [i for text, i in words.get_vocab().items() if re.fullmatch("Ġ[a-z]{3,}", text)]
    random.Random(0).shuffle(ids)
    if free:
        words.add_tokens([AddedToken(text, normalized=False) for text in JSON])
        model.resize_token_embeddings(len(words))
    number = words.get_vocab()
    now, then = model.get_input_embeddings().weight, model.lm_head.weight
    now[:, :64] = then[:, :64] = 0
    if free:
        chain = [[number["Ġ"]]]
        for text in JSON[:3]:
            chain += [[number[text]], *([ids.pop() for _ in range(5)] for _ in range(WORDS))]
        chain += [[number[JSON[3]]], [words.eos_token_id]]
    else:
        chain = [[number[":"]], [number['"']], *(ids[n::WORDS] for n in range(WORDS))]
        chain += [[number["."]], [number['"']]]
    for step, (before, after) in enumerate(pairwise(chain)):
        now[before, step], then[after, step] = 1.0, 3.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
