"""Zero-shot CLIP, the baseline beside the method: images and texts go in, unit vectors of one
space come out.

A model is named by a string: any CLIP or SigLIP of transformers by hub id or folder
(``openai/clip-vit-base-patch32``), or ``open_clip:ARCHITECTURE:CHECKPOINT.pt`` for checkpoints of
open_clip such as RemoteCLIP and GeoRSCLIP (needs ``pip install open_clip_torch``). Vectors are
cached by :func:`trsllava_utils.embed_corpus` like all others; the "text" of an image is the sha256
of its file. The steps ``clip`` and ``fusion`` of scoring rules (``trsllava.steps``) compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from trsllava_extras.formulas import weighted_sum
from trsllava_extras.methods import Method, Step, training_captions
from trsllava_utils.data import Dataset
from trsllava_utils.encoders import unit_vectors
from trsllava_utils.files import InputError, MissingError, progress, user_path
from trsllava_utils.images import DEFAULT, ImageFile, Rendering, read_image
from trsllava_utils.records import CORPUS_COLUMNS
from trsllava_utils.scoring import Score, Side, as_float32, run_starts
from trsllava_utils.sources import Sources, reference_texts
from trsllava_utils.vectors import Embeddings, embed_corpus
from trsllava_utils.weights import NO_CODE, device, not_here, revision

BATCH = 32
UNCAPTIONED = "no caption yet"  # the text of an image that has none


class ClipEncoder:
    """Images by their file, texts as they are; the weights are loaded at the first use.

    Args:
        name: the model.
        files: images by sha256, for role "image".
        rendering: how multi-band files are shown.
    """

    precision, control = "float32", ()

    def __init__(
        self, name: str, files: dict[str, ImageFile] | None = None, rendering: Rendering = DEFAULT
    ) -> None:
        self._checkpoint, self._files, self._rendering = name, files or {}, rendering
        self._is_open_clip = name.startswith("open_clip:")

    @cached_property
    def identity(self) -> str:
        name = self._checkpoint
        weights = str(_open_clip_parts(name)[1]) if self._is_open_clip else name
        if not revision(weights) and not self._is_open_clip:
            self._model.texts(["a"])  # downloads it: then its revision is known
        stretch = self._rendering.stretch.replace("per-band", "")  # once it was the default
        how = " ".join(filter(None, (self._rendering.bands, stretch)))
        return f"{name}{revision(weights)} float32 {how}".rstrip()

    @property
    def name(self) -> str:
        return self.identity

    @cached_property
    def _model(self) -> _OpenClip | _Transformers:
        return (_OpenClip if self._is_open_clip else _Transformers)(self._checkpoint)

    def too_long(self, texts: list[str]) -> list[bool]:
        """Not counted: CLIP cuts many captions, as is known of it."""
        return [False] * len(texts)

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """``(n, dim) float32``, not yet of unit length; role "image" or "text"."""
        batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        rows = []
        for batch in progress(batches, desc=f"CLIP, {role}s"):
            if role == "image":
                pictures = [read_image(self._files[s], self._rendering) for s in batch]
                rows.append(self._model.images(pictures))
            else:
                rows.append(self._model.texts(batch))
        return np.concatenate(rows)


class _Transformers:
    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._model = AutoModel.from_pretrained(name, **NO_CODE).eval().to(device())
            self._processor = AutoProcessor.from_pretrained(name, **NO_CODE)
        except ImportError as error:
            needed = " ".join(str(error).split())[:200]
            raise MissingError(
                f"CLIP {name!r} needs a package that is not installed: {needed}"
            ) from None
        except (OSError, ValueError) as error:
            hint = "pass -p clip with a hub id, a folder, or open_clip:ARCHITECTURE:CHECKPOINT.pt"
            raise not_here(f"CLIP {name!r}", error, hint) from error
        if not hasattr(self._model, "get_image_features"):
            raise InputError(f"{name!r} is no CLIP: it has no image features")
        # SigLIP was trained on texts padded to the full length; for CLIP padding is masked out
        self._length = self._model.config.text_config.max_position_embeddings

    def images(self, pictures: list[np.ndarray]) -> np.ndarray:
        return self._features("image", images=pictures)

    def texts(self, texts: list[str]) -> np.ndarray:
        return self._features(
            "text", text=texts, padding="max_length", truncation=True, max_length=self._length
        )

    def _features(self, kind: str, **inputs) -> np.ndarray:
        import torch

        batch = self._processor(return_tensors="pt", **inputs).to(device())
        with torch.inference_mode():
            out = getattr(self._model, f"get_{kind}_features")(**batch)
        return getattr(out, "pooler_output", out).float().cpu().numpy()


class _OpenClip:
    def __init__(self, name: str) -> None:
        try:
            import open_clip
        except ImportError:
            raise MissingError(f"{name!r} needs: pip install open_clip_torch") from None
        architecture, checkpoint = _open_clip_parts(name)
        if not checkpoint.is_file():
            raise MissingError(
                f"{name!r}: no such checkpoint; pass -p clip open_clip:ViT-B-32:RemoteCLIP.pt"
            )
        try:  # open_clip reads checkpoints with weights_only: tensors, never pickled code
            self._model, _, self._transform = open_clip.create_model_and_transforms(
                architecture, pretrained=str(checkpoint), device=device()
            )
        except RuntimeError as error:
            raise InputError(f"{name!r}: {str(error).splitlines()[0][:160]}") from error
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(architecture)

    def images(self, pictures: list[np.ndarray]) -> np.ndarray:
        import torch
        from PIL import Image

        batch = torch.stack([self._transform(Image.fromarray(p)) for p in pictures])
        with torch.inference_mode():
            return self._model.encode_image(batch.to(device())).float().cpu().numpy()

    def texts(self, texts: list[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = self._tokenizer(texts).to(device())
            return self._model.encode_text(batch).float().cpu().numpy()


def _open_clip_parts(name: str) -> tuple[str, Path]:
    """Architecture and checkpoint of ``open_clip:ARCHITECTURE:CHECKPOINT``."""
    architecture, _, checkpoint = name.removeprefix("open_clip:").partition(":")
    return architecture, user_path(checkpoint or "(none)")


def vectors(sources: Sources, what: str, query: str = "") -> Embeddings | np.ndarray:
    """CLIP's vectors for a method.

    Args:
        sources: whose ``clip`` names the model.
        what: "images", "reference" or "bank": those of the dataset; "query" or "picture": a unit
            row ``(1, dim) float32`` for the words, or the image file, in ``query``.

    Raises:
        MissingError: no CLIP is named, its weights are not there, or no image has pixels.
    """
    clip, dataset = sources.clip, sources.dataset
    if not clip:
        raise MissingError("needs a CLIP; pass -p clip openai/clip-vit-base-patch32")
    if what == "images":
        return sources.once(_embed_images, dataset, clip)
    if what in ("reference", "bank"):
        corpus = {"reference": reference_texts, "bank": training_captions}[what]
        return sources.once(_embed_texts, corpus, dataset, clip)
    if what == "query":
        return unit_vectors([query], sources.once(ClipEncoder, clip), "text")
    file = ImageFile(str(user_path(query)))
    encoder = ClipEncoder(clip, {file.sha256: file}, dataset.rendering)
    return unit_vectors([file.sha256], encoder, "image")


def _embed_images(dataset: Dataset, clip: str) -> Embeddings:
    pixels = dataset.with_pixels
    if pixels.empty:
        raise MissingError(f"{dataset.title} ({dataset.split}) has no pixels for CLIP to look at")
    files = {image_id: dataset.file_of(image_id) for image_id in pixels["image_id"]}
    rows = [(image_id, clip, 0, "image", file.sha256) for image_id, file in files.items()]
    by_hash = {file.sha256: file for file in files.values()}
    encoder = ClipEncoder(clip, by_hash, dataset.rendering)
    corpus = pd.DataFrame(rows, columns=CORPUS_COLUMNS)
    return embed_corpus(corpus, encoder, dataset.derived, role="image")


def _embed_texts(corpus: Callable, dataset: Dataset, clip: str) -> Embeddings:
    return embed_corpus(corpus(dataset), ClipEncoder(clip), dataset.derived, role="text")


def _cosine(_: Score, queries: Side, items: Side, method: Method, index: None) -> Score:
    """Zero-shot CLIP (Radford et al., ICML 2021): cosine of image and text."""
    return lambda block: as_float32(queries.second[block]) @ as_float32(items.second).T


def _fusion(score: Score, queries: Side, items: Side, method: Method, index: None) -> Score:
    """The score of the texts and CLIP's, each scaled to 0…1; of images without a caption CLIP's."""
    pixels, weight = _cosine(score, queries, items, method, index), method.steps["fusion"]["weight"]
    bare = items.texts[run_starts(items.groups)] == UNCAPTIONED

    def joined(block: slice) -> np.ndarray:
        seen = pixels(block)
        scores = weighted_sum(score(block), seen, weight)
        scores[:, bare] = weighted_sum(seen, seen, weight)[:, bare]
        return scores

    return joined


CLIP = Step(
    3,
    without=("texts", "centred", "max", "mean", "centroid", "fusion"),
    vectors=vectors,
    compare=_cosine,
)
FUSION = Step(
    4,
    {"weight": 0.5},
    grid=tuple(f"(weight={w})" for w in (0.5, 0.3, 0.7, 0.9)),
    vectors=vectors,
    compare=_fusion,
)
