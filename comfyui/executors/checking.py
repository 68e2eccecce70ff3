"""Finds what is wrong with a request's workflow on a server, before it is queued or after ComfyUI refused it.

Only this module compares workflows with node definitions, for the gateway and for every worker.
`comfyui.workflows.api_format.check_api_format` comes before and checks what needs no server.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfyui.exceptions import ComfyUIError, ComfyUIValidationError
from comfyui.inputs.plan import brought_inputs
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.models import PromptRequest
from comfyui.offload import ON_LOOP_BYTES, in_thread
from comfyui.servers.backend import Backend
from comfyui.workflows.api_format import upload_inputs
from comfyui.workflows.needs import Offer
from comfyui.workflows.preflight import Problem, preflight


@dataclass(frozen=True, slots=True)
class Strictness:
    """How strictly a workflow is compared with node definitions.

    Attributes:
        also_refused: codes of warnings that count as errors.
        max_age_s: the oldest definitions that count against a workflow: ComfyUI's lists of models and files change
            while it runs.
    """

    also_refused: frozenset[str] = frozenset()
    max_age_s: float = 5.0

    def judged(self, problems: Sequence[Problem]) -> list[Problem]:
        """The same problems, with those that count as errors turned into errors."""
        also = self.also_refused
        return [replace(problem, severity="error") if problem.code in also else problem for problem in problems]


AS_COMFYUI = Strictness()

# Nodes that are held against their definitions in less than a millisecond. A thread's work for three of them took
# 0.5 ms of CPU, and kept the event loop from its own.
_AT_ONCE_NODES = 20


async def problems_on(
    backend: Backend,
    request: PromptRequest,
    files: Collection[str] = (),
    *,
    strictness: Strictness = AS_COMFYUI,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Problem]:
    """All problems, errors and warnings.

    Args:
        files: names of further inputs that come with the request.

    Raises:
        ComfyUIError: the definitions are not available.
    """
    known = await backend.object_info()
    problems = strictness.judged(await _problems(request, known, files, limits))
    if any(problem.severity == "error" for problem in problems):
        fresh = await backend.object_info(max_age_s=strictness.max_age_s)
        if fresh is not known:
            problems = strictness.judged(await _problems(request, fresh, files, limits))
    return problems


async def _problems(
    request: PromptRequest, object_info: Mapping[str, Any], files: Collection[str], limits: Limits
) -> list[Problem]:
    """Most workflows are short and have no problem. A thread handles longer ones, and finds the closest names."""
    is_short = len(request.prompt) <= _AT_ONCE_NODES and request.size <= ON_LOOP_BYTES
    if is_short and not _check(request, object_info, files, limits, names_closest=False):
        return []
    return await in_thread(_check, request, object_info, files, limits)


def _check(
    request: PromptRequest,
    object_info: Mapping[str, Any],
    files: Collection[str],
    limits: Limits,
    *,
    names_closest: bool = True,
) -> list[Problem]:
    brought = brought_inputs(request, upload_inputs(request.prompt, object_info), files, limits)
    prompt = Offer(object_info).spelled(request.prompt)
    targets = request.partial_execution_targets
    return preflight(prompt, object_info, staged=brought, targets=targets, limits=limits, names_closest=names_closest)


async def explained(
    error: ComfyUIValidationError,
    backend: Backend,
    request: PromptRequest,
    files: Collection[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> ComfyUIValidationError:
    """ComfyUI's refusal with two additions: the closest existing names, and the node if it named none."""
    try:
        async with backend.soon():
            problems = await problems_on(backend, request, files, limits=limits)
    except (ComfyUIError, TimeoutError):
        return error  # it concerns the workflow, not this refusal
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
        error.detail,
        prompt_id=error.prompt_id,
        node_errors=messages,
        upstream=error.upstream,
        codes={problem.code for problem in problems},
    )
