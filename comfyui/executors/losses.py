"""`Losses`: counts how often ComfyUI lost a prompt, and decides whether it is tried again."""

from __future__ import annotations

from collections import OrderedDict

from comfyui.exceptions import ComfyUIPromptLostError
from comfyui.executors.assignment import Assignment
from comfyui.executors.quarantine import Quarantine
from comfyui.servers.backend import Backend

_REMEMBERED = 1000


class Losses:
    """`remember`: whether the losses of a prompt count for a later job with the same id."""

    def __init__(self, quarantine: Quarantine, retries: int, *, remember: bool) -> None:
        self._quarantine = quarantine
        self._retries = retries
        self._remember = remember
        self._known: OrderedDict[str, int] = OrderedDict()

    async def lost(self, backend: Backend, job: Assignment, error: ComfyUIPromptLostError) -> None:
        """Counts a loss; raises if the prompt is not tried again. A prompt that only waited is tried again without
        limit.
        """
        job.leaves(backend.name)
        watch, workflow = job.watch, job.request.prompt if job.request else None
        ended_comfyui = watch is not None and watch.ended_comfyui
        if job.begun or ended_comfyui or (watch is not None and watch.being_sent):
            job.suspect(ended_comfyui=ended_comfyui)
        if ended_comfyui and workflow is not None:
            death = backend.last_death
            await self._quarantine.ended_comfyui(workflow, death.how if death else "", death.lines if death else ())
            self._quarantine.check(workflow, job.prompt_id)
        if job.begun:
            self.count(job, error)

    def count(self, job: Assignment, error: ComfyUIPromptLostError) -> None:
        """Counts the loss of a prompt that had begun. Raises `error` if it is not tried again."""
        job.lost(job.losses + 1)
        if self._remember:
            self._known[job.prompt_id] = job.losses
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if job.losses > self._retries:
            raise error

    def check(self, job: Assignment) -> None:
        """Raises for a job that a platform delivers again after ComfyUI lost it as often as allowed."""
        job.lost(self._known.get(job.prompt_id, 0))
        if job.losses > self._retries:
            detail = f"ComfyUI lost this prompt {job.losses} times, more often than LOST_PROMPT_RETRIES allows"
            raise ComfyUIPromptLostError(detail, prompt_id=job.prompt_id)
