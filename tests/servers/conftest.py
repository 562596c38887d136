"""What the servers are asked with, and the table of docs/servers.md (``make servers`` writes it)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.servers.real import CHAT, EMBED, KEY, MINILM, Kind, Running, relayed

SEEN: dict[str, dict[str, str]] = {}  # behaviour -> what each server did


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.servers)


def pytest_sessionfinish(session):
    path = Path(os.environ.get("SERVER_TABLE", ""))
    if not SEEN or not path.is_file():
        return
    head = path.read_text(encoding="utf-8").partition("<!-- table -->")[0]
    rows = []
    for title, kinds in (("Captions", CHAT), ("Embeddings", EMBED)):
        rows += [f"\n| {title} | {' | '.join(kind.name for kind in kinds.values())} |"]
        rows += ["| --- " * (len(kinds) + 1) + "|"]
        for behaviour, seen in SEEN.items():
            if behaviour.startswith(title):
                cells = " | ".join(seen.get(name, "–") for name in kinds)
                rows.append(f"| {behaviour.partition(': ')[2]} | {cells} |")
    path.write_text(f"{head}<!-- table -->\n" + "\n".join([*rows, ""]), encoding="utf-8")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with the models of all servers."""
    from tests.servers.models import speaker

    folder = tmp_path_factory.mktemp("models")
    speaker(folder / "speaker")
    speaker(folder / "free", free=True)
    python = str(CHAT["llama.cpp"].environment() / "python")
    convert = [python, str(Path(__file__).with_name("to_gguf.py"))]
    made = [folder / "speaker.gguf", folder / "mmproj.gguf"]
    subprocess.run([*convert, "idefics3", folder / "speaker", *made], check=True)
    subprocess.run([*convert, "bert", MINILM, folder / "minilm.gguf"], check=True)
    return folder


@pytest.fixture(scope="session")
def up(models):
    """Servers that run until the session ends, by kind; LiteLLM with those behind it."""
    running, stack = {}, []

    def start(kind: Kind) -> Running:
        if kind in running:
            return running[kind]
        if kind.folder == "litellm":
            behind = {"tiny": start(CHAT["llama.cpp"]), "minilm": start(EMBED["infinity"])}
            (models / "litellm.yaml").write_text(litellm_config(behind), encoding="utf-8")
        stack.append(relayed(Running(kind, models)))
        running[kind] = stack[-1].__enter__()
        running[kind].start()
        return running[kind]

    yield start
    for context in stack:
        context.__exit__(None, None, None)


def litellm_config(behind: dict[str, Running]) -> str:
    lines = ["model_list:"]
    for name, server in behind.items():
        how = f'model: "openai/{name}", api_base: "http://127.0.0.1:{server.port}/v1"'
        lines += [f"  - model_name: {name}", f'    litellm_params: {{{how}, api_key: "{KEY}"}}']
    return "\n".join([*lines, f'general_settings: {{master_key: "{KEY}"}}', ""])
