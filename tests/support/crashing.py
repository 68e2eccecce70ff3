"""Workflows that end ComfyUI's process, and an engine that is started again each time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from comfyui.servers.process import ComfyUIProcess
from tests.support.ports import free_port
from tests.support.running import Workflow, invert_workflow


def crash_workflow(tag: int) -> Workflow:
    """Ends the engine's process by a segmentation fault, 0.3 s after the node begins."""
    workflow = invert_workflow(tag)
    workflow["4"] = {"class_type": "SimulatedCrash", "inputs": {"how": "segfault", "after": 0.3, "value": ["2", 0]}}
    workflow["3"]["inputs"]["images"] = ["4", 0]
    return workflow


@asynccontextmanager
async def restarted_engine(folder: Path, *options: str) -> AsyncIterator[str]:
    """The address of an engine that is started again whenever it ends, as a supervisor does."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "comfyui.engine", "--port", str(port)),
        *("--base-directory", str(folder / "comfyui"), "--executions-file", str(folder / "executions")),
        *options,
    ]
    async with ComfyUIProcess(command, f"127.0.0.1:{port}", max_crashes=20, restart_delay_s=0.2) as process:
        await process.wait_until_ready()
        yield f"http://127.0.0.1:{port}"


def recorded_executions(folder: Path) -> Counter[str]:
    """How often the engine of this folder began each prompt, over all its lives."""
    path = folder / "executions"
    return Counter(path.read_text().split() if path.exists() else ())
