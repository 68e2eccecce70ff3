"""`--fallback-engine`: an embedded engine, a simulation, if no ComfyUI answers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from comfyui.address import ServerAccess
from comfyui.client import ComfyUIClient
from comfyui.exceptions import ComfyUICredentialsError, ComfyUIError, SettingsError

_PATIENCE_S = 3.0
_IMPORT_FOLDER = Path(__file__).parent.parent  # `python -m` looks for modules in the folder where it starts


@asynccontextmanager
async def fallback_engine(accesses: Mapping[str, ServerAccess]) -> AsyncIterator[str | None]:
    """The address of an embedded engine that runs as long as the context; None if a ComfyUI answers.

    Args:
        accesses: by the addresses of the ComfyUI servers.

    Raises:
        SettingsError: the engine did not start; its own output says why.
    """
    for address, access in accesses.items():
        if await _answers(address, access):
            yield None
            return
    command = (sys.executable, "-m", "comfyui.engine", "--port", "0")
    process = await asyncio.create_subprocess_exec(*command, cwd=_IMPORT_FOLDER, stdout=asyncio.subprocess.PIPE)
    try:
        line = (await process.stdout.readline()).decode() if process.stdout else ""
        match = re.search(r"https?://\S+", line)
        if match is None:
            raise SettingsError("the embedded engine did not start; see its output above")
        yield match[0]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(address: str, access: ServerAccess) -> bool:
    async with ComfyUIClient(address, timeout_s=_PATIENCE_S, retries=0, access=access) as client:
        with contextlib.suppress(ComfyUIError):
            with contextlib.suppress(ComfyUICredentialsError):  # ComfyUI is there, and the log says what it wants
                await client.get_queue_remaining()
            return True
    return False
