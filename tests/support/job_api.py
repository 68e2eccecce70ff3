"""RunPod on loopback: the job API as the SDK's production loop speaks it, the HTTP API that callers speak, and the
worker as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
# RunPod holds a poll for about this time; a stopping worker must not wait for its end.
_HELD_S = 60.0

Reply = dict[str, Any]


class JobApi:
    """Gives jobs to the worker and keeps its results. Requests for work are held open until there is a job.

    Jobs come by `submit`, or by ``/run`` from RunPod's callers.
    """

    def __init__(self) -> None:
        self.posts: dict[str, list[Reply]] = {}
        """All posts for a job, in order of arrival; updates have the status IN_PROGRESS."""
        self.taken: list[str] = []
        self._jobs: asyncio.Queue[Reply] = asyncio.Queue()
        self._stops: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: set[str] = set()
        self.runs: list[str] = []
        self._news = asyncio.Condition()
        self._server: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(
            [
                web.get("/job-take/{worker}", self._take),
                web.get("/job-stop/{worker}", self._stop),
                web.post("/job-done/{worker}/{job}", self._done),
                web.get("/ping/{worker}", self._ping),
                web.post("/run", self._run),
                web.get("/status/{job}", self._status),
                web.post("/cancel/{job}", self._cancel),
                web.get("/health", self._ping),
            ]
        )
        # With these options, a worker that is gone takes no job.
        self._server = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._server.setup()
        site = web.TCPSite(self._server, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._server.addresses[0][1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._server is not None:
            await self._server.cleanup()

    def submit(self, job_id: str, job_input: Any) -> None:
        self._jobs.put_nowait({"id": job_id, "input": job_input})

    def stop(self, job_id: str) -> None:
        self._stops.put_nowait(job_id)

    async def result(self, job_id: str, *, count: int = 1) -> Reply:
        """Waits for the `count`-th result of the job, which may be delivered more than once."""
        return (await self._wait_for(lambda: self.results(job_id), count))[count - 1]

    async def update(self, job_id: str) -> Reply:
        """Waits for the first progress update of the job."""
        return (await self._wait_for(lambda: self.updates(job_id), 1))[0]

    def results(self, job_id: str) -> list[Reply]:
        return [post for post in self.posts.get(job_id, ()) if post.get("status") != "IN_PROGRESS"]

    def updates(self, job_id: str) -> list[Reply]:
        return [post["output"] for post in self.posts.get(job_id, ()) if post.get("status") == "IN_PROGRESS"]

    def environment(self) -> dict[str, str]:
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=x",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID",
            "RUNPOD_AI_API_KEY": "key-of-the-test",
            "RUNPOD_POD_ID": "pod",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    async def _wait_for(self, find: Any, count: int) -> list[Reply]:
        async with asyncio.timeout(40), self._news:
            await self._news.wait_for(lambda: len(find()) >= count)
        found: list[Reply] = find()
        return found

    async def _take(self, _request: web.Request) -> web.StreamResponse:
        try:
            job = await asyncio.wait_for(self._jobs.get(), _HELD_S)
        except TimeoutError:
            return web.Response(status=204)
        if job["id"] in self.cancelled:
            return web.Response(status=204)
        self.taken.append(job["id"])
        return web.json_response(job)

    async def _stop(self, _request: web.Request) -> web.StreamResponse:
        try:
            return web.json_response({"jobsToStop": [await asyncio.wait_for(self._stops.get(), _HELD_S)]})
        except TimeoutError:
            return web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        async with self._news:
            self.posts.setdefault(request.match_info["job"], []).append(json.loads(await request.read()))
            self._news.notify_all()
        return web.Response()

    # Requests of callers

    async def _run(self, request: web.Request) -> web.Response:
        job_id = f"run-{len(self.runs) + 1}"
        self.runs.append(job_id)
        self.submit(job_id, (await request.json())["input"])
        return web.json_response({"id": job_id, "status": "IN_QUEUE"})

    async def _status(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job"]
        if job_id not in self.runs:
            return web.Response(status=404)
        return web.json_response({"id": job_id, **self._state(job_id)})

    def _state(self, job_id: str) -> Reply:
        if job_id in self.cancelled:
            return {"status": "CANCELLED"}
        if results := self.results(job_id):
            return {"status": "FAILED" if "error" in results[0] else "COMPLETED", **results[0]}
        if job_id not in self.taken:
            return {"status": "IN_QUEUE"}
        return {"status": "IN_PROGRESS"} | ({"output": updates[-1]} if (updates := self.updates(job_id)) else {})

    async def _cancel(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job"]
        self.cancelled.add(job_id)
        if job_id in self.taken:
            self.stop(job_id)
        return web.json_response({"id": job_id, "status": "CANCELLED"})

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.Response()


class WorkerProcess:
    """A started worker, its output, and the engine that it starts as its ComfyUI."""

    def __init__(self, process: asyncio.subprocess.Process, engine: str) -> None:
        self.process = process
        self.engine = engine
        self.lines: deque[str] = deque(maxlen=500)
        self._news = asyncio.Condition()

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            async with self._news:
                self.lines.append(line.decode(errors="replace").rstrip())
                self._news.notify_all()

    async def says(self, text: str) -> str:
        """The first line that contains `text`, now or later."""
        async with asyncio.timeout(40), self._news:
            await self._news.wait_for(lambda: any(text in line for line in self.lines))
        return next(line for line in self.lines if text in line)

    async def executed(self) -> dict[str, int]:
        """How often the engine ran each prompt since it was started."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.engine}/engine/stats") as response:
            found: dict[str, int] = (await response.json())["executed"]
            return found

    async def queue(self) -> dict[str, list[Any]]:
        async with aiohttp.ClientSession() as http, http.get(f"{self.engine}/queue") as response:
            found: dict[str, list[Any]] = await response.json()
            return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def running_worker(environment: Mapping[str, str], *arguments: str, **more: str) -> AsyncIterator[WorkerProcess]:
    """Runs `python -m comfyui.workers.runpod_worker` with an engine as its ComfyUI; ends it on exit."""
    port = free_port()
    engine = [sys.executable, "-m", "comfyui.engine", "--port", str(port), "--step-seconds", "0.002"]
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "comfyui.workers.runpod_worker", *arguments),
        cwd=ROOT,
        env={
            **kept,
            "PYTHONUNBUFFERED": "1",
            "COMFYUI_COMMAND": " ".join(engine),
            "COMFYUI_SERVER_ADDRESS": f"127.0.0.1:{port}",
            **environment,
            **more,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    worker = WorkerProcess(process, f"http://127.0.0.1:{port}")
    reader = asyncio.create_task(worker.read())
    try:
        yield worker
    except BaseException:
        print("\n".join(worker.lines))
        raise
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
        await process.wait()
        await reader
