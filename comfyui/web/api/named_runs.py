"""Runs of named workflows, as every face begins them: which ones a caller may run, and a call as a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random, SystemRandom
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, create_model

from comfyui.exceptions import NamedWorkflowForbiddenError, ParametersError, RequestError
from comfyui.limits import named, over, short
from comfyui.models import PromptRequest
from comfyui.named.binding import bind
from comfyui.named.parameters import NamedWorkflow, Unusable
from comfyui.offload import offloaded
from comfyui.web.api.bodies import request_of
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.request_state import state_of

OPTIONS = "$options"
"""The member of a body for everything that is not a parameter. No parameter has such a name."""
OPTION_NAMES = (
    "return_image_base64",
    "prompt_id",
    "client_id",
    "extra_data",
    "convert",
    "output",
    "labels",
    "priority",
    "webhook",
)
"""The fields of `PromptRequest` that may stand there."""
_FIELDS: dict[str, Any] = {
    name: (field.annotation, field) for name, field in PromptRequest.model_fields.items() if name in OPTION_NAMES
}
RunOptions: type[BaseModel] = create_model(
    "RunOptions",
    __config__=ConfigDict(extra="forbid"),
    __doc__="Options of a run of a named workflow, besides its parameters.",
    **_FIELDS,
)
"""The description of the options in OpenAPI."""
# How many unknown names are each answered with the closest parameter.
_MOST_UNKNOWN = 20
_PATIENCE_S = 2.0
_NO_FILES: Mapping[str, str] = {}


def may_run(request: Request, name: str) -> bool:
    """Whether the caller's key may run the workflow of this name."""
    caller = state_of(request.scope).caller
    return caller is None or caller.rules.workflows is None or name in caller.rules.workflows


def seen_files(request: Request) -> Sequence[NamedWorkflow | Unusable]:
    """All workflows that the caller may run, also those whose files cannot be used; sorted by name."""
    return [one for one in gateway_of(request).named.all() if may_run(request, one.name)]


def seen_workflows(request: Request) -> list[NamedWorkflow]:
    """The workflows that the caller may run and that can be used, sorted by name."""
    return [one for one in seen_files(request) if isinstance(one, NamedWorkflow)]


async def know_nodes(gateway: GatewayState) -> None:
    """Asks the servers for their node definitions, if none has told them: the types of parameters come from these."""
    if not gateway.named.is_typed and gateway.named.all():
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await gateway.named.renew()


def named_of(request: Request, name: str) -> NamedWorkflow:
    """The workflow of this name.

    Raises:
        NamedWorkflowForbiddenError: the caller's key may not run it, whether it is there or not.
        NamedWorkflowNotFoundError, NamedWorkflowUnusableError, ComfyUIConnectionError: as `NamedWorkflows.get`.
    """
    if not may_run(request, name):
        caller = state_of(request.scope).caller
        key = "" if caller is None else caller.rules.name
        raise NamedWorkflowForbiddenError(f"the key {key!r} may not run the workflow {short(name)!r}")
    return gateway_of(request).named.get(name)


def prepare(
    gateway: GatewayState,
    workflow: NamedWorkflow,
    values: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Mapping[str, str] = _NO_FILES,
    *,
    size: int = 0,
    rng: Random | None = None,
) -> PromptRequest:
    """A call as the request that it stands for. It may take a while where values are large: see `offloaded`.

    Args:
        values: by the names of parameters.
        options: members that are not parameters: `OPTION_NAMES`.
        files: by parameter the name of a file that is kept already.
        size: of the body, in bytes, if the call had one.
        rng: chooses seeds; when not given, the id of the prompt in `options` decides, or chance.

    Raises:
        ParametersError: parameters cannot be used, each by name.
        RequestError, ComfyUILimitError: an option cannot be used.
    """
    unknown = [name for name in values if name not in workflow.by_name]
    if len(unknown) > _MOST_UNKNOWN:
        raise RequestError(f"the workflow has no parameters {named(unknown, len(unknown))}")
    if wrong := [name for name in options if name not in OPTION_NAMES]:
        shown = named(wrong, len(wrong))
        raise RequestError(f"{OPTIONS}: there is no option {shown}; the options are {', '.join(OPTION_NAMES)}")
    limits = gateway.options.limits
    bound = bind(workflow, values, files=files, rng=rng or _rng_of(options.get("prompt_id")))
    if len(bound.images) > limits.max_inputs:
        raise over("more than {limit} files", limits.max_inputs)
    fields = {**options, "prompt": bound.prompt, "images": bound.images}
    return request_of(fields, size, limits, OPTIONS).of_named(bound.call)


async def prepared(
    gateway: GatewayState,
    workflow: NamedWorkflow,
    values: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Mapping[str, str] = _NO_FILES,
    *,
    size: int = 0,
    rng: Random | None = None,
) -> PromptRequest:
    """As `prepare`, outside the event loop if the body is large.

    Before a value is refused, the servers are asked for their present definitions: a model may be new.
    """
    try:
        return await offloaded(size, prepare, gateway, workflow, values, options, files, size=size, rng=rng)
    except ParametersError:
        if not await gateway.named.renew():
            raise
    renewed = gateway.named.get(workflow.name)
    return await offloaded(size, prepare, gateway, renewed, values, options, files, size=size, rng=rng)


def _rng_of(prompt_id: Any) -> Random:
    """The same seeds for the same id, so that a call that is sent again is the same call."""
    return Random(prompt_id) if isinstance(prompt_id, str) else SystemRandom()  # noqa: S311
