"""Encoder ``A + B``: several text encoders side by side."""

from __future__ import annotations

import numpy as np

from trsllava_utils.encoders import load_encoder, unit_vectors


class JoinedEncoders:
    """Each text's unit vectors of all encoders, one behind the other: the cosine of two joined
    vectors is the mean of the encoders' cosines."""

    def __init__(self, name: str, precision: str = "float32") -> None:
        self.name = name
        self._each = [load_encoder(part.strip(), precision) for part in name.split(" + ")]
        self.precision = self._each[0].precision

    @property
    def identity(self) -> str:
        return " + ".join(one.identity for one in self._each)

    @property
    def control(self) -> list[float]:
        return [number for one in self._each for number in one.control]

    def encode(self, texts: list[str], role: str) -> np.ndarray:
        """See :class:`~trsllava_utils.encoders.Encoder`; errors of ``unit_vectors``."""
        return np.hstack([unit_vectors(texts, one, role) for one in self._each])

    def too_long(self, texts: list[str]) -> list[bool]:
        """Which texts one of the encoders cannot read whole."""
        return np.any([one.too_long(texts) for one in self._each], axis=0).tolist()
