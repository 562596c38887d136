"""When an image was taken: a file's tags and its name go in, an acquisition date comes out, as
``2021-06-01``. Dates of processing, and of files, are none.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import PurePath

EPOCH = date(1970, 1, 1)  # what GDAL says of a time that it cannot read (Landsat Collection 1)
_TAKEN = re.compile(
    r"(acqui|sensing|start|begin|original|coverage).*(date|time)|(date|time).*(acqui|start|begin)|"
    r"(date|time)_?original|^datetime$",
    re.IGNORECASE,
)
_NOT_TAKEN = re.compile(
    r"process|produced|production|creat|generat|file|publi|archiv|update|ingest", re.IGNORECASE
)
_YEAR, _MONTHS = (
    "(?P<y>(?:19|20)\\d\\d)",
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
)
_MONTH = f"(?P<name>{'|'.join(_MONTHS)})[a-z]*"
# the first that matches and is a day counts; lower case
_FORMS = [
    re.compile(form)
    for form in (
        # of the year: MODIS and VIIRS A2021152, GOES s20211521000209, HLS 2021152T101031, Landsat
        # LC81930272015152LGN00
        rf"(?<![a-z0-9])a{_YEAR}(?P<day>\d{{3}})(?!\d)",
        rf"(?<![a-z0-9])s{_YEAR}(?P<day>\d{{3}})\d{{7}}(?!\d)",
        rf"(?<!\d){_YEAR}(?P<day>\d{{3}})t\d{{4,6}}(?!\d)",
        rf"^l[a-z]\d\d{{6}}{_YEAR}(?P<day>\d{{3}})[a-z]{{3}}\d\d",
        # 20210601, with a separator, and with the time behind it: 20210601101031, …1010319
        rf"(?<!\d){_YEAR}(?P<sign>[-_:./]?)(?P<m>\d\d)(?P=sign)(?P<d>\d\d)(?!\d)",
        rf"(?<!\d){_YEAR}(?P<m>\d\d)(?P<d>\d\d)\d{{6,7}}(?!\d)",
        # 1.6.2021, 01Jun2021, 2021-Jun-01, and WorldView's 21JUN01101031
        rf"(?<!\d)(?P<d>\d\d?)\.(?P<m>\d\d?)\.{_YEAR}(?!\d)",
        rf"(?<!\d)(?P<d>\d\d?)[-_ ]?{_MONTH}[-_ ,]*{_YEAR}(?!\d)",
        rf"(?<!\d){_YEAR}[-_ ]?{_MONTH}[-_ ]?(?P<d>\d\d?)(?!\d)",
        rf"(?<!\d)(?P<short>\d\d){_MONTH}(?P<d>\d\d)\d{{6}}(?!\d)",
    )
]


def acquired(tags: dict[str, str], filename: str) -> str:
    """Acquisition date, ``2021-06-01``, from a file's tags or else its name; "" for none. A plain
    DATETIME tag comes last: many programs write there when they made the file."""
    told = [v for name, v in tags.items() if _TAKEN.search(name) and not _NOT_TAKEN.search(name)]
    texts = (*told, PurePath(filename).stem, tags.get("TIFFTAG_DATETIME", ""))
    return next(filter(None, map(as_date, texts)), "")


def as_date(text: str) -> str:
    """The first date in a text as ``2021-06-01``; "" for none. Understood are years with month and
    day in digits or by name, in the order of ISO 8601 or of ``1.6.2021``, days of the year, and
    what products write into their names."""
    for form in _FORMS:
        for match in form.finditer(text.lower()):
            day = _day(match.groupdict())
            if day and day != EPOCH and day.year <= date.today().year + 1:
                return day.isoformat()
    return ""


def _day(part: dict[str, str | None]) -> date | None:
    """The day that a form has found; None where there is no such day."""
    year = int(part.get("y") or 2000 + int(part["short"]))
    if part.get("day"):
        day = date(year, 1, 1) + timedelta(int(part["day"]) - 1)
        return day if day.year == year else None
    month = _MONTHS.index(part["name"]) + 1 if part.get("name") else int(part["m"])
    try:
        return date(year, month, int(part["d"]))
    except ValueError:
        return None
