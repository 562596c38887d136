"""Geometry of the hypersphere: the two sides of a retrieval go in, alignment, uniformity, the
modality gap and hubness come out, with the samples to plot them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from trsllava_utils.retrieval.products import blocks, cosine, top_items
from trsllava_utils.retrieval.ranking import NamedSide


@dataclass(frozen=True)
class Geometry:
    """The measures, and samples to plot them."""

    numbers: pd.Series  # the measures by name
    pairs: dict[str, np.ndarray]  # squared distances of a reference and a machine text
    within: dict[str, np.ndarray]  # squared distances of two texts of one side
    along: dict[str, np.ndarray]  # positions along the line that joins the two means
    occurrences: np.ndarray  # (n_images,) int64: captions that have the image in their top k
    k: int


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    r"""Mean squared distance of matching pairs, :math:`E \lVert x - y \rVert^2` (Wang and Isola,
    ICML 2020, alpha = 2); 0 (equal) to 4 (opposite), smaller is better.

    Args:
        x, y: ``(n_pairs, dim)`` unit rows.
    """
    return float(_squared(x, y).mean())


def uniformity(x: np.ndarray) -> float:
    r"""How evenly points cover the sphere, :math:`\ln E\, e^{-2 \lVert x - x' \rVert^2}` over pairs
    of two points (Wang and Isola, ICML 2020, t = 2); 0 (all in one place) or below (more even).

    Args:
        x: ``(n, dim)`` unit rows, two at least.
    """
    n = len(x)
    total = sum(np.exp(4 * (x[b] @ x.T).astype(np.float64) - 4).sum() for b in blocks(n, n))
    return float(np.log((total - n) / (n * (n - 1))))  # a point and itself: e^0


def modality_gap(x: np.ndarray, y: np.ndarray) -> float:
    """Distance of the means of two sets of unit rows (Liang et al., NeurIPS 2022); 0 to 2."""
    return float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))


def k_occurrence(captions: NamedSide, images: NamedSide, k: int = 10) -> np.ndarray:
    """How many reference captions have each image among their ``k`` best: ``(n_images,) int64``."""
    score = cosine(captions.side, images.side)
    counts = np.zeros(images.side.n, np.int64)
    for block in blocks(captions.side.n, images.side.n):
        nearest = top_items(score(block), k)
        counts += np.bincount(nearest.ravel(), minlength=len(counts))
    return counts


def measure(captions: NamedSide, images: NamedSide, k: int = 10, limit: int = 4000) -> Geometry:
    """The geometry of reference captions and the machine texts of images.

    Hubness is the skewness of the k-occurrences (Radovanović et al., JMLR 2010): above 1, a few
    images come up for very many captions.

    Args:
        captions, images: the two sides, see :func:`trsllava_utils.retrieval.sides`.
        k: of the k-occurrence.
        limit: at most this many texts per side, drawn at random, are used for pairs.
    """
    from scipy.stats import skew  # slow to import

    rng = np.random.default_rng(0)
    reference, machine = captions.side.vectors, images.side.vectors
    first = np.searchsorted(images.side.groups, captions.owner)  # first text of a caption's image
    r = rng.permutation(len(reference))[:limit]
    m = rng.permutation(len(machine))[:limit]
    half = max(1, len(images.ids) // 2)
    other = np.searchsorted(images.side.groups, (captions.owner[r] + half) % len(images.ids))
    gap = machine.mean(axis=0) - reference.mean(axis=0)
    direction = gap / max(np.linalg.norm(gap), 1e-12)
    counts = k_occurrence(captions, images, k)
    numbers = {
        "alignment (0 best)": alignment(reference, machine[first]),
        "uniformity of reference captions (lower is more even)": uniformity(reference[r]),
        "uniformity of machine texts": uniformity(machine[m]),
        "modality gap (0 none, 2 largest)": modality_gap(reference, machine),
        "hubness (0 none, above 1 strong)": float(skew(counts)) if counts.std() else 0.0,
        f"images in the top {k} of no caption (%)": 100 * float(np.mean(counts == 0)),
    }
    pairs = {"same image": _squared(reference[r], machine[first[r]])}
    pairs["another image"] = _squared(reference[r], machine[other])
    within = {"two reference captions": _squared(reference[r], np.roll(reference[r], 1, axis=0))}
    within["two machine texts"] = _squared(machine[m], np.roll(machine[m], 1, axis=0))
    along = {"reference captions": reference[r] @ direction}
    along["machine texts"] = machine[m] @ direction
    return Geometry(pd.Series(numbers, name="value"), pairs, within, along, counts, k)


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.square(x - y).sum(axis=1)
