"""OpenAI's own client."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI


def openai_client(url: str, key: str = "none", **options: Any) -> AsyncOpenAI:
    """A client that makes no retries by default, so that a test sees the first answer."""
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, **{"max_retries": 0, "timeout": 40, **options})
