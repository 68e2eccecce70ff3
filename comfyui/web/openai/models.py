"""Finds the named workflow that a model of OpenAI's image API stands for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from comfyui.exceptions import ImageCallError
from comfyui.named.model_names import ModelKind, ModelNames
from comfyui.named.parameters import NamedWorkflow, Parameter, Unusable

_WANTED: Mapping[ModelKind, str] = {"generations": "prompt", "edits": "image"}


def with_role(workflow: NamedWorkflow, role: str) -> list[Parameter]:
    """The parameters of a role, in their order. One without a role has that of its name, if there is such a role."""
    said = [parameter for parameter in workflow.parameters if parameter.role == role]
    return said or [found for found in workflow.parameters if found.role is None and found.name == role]


def can_do(workflow: NamedWorkflow, kind: ModelKind) -> bool:
    """Whether the workflow makes a picture from the inputs of such a call."""
    if not with_role(workflow, _WANTED[kind]):
        return False
    files = {parameter.name for role in ("image", "mask") for parameter in with_role(workflow, role)}
    brought = files if kind == "edits" else set()
    return all(found.name in brought for found in workflow.parameters if found.kind == "file" and found.required)


def workflow_for(
    model: str | None, kind: ModelKind, files: Sequence[NamedWorkflow | Unusable], names: ModelNames
) -> NamedWorkflow:
    """The workflow that a call means.

    Args:
        model: None if the call names none: then the only workflow that can serve it is meant, or the first one of
            `names` that can.
        files: the workflows that the caller may run, also those that cannot be used.

    Raises:
        ImageCallError: there is none; the text lists the existing ones.
        NamedWorkflowUnusableError, ComfyUIConnectionError: there is one, but its file cannot be used, or not yet.
    """
    able = {one.name: one for one in files if isinstance(one, NamedWorkflow) and can_do(one, kind)}
    wanted: Sequence[str]
    if model is None:
        wanted = [*able] if len(able) == 1 else [*chain.from_iterable(names.values())]
    else:
        wanted = [*names.get(model, ()), model]
    found = next((able[name] for name in wanted if name in able), None)
    if found is None:
        if unusable := next((one for one in files if isinstance(one, Unusable) and one.name in wanted), None):
            raise unusable.as_error()
        there_are = ", ".join(models_of(able, names))
        detail = "model is required" if model is None else f"model: {model!r:.80} is no model for {kind}"
        models = f"the models for {kind} are {there_are}" if there_are else f"your key may use no model for {kind}"
        raise ImageCallError(f"{detail}; {models}", "model", "model_not_found")
    return found


def models_of(workflows: Mapping[str, NamedWorkflow], names: ModelNames) -> list[str]:
    """The names of models that stand for one of these workflows, aliases first."""
    aliases = [alias for alias, found in names.items() if any(name in workflows for name in found)]
    return list(dict.fromkeys([*aliases, *workflows]))
