"""A webhook's body is made from the journal at each try, even for a run that was followed by another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from comfyui import jsonio
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Delivery, Fence, State, WebhookOrder
from comfyui.jobs.journal.writes import Add, Again, Finish, Place, Start
from comfyui.jobs.telling import Payloads
from comfyui.jobs.webhooks.announcements import EVENTS, Announcements
from tests.support.journals import new_job, prompt_id

_ORDER = WebhookOrder("https://a.example", EVENTS)


class PlainRenderer:
    """Renders the values that it is given."""

    async def succeeded(self, prompt_id: str, owner: str | None, kept: bytes, /) -> bytes:
        return jsonio.dumps({"prompt_id": prompt_id, "owner": owner, "kept": kept.decode()})

    def failed(self, error: Mapping[str, Any]) -> bytes:
        return jsonio.dumps(error)


async def body_of(journal: Journal, delivery: Delivery) -> Any:
    return jsonio.loads(await Payloads(journal, PlainRenderer())(delivery))


async def run_once(journal: Journal, fence: Fence, state: State, at: float, **fields: Any) -> None:
    """Writes a run that begins at `at` and ends a second later."""
    told = Announcements()
    assert await journal.write(Place(fence, "gpu-1"))
    assert await journal.write(Start(fence, at, told.of_start(fence, _ORDER, at)))
    ended = told.of_end(fence, _ORDER, state, at + 1)
    assert await journal.write(Finish(fence=fence, state=state, at=at + 1, deliveries=ended, **fields))


async def test_webhooks_of_a_run_stay_the_same_after_another_run_has_begun(journal: Journal) -> None:
    job = prompt_id(1)
    await journal.write(Add(new_job(1, owner="anna", webhook=_ORDER)))
    await run_once(journal, Fence(job, 1, 1), State.LOST, 10.0, error={"type": "prompt_lost"})
    await journal.write(Again(job, 1, "async", 20.0))
    before = [await body_of(journal, one) for one in await journal.deliveries(job)]
    await run_once(journal, Fence(job, 2, 1), State.SUCCEEDED, 30.0, result=b"{}")
    started, lost, again, succeeded = [await body_of(journal, one) for one in await journal.deliveries(job)]
    assert [started, lost] == before
    assert started == {
        "type": "prompt.started",
        "timestamp": "1970-01-01T00:00:10.000Z",
        "data": {
            "prompt_id": job,
            "status": "running",
            "created_at": "1970-01-01T00:00:01.000Z",
            "started_at": "1970-01-01T00:00:10.000Z",
        },
    }
    assert lost == {"type": "prompt.lost", "timestamp": "1970-01-01T00:00:11.000Z", "data": {"type": "prompt_lost"}}
    assert again["data"]["started_at"] == "1970-01-01T00:00:30.000Z"
    assert succeeded["data"] == {"prompt_id": job, "owner": "anna", "kept": "{}"}


async def test_a_missing_result_raises_an_error_instead_of_sending_an_empty_body(journal: Journal) -> None:
    job = prompt_id(1)
    await journal.write(Add(new_job(1, webhook=_ORDER)))
    await run_once(journal, Fence(job, 1, 1), State.SUCCEEDED, 10.0)
    ended = (await journal.deliveries(job))[-1]
    with pytest.raises(LookupError):
        await body_of(journal, ended)
