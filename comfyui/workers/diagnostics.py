"""What somebody who sees only a failed job needs to find the reason: ComfyUI's state, its models, its last words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui.exceptions import (
    ComfyUIError,
    ComfyUIInputUnavailableError,
    ComfyUIPromptQuarantinedError,
    ComfyUITaskError,
)
from comfyui.nodedefs import ObjectInfo, input_specs
from comfyui.workers.base import ComfyUIWorker

_SHOWN_LINES = 30
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
        lines.append("This may pass: the same job, sent again later, may succeed.")
    if error.prompt_id:
        lines.append(f"prompt_id: {error.prompt_id}")
    return "\n".join(lines)


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
        return [f"models found: not known ({error.detail})"]
    return ["models found:", *(f"  {name}: {_listed(files)}" for name, files in sorted(found.items()))]


def models_found(object_info: ObjectInfo) -> Mapping[str, list[str]]:
    """Input name (``ckpt_name``, ``lora_name``, …) to the model files that its nodes offer."""
    found: dict[str, set[str]] = {}
    for definition in object_info.values():
        for spec in input_specs(definition):
            files = [name for name in spec.choices or () if str(name).lower().endswith(_MODEL_ENDINGS)]
            # An empty list of names is a folder without models: just that is what one wants to see.
            if files or (spec.choices == () and spec.name.endswith("_name")):
                found.setdefault(spec.name, set()).update(files)
    return {name: sorted(files) for name, files in found.items()}


def _state(worker: ComfyUIWorker) -> str:
    report: dict[str, Any] = worker.pool.report()[0]
    parts = [str(report["state"])]
    if report["reason"]:
        parts.append(str(report["reason"]))
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
