"""The JSON of a result, member by member: what `/prompt_sync` answers and webhooks say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class ConversionNote(TypedDict, total=False):
    """Whether a file was converted, if that was asked for."""

    converted: bool
    reason: Annotated[str, Field(description="Why it was not converted.")]


class FileFacts(ConversionNote, total=False):
    """The facts about a delivered file, once it has been read."""

    filename: str
    content_type: str


class FileEntry(ConversionNote):
    """One file of a result, of any medium, as an entry of ``images``."""

    node_id: Annotated[str, Field(description="The node that saved it.")]
    filename: Annotated[
        str, Field(description="The name of the delivered file: after a conversion, with its new ending.")
    ]
    subfolder: str
    type: Annotated[str, Field(description="ComfyUI's folder: output, temp or input.")]
    content_type: Annotated[str, Field(description="The media type of the delivered file.")]
    url: Annotated[str, Field(description="The link to the file: at the gateway, or in the object store.")]
    base64: NotRequired[Annotated[str, Field(description="Its bytes, with return_image_base64.")]]
    error: NotRequired[Annotated[str, Field(description="Why it could not be read or stored.")]]
    output: NotRequired[Annotated[str, Field(description="The name of its output, if a named workflow gives one.")]]
    view_url: NotRequired[Annotated[str, Field(description="The link at the gateway, when the file is stored.")]]
    bucket: NotRequired[Annotated[str, Field(description="The bucket that has the file.")]]
    key: NotRequired[Annotated[str, Field(description="Its name in the bucket.")]]
    size: NotRequired[Annotated[int, Field(description="Bytes, when it is stored.")]]


class TimingsEntry(TypedDict):
    """Seconds of each stage."""

    staging: Annotated[float, Field(description="Placing the inputs.")]
    queued: Annotated[float, Field(description="Waiting in ComfyUI's queue, and for its answers.")]
    executing: Annotated[float, Field(description="ComfyUI's execution alone, by its own clock.")]
    collecting: Annotated[float, Field(description="Reading the files.")]
    nodes: NotRequired[
        Annotated[
            Mapping[str, float],
            Field(
                description="Seconds of each node that ran; cached nodes are left out. Missing"
                " if the gateway did not hear all of the run."
            ),
        ]
    ]


class WorkflowEntry(TypedDict):
    """The named workflow that was called, and its parameters."""

    name: str
    version: Annotated[str, Field(description="SHA-256 of its files.")]
    parameters: Annotated[
        Mapping[str, Any],
        Field(
            description="The values that were set, with the seed that was chosen. A file is shown by its hash or URL."
        ),
    ]
    ignored: Annotated[list[str], Field(description="Given names that the workflow does not know.")]


class AnswerHead(TypedDict):
    """The members before the files of a `PromptAnswer`, which is written in pieces."""

    prompt_id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]
    status: Literal["success"]
    outputs: Annotated[Mapping[str, Any], Field(description="ComfyUI's history, verbatim.")]


class HeadWithoutOutputs(TypedDict):
    """`AnswerHead` without outputs, for a webhook that would be too long with them."""

    prompt_id: str
    status: Literal["success"]
    outputs_omitted: Literal[True]


class AnswerTail(TypedDict):
    """The members after the files."""

    execution_time: Annotated[
        float, Field(description="The sum of `timings` in seconds, with the wait in ComfyUI's queue included.")
    ]
    node_errors: Annotated[
        Mapping[str, Sequence[str]], Field(description="Outputs that ComfyUI left out of the run: messages by node.")
    ]
    timings: TimingsEntry
    workflow: NotRequired[Annotated[WorkflowEntry, Field(description="Only if a named workflow was called.")]]
    simulation: NotRequired[Annotated[Literal[True], Field(description="No real ComfyUI ran the prompt.")]]


class PromptAnswer(AnswerHead, AnswerTail):
    """The result of a prompt, with every file of every output node."""

    images: Annotated[list[FileEntry], Field(description="In node order.")]
