"""Encoder ``openai:MODEL``: an embedding model behind a server that speaks the OpenAI protocol."""

from __future__ import annotations

import base64
import logging
import re
import time
from functools import cached_property
from typing import Any

import numpy as np

from trsllava_extras.servers.client import RETRIES, TOO_LONG, RefusedError, Server, ServerError
from trsllava_utils.files import InputError
from trsllava_utils.vectors import SAME

CONTROL = "a harbour with twelve white boats"
FIRST_BATCH, LARGEST_BATCH = 16, 255  # texts; the control text goes with them
QUICK, SLOW = 2.0, 15.0  # seconds that a batch takes: the next one is twice as large, or half
FEWEST_CHARACTERS = 16  # that a text is cut down to


class OpenAIEncoder:
    """An embedding model behind the OpenAI protocol; OPENAI_BASE_URL and OPENAI_API_KEY come from
    the environment. Its vector of a control text tells whether it is still the same model.

    Batches grow and shrink with the time that they take, and are halved where the server fails. A
    text that is too long for the server is cut, and counted in :meth:`too_long`.
    """

    precision = "float32"  # of the vectors that arrive; the server computes as it likes

    def __init__(self, name: str, precision: str = "float32") -> None:
        self._server = Server(f"encoder {name!r}")
        self.name, self._model = name, name.removeprefix("openai:")
        self._batch_size = FIRST_BATCH
        self._most = LARGEST_BATCH  # less for a server that takes less
        self._with_control = True  # not for a server that takes one text at a time
        self._form: dict[str, str] = {"encoding_format": "float"}
        self._cut: set[str] = set()
        self.identity = f"{name}@{self._server.address}"

    @cached_property
    def control(self) -> list[float]:
        try:
            return _direction(self._vectors([CONTROL])[0])
        except RefusedError as error:
            raise InputError(
                f"{error.words} ({error.status}). So the embedding server answers a short text "
                f"already; check the model's name {self._model!r} and OPENAI_API_KEY"
            ) from None

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`Encoder`.

        Raises:
            InputError: the server does not answer, refuses even a few words of a text, answers with
                something else than a vector for each text, or has another model now.
        """
        _ = self.control  # is asked for first: a server that takes nothing is no text's fault
        vectors: list[np.ndarray] = []
        while len(vectors) < len(texts):
            began = time.monotonic()
            vectors += self._several(texts[len(vectors) :][: self._batch_size])
            took = time.monotonic() - began
            if took < QUICK:
                self._batch_size = min(2 * self._batch_size, self._most)
            elif took > SLOW:
                self._batch_size = max(self._batch_size // 2, 1)
        return np.array(vectors, np.float32)

    def _several(self, batch: list[str]) -> list[np.ndarray]:
        """The vectors of a batch. One that fails is split, unless the server fails altogether."""
        extra = [CONTROL] * self._with_control
        try:
            vectors = self._vectors([*batch, *extra], retries=0)
        except (RefusedError, ServerError) as error:
            if isinstance(error, ServerError):
                self._vectors([CONTROL])  # raises if it is not this batch
            if len(batch) == 1:
                return [self._alone(batch[0], error)]
            return self._longest_apart(batch, str(error)) or self._halves(batch)
        now = _direction(vectors[-1]) if extra else self.control
        if len(vectors[0]) != len(self.control) or np.dot(now, self.control) < SAME:
            raise InputError("the embedding server has another model than before; run again")
        return vectors[: len(batch)]

    def _longest_apart(self, batch: list[str], words: str) -> list[np.ndarray]:
        """If the server's words say that something is too long and the longest text is: that one
        cut, and the others together. Else nothing: there are too many texts."""
        longest = max(range(len(batch)), key=lambda n: len(batch[n]))
        if not TOO_LONG.search(words):
            return []
        vectors = self._several([batch[longest]])
        if batch[longest] not in self._cut:
            return []
        others = self._several([*batch[:longest], *batch[longest + 1 :]])
        return [*others[:longest], *vectors, *others[longest:]]

    def _halves(self, batch: list[str]) -> list[np.ndarray]:
        half, most, texts_cut = len(batch) // 2, self._most, len(self._cut)
        self._batch_size = self._most = half
        vectors = self._several(batch[:half]) + self._several(batch[half:])
        if len(self._cut) > texts_cut:  # a text was too long, and not the batch too large
            self._most = most
        return vectors

    def _alone(self, text: str, error: Exception) -> np.ndarray:
        """The vector of a text that the server does not take together with the control text: by
        itself, or cut until it is taken."""
        kept = text
        while True:
            try:
                (vector,) = self._vectors([kept], retries=0)
            except (RefusedError, ServerError) as again:
                error, kept = again, kept[: int(len(kept) * _share(str(again)))]
                if len(kept) < FEWEST_CHARACTERS:
                    break
                continue
            if kept is text:
                self._with_control = False
            else:
                self._cut.add(text)
                logging.getLogger(__name__).warning(
                    f"the embedding server does not take {text[:60]!r} … whole ({error}); its "
                    f"first {len(kept):,} characters were used"
                )
            return vector
        raise InputError(f"the embedding server does not take the text {text[:60]!r}: {error}")

    def _vectors(self, texts: list[str], retries: int = RETRIES) -> list[np.ndarray]:
        request = {"model": self._model, "input": texts, **self._form}
        try:
            data = self._server.post("embeddings", request, retries).get("data")
        except RefusedError as error:
            if self._form and "encoding_format" in (error.parameter or error.words):
                self._form = {}
                return self._vectors(texts, retries)
            raise
        try:
            places = [entry.get("index", 0) for entry in data]
            if not any(places):  # servers that do not count keep the order
                places = range(len(data))
            numbered = dict(
                zip(places, (_numbers(entry["embedding"]) for entry in data), strict=True)
            )
            vectors = [numbered[n] for n in range(len(texts))]
            if len(data) == len(texts) and {v.shape for v in vectors} == {(len(vectors[0]),)}:
                return vectors
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            pass
        raise InputError(
            f"the embedding server did not return one vector for each of {len(texts)} texts"
        )

    def too_long(self, texts: list[str]) -> list[bool]:
        """See :class:`Encoder`: those that were cut; servers that cut by themselves do not tell."""
        return [text in self._cut for text in texts]


def _numbers(embedding: Any) -> np.ndarray:
    """A vector, ``(dim,) float32``, which some servers send in base64 though numbers are asked
    for."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.asarray(embedding, np.float32)


def _share(words: str) -> float:
    """How much of a text to keep, by what the server says of its tokens: the limit and how many
    there are, in any order."""
    counts = sorted({int(number) for number in re.findall(r"\b\d{2,6}\b", words)})
    share = 0.95 * counts[-2] / counts[-1] if len(counts) > 1 else 0.0
    return share if share > 0.2 else 0.7


def _direction(vector: np.ndarray) -> list[float]:
    """A vector at unit length, in five decimals."""
    vector = np.asarray(vector, np.float64)
    return (vector / (np.linalg.norm(vector) or 1.0)).round(5).tolist()
