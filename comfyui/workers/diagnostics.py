"""Facts by which the reason of a failed job can be found: ComfyUI's state, its models, its last lines."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import structlog

from comfyui.exceptions import (
    ComfyUIError,
    ComfyUIInputUnavailableError,
    ComfyUIPromptQuarantinedError,
    ComfyUITaskError,
)
from comfyui.tasks import SideTasks
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.options import WorkerOptions
from comfyui.workflows.node_definitions import ObjectInfo, input_specs

_SHOWN_LINES = 30
# A failed job is not kept waiting for ComfyUI to describe itself.
_ASK_S = 5.0
_SHOWN_MODELS = 8
_MODEL_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")


def error_text(error: ComfyUIError) -> str:
    """The error in full, node by node: for logs and for platforms that take a text."""
    lines = [f"{error.title}: {error.detail}"]
    lines += [f"node {node_id}: {message}" for node_id, messages in error.node_errors.items() for message in messages]
    if isinstance(error, ComfyUITaskError) and error.traceback_tail:
        lines += ["last lines of the node's traceback:", *(f"  {line}" for line in error.traceback_tail)]
    if isinstance(error, ComfyUIPromptQuarantinedError) and error.log_tail:
        lines += ["last lines of ComfyUI's output before it ended:", *(f"  {line}" for line in error.log_tail)]
    if isinstance(error, ComfyUIInputUnavailableError):
        lines.append("The cause may pass: the same job may succeed if it is sent again later.")
    if error.prompt_id:
        lines.append(f"prompt_id: {error.prompt_id}")
    return "\n".join(lines)


def error_members(error: ComfyUIError) -> dict[str, Any]:
    """The error as members of a job's result, the same on every platform."""
    members: dict[str, Any] = {
        "status": "error",
        "prompt_id": error.prompt_id,
        "error_type": error.code,
        "detail": error.detail,
        "retryable": error.retryable,
        "node_errors": {node_id: list(messages) for node_id, messages in error.node_errors.items()},
    }
    if isinstance(error, ComfyUITaskError):
        members["node"] = {"id": error.node_id, "type": error.node_type, "exception_type": error.exception_type}
        members["traceback_tail"] = list(error.traceback_tail)
    if isinstance(error, ComfyUIPromptQuarantinedError):
        members["log_tail"] = list(error.log_tail)
    return members


async def environment(worker: ComfyUIWorker) -> dict[str, Any]:
    """The environment of the jobs: versions, GPU, memory, disk and models, as far as each can be found out within a
    moment.

    ``*_mb`` are in MB of 1,000,000 bytes. No path, address or key is in it.
    """
    facts: dict[str, Any] = {"comfyui": _state(worker), "versions": {"worker": _own_version()}}
    facts["disk"] = await asyncio.to_thread(_disks, worker.options)
    if not worker.connected:
        return facts
    backend = worker.pool.backends[0]
    try:
        async with asyncio.timeout(_ASK_S):
            stats = await backend.client.system_stats()
            models = models_found(await backend.object_info())
    except (ComfyUIError, TimeoutError):
        return facts
    said, listed = stats.get("system"), stats.get("devices")
    system: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    devices: Sequence[Any] = listed if isinstance(listed, list) else []
    facts["versions"] |= {
        name: str(system[f"{name}_version"])
        for name in ("comfyui", "python", "pytorch")
        if system.get(f"{name}_version") is not None
    }
    facts["memory"] = _megabytes(system, {"total_mb": "ram_total", "free_mb": "ram_free"})
    facts["gpu"] = [
        {"name": str(device.get("name")), "type": str(device.get("type"))}
        | _megabytes(device, {"total_mb": "vram_total", "free_mb": "vram_free"})
        for device in devices
        if isinstance(device, Mapping)
    ]
    facts["models"] = {
        name: {"count": len(files), "first": files[:_SHOWN_MODELS]} for name, files in sorted(models.items())
    }
    return facts


def _megabytes(said: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    found = {name: said.get(member) for name, member in names.items()}
    return {name: int(value / 1e6) for name, value in found.items() if isinstance(value, int | float)}


def _disks(options: WorkerOptions) -> dict[str, dict[str, int]]:
    """By the purpose of the folder; blocking."""
    folders = {"comfyui": options.comfyui_dir, "temporary": Path(tempfile.gettempdir())}
    found = {}
    for name, folder in folders.items():
        if folder is not None:
            with contextlib.suppress(OSError):
                usage = shutil.disk_usage(folder)
                found[name] = {"total_mb": int(usage.total / 1e6), "free_mb": int(usage.free / 1e6)}
    return found


def _own_version() -> str:
    try:
        return metadata.version("comfyui-gateway")
    except metadata.PackageNotFoundError:
        return "from source"


async def log_environment(worker: ComfyUIWorker) -> None:
    """Logs one line at the start, with the environment of the first job."""
    facts = await environment(worker)
    structlog.get_logger(__name__).info(
        "worker.environment",
        comfyui=facts["comfyui"],
        versions=facts["versions"],
        disk=facts["disk"],
        memory=facts.get("memory"),
        gpu=facts.get("gpu"),
        models={name: listed["count"] for name, listed in facts.get("models", {}).items()},
    )


@asynccontextmanager
async def describing(worker: ComfyUIWorker) -> AsyncIterator[None]:
    """`log_environment` as soon as ComfyUI is ready."""

    async def describe() -> None:
        # The first job says why it is not.
        with contextlib.suppress(ComfyUIError):
            await worker.wait_until_ready()
            await log_environment(worker)

    async with SideTasks() as side:
        side.start(describe(), "describe")
        yield


async def diagnostics(worker: ComfyUIWorker) -> str:
    """ComfyUI's state, the models it has, and the last lines of its output, as text."""
    lines = [f"ComfyUI: {_state(worker)}"]
    if worker.connected:
        lines += await _models(worker)
    if worker.process is not None:
        lines.append("last lines of ComfyUI's output:")
        lines += [f"  {line}" for line in worker.process.recent_lines[-_SHOWN_LINES:]]
    return "\n".join(lines)


async def _models(worker: ComfyUIWorker) -> list[str]:
    try:
        found = models_found(await worker.pool.backends[0].object_info())
    except ComfyUIError as error:
        return [f"models found: unknown ({error.detail})"]
    return ["models found:", *(f"  {name}: {_listed(files)}" for name, files in sorted(found.items()))]


def models_found(object_info: ObjectInfo) -> Mapping[str, list[str]]:
    """Input name (``ckpt_name``, ``lora_name``, …) to the model files that its nodes offer."""
    found: dict[str, set[str]] = {}
    for definition in object_info.values():
        for spec in input_specs(definition):
            files = [name for name in spec.choices or () if str(name).lower().endswith(_MODEL_ENDINGS)]
            # An empty list of names is a folder without models, which is an important fact.
            if files or (spec.choices == () and spec.name.endswith("_name")):
                found.setdefault(spec.name, set()).update(files)
    return {name: sorted(files) for name, files in found.items()}


def _state(worker: ComfyUIWorker) -> str:
    report = worker.pool.report()[0]
    parts = [report["state"]]
    if reason := report.get("reason"):
        parts.append(reason)
    if worker.process is not None:
        parts.append(f"process {worker.process.state.value}")
        if worker.process.reason:
            parts.append(worker.process.reason)
        parts.append(f"crashed {worker.process.crashes} times")
    return ", ".join(parts)


def _listed(files: list[str]) -> str:
    if not files:
        return "none"
    more = len(files) - _SHOWN_MODELS
    return ", ".join(files[:_SHOWN_MODELS]) + (f" and {more} more" if more > 0 else "")
