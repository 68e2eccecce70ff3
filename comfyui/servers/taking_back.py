"""Taking a prompt that waits on one server back, so that it can run on another: never one that runs."""

from __future__ import annotations

import asyncio

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError
from comfyui.retrying import Backoff
from comfyui.servers.backend import Backend
from comfyui.servers.watcher import Watch

_BACKOFF = Backoff(start_s=0.2, max_s=3.0)


async def take_back(backend: Backend, watch: Watch) -> bool:
    """Takes a prompt out of ComfyUI's queue; whether it is out and has not begun.

    Only ``POST /queue {delete}`` is sent, which leaves alone what runs. A prompt can begin at that moment: so the queue
    is read after that, then the history, and the prompt is out only when it is in neither. Once the request may have
    arrived, this returns only when that is known, or when the prompt has another outcome.
    """
    with watch.holding():
        try:
            await backend.client.delete_from_queue(watch.prompt_id)
        except ComfyUIConnectionError as error:
            if not error.sent:
                return False
            watch.recalled()
        except ComfyUIError:
            watch.recalled()
        failures = 0
        while watch.may_be_moved:
            try:
                if watch.prompt_id in await backend.client.get_queue():
                    return False
                if await backend.client.get_history(watch.prompt_id) is not None:
                    return False
            except ComfyUIError:
                failures += 1
                await asyncio.sleep(_BACKOFF.delay_s(failures))
            else:
                return watch.may_be_moved
        return False
