"""Bodies of `POST /workflows/{name}`: parameters as JSON, or as a form with files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random
from typing import Any, Protocol

from fastapi import Request

from comfyui.exceptions import RequestError
from comfyui.limits import Limits
from comfyui.named.parameters import NamedWorkflow, Parameter
from comfyui.named_call import file_name
from comfyui.offload import offloaded
from comfyui.web.api.bodies import Submission, json_object, json_value, pieces_of, plain_text
from comfyui.web.api.multipart import FormFiles, FormLimits, read_form
from comfyui.web.api.named_runs import OPTIONS, prepared
from comfyui.web.api.submitting import Submitting
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.middleware import is_form
from comfyui.web.front.request_state import state_of

# In a form, a parameter of such a kind may be JSON: a list cannot be written in another way.
_MAY_BE_JSON = frozenset({"any"})
_NO_LISTS: Mapping[str, list[bytes]] = {}


class ReadsForm(Protocol):
    """The contents of a form's text fields."""

    def __call__(
        self, texts: Mapping[str, bytes | bytearray], workflow: NamedWorkflow, limits: Limits, /
    ) -> dict[str, Any]:
        """The JSON body that says the same. Raises `RequestError`, `ComfyUILimitError`."""


class KeptNames(Protocol):
    """Files that the gateway has already."""

    async def __call__(self, given: Collection[str], /) -> Mapping[str, str]:
        """The name of each parameter's file, without the `given` parameters. Raises `ParametersError`."""


async def named_submission(request: Request, submitting: Submitting, workflow: NamedWorkflow) -> Submission:
    """The posted run, as `comfyui.web.api.bodies.submission` reads a graph.

    Raises:
        ParametersError: parameters cannot be used, each by name.
        RequestError: neither JSON nor a form, or an option cannot be used.
        ComfyUILimitError, ComfyUIInputError: more of something than a setting allows.
        ComfyUIOverloadedError, ComfyUIShutdownError: before the body is read.
    """
    gateway = gateway_of(request)
    if submitting.waits:
        gateway.handler.refuse_when_full()
    else:
        gateway.handler.refuse_when_draining()
    # A call that is sent again with its key has the same seeds.
    rng = None if submitting.key_id is None else Random(str(submitting.key_id))  # noqa: S311
    if is_form(request.scope):
        return await form_submission(request, workflow, of_form, rng=rng)
    pieces = await pieces_of(request)
    size = sum(map(len, pieces))
    values = await offloaded(size, _of_json, pieces, workflow, gateway.options.limits)
    options = _taken_options(values)
    return Submission(await prepared(gateway, workflow, values, options, size=size, rng=rng))


async def form_submission(
    request: Request,
    workflow: NamedWorkflow,
    read: ReadsForm,
    *,
    lists: Mapping[str, list[bytes]] = _NO_LISTS,
    more_parts: int = 0,
    kept: KeptNames | None = None,
    rng: Random | None = None,
) -> Submission:
    """The members of a posted form. Raises as `named_submission` does for a body.

    Args:
        lists: as of `FormLimits`.
        more_parts: how many fields the form may have besides the parameters.
        kept: asked for the files that the caller adds to what is returned.
    """
    gateway = gateway_of(request)
    limits = gateway.options.limits
    form_limits = FormLimits(
        gateway.options.max_input_bytes,
        gateway.options.max_body_bytes,
        state_of(request.scope).hold,
        max_parts=limits.max_inputs + len(workflow.parameters) + 1 + more_parts,
        lists=lists,
        text_fields={OPTIONS, *(one.name for one in workflow.parameters if one.kind == "text")},
    )
    texts, files = await read_form(request.stream(), request.headers.get("content-type", ""), form_limits)
    size = sum(map(len, texts.values()))
    try:
        values = await offloaded(size, read, texts, workflow, limits)
        options = _taken_options(values)
        names = {} if files is None else _names_of(files)
        given = names if kept is None else {**await kept({*values, *names}), **names}
        posted = await prepared(gateway, workflow, values, options, given, size=size, rng=rng)
        return Submission(posted, None if files is None else files.named_as(list(names.values())))
    except BaseException:
        if files is not None:
            await files.remove()
        raise


def _of_json(pieces: list[bytes], workflow: NamedWorkflow, limits: Limits) -> dict[str, Any]:
    """The members of the body; none if there is no body."""
    text = b"".join(pieces)
    wanted = ", ".join(f'"{one.name}": …' for one in workflow.parameters[:3])
    return json_object(text, "the body", limits, f"{{{wanted}}}") if text.strip() else {}


def of_form(texts: Mapping[str, bytes | bytearray], workflow: NamedWorkflow, limits: Limits) -> dict[str, Any]:
    """The fields of a form as the JSON body that says the same."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if name == OPTIONS:
            values[name] = json_value(text, limits, name, f"{name}: not JSON")
            continue
        parameter, value = workflow.by_name.get(name), plain_text(name, text)
        if parameter is None or parameter.kind == "text" or value:
            values[name] = value_of_field(parameter, value, limits)
        # An empty field, as browsers send it, is not given; only a text can be empty.
    return values


def value_of_field(parameter: Parameter | None, value: str, limits: Limits) -> Any:
    """The value that a text field of a form stands for."""
    if parameter is None or not (parameter.many or parameter.kind in _MAY_BE_JSON):
        return value
    try:
        return json_value(value, limits, parameter.name, parameter.name)
    except RequestError:
        return value


def _taken_options(values: dict[str, Any]) -> Mapping[str, Any]:
    """Takes the options out of a body. Null, as for a parameter, is as if they were not given."""
    options = values.pop(OPTIONS, None)
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise RequestError(f'{OPTIONS} must be an object, such as {{"labels": {{"order": "1234"}}}}')
    return options


def _names_of(files: FormFiles) -> dict[str, str]:
    """A name for each file, by its field, which no other content has."""
    names: dict[str, str] = {}
    for field, digest, ending in zip(files.fields, files.sha256s, files.endings, strict=True):
        if field in names:
            raise RequestError(f"{field} must be one file, but two are given")
        names[field] = file_name(field, digest, ending)
    return names
