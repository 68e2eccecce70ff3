"""The settings of `/mcp`. Nothing here imports the `mcp` package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class McpOptions:
    """The fields without a setting say why they are as they are.

    Attributes:
        wait_s: how long a call waits for its job at most (MCP_WAIT). Clients give a call up after 60 seconds.
        max_tools: how many named workflows are tools of their own (MCP_MAX_TOOLS); `run_named` runs the others.
        page: tools of one answer to `tools/list`: some clients read the first page only.
        max_body_bytes: of one request. The package reads it at once, in the event loop.
        pictures: that a result shows at most; the others are links.
        picture_chars: of each picture as base64: what models are shown without being filled by it.
        pictures_s: time for all pictures together. Those that are not made by then are only links.
        files: entries of a result at most, and links.
    """

    wait_s: float = 45.0
    max_tools: int = 100
    page: int = 128
    max_body_bytes: int = 4 * 1024 * 1024
    pictures: int = 8
    picture_chars: int = 100_000
    pictures_s: float = 10.0
    files: int = 500
