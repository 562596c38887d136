"""Encoder ``openai:MODEL``: an embedding model behind a server that speaks the OpenAI protocol."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from trsllava_extras.servers.client import RefusedError, Server
from trsllava_utils.files import InputError
from trsllava_utils.vectors import SAME

CONTROL = "a harbour with twelve white boats"


class OpenAIEncoder:
    """An embedding model behind the OpenAI protocol; OPENAI_BASE_URL and OPENAI_API_KEY come from
    the environment. Its vector of a control text tells whether it is still the same model."""

    precision = "float32"  # of the vectors that arrive; the server computes as it likes

    def __init__(self, name: str, precision: str = "float32") -> None:
        self._server = Server(f"encoder {name!r}")
        self.name, self._model = name, name.removeprefix("openai:")
        self._batch_size = 255  # less for a server that takes less
        self._with_control = True  # not for a server that takes one text at a time
        self.identity = f"{name}@{self._server.address}"

    @cached_property
    def control(self) -> list[float]:
        return _direction(self._vectors([CONTROL])[0])

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`Encoder`.

        Raises:
            InputError: the server does not answer, refuses a text by itself, answers with something
                else than a vector for each text, or has another model now.
        """
        vectors, start = [], 0
        while start < len(texts):
            batch = texts[start : start + self._batch_size]
            extra = [CONTROL] * self._with_control
            try:
                several = self._vectors([*batch, *extra])
            except RefusedError as error:
                if len(batch) > 1:
                    self._batch_size = len(batch) // 2
                elif self._with_control:
                    self._with_control = False
                else:
                    raise InputError(
                        f"the embedding server refused the text {batch[0][:60]!r}: {error.words}"
                    ) from None
                continue
            now = _direction(several[-1]) if extra else self.control
            if len(several[0]) != len(self.control) or np.dot(now, self.control) < SAME:
                raise InputError("the embedding server has another model than before; run again")
            vectors += several[: len(batch)]
            start += len(batch)
        return np.array(vectors, np.float32)

    def _vectors(self, texts: list[str]) -> list[list[float]]:
        request = {"model": self._model, "input": texts, "encoding_format": "float"}
        data = self._server.post("embeddings", request).get("data")
        try:
            numbered = {d["index"]: np.asarray(d["embedding"], np.float32) for d in data}
            vectors = [numbered[n] for n in range(len(texts))]
            if len(data) == len(texts) and {v.shape for v in vectors} == {(len(vectors[0]),)}:
                return vectors
        except (KeyError, TypeError, ValueError, OverflowError):
            pass
        raise InputError(
            f"the embedding server did not return one vector for each of {len(texts)} texts"
        )

    def too_long(self, texts: list[str]) -> list[bool]:
        """See :class:`Encoder`; servers refuse such texts, or do not tell."""
        return [False] * len(texts)


def _direction(vector: np.ndarray) -> list[float]:
    """A vector at unit length, in five decimals."""
    vector = np.asarray(vector, np.float64)
    return (vector / (np.linalg.norm(vector) or 1.0)).round(5).tolist()
