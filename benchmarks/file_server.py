"""Serves and takes files as ComfyUI does, but without a limit for uploads: aiohttp with a large file for ``/view``."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from aiohttp import web


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size", type=int, required=True, help="bytes of the file")
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.fileno(), arguments.size)
        web.run_app(_application(Path(file.name)), host="127.0.0.1", port=arguments.port, access_log=None, print=None)


def _application(large: Path) -> web.Application:
    async def view(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(large)

    async def upload(request: web.Request) -> web.Response:
        count = 0
        async for chunk in request.content.iter_any():
            count += len(chunk)
        return web.json_response({"bytes": count})

    async def queue(_request: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": 0}})

    app = web.Application()
    app.add_routes([web.get("/view", view), web.post("/upload/image", upload), web.get("/prompt", queue)])
    return app


if __name__ == "__main__":
    main()
