"""The JSON of a result, member by member: what `/prompt_sync` answers and webhooks say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class ConversionNote(TypedDict, total=False):
    """Whether a file was converted, where that was asked for."""

    converted: bool
    reason: Annotated[str, Field(description="Why it was not converted.")]


class FileFacts(ConversionNote, total=False):
    """What is known of a file as it is given, when it has been read."""

    filename: str
    content_type: str


class FileEntry(ConversionNote):
    """One file of a result, as ``images`` has it, whatever its medium."""

    node_id: Annotated[str, Field(description="The node that saved it.")]
    filename: Annotated[str, Field(description="As the file is given: after a conversion, with its new ending.")]
    subfolder: str
    type: Annotated[str, Field(description="ComfyUI's folder: output, temp or input.")]
    content_type: Annotated[str, Field(description="As the file is given.")]
    url: Annotated[str, Field(description="Where it can be fetched: from the gateway, or from the object store.")]
    base64: NotRequired[Annotated[str, Field(description="Its bytes, with return_image_base64.")]]
    error: NotRequired[Annotated[str, Field(description="Why it could not be read or stored.")]]
    output: NotRequired[Annotated[str, Field(description="The name of its output, where a named workflow has one.")]]
    view_url: NotRequired[Annotated[str, Field(description="Where the gateway serves it, when it is stored.")]]
    bucket: NotRequired[Annotated[str, Field(description="Where it is stored.")]]
    key: NotRequired[Annotated[str, Field(description="Its name in the bucket.")]]
    size: NotRequired[Annotated[int, Field(description="Bytes, when it is stored.")]]


class TimingsEntry(TypedDict):
    """Where the time went, in seconds."""

    staging: Annotated[float, Field(description="Placing the inputs.")]
    queued: Annotated[float, Field(description="Waiting in ComfyUI's queue, and for its answers.")]
    executing: Annotated[float, Field(description="ComfyUI's execution alone, by its own clock.")]
    collecting: Annotated[float, Field(description="Reading the files.")]
    nodes: NotRequired[
        Annotated[
            Mapping[str, float],
            Field(
                description="Of each node that ran, from its beginning to its end; cached ones are left out. Missing"
                " where the gateway did not hear all of the run."
            ),
        ]
    ]


class WorkflowEntry(TypedDict):
    """The named workflow that was called, and how."""

    name: str
    version: Annotated[str, Field(description="SHA-256 of its files.")]
    parameters: Annotated[
        Mapping[str, Any],
        Field(description="What was set, with the seed that was chosen. A file stands by its hash, or by its URL."),
    ]
    ignored: Annotated[list[str], Field(description="Names that were given and mean nothing to it.")]


class AnswerHead(TypedDict):
    """What stands before the files of a `PromptAnswer`, which is written in pieces."""

    prompt_id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Literal["success"]
    outputs: Annotated[Mapping[str, Any], Field(description="ComfyUI's history, verbatim.")]


class HeadWithoutOutputs(TypedDict):
    """As `AnswerHead`, in a webhook that would be too long with them."""

    prompt_id: str
    status: Literal["success"]
    outputs_omitted: Literal[True]


class AnswerTail(TypedDict):
    """What stands behind them."""

    execution_time: Annotated[
        float, Field(description="Seconds in all: the sum of `timings`, the wait in ComfyUI's queue included.")
    ]
    node_errors: Annotated[
        Mapping[str, Sequence[str]], Field(description="Outputs that ComfyUI left out of the run: messages by node.")
    ]
    timings: TimingsEntry
    workflow: NotRequired[Annotated[WorkflowEntry, Field(description="Where a named workflow was called.")]]
    simulation: NotRequired[Annotated[Literal[True], Field(description="No real ComfyUI ran the prompt.")]]


class PromptAnswer(AnswerHead, AnswerTail):
    """The result of a prompt, with every file of every output node."""

    images: Annotated[list[FileEntry], Field(description="In node order.")]
