"""Takes waiting prompts back from a server, so that they can run on another one, or nowhere; never a prompt that
runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from comfyui.exceptions import ComfyUIConnectionError, ComfyUIError
from comfyui.retrying import Backoff
from comfyui.servers.backend import Backend
from comfyui.servers.watcher import Watch

_BACKOFF = Backoff(start_s=0.2, max_s=3.0)


async def take_back(backend: Backend, *watches: Watch) -> set[Watch]:
    """Takes prompts out of ComfyUI's queue; returns those that are out and have not begun.

    Only ``POST /queue {delete}`` is sent, which does not touch running prompts, and only for prompts that the server
    has as pending: a prompt that it does not know may have run and been forgotten, and its events may be lost. A prompt
    can begin at that moment. So the queue is read again afterwards, then the history, and a prompt is out only if it is
    in neither. Once the request may have arrived, this returns only when that is known, or when the prompts have other
    outcomes. A server that may have been restarted meanwhile may have run prompts that it has forgotten: their watches
    find that out.
    """
    epoch = backend.watcher.epoch
    with ExitStack() as held:
        for watch in watches:
            held.enter_context(watch.holding())
        try:
            queue = await backend.client.get_queue()
        except ComfyUIError:
            return set()
        watches = tuple(watch for watch in watches if (item := queue.get(watch.prompt_id)) and not item.running)
        if not watches:
            return set()
        try:
            await backend.client.delete_from_queue(*(watch.prompt_id for watch in watches))
        except ComfyUIError as error:
            if isinstance(error, ComfyUIConnectionError) and not error.sent:
                return set()
            for watch in watches:
                watch.recalled()
        failures = 0
        while unsure := [watch for watch in watches if watch.may_be_moved]:
            try:
                out = await _out(backend, unsure)
                if backend.watcher.epoch == epoch:
                    return out
                for watch in unsure:
                    watch.recalled()
                return set()
            except ComfyUIError:
                failures += 1
                await asyncio.sleep(_BACKOFF.delay_s(failures))
        return set()


async def _out(backend: Backend, watches: Sequence[Watch]) -> set[Watch]:
    """The prompts that ComfyUI does not know. Raises `ComfyUIError` if it does not say."""
    queue = await backend.client.get_queue()
    gone = [watch for watch in watches if watch.prompt_id not in queue]
    entries = await asyncio.gather(*(backend.client.get_history(watch.prompt_id) for watch in gone))
    return {watch for watch, entry in zip(gone, entries, strict=True) if entry is None and watch.may_be_moved}
