"""Published protocols, whose names :func:`choose` turns into parameters.

The paper's (arXiv 2512.10596): gpt-4.1 writes five structured captions per image in one reply, at
temperature 0.3; text-embedding-3-small embeds them, their fields joined under their names; an image
scores the maximum over its captions. In image-to-text, one free description by LLaVA-NeXT asks.
"""

from __future__ import annotations

from trsllava_utils.files import check_choice
from trsllava_utils.parameters import MINILM

PROTOCOLS = {
    "": {"encoder": MINILM},
    "paper": {
        "captioner": "openai:gpt-4.1",
        "query_captioner": "description:transformers:llava-hf/llava-v1.6-mistral-7b-hf",
        "encoder": "openai:text-embedding-3-small",
        "prompt": "rsrt",
        "variants": 5,
        "temperature": 0.3,
        "texts": "joined",
        "method": "max",
    },
}


def choose(protocol: str, given: dict[str, object]) -> tuple[dict[str, object], str]:
    """The parameters ``given``, empty ones filled in by the protocol ("" for this project's own),
    and a sentence that names the protocol's values and where the parameters depart from them.

    Raises:
        InputError: no such protocol.
    """
    usual = PROTOCOLS[check_choice("protocol", protocol, PROTOCOLS)]
    chosen = {n: usual.get(n, value) if value == "" else value for n, value in given.items()}
    parts = [f"{name} {value}" for name, value in usual.items() if name in given]
    other = [f"{n} {chosen[n]}" for n, v in usual.items() if n in given and chosen[n] != v]
    departs = f". This run departs from it: {', '.join(other)}" if other else ""
    return chosen, f"protocol {protocol}: {', '.join(parts)}{departs}" if protocol else ""
