"""`Job`: one prompt on its way through RunPod, and the words by which ComfyUI's clients know it."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

SECRETS = {"api_key_comfy_org": "comfy_org_api_key", "auth_token_comfy_org": "comfy_org_auth_token"}
"""Members of ``extra_data`` that must neither be written nor shown, and what a worker calls them in a job's input."""

Prompt = Mapping[str, Any]


class State(enum.Enum):
    """How far it is; each is written before what it announces is done."""

    PENDING = "pending"
    SENDING = "sending"
    """From here on RunPod may have it, so it must not be sent again."""
    SENT = "sent"
    """RunPod has it under ``job_id``."""
    DELIVERED = "delivered"
    """Its result is in the journal."""


@dataclass(slots=True, eq=False)
class Job:
    """One prompt.

    Attributes:
        extra_data: without secrets.
        outputs: ids of the nodes whose outputs are wanted.
        keys: the caller's for ComfyUI's paid nodes, by the name that the worker has for each. In memory only.
        keyed: there were some, which a restart has lost when `keys` is empty.
        messages: ComfyUI's, as they will stand in the history.
        running: RunPod said that a worker has it.
        cancelled: somebody wants it ended.
        ending: its end is being written; nobody else may end it.
    """

    prompt_id: str
    number: float
    prompt: Prompt
    extra_data: Mapping[str, Any]
    outputs: list[str]
    keys: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)
    keyed: bool = False
    state: State = State.PENDING
    job_id: str = ""
    running: bool = False
    cancelled: bool = False
    ending: bool = False
    messages: list[list[Any]] = field(default_factory=list)
    node: str | None = None
    seen_nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def client_id(self) -> str | None:
        client_id = self.extra_data.get("client_id")
        return client_id if isinstance(client_id, str) else None

    @property
    def order(self) -> tuple[float, str]:
        """ComfyUI's order of the queue."""
        return self.number, self.prompt_id

    def item(self) -> list[Any]:
        """As in ComfyUI's queue and history."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


def now_ms() -> int:
    return int(time.time() * 1000)
