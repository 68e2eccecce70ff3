"""A ComfyUI that crashes a given number of times at one stage of a job and records each render that it begins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.running import Workflow, invert_workflow

STAGES: dict[str, dict[str, Any]] = {
    "starting": {"at": "start"},
    "staging": {"route": "/upload/image"},
    "queued": {"route": "/prompt", "method": "POST"},
    "running": {"class_type": "ImageInvert"},
    "collecting": {"route": "/history/*", "method": "GET"},
}
_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def engine_command(port: int, folder: Path, stage: str, crashes: int) -> tuple[str, ...]:
    """The command line of an engine that crashes `crashes` times at this stage, counted across its starts."""
    faults = folder / "faults.json"
    if not faults.exists():
        faults.write_text(json.dumps({"segfault": {**STAGES[stage], "times": crashes}}))
    return (
        *(sys.executable, "-m", "comfyui.engine", "--port", str(port)),
        *("--step-seconds", "0.002", "--faults-file", str(faults), "--base-directory", str(folder / "engine")),
        *("--executions-file", str(folder / "executions")),
    )


def renders(folder: Path) -> int:
    """How often ComfyUI began to render."""
    path = folder / "executions"
    return len(path.read_text().splitlines()) if path.exists() else 0


def picture_workflow() -> Workflow:
    """A workflow that passes every stage, because its picture is uploaded before it is queued."""
    workflow = invert_workflow()
    workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": f"data:image/png;base64,{_PICTURE}"}}
    return workflow
