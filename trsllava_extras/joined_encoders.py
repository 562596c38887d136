"""Encoder ``A + B``: several text encoders side by side."""

from __future__ import annotations

import numpy as np

from trsllava_utils.encoders import load_encoder, unit_vectors


class JoinedEncoders:
    """Each text's unit vectors of all encoders, one behind the other: the cosine of two joined
    vectors is the mean of the encoders' cosines. See :class:`~trsllava_utils.encoders.Encoder`."""

    def __init__(self, name: str, precision: str = "float32") -> None:
        self.name = name
        self._each = [load_encoder(part.strip(), precision) for part in name.split(" + ")]
        self.precision = self._each[0].precision
        self.identity = " + ".join(one.identity for one in self._each)
        self.control = [number for one in self._each for number in one.control]

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        return np.hstack([unit_vectors(texts, one, role) for one in self._each])

    def too_long(self, texts: list[str]) -> list[bool]:
        return np.any([one.too_long(texts) for one in self._each], axis=0).tolist()
