"""Queries as text: what is a part, what a sentence, and what is not wanted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsllava_extras.panel.query import Part, parse_query, with_feedback
from trsllava_utils.files import InputError

READ = {
    "storage tanks + 0.5 river - houses": [(1, "storage tanks"), (0.5, "river"), (-0.5, "houses")],
    "storage tanks -houses": [(1, "storage tanks"), (-0.5, "houses")],
    "river − 1.5 × boats": [(1, "river"), (-1.5, "boats")],
    "0.5 river + 2*sea": [(0.5, "river"), (2, "sea")],
    "- boats + river": [(-0.5, "boats"), (1, "river")],
    "two planes + 2 cars": [(1, "two planes"), (1, "2 cars")],
    "[beach90] + umbrellas - 2*boats": [(1, "[beach90]"), (1, "umbrellas"), (-2, "boats")],
    "[a + b - c.tif] + sand": [(1, "[a + b - c.tif]"), (1, "sand")],
    "a cream-coloured beach": [(1, "a cream-coloured beach")],
    "p+q": [(1, "p+q")],
    "0.5 metre pixels": [(1, "0.5 metre pixels")],
    '"a well - built school"': [(1, "a well - built school")],
    "a river – and a road": [(1, "a river – and a road")],
    '"trees" - "houses"': [(1, "trees"), (-0.5, "houses")],
    '"red-roofed houses" + trees': [(1, "red-roofed houses"), (1, "trees")],
    'a "b - c" d': [(1, 'a "b - c" d')],
    "[photo + [1]] + sand": [(1, "[photo + [1]]"), (1, "sand")],
    "[x[1]]": [(1, "[x[1]]")],
    "temperature of -5 degrees": [(1, "temperature of -5 degrees")],
    "from 5 - 10 cars": [(1, "from 5 - 10 cars")],
}


@pytest.mark.parametrize("text", READ)
def test_parts(text):
    parts = parse_query(text).parts
    assert [(p.weight, p.text or f"[{p.image}]") for p in parts] == READ[text]


@pytest.mark.parametrize("text", ["- houses", "-0.5 houses - trees", "−x"])
def test_something_must_be_wanted(text):
    with pytest.raises(InputError, match="nothing in it is wanted"):
        parse_query(text)


SUGGESTED = {
    "a field with no water": "a field - water",
    "storage tanks without any houses": "storage tanks - houses",
    "a beach, not crowded, beside the sea": "a beach, beside the sea - crowded",
    "no trees": "",  # nothing is left to look for
    "a notable road": "",
    "a northern road": "",
    "a field - water": "",
    "an airport not far from the sea": "",
    "a building no more than three storeys high": "",
    "not only trees but also houses": "",
    "a harbour with few or no boats": "",
    "there is no doubt this is a harbour": "",
    "a runway with no planes and a terminal": "a runway and a terminal - planes",
    "a road with no cars and no trees": "a road - cars - trees",
    "not a beach, but a harbour": "a harbour - beach",
    '"A - B without C"': "",
}


@pytest.mark.parametrize("text", ["a + []", "boats + 99999999999999999999.0 river", "a + !"])
def test_parts_that_are_none(text):
    with pytest.raises(InputError, match=r"is empty|its weight is"):
        parse_query(text)


def test_a_query_of_parts_says_how_it_was_read():
    note = parse_query("a city at night - seen from above").notes[0]
    assert note.startswith("read as + 1 × a city at night − 0.5 × seen from above; put a sentence")
    assert not parse_query("a city at night").notes


@pytest.mark.parametrize("text", SUGGESTED)
def test_a_negation_is_offered_as_a_minus(text):
    assert parse_query(text).suggestion == SUGGESTED[text]
    assert "water" not in parse_query(text).words


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_any_text_is_a_query_or_an_error(text):
    try:
        query = parse_query(text)
    except InputError:
        return
    assert query.parts and any(part.weight > 0 for part in query.parts)
    assert all(part.text or part.image for part in query.parts)
    assert parse_query(text, is_sentence=True).parts[0].text in (
        text.strip(),
        text.strip()[1:-1],
        "",
    )


def test_feedback_is_a_query_of_parts():
    query = with_feedback(parse_query("boats"), ["a", "b"], ["c"])
    assert query.parts[1:] == (
        Part(0.375, image="a"),
        Part(0.375, image="b"),
        Part(-0.15, image="c"),
    )
    assert with_feedback(parse_query("boats"), [], []) == parse_query("boats")
