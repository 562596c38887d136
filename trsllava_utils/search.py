"""Search: a sentence goes in, the images whose captions lie nearest come out.

    from trsllava_utils import search
    search("two planes near a round building", dataset="sample", k=8)

Weighted words, pictures, filters, saved pages and the panel are beside the method, in
``trsllava_extras.panel``.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError
from trsllava_utils.images import thumbnail
from trsllava_utils.methods import Method
from trsllava_utils.parameters import MINILM, check
from trsllava_utils.ranking import sides, top_items
from trsllava_utils.scoring import Scorer, one_each
from trsllava_utils.sources import Sources


@dataclass(frozen=True, repr=False)
class Hits:
    """What a search found: ``table`` has ``rank, image_id, score, label, text``, the text being that
    of the image which is nearest to the query. Jupyter shows it as pictures."""

    query: str
    table: pd.DataFrame
    sources: Sources

    def __repr__(self) -> str:
        return self.table.drop(columns="text").round({"score": 3}).to_string(index=False)

    def _repr_html_(self) -> str:
        tiles = []
        for hit in self.table.itertuples():
            file, picture = self.sources.dataset.file_of(hit.image_id), "no pixels on disk"
            if file:
                content = base64.b64encode(
                    thumbnail(file, rendering=self.sources.dataset.rendering)
                )
                picture = f'<img src="data:image/jpeg;base64,{content.decode()}" alt="">'
            words = f"<b>{hit.rank}. {escape(hit.image_id)}</b> {hit.score:.3f}<br>"
            style = "display:inline-block;width:200px;vertical-align:top;font-size:12px"
            tiles.append(f'<div style="{style}">{picture}<br>{words}{escape(hit.text[:180])}</div>')
        return f"<p><b>{escape(self.query)}</b></p>{''.join(tiles)}"


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
    return search_sources(query, sources, k, method)


def search_sources(query: str, sources: Sources, k: int = 8, method: str = "max") -> Hits:
    """:func:`search` in sources that are loaded."""
    rule = Method(method)
    if not rule.ranks_one_query or rule.plugged:
        raise InputError(f"method {method!r} does not rank a sentence of your own")
    image_ids = list(sources.captions.records)
    both = sides(rule, sources, image_ids)
    scorer, vector = Scorer(rule, both.images.side, both.bank), sources.encode(query)
    asked = one_each(np.array([query]), vector, mean=both.captions.side.mean)
    scores = scorer(asked)(slice(0, 1))
    best = top_items(scores, k)[0]
    described = both.images.side
    texts = pd.Series(described.texts[np.argsort(-(described.vectors @ vector[0]), kind="stable")])
    owner = described.groups[np.argsort(-(described.vectors @ vector[0]), kind="stable")]
    nearest = texts.groupby(owner).first()
    labels = sources.dataset.images.set_index("image_id")["label"]
    ids = [image_ids[n] for n in best]
    table = {"rank": np.arange(1, len(best) + 1), "image_id": ids, "score": scores[0, best]}
    table |= {"label": labels[ids].tolist(), "text": nearest[best].tolist()}
    return Hits(query, pd.DataFrame(table), sources)
