"""How long captions at home take: CPU seconds for one image through the product's own ``describe``.

The checkpoint has the published shape of SmolVLM-256M-Instruct (or, with ``--shape llava``, of
LLaVA-NeXT 7B with 2 of its 32 and 24 layers, since all of them fit no laptop) and random weights:
what it writes is nonsense, how long it takes is not. Its tokenizer has as many words as the real
one. A reply is cut at 920 tokens, five variants of 184 (132 words a variant in ``sample``, 1.4
tokens a word). One thread; every measurement is a process of its own, and builds take turns.

Run: ``python benchmarks/local_captions.py [--against CHECKOUT] [--shape llava] [--repeats 3]``
prints a table; ``--against`` measures another checkout of this project beside this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPLY = 920  # tokens

MEASURE = """
import json, resource, sys, time
import torch
from trsllava_extras.local_vlm import TransformersCaptioner
from trsllava_utils.captioner import Question, Settings
from trsllava_utils.images import view

folder, image, quantize, tokens = sys.argv[1:]
torch.set_num_threads(1)
captioner = TransformersCaptioner(f"transformers:{folder}", Settings(quantize=quantize))
rows = len(captioner._rows.closings) if hasattr(captioner, "_rows") else 1
captioner._loaded.generation.max_new_tokens = int(tokens) // rows
question = Question(view(image).by_name, 0, 0.3)
start = time.process_time()
captioner.describe([question])
result = {"seconds": time.process_time() - start, **captioner.usage}
result["GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
print(json.dumps(result))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--against", type=Path)
    options.add_argument("--shape", choices=["smolvlm", "llava"], default="smolvlm")
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    builds = {"float32": (ROOT, ""), "int8 (quantize=8bit)": (ROOT, "8bit")}
    if given.against:
        builds = {"the other checkout, float32": (given.against.resolve(), "")} | builds
    measured: dict[str, list[dict]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(given.shape, Path(folder))
        for _ in range(given.repeats):
            for name, (root, quantize) in builds.items():
                measured[name].append(measure(root, folder, quantize))
                print(name, measured[name][-1], file=sys.stderr, flush=True)
    first = [run["seconds"] for run in next(iter(measured.values()))]
    print("| build | input tokens | CPU s an image | times as fast (range) | peak GiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, runs in measured.items():
        seconds = [run["seconds"] for run in runs]
        ratios = [a / b for a, b in zip(first, seconds, strict=True)]
        times = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
        peak, read = max(run["GiB"] for run in runs), runs[0]["input tokens"]
        print(f"| {name} | {read:,} | {statistics.median(seconds):.1f} | {times} | {peak:.1f} |")


def measure(root: Path, folder: str, quantize: str) -> dict:
    """One image in a process of its own, which imports the project from ``root``."""
    image = ROOT / "data" / "sample" / "images" / "harbor90.jpg"
    words = [folder, str(image), quantize, str(REPLY)]
    quiet = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        env={**os.environ, **quiet, "HF_HUB_OFFLINE": "1"},
        cwd=root,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def checkpoint(shape: str, folder: Path) -> None:
    """Save a checkpoint of the shape with random weights."""
    import torch
    import transformers
    from transformers.models.idefics3 import image_processing_pil_idefics3 as idefics3
    from transformers.models.llava_next import image_processing_pil_llava_next as llava_next

    sys.path.insert(0, str(ROOT))
    from tests.tiny_models import TEMPLATE, tokenizer

    torch.manual_seed(0)
    if shape == "smolvlm":
        tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
        marks = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles]
        words = tokenizer(*marks, vocabulary=49280, texts=source())
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        vision |= {"num_attention_heads": 12, "image_size": 512, "patch_size": 16}
        text = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        text |= {"num_attention_heads": 9, "num_key_value_heads": 3}
        config = transformers.Idefics3Config(
            vision_config=vision,
            text_config=transformers.LlamaConfig(**text, **common(words)),
            image_token_id=words.convert_tokens_to_ids("<image>"),
            scale_factor=4,
            pad_token_id=words.pad_token_id,
        )
        sizes = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
        images = idefics3.Idefics3ImageProcessorPil(**sizes)
        processor = transformers.Idefics3Processor(
            images, words, image_seq_len=64, chat_template=TEMPLATE
        )
        model = transformers.Idefics3ForConditionalGeneration(config)
    else:
        words = tokenizer(vocabulary=32064, texts=source())
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2}
        vision |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
        text = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 32, "num_key_value_heads": 8}
        grid = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
        config = transformers.LlavaNextConfig(
            vision_config=transformers.CLIPVisionConfig(**vision),
            text_config=transformers.MistralConfig(**text, **common(words)),
            image_token_id=words.convert_tokens_to_ids("<image>"),
            image_grid_pinpoints=grid,
        )
        images = llava_next.LlavaNextImageProcessorPil(
            size={"shortest_edge": 336}, crop_size=336, image_grid_pinpoints=grid
        )
        processor = transformers.LlavaNextProcessor(
            images,
            words,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=TEMPLATE,
        )
        model = transformers.LlavaNextForConditionalGeneration(config)
    with torch.no_grad():  # no text ends by itself: quotation marks are unlikely
        embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
        ends = [number for word, number in words.get_vocab().items() if '"' in word]
        embedding[:, 0], head[:, 0] = 1.0, 0.5
        head[ends] = 0.0
        head[ends, 0] = -0.5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def common(words) -> dict:
    """What both texts models are given."""
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {"vocab_size": len(words), "max_position_embeddings": 8192, **ids}


def source() -> list[str]:
    """Texts with enough words for a tokenizer of the real size: our prompts, and transformers."""
    import transformers

    files = [
        *ROOT.glob("trsllava_*/prompt_texts/*.txt"),
        *Path(transformers.__file__).parent.rglob("*.py"),
    ]
    return [file.read_text("utf-8") for file in files]


if __name__ == "__main__":
    main()
