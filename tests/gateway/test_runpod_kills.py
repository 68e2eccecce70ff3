"""BACKEND=runpod: the gateway is killed at each step of a job and started again, and the caller asks again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from tests.chaos.kills.points import Point, Points
from tests.chaos.kills.processes import gateway_at
from tests.support.ports import free_port
from tests.support.relaying import eventually
from tests.support.running import invert_workflow, until
from tests.support.runpod_endpoint import DATA, NOWHERE, FakeEndpoint, base64_image

Answer = tuple[int, Any]


class Killed:
    """A gateway process before the endpoint, which is killed once at the point `at`.

    With `forgets`, RunPod has forgotten its jobs by then, because it has sent their replies.
    """

    def __init__(self, endpoint: FakeEndpoint, folder: Path, at: Point, *, forgets: bool) -> None:
        port = free_port()
        self.points = Points(at, self._strike)
        self._endpoint, self._forgets = endpoint, forgets
        self._url = f"http://127.0.0.1:{port}"
        self._control = folder / "control"
        settings = endpoint.settings(folder)
        del settings["changed"]
        settings |= {"comfyui_server_address": (NOWHERE,), "server_host": "127.0.0.1", "server_port": port}
        settings |= {"backend": ("runpod",), "reattach_seconds": 30.0}
        self._gateway = gateway_at(settings, self._control, folder / "gateway.log", 2)
        self._back: asyncio.Task[None] | None = None
        self._http: aiohttp.ClientSession

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        listening = await asyncio.start_unix_server(self.points.report, self._control)
        # A connection that is kept might lead to the killed gateway.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(self._url, connector=connector) as self._http:
            try:
                await self._gateway.start()
                await self.insist("GET", "/health/ready")
                self.points.begin()
                yield
            finally:
                if self._back is not None:
                    await self._back
                await self._gateway.kill()
                listening.close()

    async def _strike(self) -> None:
        await self._gateway.kill()
        if self._forgets:
            self._endpoint.jobs.clear()
        self._back = asyncio.create_task(self._gateway.start(), name="restart")

    async def insist(self, method: str, path: str, **arguments: Any) -> Answer:
        """Repeats the request while no gateway answers, or while it starts."""

        async def ask() -> Answer:
            with contextlib.suppress(aiohttp.ClientError):
                async with self._http.request(method, path, **arguments) as response:
                    return response.status, await response.json()
            return 503, None

        return await until(ask, lambda answer: answer[0] != 503, timeout_s=50)


async def complete_every_job(endpoint: FakeEndpoint) -> None:
    number = 1
    while True:
        endpoint.complete(await endpoint.job(number), base64_image(DATA))
        number += 1


@pytest.mark.parametrize(
    ("asks", "what", "number", "when"),
    [
        ("sync", "Add", 1, "before"),
        ("sync", "Add", 1, "after"),
        ("async", "Add", 1, "after"),
        # The job is about to be sent.
        ("sync", "NoteAttempt", 1, "before"),
        ("async", "NoteAttempt", 1, "before"),
        # RunPod has the job.
        ("sync", "NoteAttempt", 2, "after"),
        ("async", "NoteAttempt", 2, "after"),
        ("sync", "Start", 1, "before"),
        # RunPod's reply has arrived.
        ("sync", "NoteAttempt", 3, "before"),
        ("sync", "NoteAttempt", 3, "after"),
        ("async", "NoteAttempt", 3, "after"),
        ("sync", "Finish", 1, "before"),
        ("sync", "Finish", 1, "after"),
    ],
)
async def test_a_prompt_runs_once_when_the_gateway_is_killed_at_any_step(
    asks: str, what: str, number: int, when: Any, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    delivered = (what, number, when) == ("NoteAttempt", 3, "after") or what == "Finish"
    world = Killed(endpoint, tmp_path, Point(what, number, when), forgets=delivered)
    prompt_id = str(uuid4())
    body = {"prompt": invert_workflow(), "prompt_id": prompt_id, "return_image_base64": True}
    headers = {"Prefer": "respond-async"} if asks == "async" else {}
    working = asyncio.create_task(complete_every_job(endpoint))
    try:
        async with world.living():
            status, answer = await world.insist("POST", "/prompt_sync", json=body, headers=headers)
            assert status == 200 or (asks, status) == ("async", 202), answer
            await eventually(lambda: world.points.struck, within_s=50)
            status, answer = await world.insist("GET", f"/prompt_sync/{prompt_id}?timeout=40")
            assert status == 200, answer
            assert len(answer["images"]) == 1
            assert endpoint.runs == 1
    finally:
        working.cancel()


@pytest.mark.parametrize(
    ("number", "when", "jobs"),
    [
        # The job was about to be sent.
        (1, "after", 0),
        # RunPod has the job, but the gateway has not recorded its id.
        (2, "before", 1),
    ],
)
async def test_a_kill_between_sending_and_the_reply_is_reported_and_nothing_sent_twice(
    number: int, when: Any, jobs: int, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    world = Killed(endpoint, tmp_path, Point("NoteAttempt", number, when), forgets=False)
    body = {"prompt": invert_workflow(), "prompt_id": str(uuid4())}
    async with world.living():
        status, answer = await world.insist("POST", "/prompt_sync", json=body)
        assert (status, world.points.struck) == (500, True)
        assert "it is not known whether RunPod took the job: the gateway was stopped while it sent the prompt" in str(
            answer
        )
        # The same request gets the same answer.
        assert (await world.insist("POST", "/prompt_sync", json=body))[0] == 500
    assert endpoint.runs == jobs


@pytest.mark.parametrize(("when", "status", "jobs"), [("before", 500, 0), ("after", 200, 1)])
async def test_a_kill_after_runpod_refused_a_job_does_not_send_it_twice(
    when: Any, status: int, jobs: int, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    endpoint.refusals.append(429)
    world = Killed(endpoint, tmp_path, Point("DropAttempt", 1, when), forgets=False)
    body = {"prompt": invert_workflow(), "prompt_id": str(uuid4())}
    working = asyncio.create_task(complete_every_job(endpoint))
    try:
        async with world.living():
            answer = await world.insist("POST", "/prompt_sync", json=body)
            assert (answer[0], world.points.struck) == (status, True), answer
    finally:
        working.cancel()
    assert len(endpoint.inputs) == jobs


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_cancel_during_which_the_gateway_is_killed_reaches_runpod(
    when: Any, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    world = Killed(endpoint, tmp_path, Point("Cancel", 1, when), forgets=False)
    prompt_id = str(uuid4())
    body = {"prompt": invert_workflow(), "prompt_id": prompt_id}
    async with world.living():
        assert (await world.insist("POST", "/prompt_sync", json=body, headers={"Prefer": "respond-async"}))[0] == 202
        job = await endpoint.job()
        endpoint.says(job, "IN_PROGRESS")
        await endpoint.looked(job, 2)
        status, answer = await world.insist("DELETE", f"/prompt_sync/{prompt_id}")
        assert status in {200, 404}, answer

        async def state() -> str:
            _, answer = await world.insist("GET", f"/prompt_sync/{prompt_id}?timeout=0")
            return str(answer.get("type"))

        assert await until(state, lambda kind: kind == "task_cancelled", timeout_s=40) == "task_cancelled"
        assert world.points.struck
    assert set(endpoint.cancelled) == {job}
    assert endpoint.runs == 1
