#!/usr/bin/env bash
# One property that looks like a date and is none makes a whole GeoJSON file unreadable.
#
# geopandas 1.1.4 with pyogrio 0.13.0 (GDAL 3.12). GeoJSON has no dates: a property is text. GDAL's
# driver looks at the first values of a property, and where all look like "2021-02-28" it is a date.
# It does not look whether there is such a day. Seen, for a file of two points:
#
#   property of the second point   geopandas.read_file              with datetime_as_string=True
#   2021-02-28                     2 rows                           2 rows
#   2021-02-30                     ValueError: day is out of …      ValueError: day is out of …
#   2021-02-30x                    2 rows                           2 rows
#
# One would expect the text, or one value that is missing. The option that asks for text does not
# help; GeoDataFrame.from_features, which does not go through GDAL, reads both rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    geopandas==1.1.4 pyogrio==0.13.0 shapely==2.1.2 pandas==2.3.3 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import json

import geopandas
import pyogrio

seen = {}
for day in ("2021-02-28", "2021-02-30", "2021-02-30x"):
    point = {"type": "Point", "coordinates": [11.5, 48.1]}
    features = [
        {"type": "Feature", "properties": {"taken": taken}, "geometry": point}
        for taken in ("2021-02-27", day)
    ]
    with open("a.geojson", "w") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file)
    outcomes = []
    for options in ({}, {"datetime_as_string": True}):
        try:
            outcomes.append(f"{len(geopandas.read_file('a.geojson', **options))} rows")
        except ValueError as error:
            outcomes.append(f"ValueError: {error}")
    seen[day] = tuple(outcomes)
    assert len(geopandas.GeoDataFrame.from_features(features)) == 2
print("geopandas", geopandas.__version__, "pyogrio", pyogrio.__version__, pyogrio.__gdal_version__)
for day, outcomes in seen.items():
    print(f"{day:12}", *outcomes, sep="  ")
none = "ValueError: day is out of range for month"
assert seen == {
    "2021-02-28": ("2 rows", "2 rows"),
    "2021-02-30": (none, none),
    "2021-02-30x": ("2 rows", "2 rows"),
}
PY
