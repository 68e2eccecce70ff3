"""Videos made by the host's ffmpeg; skips tests that need it if it is not installed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest


def ffmpeg() -> str:
    """The path of the program; skips the test without it."""
    found = shutil.which("ffmpeg")
    if found is None:
        pytest.skip("no ffmpeg: apt-get install --no-install-recommends ffmpeg")
    return found


async def make_video(path: Path, *options: str, source: str = "testsrc=rate=10:size=640x360") -> Path:
    """Makes one second of a test picture, in the format of the path's suffix."""
    made = ("-f", "lavfi", "-i", f"{source}:duration=1")
    process = await asyncio.create_subprocess_exec(ffmpeg(), "-v", "error", "-y", *made, *options, str(path))
    assert await process.wait() == 0
    return path
