"""The ways to the same pictures: the best direct client of ComfyUI, a user's own, and one call to the gateway."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson

from benchmarks.http import Connection, Reply
from benchmarks.processes import BenchError, Server

Workflow = dict[str, Any]
Call = Callable[[Workflow], Awaitable[float]]
"""Runs a workflow, reads its one file, and returns the seconds that both took."""

_counter = itertools.count()
_COLOURS = 1 << 24
_A_FOLDER = 100


def workflow(sleep_s: float = 0.0) -> Workflow:
    """A small picture, and a pause in place of a GPU's work. It differs each time, so that no cache answers. The files
    go to many folders, because ComfyUI lists the folder for each saved picture."""
    number = next(_counter)
    run = f"bench/{number // _A_FOLDER}/picture"
    return {
        "1": _node("EmptyImage", width=64, height=64, batch_size=1, color=number % _COLOURS),
        "2": _node("SimulatedSleep", value=["1", 0], seconds=sleep_s, steps=1),
        "3": _node("SaveImage", images=["2", 0], filename_prefix=run),
    }


def file_workflow(size: int) -> Workflow:
    """A workflow that writes one file of `size` bytes."""
    prefix = f"large/{next(_counter)}"
    return {
        "1": _node("SimulatedOutput", count=1, size=size, extension="bin", output_key="files", filename_prefix=prefix)
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def checked(reply: Reply, what: str) -> Reply:
    if reply.status != 200:
        raise BenchError(f"{what}: HTTP {reply.status}: {reply.body[:300].decode(errors='replace')}")
    return reply


def view_path(file: dict[str, Any]) -> str:
    return "/view?" + urlencode({key: file[key] for key in ("filename", "subfolder", "type")})


class Pool:
    """Open connections to one server; each call takes one for itself."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._idle: list[Connection] = []
        self._open: list[Connection] = []

    async def take(self) -> Connection:
        if self._idle:
            return self._idle.pop()
        connection = await Connection.open(self._server.port)
        self._open.append(connection)
        return connection

    def give(self, connection: Connection) -> None:
        self._idle.append(connection)

    async def request(self, method: str, path: str, body: bytes | None = None, **options: Any) -> Reply:
        connection = await self.take()
        reply = await connection.request(method, path, body, **options)
        self.give(connection)
        return checked(reply, f"{method} {path}")

    def close(self) -> None:
        for connection in self._open:
            connection.close()
        self._idle, self._open = [], []


@asynccontextmanager
async def pool_of(server: Server) -> AsyncIterator[Pool]:
    """A pool that is closed when the block ends."""
    pool = Pool(server)
    try:
        yield pool
    finally:
        pool.close()


async def submitted(pool: Pool, prompt: Workflow, headers: str = "") -> str:
    """Submits an async job and returns its id."""
    connection = await pool.take()
    body = orjson.dumps({"prompt": prompt})
    reply = await connection.request("POST", "/prompt_sync?prefer=respond-async", body, headers=headers)
    pool.give(connection)
    if reply.status != 202:
        raise BenchError(f"an async submission got {reply.status}: {reply.body[:300].decode(errors='replace')}")
    prompt_id: str = orjson.loads(reply.body)["prompt_id"]
    return prompt_id


class DirectClient:
    """One websocket for all calls. A call posts, waits until ComfyUI is done, and gets the history and the file."""

    def __init__(self, pool: Pool, client_id: str) -> None:
        self.pool = pool
        self._client_id = client_id
        self._done: dict[str, asyncio.Future[None]] = {}

    async def listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            # It ignores all other frames and does not even parse them.
            if message.type is aiohttp.WSMsgType.TEXT and message.data.startswith('{"type": "executing"'):
                data = orjson.loads(message.data)["data"]
                if data["node"] is None and (future := self._done.get(data["prompt_id"])) is not None:
                    future.set_result(None)

    async def __call__(self, prompt: Workflow, **fields: Any) -> float:
        started = time.perf_counter()
        await self.run(prompt, **fields)
        return time.perf_counter() - started

    async def run(self, prompt: Workflow, **fields: Any) -> str:
        """Runs a prompt to its end and returns its id."""
        connection = await self.pool.take()
        prompt_id = str(uuid.uuid4())
        done = self._done[prompt_id] = asyncio.get_running_loop().create_future()
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": self._client_id, **fields}
        checked(await connection.request("POST", "/prompt", orjson.dumps(body)), "POST /prompt")
        await done
        del self._done[prompt_id]
        reply = checked(await connection.request("GET", f"/history/{prompt_id}"), "GET /history")
        outputs = orjson.loads(reply.body)[prompt_id]["outputs"]
        (file,) = (item for node in outputs.values() for items in node.values() for item in items)
        picture = checked(await connection.request("GET", view_path(file)), "GET /view")
        if not picture.body:
            raise BenchError("the direct client got an empty picture")
        self.pool.give(connection)
        return prompt_id


@asynccontextmanager
async def direct_client(engine: Server) -> AsyncIterator[DirectClient]:
    client_id = uuid.uuid4().hex
    pool = Pool(engine)
    client = DirectClient(pool, client_id)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://{engine.address}/ws?clientId={client_id}", max_msg_size=0) as socket,
    ):
        listening = asyncio.create_task(client.listen(socket))
        try:
            yield client
        finally:
            listening.cancel()
            pool.close()


class AiohttpClient:
    """A client as a user of ComfyUI would write it: an aiohttp session, a websocket, POST, wait, GET history.

    It ends with the names of the files, like a call to the gateway without base64.
    """

    def __init__(self, http: aiohttp.ClientSession, client_id: str) -> None:
        self._http = http
        self._client_id = client_id
        self._done: dict[str, asyncio.Future[None]] = {}

    async def listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = message.json()
            if event["type"] == "executing" and event["data"]["node"] is None:
                self._done.pop(event["data"]["prompt_id"]).set_result(None)

    async def __call__(self, prompt: Workflow) -> float:
        started = time.perf_counter()
        prompt_id = str(uuid.uuid4())
        done = self._done[prompt_id] = asyncio.get_running_loop().create_future()
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": self._client_id}
        async with self._http.post("/prompt", json=body) as reply:
            reply.raise_for_status()
            await reply.json()
        await done
        async with self._http.get(f"/history/{prompt_id}") as reply:
            reply.raise_for_status()
            outputs = (await reply.json())[prompt_id]["outputs"]
        if not outputs:
            raise BenchError("the aiohttp client got no outputs")
        return time.perf_counter() - started


@asynccontextmanager
async def aiohttp_client(engine: Server) -> AsyncIterator[AiohttpClient]:
    client_id = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession(f"http://{engine.address}") as http,
        http.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket,
    ):
        client = AiohttpClient(http, client_id)
        listening = asyncio.create_task(client.listen(socket))
        try:
            yield client
        finally:
            listening.cancel()


class GatewayClient:
    """A client of the gateway: one POST /prompt_sync with the file as base64 in its answer."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def __call__(self, prompt: Workflow, **fields: Any) -> float:
        started = time.perf_counter()
        await self.result(prompt, **fields)
        return time.perf_counter() - started

    async def result(self, prompt: Workflow, *, return_image_base64: bool = True, **fields: Any) -> dict[str, Any]:
        body = {"prompt": prompt, "return_image_base64": return_image_base64, **fields}
        reply = await self.pool.request("POST", "/prompt_sync", orjson.dumps(body))
        answer: dict[str, Any] = orjson.loads(reply.body)
        if return_image_base64 and not answer["images"][0].get("base64"):
            raise BenchError(f"the gateway's answer has no picture: {reply.body[:300].decode(errors='replace')}")
        return answer


async def request_counts(engine: Pool) -> dict[str, int]:
    """The engine's number of requests since `forget_counts`, by ``METHOD /route``."""
    counts: dict[str, int] = orjson.loads((await engine.request("GET", "/engine/stats")).body)["requests"]
    return counts


async def forget_counts(engine: Pool) -> None:
    await engine.request("DELETE", "/engine/stats")


async def all_of(calls: int, callers: int, call: Callable[[], Awaitable[float]]) -> list[float]:
    """Makes `calls` calls by `callers` concurrent callers; returns the seconds of each."""
    seconds: list[float] = []
    left = itertools.count()

    async def caller() -> None:
        while next(left) < calls:
            seconds.append(await call())

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return seconds
