"""What ComfyUI tells a client's own websocket of its prompts is heard by the gateway as well.

Events go to the one socket whose client queued the prompt (docs/comfyui.md, trap 2). Where prompts wait in the gateway,
its tables answer for queue and history: a client that is told of an end reads them at once, and must find it there.
"""

from __future__ import annotations

from comfyui.events import Executing, Status, parse_text, prompt_id_of
from comfyui.handler import ComfyUIHandler
from comfyui.servers.backend import Backend

# As ComfyUI writes them.
_TYPE = '{"type": "'
_ENDS = frozenset({"execution_success", "execution_error", "execution_interrupted"})
_STEPS = _ENDS | {"execution_start", "executing"}
# So long an end is kept back where the gateway does not get hold of it, and a status that tells of a shorter queue.
_LONGEST_S = 5.0
_STATUS_S = 0.25


class Overheard:
    """The frames of one websocket of `backend`."""

    def __init__(self, handler: ComfyUIHandler, backend: Backend) -> None:
        self._handler = handler
        self._watcher = backend.watcher
        self._ending: str | None = None
        """A prompt that has taken its last step."""

    async def heard(self, frame: str) -> None:
        """Returns when the frame may go on to the client. Other frames than those of a prompt's steps cost nothing."""
        kind = frame[len(_TYPE) : frame.find('"', len(_TYPE))] if frame.startswith(_TYPE) else ""
        if kind == "status":
            # ComfyUI tells all that its queue is shorter, and then one of the end. Its history has the prompt by then.
            status = parse_text(frame.encode())
            remaining = status.queue_remaining if isinstance(status, Status) else 0
            if (ended := self._ending or self._watcher.ended_unseen(remaining)) is not None:
                await self._until_ended(ended, _STATUS_S)
            return
        if kind not in _STEPS:
            return
        event = parse_text(frame.encode())
        prompt_id = prompt_id_of(event)
        if prompt_id is None:
            return
        self._watcher.overheard(event)
        if isinstance(event, Executing) and event.node is None:
            self._ending = None
            await self._until_ended(prompt_id, _LONGEST_S)
        elif kind in _ENDS:
            self._ending = prompt_id

    async def _until_ended(self, prompt_id: str, within_s: float) -> None:
        self._watcher.perhaps_ended(prompt_id)
        await self._handler.ended(prompt_id, within_s)
