"""A real JupyterLab, for tests and benchmarks in a browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def jupyterlab(home: Path) -> Iterator[str]:
    """JupyterLab over ``home/notebooks``, its settings in ``home``; its address. The token is
    "secret"."""
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
