"""`Places`: gives a prompt its place on a server, as an executor sees it."""

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
        """Returns the server for the prompt when its turn has come. An earlier place is given up.

        Args:
            avoid: names of servers that have just refused the prompt's inputs, or not answered; they get it last.
            files_on: names of servers that have files which the workflow reads, and that did not answer: the prompt
                waits for them.
            patience_s: how long to wait while no server is up.

        Raises:
            ComfyUIConnectionError: no server came up.
        """

    async def cleared(self, job: Assignment, backend: Server) -> None:
        """Returns when a job that has a place on that server may be sent there."""

    async def in_turn(self, job: Assignment) -> None:
        """Returns when the job may be sent to the server where it has its place: those before it there come first."""

    async def spelled(self, backend: Server, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """The workflow with its choices, such as models in folders, spelled as on that server."""

    @property
    def are_all_here(self) -> bool:
        """Whether no prompt waits in ComfyUI's own queue, which obeys `number` and `front`."""

    def lacking(self, job: Assignment) -> Mapping[str, Sequence[str]]:
        """The name of each server to what it lacks, if no server can run the job; otherwise empty."""

    def has_other(self, job: Assignment) -> bool:
        """Whether a server other than the job's own is up and may run it."""

    def found(self, job: Assignment, backend: Server) -> None:
        """The prompt is on that server from before, and has its place there."""

    async def found_waiting(self, job: Assignment, request: PromptRequest, queued: float) -> None:
        """The `found` prompt is ours, waits there, and is watched: it may be taken back like any other.

        `queued` is its number in ComfyUI's queue.
        """

    def accepted(self, job: Assignment) -> None:
        """ComfyUI has the prompt in its queue."""

    def leave(self, job: Assignment, ran_s: float) -> None:
        """Frees the place of the prompt, if it has one. `ran_s`: how long it ran, if it ended well; otherwise 0."""
