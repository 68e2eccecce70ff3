"""`Server`: runs prompts, whether it is a ComfyUI of ours or a platform with many machines."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field
from typing_extensions import TypedDict

from comfyui.models import OutputFile
from comfyui.replies import JSON, HistoryEntry, QueueItem
from comfyui.transport.body import OpenBody


class Health(enum.Enum):
    """One state feeds every probe."""

    STARTING = "starting"
    READY = "connected"
    DOWN = "unreachable"
    REFUSED = "refused"
    """It answers, but refuses us: it wants other credentials."""
    BROKEN = "broken"


class SilentPrompt(TypedDict):
    """The prompt that runs on a server without any event."""

    prompt_id: str
    seconds: float


class OtherDefinitions(TypedDict):
    """How a server's node definitions differ from those of the first server: class names, at most 20 of each kind."""

    lacks: Annotated[list[str], Field(description="Classes that only the first server has.")]
    adds: Annotated[list[str], Field(description="Classes that the first server does not have.")]
    differs: Annotated[
        list[str], Field(description="Classes with other inputs or outputs. Lists of files do not count.")
    ]
    count: Annotated[int, Field(description="Number of classes of all three kinds.")]


class ServerDetail(TypedDict, total=False):
    """The part of a server's report for callers who may see addresses and reasons."""

    server: str
    reason: str | None
    silent: SilentPrompt | None
    definitions: Annotated[OtherDefinitions, Field(description="Missing if they do not differ, or are not known.")]


class ServerReport(ServerDetail):
    """One ComfyUI server, as `/health` has it."""

    state: str
    websocket: Literal["connected", "silent", "disconnected", "none"]
    queue_remaining: int
    in_flight: int
    drained: Annotated[bool, Field(description="Whether it gets no prompts until `POST /servers/{name}/resume`.")]
    simulation: bool


class FileShelf(Protocol):
    """A place for input files of prompts that name them; `ComfyUIClient` is one."""

    async def upload_image(
        self, filename: str, content: bytes | AsyncIterator[bytes], *, subfolder: str = "", overwrite: bool = True
    ) -> JSON:
        """Stores the file; the answer has the file's name and subfolder. Raises `ComfyUIError`."""

    def view(
        self, filename: str, subfolder: str = "", folder_type: str = "output"
    ) -> AbstractAsyncContextManager[OpenBody]:
        """Opens one file; raises `ComfyUINotFoundError` if it does not exist."""


class Server(Protocol):
    """The server as the queue knows it. `comfyui.servers.backend.Backend` says more about each member."""

    @property
    def name(self) -> str: ...
    @property
    def health(self) -> Health: ...
    @property
    def ready(self) -> bool: ...
    @property
    def takes_prompts(self) -> bool: ...
    @property
    def why_not(self) -> str:
        """Why it gets no prompts; "" if it gets some."""

    @property
    def abandoned(self) -> bool: ...
    @property
    def delay(self) -> str:
        """Why its prompts take long, as far as it knows; otherwise ""."""

    @property
    def takes_more(self) -> bool:
        """Whether it would accept one more prompt now, as far as it has said."""

    @property
    def last_definitions(self) -> JSON | None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def drained(self) -> bool:
        """Whether it gets no more prompts; see `comfyui.servers.fleet`. Running ones end there."""

    def drain(self, drained: bool) -> None: ...
    @property
    def generation(self) -> int:
        """A number that changes when its node definitions may have changed."""

    @property
    def epoch(self) -> int:
        """A number that changes when it may have lost the inputs that it was given."""

    @property
    def shelf(self) -> FileShelf: ...

    def working(self) -> AbstractContextManager[None]: ...
    async def object_info(self, *, max_age_s: float = ...) -> JSON: ...
    def soon(self) -> asyncio.Timeout: ...
    async def find(self, prompt_id: str) -> HistoryEntry | QueueItem | None: ...
    async def cancel(self, prompt_id: str) -> None: ...
    def wait_for_change(self) -> Coroutine[Any, Any, Literal[True]]: ...
    def report(self, *, in_detail: bool) -> ServerReport: ...
    def running_frames(self) -> Sequence[tuple[str, Sequence[bytes]]]:
        """Each prompt of ours that runs there, with its latest frames."""

    async def path_of(self, prompt_id: str, subfolder: str, filename: str) -> Path | None:
        """The place of a prompt's output file on the gateway's own disk; None if it is not there."""

    def open_file(self, prompt_id: str, file: OutputFile) -> AbstractAsyncContextManager[OpenBody]: ...
