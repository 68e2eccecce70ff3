"""Adapts aioresponses to the installed aiohttp."""

from __future__ import annotations

from typing import Any

import aiohttp

MOCKED_URL = "http://comfyui:8188"


class Nothing:
    """A request writer that does nothing: aiohttp 3.14 needs one, and aioresponses 0.7.9 does not make one."""

    output_size = 0


class MockedResponse(aiohttp.ClientResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream_writer", Nothing())
        super().__init__(*args, **kwargs)
