"""The report of a ComfyUI server for `/health`, from present knowledge without a request."""

from __future__ import annotations

from comfyui.servers.server import Server, ServerDetail, ServerReport, SilentPrompt
from comfyui.servers.watcher import CompletionWatcher


def report_of(
    server: Server, watcher: CompletionWatcher, *, drained: bool, simulated: bool, in_detail: bool
) -> ServerReport:
    """Without `in_detail`, no name and no reason."""
    detail: ServerDetail = {}
    if in_detail:
        silence = watcher.worker.silence
        silent: SilentPrompt | None = None
        if silence is not None:
            silent = {"prompt_id": silence.prompt_id, "seconds": round(silence.seconds, 1)}
        detail = {"server": server.name, "reason": server.why_not or None, "silent": silent}
    return {
        **detail,
        "state": server.health.value,
        "websocket": "connected" if watcher.connected else "silent" if watcher.silent else "disconnected",
        "queue_remaining": watcher.queue_remaining,
        "in_flight": server.in_flight,
        "drained": drained,
        "simulation": simulated,
    }
