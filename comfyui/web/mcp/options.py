"""What `/mcp` needs of the settings. Nothing here imports the `mcp` package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class McpOptions:
    """The fields without a setting say why they are as they are.

    Attributes:
        wait_s: how long a call waits for its job at most (MCP_WAIT). Clients give a call up after 60 seconds.
        max_body_bytes: of one request. The package reads it at once, in the event loop.
        pictures: that a result shows at most; the others are links.
        picture_chars: of each picture as base64: what models are shown without being filled by it.
        pictures_s: how long they may take in all. Those that are not made by then are links only.
        files: entries of a result at most, and links.
    """

    wait_s: float = 45.0
    max_body_bytes: int = 4 * 1024 * 1024
    pictures: int = 8
    picture_chars: int = 100_000
    pictures_s: float = 10.0
    files: int = 500
