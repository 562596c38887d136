"""Images that nobody has described yet, so that they can be searched by CLIP meanwhile."""

from __future__ import annotations

from dataclasses import fields, replace

from trsllava_extras.cli.shell import to_shell
from trsllava_extras.clip import UNCAPTIONED
from trsllava_utils.captioner import captioner_id, exists
from trsllava_utils.captions import Captions, load_captions
from trsllava_utils.data import KNOWN, Dataset
from trsllava_utils.files import MissingError, first_few, resolve_data_dir
from trsllava_utils.records import Record, Variant
from trsllava_utils.sources import Sources

NOBODY = "nobody"  # stands as the model of their records


class Pictured(Sources):
    """Sources in which every image with pixels has a text: without captions, a line that says so.
    The step ``fusion`` then takes CLIP's score alone."""

    @property
    def captions(self) -> Captions:
        """The captions that there are, and :data:`UNCAPTIONED` for all other images."""
        return self.once(_filled_up, self.dataset, self.captioner)


def pictured(sources: Sources) -> Pictured:
    """The same sources, with the images that have no captions."""
    return Pictured(**{field.name: getattr(sources, field.name) for field in fields(sources)})


def uncaptioned(sources: Sources) -> int:
    """How many of the images that are searched have no caption."""
    return sum(record.model == NOBODY for record in sources.captions.records.values())


def not_searched(sources: Sources) -> str:
    """A sentence on the images with pixels that have no captions, and the command that describes
    them; "" where all have some."""
    dataset, records = sources.dataset, sources.captions.records
    files = dataset.with_pixels[~dataset.with_pixels["image_id"].isin(list(records))]
    bare = files["filename"].tolist()
    if not bare:
        return ""
    told = (
        f"{len(bare):,} of {len(bare) + len(records):,} images are not described yet and were not "
        f"searched: {first_few(bare)}"
    )
    if exists(sources.captioner):
        return told
    elsewhere = dataset.derived.parent.parent
    given = {"captioner": sources.captioner, **dataset.tiling}
    given |= {} if elsewhere == resolve_data_dir() else {"data_dir": str(elsewhere)}
    name = dataset.name if dataset.name in KNOWN else str(dataset.root)
    return f"{told}; {to_shell('run', name, given)} --to 02"


def _filled_up(dataset: Dataset, captioner: str) -> Captions:
    try:
        captions = load_captions(dataset, captioner)
    except MissingError:
        captions = Captions(captioner_id(captioner), {}, ())
    records = dict(captions.records)
    for row in dataset.with_pixels.itertuples():
        line = [Variant(caption=UNCAPTIONED)]
        records.setdefault(row.image_id, Record(image=row.filename, model=NOBODY, variants=line))
    ordered = {i: records[i] for i in dataset.images["image_id"] if i in records}
    return replace(captions, records=ordered, parts=())
