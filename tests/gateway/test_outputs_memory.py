"""The gateway's memory for a large output does not grow with the file, in any form of answer.

``OUTPUT_MB=1000 pytest tests/gateway/test_outputs_memory.py -s`` measures it for a file of 1 GB.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.large_output import SIZE
from tests.support.outputs import simulated_output
from tests.support.processes import gateway_process, peak_kb

LIMIT_KB = 64_000
WORKFLOW = {"1": simulated_output(SIZE)}
SMALL = {"1": simulated_output()}

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
    pytest.mark.timeout(300),
]


async def base64_of(chunks: AsyncIterator[bytes]) -> str:
    """The digest of the file in a JSON answer; the test never has the whole file in its memory, either."""
    digest, pending, inside = hashlib.sha256(), b"", False
    async for chunk in chunks:
        pending += chunk
        if not inside:
            start = pending.find(b'"base64":"')
            if start < 0:
                continue
            pending, inside = pending[start + 10 :], True
        end = pending.find(b'"')
        whole = end if end >= 0 else len(pending) - len(pending) % 4
        digest.update(base64.b64decode(pending[:whole], validate=True))
        if end >= 0:
            async for _ in chunks:
                pass
            break
        pending = pending[whole:]
    return digest.hexdigest()


async def raw_of(chunks: AsyncIterator[bytes]) -> str:
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


async def zip_of(chunks: AsyncIterator[bytes]) -> str:
    """The digest of the archive's first file, which is stored without compression."""
    digest, head, left = hashlib.sha256(), b"", SIZE
    async for chunk in chunks:
        if not head:
            head = chunk
            name_length, extra_length = struct.unpack("<HH", head[26:30])
            piece = head[30 + name_length + extra_length :][:left]
        else:
            piece = chunk[:left]
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("accept", "read"),
    [
        ("application/json", base64_of),
        ("text/event-stream", base64_of),
        ("video/*", raw_of),
        ("application/zip", zip_of),
    ],
    ids=["base64", "events", "raw", "zip"],
)
async def test_a_large_file_costs_little_memory(engine: Engine, accept: str, read: Any, digest_of_output: str) -> None:
    headers = {"Accept": accept}
    async with gateway_process(engine.url) as gateway:
        for workflow, check in ((SMALL, False), (WORKFLOW, True)):
            body = {"prompt": workflow, "return_image_base64": True}
            before = peak_kb(gateway)
            async with gateway.http.post(
                "/prompt_sync", json=body, headers=headers, timeout=aiohttp.ClientTimeout(300)
            ) as response:
                assert response.status == 200, await response.text()
                if check:
                    assert await read(response.content.iter_any()) == digest_of_output
                else:
                    await response.read()
        cost = peak_kb(gateway) - before
    print(f"{accept}: {SIZE / 1e6:.0f} MB cost {cost / 1000:.1f} MB, peak {(before + cost) / 1000:.1f} MB")
    assert cost < LIMIT_KB
