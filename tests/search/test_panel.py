"""The panel's side in Python: what is asked, shown, selected, saved and loaded; the browser's side is
in test_browser.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import write_captions
from trsllava_extras.panel.found import Found
from trsllava_extras.panel.panel import Panel, reopen, search_panel
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.sources import Sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    folder = tmp_path_factory.mktemp("data")
    dataset = load_dataset("sample", str(folder), "test")
    return Sources(dataset, write_captions(folder / "people.jsonl", dataset))


class Browser:
    """Says to a panel what the browser would, and keeps what it is sent."""

    def __init__(self, panel: Panel) -> None:
        self.panel, self.sent = panel, []
        panel.screen.send = lambda content, buffers=(): self.sent.append((content, list(buffers)))

    def say(self, command: str, buffers: tuple = (), **values) -> None:
        self.panel._on_message(None, {"command": command, **values}, list(buffers))

    @property
    def shown(self) -> dict:
        return self.panel.screen.result

    @property
    def ids(self) -> list[str]:
        return [tile["image_id"] for tile in self.shown["tiles"]]


@pytest.fixture
def browser(sources, monkeypatch) -> Browser:
    monkeypatch.setenv("JPY_SESSION_NAME", "03_retrieval.ipynb")
    return Browser(search_panel(sources, "boats", k=4))


def test_asking(browser, sources):
    panel = browser.panel
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data and "<img" in data["text/html"]
    assert len(browser.ids) == 4 and browser.shown["total"] == 105 and browser.shown["pages"] == 27
    panel.search(query="a green river")
    first = browser.ids
    panel.search(page=2)
    assert browser.shown["tiles"][0]["rank"] == 5 and not set(first) & set(browser.ids)
    panel.search(page=1)
    assert browser.ids == first
    panel.search()  # Enter, once more
    assert browser.ids == first and panel.screen.history == ["a green river", "boats"]
    panel.search(label="harbor", where="image_id != 'harbor92'", k=8)
    assert browser.shown["total"] == 4 and set(i[:6] for i in browser.ids) == {"harbor"}
    panel.search(label="", where="", method="lexical")
    assert panel.found.request["method"] == "lexical"
    panel.search(query="[harbor92] + beach", method="max")
    assert "harbor92" not in browser.ids
    browser.say("caption")
    assert panel.found.table["hit"].notna().all()


def test_marks_wait_for_the_next_search(browser):
    panel = browser.panel
    panel.search(query="water")
    before = browser.ids
    marks = {"right": ["beach90"], "wrong": ["harbor92"]}
    panel.screen.marks = marks
    panel.search(page=2)
    panel.search(page=1)
    assert browser.ids == before
    panel.search(**marks)
    assert browser.ids != before and browser.ids[0] == "beach90"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"query": " "}, "nothing to search for"),
        ({"query": "- boats"}, "nothing in it is wanted"),
        ({"query": "[nowhere]"}, "'nowhere' has no captions"),
        ({"where": "cloud < 3"}, "no such column: cloud"),
        ({"bbox": "1,2,3,4"}, "no place is known"),
        ({"page": 99}, "no page 99"),
        ({"k": 0}, "should be greater"),
        ({"method": "fusion"}, "needs a CLIP"),
        ({"method": "csls"}, "not one of your own"),
    ],
)
def test_wrong_input_is_told_and_loses_nothing(browser, changes, told):
    before = browser.ids
    browser.panel.search(**changes)
    assert told in browser.shown["error"] and browser.ids == before
    good = {"query": "beach", "where": "", "bbox": "", "page": 1, "k": 4, "method": "max"}
    browser.panel.search(**good)
    assert not browser.shown["error"] and browser.ids != before
    with pytest.raises(InputError, match="unknown command"):
        browser.say("__init__")


def test_cards_and_files(browser, sources):
    browser.say("open", number=1)
    card = browser.sent[-1][0]
    assert card["number"] == 1 and browser.ids[1] in card["card"]
    path = sources.dataset.file_of(browser.ids[1]).path
    assert path in card["card"] and "256 × 256 pixels" in card["card"]
    browser.say("path", number=1)
    assert browser.sent[-1][0] == {"path": path}
    browser.say("download", number=1)
    content, buffers = browser.sent[-1]
    assert content["file"] == Path(path).name and buffers == [Path(path).read_bytes()]
    browser.say("picture_of", number=1)
    assert browser.sent[-1][0]["in_tab"] and browser.sent[-1][1][0][:2] == b"\xff\xd8"


def test_saving_and_loading(browser, sources):
    panel = browser.panel
    panel.search(query="boats", label="harbor", k=4)
    browser.say("save", kind="csv", selection=False)
    content, (csv,) = browser.sent[-1]
    assert content["file"] == "boats.csv" and csv.decode().count("harbor") >= 5  # not one page
    browser.say("save", kind="html", selection=True)
    assert "nothing is selected" in browser.shown["error"]
    panel.screen.selected = ["beach90", "river93"]
    for kind in ("csv", "html"):
        browser.say("save", kind=kind, selection=True)
        _, (content,) = browser.sent[-1]
        panel.screen.selected = []
        browser.say("load", (content,), name=f"mine.{kind}")
        assert browser.ids == panel.screen.selected == ["beach90", "river93"]
    panel.search(query="a road - cars", method="centroid", label="", right=["river93"], page=1)
    expected = browser.ids
    browser.say("save", kind="html", selection=False)
    _, (page,) = browser.sent[-1]
    panel.search(query="beach", method="max", right=[], page=1)
    browser.say("load", (page,), name="page.html")
    assert panel.screen.request["query"] == "a road - cars" and browser.ids == expected
    browser.say("save", kind="folder", selection=True)
    assert "2 of 2 images are in" in browser.shown["notes"][0]
    browser.say("save", kind="folder", selection=True)  # and again, in the same second
    assert "2 of 2 images are in" in browser.shown["notes"][0] and not browser.shown["error"]
    made = next((sources.dataset.derived / "selections").iterdir())
    assert sorted(f.name for f in made.iterdir()) == ["1_beach90.jpg", "2_river93.jpg"]
    for name, content in (("x.html", b"<html>"), ("x.txt", b"\xff\xfe"), ("x.jpg", b"no picture")):
        browser.say("load", (content,), name=name)
        assert name in browser.shown["error"]
    before = panel.screen.selected
    for text, told in (
        ("image_id\nbeach90\nnope\n", "not among the images here: nope"),
        ("image_id\n", "x.csv"),
    ):
        browser.say("load", (text.encode(),), name="x.csv")
        assert told in browser.shown["error"] and panel.screen.selected == before
    browser.say("load", (b"image_id\nbeach90\nbeach90\n",), name="x.csv")
    assert panel.screen.selected == ["beach90"] and not browser.shown["error"]


def test_a_picture_asks(browser, sources):
    content = Path(sources.dataset.file_of("beach90").path).read_bytes()
    browser.say("load", (content,), name="mine.jpg")
    assert "mine.jpg, described by pixels" in browser.shown["picture"]["text"]
    shown = browser.ids
    browser.say("save", kind="csv", selection=False)
    saved = browser.sent[-1][1][0].decode()
    assert "percentile" not in saved and shown[0] in saved.splitlines()[1]  # as it was shown
    assert "image shows" in browser.panel.screen.request["query"]
    browser.panel.search(query="a beach with umbrellas")  # edited
    assert browser.shown["picture"] and browser.ids[0].startswith("beach")
    browser.panel.search(picture="")
    assert not browser.shown["picture"]


def test_a_page_is_opened_again(sources, browser, tmp_path, monkeypatch):
    folder = str(sources.dataset.derived.parent.parent)
    browser.panel.search(query="a road - cars", label="freeway", k=3, right=["freeway90"])
    page = browser.panel.found.save(tmp_path / "found.html")
    again = reopen(page, data_dir=folder)
    assert isinstance(again, Panel)
    assert again.found.table["image_id"].tolist() == browser.ids
    assert again.screen.request["right"] == ["freeway90"]
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    found = reopen(page, data_dir=folder)
    assert isinstance(found, Found) and found.table["image_id"].tolist() == browser.ids
    settings = json.loads(page.read_text().split('id="search">')[1].split("</script>")[0])
    assert str(tmp_path) not in json.dumps(settings["request"])
    other = tmp_path / "other.html"
    other.write_text(page.read_text().replace('"dataset": "sample"', '"dataset": "my archive"'))
    with pytest.raises(
        InputError, match=r"searched the folder Sample .UC Merced., which is not known.*say where"
    ):
        reopen(other)
    browser.say("load", (other.read_bytes(),), name="other.html")
    assert "this page searched Sample (UC Merced) (test)" in browser.shown["error"]
    with pytest.raises(MissingError, match=r"gone\.html not found"):
        reopen(tmp_path / "gone.html")
    picked = browser.panel._index("max").pick(["beach90", "river93"])
    found = reopen(picked.save(tmp_path / "picked.html"), data_dir=folder)
    assert found.table["image_id"].tolist() == ["beach90", "river93"]


@pytest.mark.parametrize(
    "settings",
    [
        [], 5, {}, {"request": 5}, {"request": {}}, {"request": {"query": 5}},
        {"request": {"query": "x", "right": 5}}, {"request": {"query": "x", "label": 5}},
        {"request": {"query": "x", "where": None}}, {"request": {"query": "x", "k": "x"}},
        {"request": {"query": "x", "method": ["a"]}}, {"request": {"selected": "abc"}},
        {"request": {"query": "x"}, "encoder": 5},
    ],
)  # fmt: skip
def test_a_page_with_something_else_in_it_is_refused_and_nothing_changes(settings, browser):
    before = dict(browser.panel.screen.request)
    page = f'<!doctype html><script type="application/json" id="search">{json.dumps(settings)}</script>'
    browser.say("load", (page.encode(),), name="bad.html")
    assert browser.shown["error"] and browser.panel.screen.request == before
    browser.panel.search(query="a beach")
    assert not browser.shown["error"]
