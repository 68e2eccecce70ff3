"""The frames of a prompt that has ended, made of its history entry: for whom no server told, or not all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import State
from comfyui.web.comfyui.hub.frames import Frame, Kind, message
from comfyui.web.comfyui.job_items import ShownJob, history_entry
from comfyui.web.comfyui.job_pages import JobPages

_KINDS = {
    "execution_start": Kind.START,
    "execution_cached": Kind.CACHED,
    "execution_success": Kind.SUCCESS,
    "execution_error": Kind.FAILURE,
    "execution_interrupted": Kind.FAILURE,
}
_ENDS = frozenset({Kind.SUCCESS, Kind.FAILURE})


class Entries:
    """Reads the history entries. Raises `JournalError` if that is impossible."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._pages = JobPages(handler)

    async def frames(self, prompt_id: str) -> list[Frame]:
        """The frames in ComfyUI's order, without the `executing` that ends them.

        None for a prompt that was cancelled while it waited: ComfyUI sends no frames about it.
        """
        async for page in self._pages.each([prompt_id], _frames, results=True):
            return next(iter(page), [])
        return []


def _frames(job: ShownJob) -> list[Frame]:
    record = job.record
    if record is None or not record.state.is_end:
        return []
    entry = history_entry(job, record, with_owner=True)
    messages = [(kind, name, data) for name, data in entry["status"]["messages"] if (kind := _KINDS.get(name))]
    if record.state is State.CANCELED and not any(kind is Kind.START for kind, _, _ in messages):
        return []
    before = [_of_message(job.prompt_id, *one) for one in messages if one[0] not in _ENDS]
    last = [_of_message(job.prompt_id, *one) for one in messages if one[0] in _ENDS]
    executed = [_executed(job.prompt_id, node, output) for node, output in entry["outputs"].items()]
    return [*before, *executed, *last]


def _of_message(prompt_id: str, kind: Kind, name: str, data: Mapping[str, Any]) -> Frame:
    return message(kind, name, {**data, "prompt_id": prompt_id}, prompt_id)


def _executed(prompt_id: str, node: str, output: Any) -> Frame:
    data = {"node": node, "display_node": node, "output": output, "prompt_id": prompt_id}
    return message(Kind.EXECUTED, "executed", data, prompt_id, node)
