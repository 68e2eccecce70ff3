"""The memory of the gateway's process while it relays a large file; benchmarks/relay.py does the same with 1 GB."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.relay import download, large_file, upload

_SIZE = 256 << 20
_MOST_GROWTH_KB = 16_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's peak memory from /proc")
async def test_large_downloads_and_uploads_do_not_grow_the_memory(tmp_path: Path) -> None:
    async with large_file(tmp_path, _SIZE) as (_server, gateway, size):
        down = await download(gateway, gateway)
        up = await upload(gateway, size, gateway)

    assert (down.bytes_moved, up.bytes_moved) == (_SIZE, _SIZE)
    assert down.growth_kb < _MOST_GROWTH_KB
    assert up.growth_kb < _MOST_GROWTH_KB
