"""What is wrong with a request's workflow on a server, before it is queued or after ComfyUI refused it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from comfyui.exceptions import ComfyUIError, ComfyUIValidationError
from comfyui.inputs.staging import brought_inputs
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.models import PromptRequest
from comfyui.offload import in_thread
from comfyui.servers.backend import Backend
from comfyui.workflows.api_format import upload_inputs
from comfyui.workflows.preflight import Problem, preflight

# ComfyUI's lists of models and files change while it runs: what they say against a workflow is asked for anew.
_FRESH_S = 5.0


async def problems_on(
    backend: Backend,
    request: PromptRequest,
    files: Collection[str] = (),
    *,
    max_age_s: float = _FRESH_S,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Problem]:
    """Everything that is wrong, by node definitions that are at most `max_age_s` old where they say so.

    Args:
        files: names of further inputs that come with the request.

    Raises:
        ComfyUIError: the definitions could not be had.
    """
    known = await backend.object_info()
    problems = await in_thread(_check, request, known, files, limits)
    if any(problem.severity == "error" for problem in problems):
        fresh = await backend.object_info(max_age_s=max_age_s)
        if fresh is not known:
            problems = await in_thread(_check, request, fresh, files, limits)
    return problems


def _check(
    request: PromptRequest, object_info: Mapping[str, Any], files: Collection[str], limits: Limits
) -> list[Problem]:
    brought = brought_inputs(request, upload_inputs(request.prompt, object_info), files, limits)
    return preflight(
        request.prompt, object_info, staged=brought, targets=request.partial_execution_targets, limits=limits
    )


async def explained(
    error: ComfyUIValidationError,
    backend: Backend,
    request: PromptRequest,
    files: Collection[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> ComfyUIValidationError:
    """ComfyUI's refusal with what it does not say: the closest existing names, and the node where it named none."""
    try:
        async with backend.soon():
            problems = await problems_on(backend, request, files, limits=limits)
    except (ComfyUIError, TimeoutError):
        return error  # it is about the workflow, not about this
    return _with_names(error, problems)


def _with_names(error: ComfyUIValidationError, problems: Sequence[Problem]) -> ComfyUIValidationError:
    messages = {node_id: list(said) for node_id, said in error.node_errors.items()}
    for problem in problems:
        if problem.severity != "error" or not problem.node_id:
            continue
        said = messages.setdefault(problem.node_id, [])
        closest = f"closest to it: {', '.join(problem.closest)}" if problem.closest else ""
        if problem.node_id not in error.node_errors:
            said.append(f"{problem.message}; {closest}" if closest else problem.message)
        elif closest:
            said.append(f"{problem.input_name or problem.class_type}: {closest}")
    return ComfyUIValidationError(
        error.detail, prompt_id=error.prompt_id, node_errors=messages, upstream=error.upstream
    )
