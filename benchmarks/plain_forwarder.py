"""A yardstick to compare machines: the cost of forwarding with FastAPI and aiohttp and nothing else.

It posts, waits on one websocket, fetches the history and the file, and answers with base64; it has no checks, no error
handling, no limits, no retries and no log. On a machine on which it adds 1.2 ms, the gateway's target is 1.5 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response


def application(comfyui: str) -> FastAPI:
    client_id = uuid.uuid4().hex
    done: dict[str, asyncio.Future[None]] = {}

    async def listen(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                event = orjson.loads(message.data)
                if event["type"] == "executing" and event["data"]["node"] is None:
                    done.pop(event["data"]["prompt_id"]).set_result(None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(comfyui) as http, http.ws_connect(f"/ws?clientId={client_id}") as socket:
            app.state.http = http
            listening = asyncio.create_task(listen(socket))
            yield
            listening.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {}

    @app.post("/prompt_sync")
    async def prompt_sync(request: Request) -> Response:
        http: aiohttp.ClientSession = request.app.state.http
        prompt_id = str(uuid.uuid4())
        ended = done[prompt_id] = asyncio.get_running_loop().create_future()
        prompt = orjson.loads(await request.body())["prompt"]
        body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id}
        async with http.post("/prompt", json=body) as reply:
            reply.raise_for_status()
        await ended
        async with http.get(f"/history/{prompt_id}") as reply:
            outputs: dict[str, Any] = orjson.loads(await reply.read())[prompt_id]["outputs"]
        images = []
        for file in (item for node in outputs.values() for items in node.values() for item in items):
            async with http.get("/view", params=file) as reply:
                images.append({**file, "base64": base64.b64encode(await reply.read()).decode()})
        answer = {"prompt_id": prompt_id, "outputs": outputs, "images": images}
        return Response(orjson.dumps(answer), media_type="application/json")

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--comfyui", required=True, help="ComfyUI's address, as a URL")
    arguments = parser.parse_args()
    uvicorn.run(application(arguments.comfyui), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
