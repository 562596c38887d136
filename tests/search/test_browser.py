"""A real JupyterLab in a real browser: notebook 03's panel is typed into and clicked.

Runs where Chromium and Playwright are; skipped elsewhere. ``SCREENSHOTS=FOLDER`` keeps pictures.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from trsllava_utils.artefacts import PROJECT_ROOT
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.datasets import load_dataset

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
sync_api = pytest.importorskip("playwright.sync_api")
if not CHROMIUM:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
MINUTE = 60_000


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebooks; its address."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(PROJECT_ROOT / "notebooks", home / "notebooks")
    news = home / "s" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')  # no question over the pictures
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"JUPYTER_CONFIG_DIR": home / "c", "JUPYTER_DATA_DIR": home / "d", "TQDM_DISABLE": 1}
    settings |= {"JUPYTERLAB_SETTINGS_DIR": home / "s", "JUPYTERLAB_WORKSPACES_DIR": home / "w"}
    words = f"-m jupyter lab --no-browser --allow-root --port {port} --ServerApp.port_retries=0"
    words += f" --IdentityProvider.token=secret --ServerApp.root_dir={home / 'notebooks'}"
    server = subprocess.Popen(
        [sys.executable, *words.split()],
        env={**os.environ, **{k: str(v) for k, v in settings.items()}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api?token=secret", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def shoot(what, name: str) -> None:
    """A picture of a page or a part of it, into the folder $SCREENSHOTS. With figures/sample there,
    README's search_panel.jpg is made."""
    if folder := os.environ.get("SCREENSHOTS"):
        what.screenshot(path=str(Path(folder) / f"{name}.jpg"), type="jpeg", quality=80)


def test_search_panel_in_jupyterlab(browser, lab):
    page = browser.new_page(viewport={"width": 1400, "height": 2000})
    page.goto(f"{lab}/lab/tree/03_retrieval.ipynb?token=secret", timeout=2 * MINUTE)
    page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=2 * MINUTE)  # the kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    query = page.get_by_placeholder("what the image should show")
    query.wait_for(timeout=4 * MINUTE)
    query.scroll_into_view_if_needed()
    status = page.locator(".widget-html", has_text="images,").first
    tiles = page.locator("button.tile:visible")
    assert tiles.count() == 8
    shoot(page, "panel")

    for words in ("a plane", "white planes parked side by side"):  # the first loads the encoder
        query.fill(words)
        query.press("Enter")
        status.filter(has_text=words).wait_for(timeout=MINUTE)
    sync_api.expect(tiles.first).to_have_attribute("title", re.compile("^airplane"))
    assert "url(" in tiles.first.evaluate("tile => getComputedStyle(tile).backgroundImage")
    assert page.locator("mark", has_text=re.compile("planes|parked")).count()
    shoot(page.locator(".jp-OutputArea-output", has=query), "search_panel")

    name = tiles.first.get_attribute("title").split(":")[0]
    tiles.first.click()
    card = page.locator(".widget-html", has_text="captions by").first
    card.wait_for(timeout=MINUTE)
    assert name in card.inner_text() and "one_sentence" in card.inner_text()
    shoot(page, "panel_card")

    page.get_by_role("button", name="more like this").click()
    status.filter(has_text=f"images like {name}").wait_for(timeout=MINUTE)
    assert name not in [tile.get_attribute("title").split(":")[0] for tile in tiles.all()]

    page.get_by_role("button", name="a caption of the dataset").click()
    status.filter(has_text="framed in green").wait_for(timeout=MINUTE)
    page.get_by_role("button", name="next ›").click()
    page.locator("figcaption, .widget-html", has_text="9. ").first.wait_for(timeout=MINUTE)
    page.get_by_role("button", name="export").click()
    link = page.get_by_role("link", name="save as HTML", exact=True)
    with page.expect_download() as download:
        link.click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert "<h1>" in text and text.count("data:image/jpeg") == 16
    query.fill(" ")
    query.press("Enter")
    page.locator(".widget-html", has_text="should not be empty").first.wait_for(timeout=MINUTE)
    shoot(page, "panel_end")


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
    assert page.get_by_role("heading", name="To reproduce").is_visible()
    shoot(page, "report_phone")
