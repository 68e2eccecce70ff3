"""RunPod's HTTP API on loopback. A test chooses its answers and the states of its jobs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from comfyui.executors.runpod.options import RunPodTimes
from comfyui.retrying import Backoff
from config import GatewayOptions
from tests.support.running import RunningGateway, invert_workflow, until

KEY = "runpod-key-of-the-test"
PICTURE = b"\x89PNG\r\n\x1a\nnot really"
DATA = base64.b64encode(PICTURE).decode()
NOWHERE = "127.0.0.1:9"
"""An address at which no local ComfyUI answers."""
QUICK = RunPodTimes(
    first_look_s=0.02,
    look_backoff=Backoff(0.04, 30.0),
    send_backoff=Backoff(0.05, 15.0),
    journal_backoff=Backoff(0.05, 10.0),
)
"""The gateway polls jobs, and retries, many times a second."""

Answer = dict[str, Any]


class FakeEndpoint:
    """`refusals` decide the next answers to ``/run``: a status, "cut" for a lost reply, or "late" for a reply after
    half a second.

    Attributes:
        redirect: if not empty, every request gets a redirect with this ``Location``.
        inputs: the inputs of accepted jobs by job id, in order.
        requests: number of requests of any kind.
        runs: number of requests to ``/run``, accepted or not.
        asked: number of requests to ``/status``, by job id.
        cancelled: ids of cancelled jobs, in order.
    """

    def __init__(self, port: int = 0) -> None:
        self.refusals: deque[int | str] = deque()
        self.accepts_key = True
        self.redirect = ""
        self.inputs: dict[str, Answer] = {}
        self.jobs: dict[str, Answer] = {}
        self.requests = 0
        self.runs = 0
        self.asked: dict[str, int] = {}
        self.cancelled: list[str] = []
        self.url = ""
        self._port = port
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._counted])
        app.add_routes(
            [
                web.post("/run", self._run),
                web.get("/status/{job}", self._status),
                web.post("/cancel/{job}", self._cancel),
                web.get("/health", self._health),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # For the tests

    def settings(self, folder: Any, *, times: RunPodTimes = QUICK, **more: Any) -> dict[str, Any]:
        """Settings for `running_gateway` of a gateway that uses this endpoint."""

        def changed(made: GatewayOptions) -> GatewayOptions:
            assert made.runpod is not None
            return replace(made, runpod=replace(made.runpod, times=times))

        return {
            "changed": changed,
            "backend": "runpod",
            "runpod_endpoint_id": "endpoint1",
            "runpod_api_key": KEY,
            "runpod_endpoint_url": self.url,
            "runpod_data_dir": folder,
            "state_dir": folder / "state",
            **more,
        }

    async def job(self, number: int = 1) -> str:
        """Waits for the `number`-th accepted job and returns its id."""
        await self.until(lambda: len(self.inputs) >= number)
        return list(self.inputs)[number - 1]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(condition)

    async def looked(self, job: str, times: int = 2) -> None:
        """Waits for `times` more requests for the job's status, so that the gateway has surely read the last one."""
        asked = self.asked.get(job, 0)
        await self.until(lambda: self.asked.get(job, 0) >= asked + times)

    def says(self, job: str, status: str, **more: Any) -> None:
        self.jobs[job] = {"id": job, "status": status, **more}

    def complete(self, job: str, *images: Answer, outputs: Answer | None = None, **more: Any) -> None:
        output = {"images": list(images)} | ({"outputs": outputs} if outputs is not None else {})
        self.says(job, "COMPLETED", output=output, **more)

    # For the gateway

    @web.middleware
    async def _counted(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests += 1
        return await handler(request)

    async def _run(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        async with self._news:
            self.runs += 1
            refusal = self.refusals.popleft() if self.refusals else None
            if isinstance(refusal, int):
                self._news.notify_all()
                return web.Response(status=refusal, text=f"status {refusal} of the test")
            if refused := self._refusal(request):
                self._news.notify_all()
                return refused
            job = f"job-{len(self.inputs) + 1}"
            self.inputs[job] = body["input"]
            self.says(job, "IN_QUEUE")
            self._news.notify_all()
        if refusal == "late":
            await asyncio.sleep(0.5)
        if refusal == "cut" and request.transport is not None:
            request.transport.abort()
        return web.json_response({"id": job, "status": "IN_QUEUE"})

    async def _status(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        async with self._news:
            self.asked[job] = self.asked.get(job, 0) + 1
            self._news.notify_all()
        if refused := self._refusal(request):
            return refused
        return web.json_response(self.jobs[job]) if job in self.jobs else web.Response(status=404)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        async with self._news:
            self.cancelled.append(job)
            self.says(job, "CANCELLED")
            self._news.notify_all()
        return web.json_response({"id": job, "status": "CANCELLED"})

    async def _health(self, request: web.Request) -> web.Response:
        return self._refusal(request) or web.json_response({"jobs": {}, "workers": {}})

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.redirect:
            return web.Response(status=307, headers={"Location": self.redirect})
        good = self.accepts_key and request.headers.get("Authorization") == f"Bearer {KEY}"
        return None if good else web.Response(status=401)


def base64_image(data: str, filename: str = "a_00001_.png", **more: Any) -> Answer:
    return {"filename": filename, "type": "base64", "data": data, **more}


def outputs_of(*filenames: str, node_id: str = "3") -> Answer:
    """ComfyUI's `outputs` for a node that saved these files."""
    images = [{"filename": name, "subfolder": "", "type": "output"} for name in filenames]
    return {node_id: {"images": images}}


async def history(gateway: RunningGateway, prompt_id: str) -> dict[str, Any]:
    """Waits for the prompt's history entry and returns it."""

    async def ask() -> dict[str, Any]:
        async with gateway.http.get(f"/history/{prompt_id}") as response:
            return dict(await response.json())

    entry: dict[str, Any] = (await until(ask, bool))[prompt_id]
    return entry


async def submit(gateway: RunningGateway, workflow: dict[str, Any] | None = None, **fields: Any) -> str:
    """Submits with `POST /prompt`, as a frontend does; returns the prompt's id."""
    async with gateway.http.post("/prompt", json={"prompt": workflow or invert_workflow(), **fields}) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["prompt_id"])


async def get(gateway: RunningGateway, path: str) -> tuple[int, Any]:
    async with gateway.http.get(path) as response:
        return response.status, await response.json(content_type=None)


def error_of(entry: dict[str, Any]) -> str:
    assert entry["status"]["status_str"] == "error"
    return str(dict(entry["status"]["messages"])["execution_error"]["exception_message"])


def gateway_settings(url: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a gateway with `BACKEND=runpod` that uses an API with RunPod's protocol."""
    return {
        "backend": "runpod",
        "runpod_endpoint_id": "local",
        "runpod_api_key": "any",
        "runpod_endpoint_url": url,
        "runpod_data_dir": folder,
        "state_dir": folder / "state",
        **more,
    }
