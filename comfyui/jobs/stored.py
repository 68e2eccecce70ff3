"""Requests, results and errors as the journal keeps them, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, cast

from comfyui import big_json, jsonio
from comfyui.exceptions import (
    WITH_RETRY_AFTER,
    ComfyUIError,
    ComfyUIInputError,
    ComfyUIInputUnavailableError,
    ComfyUITaskError,
    ComfyUIValidationError,
    error_body_of,
)
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.writes import MadeFile
from comfyui.json_pieces import is_large, pieces
from comfyui.limits import JSON_OF_COMFYUI, Limits
from comfyui.models import (
    SECRETS,
    DeliveredFile,
    Delivery,
    ImageConversion,
    OutputFile,
    OutputPlace,
    PromptRequest,
    PromptResult,
    Timings,
    Told,
)
from comfyui.named_call import NamedCall
from comfyui.offload import in_thread, offloaded
from comfyui.outputs.history import cached_nodes, files_of
from comfyui.owners import place_of

_RETRY_AFTER_S = 5
# Jobs that are read at a time.
_PAGE = 200
# Largest size in bytes of ComfyUI's other reports on a prompt; more is not kept.
_MOST_TOLD = 64 * 1024
# Kept as fields of the job, or not at all; with a token in its webhook no body would be kept once.
_NOT_OF_THE_BODY = {"prompt", "extra_data", "prompt_id", "webhook"}
# They were within the limit as ComfyUI's answer; with files, they have half as many values again.
_KEPT = Limits(max_json_values=2 * JSON_OF_COMFYUI.max_json_values)
# The outcome of these is the same however often the request is sent.
_FINAL = (ComfyUITaskError, ComfyUIValidationError, ComfyUIInputError)


def body_of(request: PromptRequest) -> bytes:
    """The request as canonical JSON, without its secrets, its id and its webhook."""
    fields: dict[str, Any] = {}
    if not request.model_fields_set <= _NOT_OF_THE_BODY:
        fields = request.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_OF_THE_BODY)
    fields["prompt"] = request.prompt
    if request.extra_data is not None:
        fields["extra_data"] = {name: value for name, value in request.extra_data.items() if name not in SECRETS}
    return jsonio.canonical(fields)


def request_of(body: bytes) -> PromptRequest:
    """The inverse of `body_of`, without secrets, id and webhook."""
    return PromptRequest.model_validate(jsonio.loads(body)).of_size(len(body))


async def unfinished_prompts(journal: Journal) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
    """Id and workflow of each unfinished job, if the workflow is kept. Raises `JournalError`."""
    after = 0
    while page := await journal.unfinished(after, _PAGE):
        for record in page:
            body = await journal.body_of(record.prompt_id)
            yield record.prompt_id, {} if body is None else (await offloaded(len(body), request_of, body)).prompt
        after = page[-1].seq


def secrets_of(request: PromptRequest) -> dict[str, Any]:
    """The members of `extra_data` that are not kept."""
    given = request.extra_data
    return {name: value for name, value in given.items() if name in SECRETS} if given else {}


def with_secrets(request: PromptRequest, secrets: Mapping[str, Any]) -> PromptRequest:
    """The request with what `secrets_of` took out."""
    if not secrets:
        return request
    given = {**(request.extra_data or {}), **secrets}
    return request.model_copy(update={"extra_data": given}).of_size(request.size)


async def large_result_to_bytes(result: PromptResult) -> bytes | None:
    """As `result_to_bytes`, beside the event loop; None for a small result, which takes no time."""
    if not is_large(result.outputs):
        return None
    return await in_thread(lambda: b"".join((_head_of(result), *pieces(result.outputs))))


def result_to_bytes(result: PromptResult) -> bytes:
    """A line of JSON with everything but the outputs, and a line with these: readers without outputs need not read
    them.
    """
    return _head_of(result) + jsonio.dumps(result.outputs)


def _head_of(result: PromptResult) -> bytes:
    timings = result.timings
    fields = jsonio.dumps(
        {
            "server": result.server,
            "files": [[file.node_id, file.key, file.filename, file.subfolder, file.type] for file in result.files],
            "timings": [timings.staging_s, timings.queued_s, timings.executing_s],
            "node_seconds": timings.nodes,
            "node_errors": result.node_errors,
            "simulated": result.simulated,
            "delivery": _delivery_to_fields(result.delivery) if result.delivery is not None else None,
            **({"call": result.call.to_fields()} if result.call is not None else {}),
        }
    )
    told = b"null" if result.told is None else jsonio.dumps([list(result.told.messages), result.told.meta])
    # It is stored separately from the outputs; values for nodes may be anything.
    return fields[:-1] + b', "told": ' + (told if len(told) <= _MOST_TOLD else b"null") + b"}\n"


def result_from_bytes(prompt_id: str, kept: bytes, *, with_outputs: bool = True) -> PromptResult:
    """The inverse of `result_to_bytes`. Without `with_outputs`, it has only the files."""
    end = kept.index(b"\n")
    fields = big_json.load(kept[:end], _KEPT)
    node_errors = {node_id: tuple(messages) for node_id, messages in fields["node_errors"].items()}
    outputs = big_json.load(kept[end + 1 :], _KEPT) if with_outputs else {}
    staging_s, queued_s, executing_s = fields["timings"]
    return PromptResult(
        prompt_id,
        fields["server"],
        outputs,
        tuple(OutputFile(*file) for file in fields["files"]),
        Timings(staging_s, queued_s, executing_s, nodes=fields.get("node_seconds")),
        node_errors,
        simulated=fields["simulated"],
        told=_told_of(fields.get("told")),
        delivery=_delivery_of(fields["delivery"]) if fields["delivery"] else None,
        call=NamedCall.of_fields(fields["call"]) if "call" in fields else None,
    )


def _told_of(kept: Any) -> Told | None:
    return None if kept is None else Told([(kind, data) for kind, data in kept[0]], kept[1])


def _delivery_to_fields(delivery: Delivery) -> dict[str, Any]:
    order = {"output": delivery.output, "convert": delivery.convert}
    given = {name: value.model_dump(exclude_defaults=True) for name, value in order.items() if value is not None}
    return {
        **given,
        "files": [[one.facts, one.bucket, one.key, one.size, one.error, one.blake3] for one in delivery.files],
    }


def _delivery_of(fields: Mapping[str, Any]) -> Delivery:
    return Delivery(
        OutputPlace.model_validate(fields["output"]) if "output" in fields else None,
        ImageConversion.model_validate(fields["convert"]) if "convert" in fields else None,
        tuple(DeliveredFile(*file) for file in fields["files"]),
    )


def error_to_fields(error: ComfyUIError) -> dict[str, Any]:
    """The members of the error body, and the node that raised; a later request that gets it has another id."""
    body = cast("dict[str, Any]", error_body_of(error))
    del body["request_id"]
    if isinstance(error, ComfyUITaskError):
        body["raised"] = {
            "node_id": error.node_id,
            "node_type": error.node_type,
            "exception_type": error.exception_type,
            "traceback": list(error.traceback_tail),
        }
    return body


def error_from_fields(fields: Mapping[str, Any]) -> ComfyUIError:
    """An error with the same title, code, status and text. The parts for logs are gone."""
    kind = next((kind for kind in _tree(ComfyUIError) if kind.code == fields["type"]), ComfyUIError)
    error = kind.__new__(kind)
    # Further arguments of the classes are no part of the answer.
    ComfyUIError.__init__(
        error, fields["detail"], prompt_id=fields["prompt_id"], node_errors=fields.get("node_errors") or {}
    )
    if isinstance(error, WITH_RETRY_AFTER):
        error.retry_after_s = _RETRY_AFTER_S
    if isinstance(error, ComfyUITaskError):
        error.traceback_tail = ()
    return error


def may_run_again(error: ComfyUIError) -> bool:
    """Whether the same request may have another outcome: not after a node's error or a refusal."""
    return isinstance(error, ComfyUIInputUnavailableError) or not isinstance(error, _FINAL)


def files_made(result: PromptResult | None, *, kept: bool) -> tuple[MadeFile, ...]:
    """The files of a result, as records of the files that its prompt has made, if they are `kept`."""
    if result is None or not kept:
        return ()
    cached = cached_nodes(result.told.messages if result.told else ())
    # A named workflow's result has only the files of its named outputs, and its caller may see the others, too.
    made = files_of(result.outputs) if result.call is not None and result.call.outputs else result.files
    return tuple(
        MadeFile(result.server, place_of(file.type, file.subfolder, file.filename), file.node_id not in cached)
        for file in made
    )


def _tree(kind: type[ComfyUIError]) -> Iterator[type[ComfyUIError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)
