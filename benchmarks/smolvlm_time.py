"""How long a small vision-language model takes on the processors at hand to caption an image.

A model of the size of SmolVLM-256M-Instruct (its published configuration, random weights: what is
written is nonsense, how long it takes is not) reads one image as the real one does, 17 tiles of 64
tokens, and the prompt, and then writes. A reply with five RSRT variants has about 920 tokens (132
words a variant in ``sample``, 1.4 tokens a word), one with a single variant a fifth.

Run: ``python benchmarks/smolvlm_time.py`` prints a table and writes a JSON file beside it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import torch
import transformers

TILES, TOKENS_A_TILE, PROMPT = 17, 64, 420  # tokens
REPLY = 920
WRITTEN = 64  # tokens written to measure the rate
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
TEXT = {
    "vocab_size": 49280,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "pad_token_id": 2,
}


def main() -> None:
    torch.manual_seed(0)
    config = transformers.Idefics3Config(
        vision_config=VISION,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=49190,
        scale_factor=4,
        pad_token_id=2,
    )
    model = transformers.Idefics3ForConditionalGeneration(config).eval()
    words = torch.randint(10, 49000, (1, PROMPT))
    tokens = torch.cat([torch.full((1, TILES * TOKENS_A_TILE), 49190), words], dim=1)
    pixels = torch.rand(1, TILES, 3, 512, 512)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def seconds(written: int) -> float:
        start = time.perf_counter()
        length = {"min_new_tokens": written, "max_new_tokens": written}
        model.generate(**inputs, pixel_values=pixels, do_sample=False, **length)
        return time.perf_counter() - start

    seconds(1)  # warm
    reading = seconds(1)
    rate = WRITTEN / (seconds(WRITTEN + 1) - reading)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds to read an image": round(reading, 1),
        "tokens written a second": round(rate, 1),
        "seconds an image, five variants": round(reading + REPLY / rate),
        "seconds an image, one variant": round(reading + REPLY / 5 / rate),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    print(*(f"{name}: {value}" for name, value in result.items()), sep="\n")
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
