"""A call's wait for its job: when it is over the job goes on, and when its client is gone the job goes with it."""

from __future__ import annotations

import asyncio

from comfyui.exceptions import ComfyUITimeoutError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.job import Listener
from comfyui.jobs.origin import Origin
from comfyui.models import PromptRequest, PromptResult
from comfyui.tasks import end_tasks

# A job that has not begun when its wait is over, or ends at that moment, is looked at again after this time.
_AGAIN_S = 0.05


async def run_within(
    handler: ComfyUIHandler,
    request: PromptRequest,
    prompt_id: str,
    wait_s: float,
    max_s: float,
    listener: Listener | None,
    origin: Origin,
) -> PromptResult | None:
    """Runs the workflow as `/prompt_sync` does, for this time; None if it is not done by then.

    It then goes on as a job without a waiting caller. If this call is cancelled before, the job is cancelled, too,
    unless others wait for it, or a setting keeps it.

    Args:
        prompt_id: the request's, or a new one.
        max_s: the longest possible wait.

    Raises:
        ComfyUIError: it failed, or was not taken.
    """
    running = asyncio.create_task(
        handler.submit_prompt_sync(request, timeout_s=max_s, fresh_id=prompt_id, listener=listener, origin=origin),
        name=f"tool {prompt_id}",
    )
    try:
        await asyncio.wait([running], timeout=wait_s)
        while not running.done():
            if await handler.admission.keeping.keep(prompt_id, origin, request):
                return None
            await asyncio.wait([running], timeout=_AGAIN_S)
        return running.result()
    finally:
        await end_tasks(running)


async def wait_for(
    handler: ComfyUIHandler, prompt_id: str, wait_s: float, listener: Listener | None, origin: Origin
) -> PromptResult | None:
    """The result of an existing job; None if it has none within this time. It goes on in any case.

    Raises:
        ComfyUIError: it failed, is unknown, or is another owner's.
    """
    try:
        return await handler.attach(prompt_id, timeout_s=wait_s, listener=listener, origin=origin)
    except ComfyUITimeoutError:
        if (await handler.look(prompt_id, origin)).state.is_end:
            raise  # it is the job that took too long
        return None
