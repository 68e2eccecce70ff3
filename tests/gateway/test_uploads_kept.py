"""Uploads survive a kill of the gateway, and a large one costs little memory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.pictures import RED, color_of
from tests.support.processes import GatewayProcess, gateway_process, peak_kb
from tests.support.running import engines, loading_workflow

_SIZE = 300_000_000
_PIECE = bytes(1_000_000)
_LIMIT_KB = 60_000


async def _uploaded(gateway: GatewayProcess, content: bytes | AsyncIterator[bytes], name: str) -> str:
    form = aiohttp.MultipartWriter("form-data")
    file = aiohttp.get_payload(content, content_type="application/octet-stream")
    file.set_content_disposition("form-data", name="image", filename=name)
    form.append_payload(file)
    timeout = aiohttp.ClientTimeout(50)
    async with gateway.http.post("/upload/image", data=form, timeout=timeout) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["name"])


async def test_an_upload_survives_a_kill_of_the_gateway(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    async with engines(3) as servers:
        addresses = ",".join(one.url for one in servers)
        async with gateway_process(addresses, STATE_DIR=state) as gateway:
            assert await _uploaded(gateway, RED, "a.png") == "a.png"
            await gateway.kill()
        assert not any(list(one.folders.input.iterdir()) for one in servers)
        async with gateway_process(addresses, STATE_DIR=state) as gateway:
            status, result = await gateway.prompt_sync(loading_workflow("a.png"))
            assert status == 200, result
            async with gateway.http.get(result["images"][0]["url"]) as response:
                assert color_of(await response.read()) == (255, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's peak memory from /proc")
async def test_a_large_upload_costs_little_memory(tmp_path: Path) -> None:
    digest = hashlib.sha256()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(_SIZE // len(_PIECE)):
            digest.update(_PIECE)
            yield _PIECE

    state = tmp_path / "state"
    async with engines(2) as servers:
        addresses = ",".join(one.url for one in servers)
        async with gateway_process(addresses, STATE_DIR=str(state)) as gateway:
            await _uploaded(gateway, RED, "small.png")
            before = peak_kb(gateway)
            assert await _uploaded(gateway, pieces(), "large.mp4") == "large.mp4"
            cost = peak_kb(gateway) - before
            headers = {"Range": f"bytes={_SIZE - 4}-"}
            async with gateway.http.get("/view?filename=large.mp4&type=input", headers=headers) as response:
                assert (response.status, await response.read()) == (206, bytes(4))
    print(f"{_SIZE / 1e6:.0f} MB cost {cost / 1000:.1f} MB")
    assert cost < _LIMIT_KB
    assert (state / "inputs" / digest.hexdigest()).stat().st_size == _SIZE
