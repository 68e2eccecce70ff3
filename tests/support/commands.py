"""Programs that a test runs to their end, such as clients of the gateway in other languages."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path


async def printed_by(folder: Path, *command: str | Path, **environment: str) -> str:
    """Runs a command that must succeed and returns what it prints. Meanwhile the event loop serves the gateway.

    Args:
        folder: its working directory.
        environment: variables besides those of the test's process.
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
