"""Comfy API v2 without a ComfyUI: each job has succeeded at its first request, always with the same output.

It does almost nothing, so that measurements with it are those of the official SDK: no server can be faster.
"""

from __future__ import annotations

import argparse
import asyncio
from uuid import uuid4

import orjson
import uvloop

_TIME = "2026-01-01T00:00:00.000+00:00"


class _Connection(asyncio.Protocol):
    """Answers requests that come one after the other, each with its head in one or more pieces."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a TCP transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end or len(rest) < _length_of(head) or self._transport is None:
            return
        self._data = b""
        method, path, _ = head.split(b" ", 2)
        if method == b"POST":
            status, body = b"201 Created", _job(str(uuid4()), self._address, ended=False)
        else:
            status, body = b"200 OK", _job(path.rpartition(b"/")[2].decode(), self._address, ended=True)
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )


def _length_of(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _job(job_id: str, address: str, *, ended: bool) -> bytes:
    own = f"/api/v2/jobs/{job_id}"
    output = {
        "node_id": "3",
        "name": "picture_00001_.png",
        "type": "image",
        "content_type": "image/png",
        "size_bytes": 100,
        "id": f"{job_id}.0",
        "hash": None,
        "url": f"http://{address}/api/v2/assets/{job_id}.0/content",
        "url_expires_at": _TIME,
        "job_id": job_id,
    }
    return orjson.dumps(
        {
            "id": job_id,
            "status": "succeeded" if ended else "queued",
            "created_at": _TIME,
            "started_at": _TIME if ended else None,
            "completed_at": _TIME if ended else None,
            "expires_at": _TIME,
            "queue_position": None,
            "progress": None,
            "outputs": [output] if ended else [],
            "error": None,
            "urls": {"self": own, "events": f"{own}/events", "cancel": f"{own}/cancel"},
        }
    )


async def _serve(port: int) -> None:
    address = f"127.0.0.1:{port}"
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(address), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))
