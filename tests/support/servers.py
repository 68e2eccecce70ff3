"""A `Backend` that is not opened, so it neither probes nor connects a websocket: for code that only sends requests."""

from __future__ import annotations

from comfyui.client import ComfyUIClient
from comfyui.metrics import Metrics
from comfyui.servers.backend import Backend
from comfyui.servers.watcher import CompletionWatcher


def server_of(client: ComfyUIClient) -> Backend:
    """The server that `client`, which the caller opens and closes, talks to."""
    return Backend(client, CompletionWatcher(client), Metrics())
