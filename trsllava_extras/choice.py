"""Which captioner describes images when none is named (``trsllava.defaults``), and a line about it;
and which CLIP looks at those that nobody has described yet.

The first that is there: captions made earlier, a server in ``OPENAI_BASE_URL``, a vision-language
model in the Hugging Face hub's cache, and else ``pixels``. Captions that come with the images go
before all of them (:func:`~trsllava_utils.captions.choose_captioner`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CacheNotFound, scan_cache_dir
from huggingface_hub.constants import HF_HUB_CACHE as CACHE

from trsllava_extras.servers.client import Server, holds_key
from trsllava_utils.annotations import clean_text
from trsllava_utils.caption_file import files_in
from trsllava_utils.captions import folder_of, has_shipped_captions
from trsllava_utils.data import Dataset
from trsllava_utils.files import InputError, MissingError, parse_json, read_json, read_text

CLIPS = ("clip", "siglip", "siglip2")
SMOLVLM = "HuggingFaceTB/SmolVLM-256M-Instruct"
SECONDS = 21  # that it takes for an image on two cores: benchmarks/local_captions.py
TIMEOUT = 5.0  # seconds that the server has to name its models


def captioner(dataset: Dataset, prompt: str = "rsrt") -> str:
    """The captioner for images that no captions come with."""
    if found := _made(dataset, prompt) or _served():
        return found
    model = _cached(_is_vision_language)
    return f"transformers:{model}" if model else "pixels"


def clip() -> str:
    """The CLIP or SigLIP of the hub's cache that was used last; "" if there is none."""
    return _cached(lambda folder: _kind(folder) in CLIPS)


def told(dataset: Dataset, prompt: str = "rsrt") -> str:
    """One line on the captioner that was chosen; "" where captions come with the images."""
    if has_shipped_captions(dataset, prompt):
        return ""
    line = f"no captioner is named, so captions are by {captioner(dataset, prompt)}"
    if line.endswith("pixels"):
        line += f": rules of thumb, often wrong. transformers:{SMOLVLM} takes {SECONDS} s an image"
    return line


def _made(dataset: Dataset, prompt: str) -> str:
    """Who wrote the newest captions of this prompt in the dataset's folder of artefacts; ``pixels``
    only where nobody else did (notebook 01 runs it for comparison)."""
    made = {"": (False, 0)}
    for file in files_in(folder_of(dataset)):
        name = file.name.removesuffix(".jsonl").partition(".shard-")[0]
        identity = read_json(file.with_name(f"{name}.json")).get("identity", {})
        if str(identity.get("answer", "")).startswith(f"{prompt} ") and file.stat().st_size:
            who = str(identity.get("captioner", ""))
            made[who] = max(made.get(who, (False, 0)), (who != "pixels", file.stat().st_mtime_ns))
    return max(made, key=made.get)


def _served() -> str:
    """The first model of the server that the environment names."""
    if not os.environ.get("OPENAI_BASE_URL"):
        return ""
    try:
        models = Server("captioner openai:MODEL", TIMEOUT).get("models").get("data")
        name = clean_text(models[0]["id"])
    except (InputError, MissingError, LookupError, TypeError):
        return ""  # it does not answer, or names no model
    return f"openai:{name}" if name and not holds_key(name) else ""


def _cached(fits: Callable[[Path], bool]) -> str:
    """The model of the hub's cache that was used last, of those that fit and have their weights."""
    try:
        found = sorted(scan_cache_dir(CACHE).repos, key=lambda repo: -repo.last_accessed)
    except CacheNotFound:
        return ""
    for repo in found:
        for revision in repo.revisions if repo.repo_type == "model" else ():
            folder = Path(revision.snapshot_path)
            if any(folder.glob("*.safetensors")) and fits(folder):
                return repo.repo_id
    return ""


def _kind(folder: Path) -> str:
    try:
        return parse_json(read_text(folder / "config.json"))["model_type"]
    except (InputError, LookupError, TypeError):
        return ""


def _is_vision_language(folder: Path) -> bool:
    from transformers.models.auto import modeling_auto

    configs = (folder / f"{name}_config.json" for name in ("tokenizer", "processor"))
    speaks = any(folder.glob("chat_template.*")) or any(
        "chat_template" in read_text(file) for file in configs if file.is_file()
    )
    return speaks and _kind(folder) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
