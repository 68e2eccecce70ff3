"""`FrameListener`: hears what the servers tell about the prompts that they run."""

from __future__ import annotations

from typing import Protocol

from comfyui.events import Event


class FrameListener(Protocol):
    """Is called on the event loop, in the order of the frames, and returns at once.

    It hears only about prompts that the gateway watches.
    """

    def wants(self, prompt_id: str) -> bool:
        """Whether it wants the frames of a running prompt. This is asked for each frame."""

    def heard(self, server: str, prompt_id: str | None, event: Event, frame: bytes) -> None:
        """Called with one frame, unchanged.

        The start of each prompt is always passed on; later frames only if they are wanted. Frames that name no prompt
        belong to the one that runs.

        Args:
            prompt_id: None for frames of custom nodes while no prompt of ours runs.
        """

    def others_changed(self) -> None:
        """A server has more or fewer prompts that did not come from the gateway."""
