"""The panel behind Voilà, in a real browser: queries work, no code is shown, and nothing else is
reachable."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.jupyterlab import CHROMIUM, FLAGS
from trsllava_extras.cli import serve
from trsllava_utils.files import InputError, MissingError

MINUTE = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory, static_encoder):
    """Of the panel, with its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("serve")
    words = f"-m trsllava_utils serve sample --query boats --no-browser --port {port}"
    words += f" -p data_dir {home / 'data'} -p encoder {static_encoder}"
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, *words.split()],
            env={**os.environ, "TQDM_DISABLE": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(360):
            found = re.search(r"http://127\.0\.0\.1:\S+", (home / "log").read_text())
            if found or server.poll() is not None:
                break
            time.sleep(0.5)
        assert found, (home / "log").read_text()
        yield found[0]
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # where Ctrl-C is ignored, as in background jobs, too
        server.wait(30)


def content(address: str) -> str:
    try:
        return urllib.request.urlopen(address, timeout=60).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code}"


def test_the_panel_works_and_shows_no_code(address):
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(address)
        query = page.get_by_placeholder("what the image should show")
        query.wait_for(timeout=2 * MINUTE)
        assert query.input_value() == "boats"
        query.fill("white planes parked side by side")
        query.press("Enter")
        page.get_by_role("status").filter(has_text="white planes").wait_for(timeout=MINUTE)
        assert page.locator(".trsllava .tiles li").count() == 8
        assert "index_of" not in page.content() and "import os" not in page.content()
        browser.close()


def test_nothing_else_is_reachable(address):
    base, token = address.split("?")
    login = content(base)
    assert "trsllava" not in login and "token" in login.lower()
    for path in ("search.ipynb", "voila/files/search.ipynb", "files/search.ipynb", "api/contents"):
        for end in ("", f"?{token}"):
            told = content(f"{base}{path}{end}")
            assert "index_of" not in told and "ipynb" not in told.replace("search.ipynb", ""), path


def test_what_is_missing_is_said_before_a_server_starts(monkeypatch, tmp_path):
    with pytest.raises((InputError, MissingError), match="no-such"):
        serve.serve("no-such", {}, "boats", 0)
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"trsllava-utils\[serve\]"):
        serve.serve("sample", {}, "boats", 0)
