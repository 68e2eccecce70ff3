"""`Places`: who gives a prompt its place on a server, as an executor sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from comfyui.executors.assignment import Assignment
from comfyui.models import PromptRequest
from comfyui.servers.server import Server


class Places(Protocol):
    """A prompt has at most one place at a time. `comfyui.jobs.turns.Turns` gives them."""

    async def take(
        self,
        job: Assignment,
        request: PromptRequest,
        *,
        avoid: Collection[str],
        files_on: Collection[str],
        patience_s: float,
    ) -> Server:
        """The server to which the prompt goes now; returns when its turn has come. A place from before is given up.

        Args:
            avoid: names of servers that have just not taken the prompt's inputs, or not answered: the last ones to get
                it.
            files_on: names of servers that have files which the workflow reads, and that did not answer: it is their
                turn before the prompt's.
            patience_s: how long to wait while no server is up.

        Raises:
            ComfyUIConnectionError: no server came up.
        """

    async def cleared(self, job: Assignment, backend: Server) -> None:
        """Returns when a job that was given a place on that server may be sent there."""

    async def spelled(self, backend: Server, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """The workflow with its choices, such as models in folders, as that server writes them."""

    @property
    def are_all_here(self) -> bool:
        """Whether no prompt waits for its turn in ComfyUI's own queue, which heeds `number` and `front`."""

    def lacking(self, job: Assignment) -> Mapping[str, Sequence[str]]:
        """By server what it lacks, where no server can run the job; else nothing."""

    def has_other(self, job: Assignment) -> bool:
        """Whether another server than the one where the job is, is up and may run it."""

    def found(self, job: Assignment, backend: Server) -> None:
        """The prompt is on that server from before, and has its place there."""

    async def found_waiting(self, job: Assignment, request: PromptRequest) -> None:
        """The prompt was `found`, is ours, waits there, and is watched: it may be taken back as any other one."""

    def accepted(self, job: Assignment) -> None:
        """ComfyUI has the prompt in its queue."""

    def leave(self, job: Assignment, ran_s: float) -> None:
        """The place of the prompt is free, where it has one. `ran_s`: how long it ran, where it ended well; else 0."""
