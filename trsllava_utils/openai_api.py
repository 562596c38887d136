"""Servers that speak the OpenAI protocol: one client, whose address and key come from the
environment only (``OPENAI_BASE_URL``, ``OPENAI_API_KEY``) and whose key is never printed."""

from __future__ import annotations

import os

from trsllava_utils.artefacts import MissingError


def open_client(purpose: str, **options):
    """An ``openai.OpenAI`` client.

    Args:
        purpose: who asks, for the error message, such as ``"captioner 'openai:gpt-4.1'"``.
        options: passed on to ``openai.OpenAI`` (``timeout`` in seconds, ``max_retries``).

    Raises:
        MissingError: OPENAI_API_KEY is not set.
    """
    if not os.environ.get("OPENAI_API_KEY"):
        raise MissingError(
            f"{purpose} needs OPENAI_API_KEY in the environment, and OPENAI_BASE_URL for a server "
            "other than OpenAI's; a server of your own takes any word as its key"
        )
    import openai

    return openai.OpenAI(**options)


def redact(text: object) -> str:
    """A server's words without the key, should the server have repeated it."""
    key = os.environ.get("OPENAI_API_KEY")
    return str(text).replace(key, "[key]") if key else str(text)
