"""Programs that a test runs to their end, such as clients of the gateway in other languages."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path


async def printed_by(folder: Path, *command: str | Path, **environment: str) -> str:
    """What a command prints that must succeed. Waits in the event loop, in which the gateway serves.

    Args:
        folder: where it runs.
        environment: beside the test's own.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{output.decode()}{errors.decode()}"
    return output.decode()
