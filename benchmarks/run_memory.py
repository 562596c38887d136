"""Peak memory and time of notebook 03 on a made archive: 10,000 images without pixels, five
reference captions and five machine captions each, 256 dimensions, nothing encoded before.

    python benchmarks/run_memory.py [ANOTHER_CHECKOUT …]

Each checkout runs in turn, in the environment of this one. Prints one line for each.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
IMAGES, EACH, DIM = 10_000, 5, 256


def made(folder: Path) -> dict[str, str]:
    """The archive, its captions and an encoder, as parameters of the notebook."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    rng = random.Random(0)
    words = [f"word{n}" for n in range(400)]
    names = [f"img_{n:06d}.jpg" for n in range(IMAGES)]
    entries = [
        {
            "filename": name,
            "split": "test",
            "sentences": [{"raw": said(rng, words, 9)} for _ in range(EACH)],
        }
        for name in names
    ]
    (folder / "archive").mkdir()
    (folder / "archive" / "dataset.json").write_text(json.dumps({"images": entries}))
    with open(folder / "captions.jsonl", "w") as file:
        for name in names:
            fields = {"one_sentence": 8, "feature": 10, "caption": 14}
            variants = [{f: said(rng, words, n) for f, n in fields.items()} for _ in range(EACH)]
            file.write(json.dumps({"image": name, "model": "made", "variants": variants}) + "\n")
    vocabulary = {word: n for n, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    static = StaticEmbedding(tokenizer, embedding_dim=DIM)
    SentenceTransformer(modules=[static]).save(str(folder / "encoder"))
    captioner = f"file:{folder / 'captions.jsonl'}"
    return {"captioner": captioner, "encoder": str(folder / "encoder")}


def said(rng: random.Random, words: list[str], n: int) -> str:
    return " ".join(rng.choices(words, k=n))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = made(folder)
        for number, checkout in enumerate(sys.argv[1:] or [HERE]):
            options = {**given, "data_dir": str(folder / f"out{number}")}
            command = [sys.executable, "-m", "trsllava_utils", "run", str(folder / "archive")]
            command += ["--from", "03", "--to", "03"]
            command += [part for pair in options.items() for part in ("-p", *pair)]
            start = time.perf_counter()
            subprocess.run(
                command,
                cwd=checkout,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - start
            # the largest of all processes so far: pass the checkout that needs less first
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
            print(f"{checkout}: {peak:.2f} GiB at most, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main()
