"""Jobs that name a workflow and its parameters instead of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, Final

from comfyui.exceptions import ComfyUIInputError, ParametersError
from comfyui.models import PromptRequest
from comfyui.named.binding import bind
from comfyui.named.library import NamedWorkflows
from comfyui.offload import offloaded

NAME_FIELD: Final = "workflow_name"
PARAMETERS_FIELD: Final = "parameters"


async def named_request(
    named: NamedWorkflows, name: Any, parameters: Any, fields: Mapping[str, Any], *, where: str = ""
) -> PromptRequest:
    """The job as a request. ComfyUI has to be ready: the types of parameters come from its nodes.

    Args:
        fields: further ones of the request; its ``prompt_id`` chooses the seeds, so that a job that is delivered again
            is the same one.
        where: stands before the names of the job's fields in errors.

    Raises:
        ComfyUIInputError: the name or the parameters are of another kind than they must be.
        ParametersError: parameters cannot be used, each by name.
        NamedWorkflowNotFoundError, NamedWorkflowUnusableError: as `NamedWorkflows.get`.
    """
    if not isinstance(name, str):
        raise ComfyUIInputError("must be the name of a workflow", field=f"{where}{NAME_FIELD}")
    if not isinstance(parameters, Mapping):
        raise ComfyUIInputError("must be an object with the workflow's parameters", field=f"{where}{PARAMETERS_FIELD}")
    if not named.is_typed:
        await named.renew()
    try:
        return await offloaded(_size_of(parameters), _bound, named, name, parameters, fields)
    except ParametersError:
        # A model may have come since ComfyUI was asked.
        if not await named.renew():
            raise
    return await offloaded(_size_of(parameters), _bound, named, name, parameters, fields)


def _bound(named: NamedWorkflows, name: str, parameters: Mapping[str, Any], fields: Mapping[str, Any]) -> PromptRequest:
    bound = bind(named.get(name), parameters, rng=Random(str(fields["prompt_id"])))  # noqa: S311
    request = PromptRequest(**{**fields, "prompt": bound.prompt, "images": bound.images})
    return request.of_named(bound.call)


def _size_of(parameters: Mapping[str, Any]) -> int:
    """About how many bytes have to be looked at: of texts, which are the only large values."""
    return sum(len(value) for value in parameters.values() if isinstance(value, str))
