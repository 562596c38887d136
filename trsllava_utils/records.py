"""The RSRT record (Remote Sensing Rich Text), its JSONL file, and the text corpus made of it.

A *variant* is one description of an image, its *fields* are ``one_sentence``, ``feature`` and
``caption``; a *text* is what is embedded of it. (``rsrt`` is also the name of the prompt that asks
for such records, and of the captioner whose records come with the data. *Reference captions* are
those of people.)

One line per image: ``{"image": "port_3.jpg", "model": "…", "variants": [{"one_sentence",
"feature", "caption"}, …]}``.
Lines made elsewhere may also be flat RSRT (one variant per line) or plain ``{"image", "caption"}``.
A variant without ``one_sentence`` and ``feature`` is a plain caption.

Which *texts* of a variant are embedded is written as forms, joined by commas: ``joined`` (the
fields under their names, as in the paper), fields in any order without their names
(``one_sentence+caption``), ``plain`` (all three so), ``fields`` (each as a text of its own).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from trsllava_utils.annotations import clean_text
from trsllava_utils.files import InputError, check_choice, fingerprint, read_lines, read_once
from trsllava_utils.parameters import MAX_VARIANTS

CORPUS_COLUMNS = ["image_id", "source", "variant", "field", "text"]
FIELDS = ("one_sentence", "feature", "caption")
_FORMS = "Also plain, fields, fields joined by + and several of these joined by commas."
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Words = Annotated[str, BeforeValidator(clean_text), StringConstraints(min_length=1)]


class Variant(BaseModel):
    """One structured caption. A plain caption made elsewhere has only ``caption``."""

    model_config = ConfigDict(frozen=True)
    one_sentence: Words | None = None
    feature: Words | None = None
    caption: Words

    @property
    def structured(self) -> bool:
        return self.one_sentence is not None and self.feature is not None

    @property
    def fields(self) -> dict[str, str]:
        """The texts of the fields that it has, by name."""
        return {f: text for f in FIELDS if (text := getattr(self, f)) is not None}

    def text(self, form: str = "joined") -> str:
        """The variant as one text: "joined", as the paper embeds it, or fields such as
        "one_sentence+caption". A plain caption is its caption in every form."""
        if not self.structured:
            return self.caption
        if form == "joined":
            return "\n".join(f"{name.upper()}: {text}" for name, text in self.fields.items())
        return "\n".join(self.fields[name] for name in form.split("+"))


class Record(BaseModel):
    """The captions of one image."""

    image: Text  # file name, as the dataset has it
    model: Text  # who wrote them; for a server, the name it gave itself
    variants: Annotated[list[Variant], Field(min_length=1, max_length=MAX_VARIANTS)]
    image_sha256: str = ""  # which pixels they describe
    settings: str = ""  # fingerprint of model, prompt and settings
    attempts: int = 1  # how often the model was asked

    @property
    def seal(self) -> str:
        """Eight hex digits of what is said of which picture: a line that was changed tells so."""
        return fingerprint(self.image, self.image_sha256, [v.fields for v in self.variants])[:8]

    def layout(self) -> dict:
        """The record as it is written; a single plain caption takes the plain layout."""
        value = self.model_dump(exclude_none=True, exclude_defaults=True) | {"seal": self.seal}
        if len(self.variants) == 1 and not self.variants[0].structured:
            value |= value.pop("variants")[0]
        return value


def parse_line(value: object) -> Record:
    """A line in any of the three layouts -> a Record.

    Raises:
        InputError: what is wrong with the line, in one sentence (the caller knows the line number).
    """
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, found {type(value).__name__}")
    if "variants" not in value:
        value = {
            **{k: v for k, v in value.items() if k not in FIELDS},
            "image": str(value.get("image") or value.get("filename") or ""),
            "variants": [{k: value[k] for k in FIELDS if k in value}],
        }
    value = {**value, "model": value.get("model") or "file"}
    try:
        record = Record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {first['msg']}") from error
    for variant in record.variants:
        if not variant.structured and len(variant.fields) > 1:
            absent = [name for name in FIELDS if name not in variant.fields]
            raise InputError(f"a variant lacks {' and '.join(absent)}")
    return record


@read_once
def read_records(path: Path) -> tuple[dict[str, Record], list[str]]:
    """Read a captions file.

    Flat layouts are grouped by image. Of two whole records with the same ``image_sha256`` the first
    is kept and the second reported; where the hashes differ, the later one counts.

    Returns:
        Records by file name, in the order of the file, and one sentence for every line that could
        not be used.
    """
    records: dict[str, Record] = {}
    problems: list[str] = []
    changed = 0
    for number, value, problem in read_lines(path):
        try:
            if problem:
                raise InputError(problem)
            record = parse_line(value)
            changed += value.get("seal", record.seal) != record.seal
            known = records.setdefault(record.image, record)
            if record.image_sha256 != known.image_sha256:  # described anew, the picture had changed
                records[record.image] = record
            elif known is not record:
                if "variants" in value or len(known.variants) >= MAX_VARIANTS:
                    raise InputError(f"{record.image} has its captions already")
                variants = [*known.variants, *record.variants]
                records[record.image] = known.model_copy(update={"variants": variants})
        except InputError as error:
            problems.append(f"{path.name}, line {number}: {error}; it was left out")
    if changed:
        told = f"{changed:,} images have captions that were edited by hand, or damaged"
        problems.append(f"{path.name}: {told}; they are used as they are")
    return records, problems


def caption_corpus(
    records: Iterable[tuple[str, Record]], source: str, texts: str = "joined"
) -> pd.DataFrame:
    """Records as a text corpus: ``image_id, source, variant, field, text``, one row per text.

    Args:
        records: ``(image_id, record)`` pairs.
        source: the captioner's id.
        texts: their forms, see the module's first paragraphs. Column ``field`` holds the form, with
            "full" for "joined"; of a plain caption there is one row, "caption".

    Raises:
        InputError: unknown forms.
    """
    forms = text_forms(texts)
    rows = []
    for image_id, record in records:
        for n, variant in enumerate(record.variants):
            for form in forms if variant.structured else ["caption"]:
                field = "full" if form == "joined" else form
                rows.append((image_id, source, n, field, clean_text(variant.text(form))))
    return pd.DataFrame(rows, columns=CORPUS_COLUMNS)


def text_forms(texts: str) -> list[str]:
    """``"fields,joined"`` -> ``["one_sentence", "feature", "caption", "joined"]``.

    Raises:
        InputError: an unknown form, or a form or field that comes twice.
    """
    short = {"fields": ",".join(FIELDS), "plain": "+".join(FIELDS)}
    named = [short.get(name, name) for name in re.sub(r"\s+", "", texts).split(",")]
    forms = ",".join(named).split(",")
    for form in forms:
        parts = form.split("+")
        for part in parts:
            check_choice("texts", part, FIELDS if len(parts) > 1 else ("joined", *FIELDS), _FORMS)
        if len(set(parts)) < len(parts) or forms.count(form) > 1:
            raise InputError(f"texts {texts!r}: {form} names something twice")
    return forms
