"""The place of a job in the queue, as the contract counts: 1 is next."""

from __future__ import annotations

from comfyui.handler import ComfyUIHandler


def queue_position(handler: ComfyUIHandler, prompt_id: str, before: int | None) -> int | None:
    """The place of a job that has not begun; None if it is not known.

    Args:
        before: how many prompts its server has before it, including the running one, if it is on a server.
    """
    ahead = handler.queue.position(prompt_id)
    if ahead is None:
        return None if before is None else max(1, before)
    on_servers = (backend.watcher.queue_remaining - 1 for backend in handler.pool.ready)
    return ahead + sum(max(0, pending) for pending in on_servers) + 1
