"""A real JupyterLab in a real browser: the search panel is typed into, clicked, and dropped on.

Runs where Chromium and Playwright are; skipped elsewhere. ``SCREENSHOTS=FOLDER`` keeps pictures.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.jupyterlab import CHROMIUM, FLAGS, jupyterlab
from trsllava_extras.panel import search
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT

sync_api = pytest.importorskip("playwright.sync_api")
if not CHROMIUM:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
MINUTE = 60_000


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebooks; its address."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(PROJECT_ROOT / "notebooks", home / "notebooks")
    path = home / "notebooks" / "03_retrieval.ipynb"
    notebook = nbformat.read(path, as_version=4)
    said = f"from pathlib import Path\nPath({str(home / 'done')!r}).touch()"
    notebook.cells.append(nbformat.v4.new_code_cell(said))
    nbformat.write(notebook, path)
    with jupyterlab(home) as address:
        yield address, home / "done"


def shoot(what, name: str) -> None:
    """A picture of a page or a part of it, into the folder $SCREENSHOTS. With figures/sample there,
    README's search_panel.jpg is made."""
    if folder := os.environ.get("SCREENSHOTS"):
        what.screenshot(path=str(Path(folder) / f"{name}.jpg"), type="jpeg", quality=80)


@pytest.fixture(scope="module")
def page(browser, lab):
    """Notebook 03, run in JupyterLab, with the panel in view."""
    address, done = lab
    context = browser.new_context(viewport={"width": 1400, "height": 2000})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{address}/lab/tree/03_retrieval.ipynb?token=secret", timeout=2 * MINUTE)
    page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=2 * MINUTE)  # the kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_placeholder("what the image should show").wait_for(timeout=4 * MINUTE)
    page.get_by_placeholder("what the image should show").scroll_into_view_if_needed()
    for _ in range(480):  # half seconds: a kernel is idle for a moment after every cell
        if done.exists():
            break
        page.wait_for_timeout(500)
    assert done.exists(), "the notebook has not come to its end"
    yield page
    context.close()


@pytest.fixture
def panel(page):
    return Driver(page)


class Driver:
    """What a person does at the panel."""

    def __init__(self, page) -> None:
        self.page, self.root = page, page.locator(".trsllava")
        self.query = page.get_by_placeholder("what the image should show")
        self.tiles = self.root.locator(".tiles li")
        self.status = self.root.get_by_role("status")
        self.box = page.locator("dialog.lightbox[open]")

    @property
    def ids(self) -> list[str]:
        return [t.split(". ")[1].split(" ")[0] for t in self.root.locator("li b").all_inner_texts()]

    def ask(self, words: str) -> None:
        self.query.fill(words)
        self.query.press("Enter")
        self.status.filter(has_text=words).wait_for(timeout=MINUTE)

    def mark(self, number: int, name: str) -> None:
        self.tiles.nth(number).get_by_role("button", name=name).click()

    def button(self, name: str):
        return self.root.get_by_role("button", name=name, exact=name in ("page", "csv"))

    def download(self, name: str) -> Path:
        with self.page.expect_download(timeout=MINUTE) as download:
            self.button(name).click()
        path = Path(download.value.path())
        return path.rename(path.with_name(download.value.suggested_filename))

    def drop(self, path: Path, kind: str) -> None:
        """A file dropped on the panel."""
        content = base64.b64encode(path.read_bytes()).decode()
        self.root.evaluate(
            """(root, [content, name, type]) => {
              const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
              const data = new DataTransfer();
              data.items.add(new File([bytes], name, { type }));
              root.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
            }""",
            [content, path.name, kind],
        )


def test_words_weights_and_wrong_input(page, panel):
    assert panel.tiles.count() == 8
    assert page.locator("details summary", has_text="What to notice").count()  # not sanitised away
    panel.ask("white planes parked side by side")
    assert panel.ids[0].startswith("airplane") and "percentile" in panel.tiles.first.inner_text()
    assert panel.root.locator("mark", has_text=re.compile("planes|parked")).count()
    assert panel.tiles.first.locator("img").evaluate("i => i.naturalWidth > 0 && i.alt.length > 9")
    panel.query.press("Enter")  # the picture has the time of a query, not that of a model
    page.wait_for_timeout(1000)
    shoot(panel.root, "search_panel")
    panel.ask("storage tanks + 0.5 grass - houses")
    assert panel.ids[0].startswith("storagetanks")
    panel.ask("a field with no water")
    assert not panel.root.locator("mark", has_text="water").count()
    panel.button("search “a field - water”").click()
    panel.status.filter(has_text="a field - water").wait_for(timeout=MINUTE)
    panel.ask("a cat on a sofa")
    panel.root.get_by_text("nothing like this in 105 images").wait_for(timeout=MINUTE)
    before = panel.ids
    panel.query.fill(" ")
    panel.query.press("Enter")
    panel.status.filter(has_text="nothing to search for").wait_for(timeout=MINUTE)
    assert panel.ids == before
    panel.button("a caption of the dataset").click()
    panel.root.locator("li.hit, li.miss").first.wait_for(timeout=MINUTE)
    panel.ask("boats")
    number = panel.root.get_by_role("spinbutton", name="page")
    for typed, shown in (("2", "9. "), ("999", "105. "), ("0", "1. ")):
        number.fill(typed)
        number.press("Enter")
        panel.root.locator("li b", has_text=re.compile(f"^{re.escape(shown)}")).first.wait_for(
            timeout=MINUTE
        )
    where = panel.root.get_by_label("where")
    where.fill("label = 'river'")
    where.press("Enter")
    panel.status.filter(has_text="· 5 images searched").wait_for(timeout=MINUTE)
    where.fill("")
    where.press("Enter")
    panel.status.filter(has_text="· 105 images searched").wait_for(timeout=MINUTE)
    # the next words may be typed while the result of the last ones arrives
    where.fill("label = 'river'")
    where.press("Enter")
    where.fill("label = 'harbor'")
    panel.status.filter(has_text="· 5 images searched").wait_for(timeout=MINUTE)
    assert where.input_value() == "label = 'harbor'"
    where.fill("")
    where.press("Enter")
    panel.status.filter(has_text="· 105 images searched").wait_for(timeout=MINUTE)


def test_lightbox_by_keyboard(page, panel):
    panel.ask("a plane")
    ids = panel.ids
    panel.tiles.first.locator(".tile").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    panel.box.get_by_text("captions by").wait_for(timeout=MINUTE)
    assert ids[1] in panel.box.inner_text() and "256 × 256 pixels" in panel.box.inner_text()
    assert "one_sentence" in panel.box.inner_text() and panel.box.locator("mark").count()
    height = page.viewport_size["height"]
    frame = panel.box.bounding_box()
    assert frame["y"] >= 0 and frame["y"] + frame["height"] <= height  # never below the fold
    shoot(page, "lightbox")
    for name in (ids[2], ids[3]):
        page.keyboard.press("ArrowRight")
        panel.box.get_by_text(name).first.wait_for(timeout=MINUTE)
    page.keyboard.press("ArrowLeft")
    panel.box.get_by_text(ids[2]).first.wait_for(timeout=MINUTE)
    panel.box.get_by_role("button", name="copy path").click()
    page.wait_for_timeout(500)
    assert page.evaluate("navigator.clipboard.readText()").endswith(f"{ids[2]}.jpg")
    page.keyboard.press("Escape")
    assert not panel.box.count()
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    for key in ("m", "a", "b", "d", "d", "x", "Enter"):  # JupyterLab would make and delete cells
        panel.tiles.nth(1).get_by_role("button", name="right:").focus()
        page.keyboard.press(key)
    page.wait_for_timeout(500)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells and panel.root.count() == 1
    panel.button("clear marks").click()
    panel.tiles.nth(1).locator(".tile").click()
    for _ in range(3):  # mark one image after the other
        panel.box.get_by_role("button", name="right:").focus()
        page.keyboard.press("ArrowRight")
    assert "5 of 8" in panel.box.inner_text()
    page.keyboard.press("s")
    assert panel.box.get_by_role("button", name="select:").get_attribute("aria-pressed") == "true"
    page.keyboard.press("s")
    page.keyboard.press("Escape")
    panel.tiles.nth(2).locator(".tile").click()
    panel.box.get_by_role("button", name="more like this").click()
    panel.status.filter(has_text=f"[{ids[2]}]").wait_for(timeout=MINUTE)
    assert ids[2] not in panel.ids and panel.query.input_value() == f"[{ids[2]}]"
    before = panel.ids
    panel.ask(f"[{ids[2]}] + a beach")
    assert panel.ids != before
    panel.query.press("Enter")  # and again
    panel.status.filter(has_text="a beach").wait_for(timeout=MINUTE)


def test_feedback_over_two_rounds(page, panel):
    panel.ask("houses")
    dense = lambda: sum(name.startswith("denseresidential") for name in panel.ids)  # noqa: E731
    counts = [dense()]
    for _ in range(2):
        for number, name in enumerate(panel.ids):
            right = name.startswith("denseresidential")
            panel.tiles.nth(number).locator(".tile").focus()
            pressed = panel.tiles.nth(number).get_by_role(
                "button", name="right" if right else "wrong"
            )
            if pressed.get_attribute("aria-pressed") == "false":
                page.keyboard.press("+" if right else "-")
        panel.button("search again").click()
        panel.root.locator(".tiles:not(.busy)").wait_for(timeout=MINUTE)
        page.wait_for_timeout(1000)
        counts.append(dense())
    assert counts[0] < counts[1] <= counts[2]
    shoot(page, "feedback")
    panel.query.press("Enter")  # marks count for the same words
    panel.root.locator(".tiles:not(.busy)").wait_for(timeout=MINUTE)
    page.wait_for_timeout(1000)
    assert dense() == counts[2]
    panel.ask("boats")  # and for no others
    told = panel.root.locator(".note", has_text="of “houses” do not count for other words")
    told.wait_for(timeout=MINUTE)
    assert re.search(r"\d+ right and \d+ wrong", told.inner_text())
    told.get_by_role("button", name="undo").click()
    panel.status.filter(has_text="houses").wait_for(timeout=MINUTE)
    page.wait_for_timeout(1000)
    assert dense() == counts[2] and panel.query.input_value() == "houses" and not told.count()
    panel.button("clear marks").click()
    page.wait_for_timeout(500)
    assert dense() == counts[0]


def test_a_selection_gets_a_word_and_is_found_by_it(page, panel):
    panel.ask("round tanks")
    first, third = panel.ids[0], panel.ids[2]
    panel.mark(0, "select")
    panel.mark(2, "select")
    panel.root.get_by_label("tag", exact=True).fill("to check")
    panel.root.get_by_role("button", name="tag", exact=True).click()
    panel.root.get_by_text("2 images have the tag 'to check'").wait_for(timeout=MINUTE)
    assert "to check" in panel.tiles.nth(0).inner_text()
    assert "to check" not in panel.tiles.nth(1).inner_text()
    shoot(panel.root, "tags")
    where = panel.root.get_by_label("where")
    where.fill("tag = 'to check'")
    where.press("Enter")
    panel.status.filter(has_text="· 2 images searched").wait_for(timeout=MINUTE)
    assert set(panel.ids) == {first, third}
    told = json.loads(panel.download("COCO").read_text("utf-8"))
    assert [image["tags"] for image in told["images"]] == [["to check"]] * 2
    panel.root.get_by_role("button", name="untag", exact=True).click()
    panel.root.get_by_text("no image meets the condition (0 of 105)").wait_for(timeout=MINUTE)
    where.fill("")
    where.press("Enter")
    panel.status.filter(has_text="· 105 images searched").wait_for(timeout=MINUTE)
    panel.button("clear selection").click()


def test_selection_saved_and_loaded(page, panel):
    panel.ask("boats")
    first = panel.ids
    panel.mark(0, "select")
    panel.mark(2, "select")
    panel.button("next ›").click()
    panel.root.locator("li b", has_text="9. ").wait_for(timeout=MINUTE)
    page.keyboard.press("Escape")
    panel.tiles.first.locator(".tile").focus()
    page.keyboard.press("s")
    chosen = [first[0], first[2], panel.ids[0]]
    panel.root.get_by_label("what is saved").select_option("selection")
    csv, saved = panel.download("csv"), panel.download("page")
    table = pd.read_csv(csv)
    assert table["image_id"].tolist() == chosen and all(Path(p).is_file() for p in table["path"])
    panel.button("clear selection").click()
    panel.ask("a river")
    panel.drop(csv, "text/csv")
    panel.status.filter(has_text="my selection").wait_for(timeout=MINUTE)
    assert panel.ids == chosen
    panel.root.get_by_label("what is saved").select_option("result")
    panel.ask("boats - pier")
    expected = panel.ids
    whole, table = panel.download("page"), pd.read_csv(panel.download("csv"))
    assert len(table) == 105 and table["image_id"].tolist()[:8] == expected  # not one page
    panel.ask("a river")
    panel.drop(whole, "text/html")
    panel.status.filter(has_text="boats - pier").wait_for(timeout=MINUTE)
    assert panel.ids == expected
    other = page.context.new_page()  # the saved pages stand alone
    other.goto(saved.as_uri())
    other.locator(".tiles a").nth(1).click()
    assert chosen[1] in other.locator("dialog.lightbox[open]").inner_text()
    other.keyboard.press("ArrowRight")
    assert chosen[2] in other.locator("dialog.lightbox[open]").inner_text()
    shoot(other, "saved_page")
    other.keyboard.press("Escape")
    assert not other.locator("dialog.lightbox[open]").count()
    other.close()


def test_a_saved_page_has_no_holes_and_prints_on_two_sheets(browser, tmp_path):
    found = search("boats at a pier", k=8, data_dir=str(tmp_path))
    found.save(tmp_path / "found.html")
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "found.html").as_uri())
    for width, columns in ((1600, 4), (1000, 4), (600, 2), (380, 2)):
        page.set_viewport_size({"width": width, "height": 900})
        boxes = page.locator(".tiles a").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect())"
        )
        assert len({round(box["x"]) for box in boxes}) == columns
        assert len({round(box["height"]) for box in boxes}) == 1
    sheets = len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4")))
    assert 1 <= sheets <= 2
    context.close()


def test_a_picture_is_dropped(page, panel, tmp_path):
    dataset = load_dataset("sample")
    panel.drop(Path(dataset.file_of("beach90").path), "image/jpeg")
    panel.root.get_by_text("described by pixels").wait_for(timeout=MINUTE)
    assert (
        "image shows" in panel.query.input_value() and panel.root.locator(".asked img").is_visible()
    )
    panel.ask(panel.query.input_value() + " and umbrellas")  # its words are edited
    assert panel.root.locator(".asked img").is_visible()
    shoot(page, "by_picture")
    panel.ask("storage tanks")  # another question
    panel.root.locator(".asked").wait_for(state="hidden", timeout=MINUTE)
    assert panel.ids[0].startswith("storagetanks")
    panel.query.fill("")
    panel.query.press("Enter")
    panel.status.filter(has_text="nothing to search for").wait_for(timeout=MINUTE)
    panel.drop(Path(dataset.file_of("beach90").path), "image/jpeg")
    panel.root.get_by_text("described by pixels").wait_for(timeout=MINUTE)
    assert "image shows" in panel.query.input_value()  # also after an error
    panel.button("search by words alone").click()
    panel.root.locator(".asked").wait_for(state="hidden", timeout=MINUTE)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    panel.drop(tmp_path / "broken.jpg", "image/jpeg")
    panel.status.filter(has_text="broken.jpg").wait_for(timeout=MINUTE)


def test_names_for_screen_readers_and_a_phone(page, panel):
    panel.ask("a beach")
    unnamed = panel.root.locator("button, input, select, img").evaluate_all(
        """all => all.filter(e => !(e.hidden || e.textContent.trim() || e.alt || e.title || e.placeholder
           || e.getAttribute("aria-label") || e.closest("label")?.textContent.trim())).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    page.get_by_role("tab", name=re.compile("File Browser")).click()  # it makes room
    page.set_viewport_size({"width": 390, "height": 844})
    panel.query.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    width = panel.root.evaluate("root => [root.scrollWidth, root.clientWidth]")
    assert width[0] <= width[1] + 1
    shoot(page, "panel_phone")
    panel.tiles.first.locator(".tile").click()
    panel.box.get_by_text("captions by").wait_for(timeout=MINUTE)
    assert panel.box.evaluate("box => box.scrollWidth <= innerWidth")
    shoot(page, "lightbox_phone")
    page.keyboard.press("Escape")


def test_the_panel_is_there_again_after_a_reload(page, panel):
    panel.ask("a bridge over a river")
    before = panel.ids
    page.locator(".jp-Notebook .jp-MarkdownOutput").first.click()
    page.keyboard.press("Control+s")
    page.get_by_text("Saving completed").wait_for(state="attached", timeout=MINUTE)
    page.reload()
    page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=2 * MINUTE)
    page.mouse.move(700, 1000)
    for step in range(180):  # JupyterLab draws only the cells in view, and widgets come later
        if panel.query.count():
            break
        page.mouse.wheel(0, 600 if step % 90 < 45 else -600)  # down, and up again
        page.wait_for_timeout(500)
    panel.query.scroll_into_view_if_needed()
    panel.status.filter(has_text="a bridge over a river").wait_for(timeout=MINUTE)
    assert (panel.query.input_value(), panel.ids) == ("a bridge over a river", before)
    panel.ask("a runway")
    assert panel.ids != before


def test_report_on_a_phone(browser, data_dir, static_encoder):
    """It fits the width, shows all its pictures and needs no network."""
    caption_dataset(load_dataset("rsitmd", str(data_dir)))
    words = ["-m", "trsllava_utils", "run", "rsitmd", "--from", "04", "-p", "data_dir"]
    words += [str(data_dir), "-p", "encoder", static_encoder]
    subprocess.run([sys.executable, *words], check=True, cwd=PROJECT_ROOT)
    report = next((data_dir / "rsitmd" / "derived" / "results").glob("*.html"))
    page = browser.new_page(viewport={"width": 390, "height": 844})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    pictures = page.locator("img")
    assert pictures.count() > 8
    assert pictures.evaluate_all("all => all.every(i => i.naturalWidth > 0 && i.alt)")
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert page.get_by_text("The same again").is_visible()
    shoot(page, "report_phone")
