"""Async jobs of a gateway, as a caller sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp

from tests.support.running import RunningGateway, until

ASYNC = {"Prefer": "respond-async"}
Answered = tuple[int, Any]


async def submit(http: aiohttp.ClientSession, workflow: dict[str, Any], **fields: Any) -> str:
    """Submits an async job and returns its id."""
    async with http.post("/prompt_sync", json={"prompt": workflow, **fields}, headers=ASYNC) as response:
        body = await response.json()
        assert response.status == 202, body
        prompt_id: str = body["prompt_id"]
        return prompt_id


async def look(http: aiohttp.ClientSession, prompt_id: str) -> Answered:
    """The answer to a GET that does not wait."""
    async with http.get(f"/prompt_sync/{prompt_id}?timeout=0") as response:
        return response.status, await response.json()


async def fetch(http: aiohttp.ClientSession, prompt_id: str, timeout_s: float = 30) -> Answered:
    """The answer to a GET that waits for the end of the job."""
    async with http.get(f"/prompt_sync/{prompt_id}?timeout={timeout_s}") as response:
        return response.status, await response.json()


async def status_is(http: aiohttp.ClientSession, prompt_id: str, status: str) -> Any:
    """Waits until the job has this status (an ended job has none) and returns it."""
    _, body = await until(lambda: look(http, prompt_id), lambda found: found[1].get("status") == status, timeout_s=20)
    return body


async def listed(http: aiohttp.ClientSession, query: str = "") -> Any:
    """One page of the list."""
    async with http.get(f"/prompt_sync{query}") as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def ended(gateway: RunningGateway, prompt_id: str) -> None:
    """Waits until the journal has the end of the job."""
    await until(lambda: gateway.handler.journal.get(prompt_id), lambda job: job is not None and job.state.is_end)


async def begins(http: aiohttp.ClientSession, prompt_id: str) -> None:
    """Waits until the job runs and the journal says so, which happens a moment after a GET says so."""
    await status_is(http, prompt_id, "running")
    running = {job["prompt_id"] for job in (await listed(http, "?status=running"))["jobs"]}
    assert prompt_id in running


def state_of(folder: Path) -> dict[str, str]:
    """Settings of a gateway that keeps its jobs in this folder."""
    return {"STATE_DIR": str(folder), "SHUTDOWN_GRACE_SECONDS": "5"}


def without_reading(result: dict[str, Any]) -> dict[str, Any]:
    """A result without the time for reading its files, which differs between answers."""
    timings = {stage: seconds for stage, seconds in result["timings"].items() if stage != "collecting"}
    return {**result, "timings": timings, "execution_time": None}
