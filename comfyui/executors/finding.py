"""Where a prompt is that a gateway before this one, or somebody else, has submitted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from comfyui.exceptions import ComfyUIError
from comfyui.replies import HistoryEntry, QueueItem
from comfyui.servers.server import Server
from comfyui.tasks import end_tasks


async def find_on(
    servers: Sequence[Server], prompt_id: str, *, everywhere: bool, absent_patience_s: float
) -> tuple[Server | None, HistoryEntry | QueueItem | None]:
    """On which server the prompt is known, and as what.

    Raises when no server could be asked; when it has to be looked for `everywhere`, also when one could not. Else
    those that are out of rotation get `absent_patience_s` only, once the others have answered.
    """
    failure: ComfyUIError | None = None
    asking = {asyncio.create_task(server.find(prompt_id)): server for server in servers}
    pending = set(asking)

    def any_ready() -> bool:
        return any(server.ready for server in servers)

    try:
        while pending:
            absent = not everywhere and any_ready() and not any(asking[task].ready for task in pending)
            patience_s = absent_patience_s if absent else None
            done, pending = await asyncio.wait(pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in done:
                try:
                    found = task.result()
                except ComfyUIError as error:
                    failure = error
                else:
                    if found is not None:
                        return asking[task], found
    finally:
        await end_tasks(*asking)
    if failure is not None and (everywhere or not any_ready()):
        raise failure
    return None, None
