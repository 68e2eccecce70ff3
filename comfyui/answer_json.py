"""The JSON of a result, member by member: what `/prompt_sync` answers and webhooks say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class ConversionNote(TypedDict, total=False):
    """Whether a file was converted, if that was asked for."""

    converted: bool
    reason: Annotated[str, Field(description="Why the file was not converted.")]


class FileFacts(ConversionNote, total=False):
    """The facts about a delivered file, once it has been read."""

    filename: str
    content_type: str


class FileEntry(ConversionNote):
    """One file of a result, of any medium, as an entry of ``images``."""

    node_id: Annotated[str, Field(description="The id of the node that saved the file.")]
    filename: Annotated[
        str, Field(description="The name of the delivered file; after a conversion it has the new ending.")
    ]
    subfolder: str
    type: Annotated[str, Field(description="ComfyUI's folder of the file: output, temp or input.")]
    content_type: Annotated[str, Field(description="The media type of the delivered file.")]
    url: Annotated[str, Field(description="The link to the file, at the gateway or in the object store.")]
    base64: NotRequired[
        Annotated[str, Field(description="The file's bytes in base64, if return_image_base64 was set.")]
    ]
    error: NotRequired[Annotated[str, Field(description="Why the file could not be read or stored.")]]
    output: NotRequired[
        Annotated[
            str, Field(description="The name of the output that made the file, if the named workflow gives it one.")
        ]
    ]
    view_url: NotRequired[
        Annotated[str, Field(description="The link at the gateway, if the file is also in the object store.")]
    ]
    bucket: NotRequired[Annotated[str, Field(description="The bucket that holds the file.")]]
    key: NotRequired[Annotated[str, Field(description="The file's name in the bucket.")]]
    size: NotRequired[Annotated[int, Field(description="The file's size in bytes, if it is in the object store.")]]


class TimingsEntry(TypedDict):
    """Seconds of each stage."""

    staging: Annotated[float, Field(description="Seconds in which the inputs were placed in ComfyUI.")]
    queued: Annotated[float, Field(description="Seconds in ComfyUI's queue, its time to answer included.")]
    executing: Annotated[float, Field(description="Seconds of ComfyUI's execution, by its own clock.")]
    collecting: Annotated[float, Field(description="Seconds in which the files were read.")]
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
    version: Annotated[str, Field(description="The SHA-256 of the workflow's files.")]
    parameters: Annotated[
        Mapping[str, Any],
        Field(
            description=(
                "The values of the parameters, with the seed that was chosen. A file is shown by its hash or URL."
            )
        ),
    ]
    ignored: Annotated[list[str], Field(description="Names that were given but are not parameters of the workflow.")]


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
        Mapping[str, Sequence[str]],
        Field(description="Nodes that ComfyUI left out of the run, each with the messages about it."),
    ]
    timings: TimingsEntry
    workflow: NotRequired[Annotated[WorkflowEntry, Field(description="Only if a named workflow was called.")]]
    simulation: NotRequired[Annotated[Literal[True], Field(description="No real ComfyUI ran the prompt.")]]


class PromptAnswer(AnswerHead, AnswerTail):
    """The result of a prompt, with every file of every output node."""

    images: Annotated[list[FileEntry], Field(description="The files in the order of their nodes.")]
