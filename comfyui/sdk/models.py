"""The inputs and outputs of a call: input files, output files, results, health."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.sdk.errors import GatewayProtocolError


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to be placed in ComfyUI's input folder before the prompt is queued.

    ``image`` is its bytes, or a text that the gateway accepts: base64, a data URI or an http(s) URL.
    """

    name: str
    image: bytes | str
    subfolder: str = ""

    def to_json(self) -> dict[str, str]:
        image = self.image if isinstance(self.image, str) else base64.b64encode(self.image).decode("ascii")
        return {"name": self.name, "image": image, "subfolder": self.subfolder}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that an output node wrote.

    Attributes:
        type: ComfyUI's folder: ``output``, ``temp`` or ``input``.
        url: the file at the gateway, relative to the gateway, or absolute if the gateway has a PUBLIC_URL.
        base64: its bytes, if they were requested.
        error: why it could not be read; then there is no ``base64``.
        output: the name of its output, if a named workflow has one.
    """

    node_id: str
    filename: str
    subfolder: str
    type: str
    content_type: str
    url: str
    base64: str | None = None
    error: str | None = None
    output: str | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> OutputFile:
        return cls(
            node_id=entry["node_id"],
            filename=entry["filename"],
            subfolder=entry["subfolder"],
            type=entry["type"],
            content_type=entry["content_type"],
            url=entry["url"],
            base64=entry.get("base64"),
            error=entry.get("error"),
            output=entry.get("output"),
        )


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that each stage took in the gateway.

    Attributes:
        nodes: seconds of each node that ran, by its id; None if the gateway does not know them.
    """

    staging_s: float = 0.0
    queued_s: float = 0.0
    executing_s: float = 0.0
    collecting_s: float = 0.0
    nodes: Mapping[str, float] | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Timings:
        """Unknown members of a newer gateway are left out."""
        stages = {f"{name}_s": float(entry[name]) for name in ("staging", "queued", "executing", "collecting")}
        return cls(**stages, nodes=entry.get("nodes"))


@dataclass(frozen=True, slots=True)
class PromptResult:
    """A finished prompt.

    Attributes:
        outputs: ComfyUI's history outputs, verbatim.
        files: every file of every output node, in node order.
        node_errors: outputs that ComfyUI left out of the run: node id to messages.
        workflow: for a named workflow: ``name``, ``version``, the ``parameters`` that were set, and the ``ignored``
            ones.
        body: the reply as it came.
    """

    prompt_id: str
    status: str
    execution_time_s: float
    outputs: Mapping[str, Any]
    files: tuple[OutputFile, ...]
    node_errors: Mapping[str, Sequence[str]]
    timings: Timings
    workflow: Mapping[str, Any] | None
    body: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> PromptResult:
        """Raises GatewayProtocolError if `body` is not an answer of the gateway."""
        try:
            return cls(
                prompt_id=body["prompt_id"],
                status=body["status"],
                execution_time_s=float(body["execution_time"]),
                outputs=body["outputs"],
                files=tuple(OutputFile.from_json(entry) for entry in body["images"]),
                node_errors=body.get("node_errors") or {},
                timings=Timings.from_json(body["timings"]),
                workflow=body.get("workflow"),
                body=body,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GatewayProtocolError(
                f"The answer is JSON but not a result of the gateway ({error!r}); check the address",
                title="Not the gateway",
                code="not_a_gateway",
            ) from error


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of ``GET /health``. ``error`` says why it is not healthy; ``body`` is the unchanged reply."""

    healthy: bool
    comfyui_server: str
    queue_running: int | None
    queue_pending: int | None
    error: str | None
    body: Mapping[str, Any] = field(repr=False)
