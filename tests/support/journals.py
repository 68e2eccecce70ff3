"""Jobs for the tests of the journal, and the journals to write them to."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Fence, NewDelivery, NewJob, State
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Add, Finish, Place, Start
from comfyui.named_call import NamedCall

CALL = NamedCall(
    "portrait",
    "a" * 64,
    {"prompt": "a fox", "strength": "0.5", "extra": 1},
    {"prompt": "a fox", "strength": 0.5, "seed": 2**53 - 1},
    ("extra",),
    {"9": "picture"},
    "b" * 64,
)
"""A call of a named workflow whose node 9 has a named output."""
BODY = b'{"prompt": {"1": {"class_type": "A", "inputs": {}}}}'


def journal_of(kind: str, folder: Path) -> Journal:
    """An implementation by its name, because pytest's parameters are texts."""
    return SqliteJournal(folder / "state") if kind == "sqlite" else MemoryJournal()


def prompt_id(number: int) -> str:
    return str(UUID(int=number))


def new_job(number: int, **fields: Any) -> NewJob:
    """An async job without an owner, submitted at the second `number`."""
    given: dict[str, Any] = {
        "prompt_id": prompt_id(number),
        "kind": "async",
        "callers_id": False,
        "created_at": float(number),
        "body": BODY,
    }
    return NewJob(**given | fields)


def delivery(name: str, **fields: Any) -> NewDelivery:
    given: dict[str, Any] = {
        "event": "prompt.succeeded",
        "url": "https://a.example/hook",
        "due_at": 0.0,
    }
    return NewDelivery(id=name, **given | fields)


async def end(journal: Journal, number: int, state: State = State.SUCCEEDED, at: float = 0.0, **fields: Any) -> int:
    """Ends the first run of a job that was never placed on a server."""
    return await journal.write(Finish(fence=Fence(prompt_id(number), 1, 0), state=state, at=at, **fields))


async def run(journal: Journal, number: int, at: float = 0.0) -> Fence:
    """Adds a job that runs on a server."""
    fence = Fence(prompt_id(number), 1, 1)
    assert await journal.write(Add(new_job(number)))
    assert await journal.write(Place(fence, "gpu-1"))
    assert await journal.write(Start(fence, at))
    return fence
