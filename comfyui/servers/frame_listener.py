"""`FrameListener`: who hears what the servers tell of the prompts that they run."""

from __future__ import annotations

from typing import Protocol

from comfyui.events import Event


class FrameListener(Protocol):
    """Is called on the event loop, in the order in which the frames come, and returns at once.

    It hears of prompts that the gateway watches, and of no others.
    """

    def wants(self, prompt_id: str) -> bool:
        """Whether it wants the frames of a prompt that runs. It is asked for each frame."""

    def heard(self, server: str, prompt_id: str | None, event: Event, frame: bytes) -> None:
        """One frame, as it came.

        The start of each prompt is told; what follows is told where it is wanted. Frames that tell nothing of the
        prompt belong to the one that runs.

        Args:
            prompt_id: None for what a custom node tells while no prompt of ours runs.
        """

    def others_changed(self) -> None:
        """A server has more or fewer prompts that came to it past the gateway."""
