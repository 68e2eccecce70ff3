"""Runs `client.py` as its own process, or in this one."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comfyui.sdk.command_line import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    code: int | None
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "client.py"),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(process: asyncio.subprocess.Process) -> Ran:
    out, err = await process.communicate()
    return Ran(process.returncode, out.decode(), err.decode())


async def cli(*arguments: str) -> Ran:
    return await finish(await start(*arguments))


async def cli_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    """Like `cli`, in this process, without the time for the start of an interpreter."""
    code = await asyncio.to_thread(main, arguments)
    out, err = capsys.readouterr()
    return Ran(code, out, err)
