"""Search: a sentence goes in, the images whose captions lie nearest come out.

    from trsllava_utils import search
    search("two planes near a round building", dataset="sample", k=8)

Weighted words, pictures, filters, saved pages and the panel are beside the method, in
``trsllava_extras.panel``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from trsllava_utils import plugins
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, escaped
from trsllava_utils.parameters import MINILM, check
from trsllava_utils.ranking import rule_of, top_items
from trsllava_utils.scoring import one_each
from trsllava_utils.sources import Sources


@dataclass(frozen=True, repr=False)
class Hits:
    """What a search found. ``table``: ``rank, image_id, score, label, text``, the text being the
    image's nearest to the query. Jupyter shows the pictures (``trsllava.views``)."""

    query: str
    table: pd.DataFrame
    sources: Sources

    def __repr__(self) -> str:
        return escaped(self.table.drop(columns="text").round({"score": 3}).to_string(index=False))

    def _repr_html_(self) -> str:
        page = plugins.find("views", "hits")
        return page(self) if page else self.table.to_html()


def search(
    query: str,
    dataset: str = "sample",
    k: int = 8,
    *,
    method: str = "max",
    captioner: str = "",
    encoder: str = MINILM,
    split: str = "test",
    data_dir: str = "",
) -> Hits:
    """Search a captioned dataset or folder of images.

    >>> search("white boats moored at a long pier", k=2).table["label"].tolist()
    ['harbor', 'harbor']

    Args:
        query: what the images should show.
        dataset, split, data_dir: see :func:`trsllava_utils.load_dataset`.
        k: number of images.
        method: the scoring rule, one that can rank a single query.
        captioner, encoder: see :class:`trsllava_utils.sources.Sources`.

    Raises:
        InputError, MissingError: see ``load_dataset`` and ``Sources``; where captions are missing,
            the message is the command that makes them.
    """
    check(query=query, k=k)
    sources = Sources(load_dataset(dataset, data_dir, split), captioner, encoder=encoder)
    rule, image_ids = rule_of(method), list(sources.captions.records)
    if not rule.ranks_one_query:
        raise InputError(f"method {method!r} does not rank a sentence of your own")
    both, vector = rule.sides(sources, image_ids), sources.encode(query)
    if both.images.side.second is not None:
        raise InputError(f"method {method!r} needs more than a sentence; see trsllava_extras.panel")
    asked = one_each(np.array([query]), vector, mean=both.references.side.mean)
    scores = rule.scorer(both.images.side, both.bank)(asked)(slice(0, 1))
    best = top_items(scores, k)[0]
    side = both.images.side
    order = np.argsort(-(side.vectors @ vector[0]), kind="stable")  # of the texts
    nearest = pd.Series(side.texts[order]).groupby(side.groups[order]).first()
    labels = sources.dataset.images.set_index("image_id")["label"]
    ids = [image_ids[n] for n in best]
    table = {"rank": np.arange(1, len(best) + 1), "image_id": ids, "score": scores[0, best]}
    table |= {"label": labels[ids].tolist(), "text": nearest[best].tolist()}
    return Hits(query, pd.DataFrame(table), sources)
