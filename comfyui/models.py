"""The values that cross this package's boundary: requests with their input files, results with their output files. All
are frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, cast
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from comfyui import jsonio
from comfyui.answer_json import FileEntry, FileFacts, TimingsEntry
from comfyui.file_names import content_type_of, view_query
from comfyui.labels import check_labels
from comfyui.merged_files import merged_subfolder
from comfyui.named_call import NamedCall

_SMALLEST_WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "example"}},
}
SECRETS = ("api_key_comfy_org", "auth_token_comfy_org")
"""ComfyUI removes these from `extra_data` before it keeps a prompt, and so do we."""
# In characters. A long text in one piece would block other threads.
_HASHED_AT_ONCE = 1 << 20


def _plain_name(name: str) -> str:
    """A file name that stays in its folder; raises ValueError, which pydantic reports under the field's name."""
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise ValueError("must be a plain file name; use subfolder for the folder")
    return name


def _relative_folder(folder: str) -> str:
    """A folder below ComfyUI's input folder, in POSIX form."""
    path = PurePosixPath(folder.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in folder:
        raise ValueError("must be a relative folder without '..'")
    return "" if path == PurePosixPath() else str(path)


def _not_empty(text: str) -> str:
    """Used instead of pydantic's `min_length`, which counts all characters of a long text."""
    if not text:
        raise ValueError("must not be empty")
    return text


def _not_bool(number: object) -> object:
    """Refuses true and false, which pydantic takes for 1 and 0."""
    if isinstance(number, bool):
        raise ValueError("must be a whole number, not true or false")
    return number


FileName = Annotated[str, Field(max_length=255), AfterValidator(_plain_name)]
Folder = Annotated[str, Field(max_length=1024), AfterValidator(_relative_folder)]


class Given(BaseModel):
    """A body in which null counts as not given for an optional field, because many clients write null for what they
    leave out.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or None not in data.values():
            return data
        fields = cls.model_fields
        return {
            name: value
            for name, value in data.items()
            if value is not None or name not in fields or fields[name].is_required()
        }


class InputFile(Given):
    """One file to be placed in ComfyUI's input folder before the prompt is queued."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName = Field(description="The file name by which the workflow refers to it.", examples=["photo.png"])
    image: Annotated[str, AfterValidator(_not_empty)] = Field(
        description="The file as base64, a data URI or an http(s) URL. Any medium is allowed, not only images."
    )
    subfolder: Folder = Field(default="", description="A folder below ComfyUI's input folder.")


ImageFormat = Literal["webp", "jpeg", "png", "avif"]
Metadata = Literal["keep", "strip"]
StoreName = Literal["s3", "none"]


class ImageConversion(Given):
    """How still images are converted to another format; `comfyui.outputs.images` says which are not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: ImageFormat
    quality: int | None = Field(
        default=None, ge=1, le=100, description="The quality, for every format except png; 90 if it is left out."
    )
    metadata: Metadata = Field(
        default="keep", description="Whether the file keeps ComfyUI's workflow and its EXIF data."
    )


class OutputPlace(Given):
    """The place for the files: object storage, with links in `images[].url`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: StoreName = Field(description="`none`: do not store, even if OUTPUT_STORE does so by default.")
    bucket: str | None = Field(
        default=None, max_length=63, description="A bucket of S3_ALLOWED_BUCKETS; S3_BUCKET if it is left out."
    )
    prefix: str | None = Field(default=None, max_length=512, description="A folder below S3_PREFIX.")
    presign_seconds: int | None = Field(default=None, ge=1, description="Seconds that the links work.")


WebhookEvent = Literal["prompt.started", "prompt.succeeded", "prompt.failed", "prompt.canceled", "prompt.lost"]


class Webhook(Given):
    """The receiver of a job's events, and the events that it gets. It needs WEBHOOK_SECRET and PUBLIC_URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        max_length=2048, description="The http(s) URL, without user and password, to which the gateway posts."
    )
    events: tuple[WebhookEvent, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=5,
        description="The events to send; if it is left out, the four ends of a job.",
    )


class PromptRequest(Given):
    """A workflow to run, as posted to `/prompt_sync`. A field that is not listed is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: dict[str, Any] = Field(
        description="The workflow in ComfyUI's API format: an object that has class_type and inputs for each node id.",
        examples=[_SMALLEST_WORKFLOW],
    )
    return_image_base64: bool = Field(
        default=False, description="Whether the reply contains each file's bytes in base64."
    )
    images: tuple[InputFile, ...] = Field(
        default=(), description="Input files that are placed in ComfyUI before the workflow runs."
    )
    prompt_id: UUID | None = Field(
        default=None, description="An id that the caller chooses; it makes the call idempotent."
    )
    client_id: str | None = Field(
        default=None,
        max_length=256,
        description="The id of the caller's websocket client that gets ComfyUI's messages.",
    )
    extra_data: dict[str, Any] | None = Field(
        default=None, description="ComfyUI's extra_data, which is passed on unchanged."
    )
    front: bool = Field(
        default=False, description="ComfyUI's front: whether the prompt goes to the front of the queue."
    )
    number: float | None = Field(
        default=None, allow_inf_nan=False, description="ComfyUI's number, its priority: the lowest runs first."
    )
    partial_execution_targets: list[str] | None = Field(
        default=None, description="The output nodes that run, as in ComfyUI; the others do not."
    )
    convert: ImageConversion | None = Field(default=None, description="The format to which still images are converted.")
    output: OutputPlace | None = Field(default=None, description="Where in the object store the files are stored.")
    labels: Annotated[dict[str, str], AfterValidator(check_labels)] = Field(
        default_factory=dict,
        description="Up to 16 pairs of texts, by which the list of jobs can be filtered.",
        examples=[{"order": "1234"}],
    )
    priority: Annotated[int, BeforeValidator(_not_bool)] = Field(
        default=0,
        ge=-1_000_000,
        le=1_000_000,
        description="The job's priority: the highest runs first, if prompts wait in the gateway.",
    )
    webhook: Webhook | None = Field(default=None, description="Where the job's events are sent; see docs/webhooks.md.")
    _size: int = PrivateAttr(default=0)
    _call: NamedCall | None = PrivateAttr(default=None)

    @property
    def size(self) -> int:
        """The request's body in bytes, by which work on it is judged as long or short; 0 if that is not known."""
        # A pydantic attribute takes 3.6 us to read, because four other places are looked in first; this one is read
        # three times a prompt.
        size: int = (self.__pydantic_private__ or {}).get("_size", 0)
        return size

    def of_size(self, size: int) -> Self:
        """This request with the size of its body."""
        self._size = size
        return self

    @property
    def call(self) -> NamedCall | None:
        """The named workflow that this request was made of; None if a caller sent the graph itself."""
        return cast("NamedCall | None", (self.__pydantic_private__ or {}).get("_call"))

    def of_named(self, call: NamedCall | None) -> Self:
        """This request, made of a named workflow by this call. A caller's body cannot set it."""
        self._call = call
        return self

    def without_order(self) -> Self:
        """This request without the place in the queue that it asked for."""
        if not self.front and self.number is None:
            return self
        return self.model_copy(update={"front": False, "number": None}).of_size(self.size)

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the result: two requests with the same id must have the same.

        A long `image` counts by its own SHA-256, which is computed piece by piece. The secrets of `extra_data` do not
        count: a renewed token does not change the request. A bound graph counts by its name and the parameters as they
        were given: a seed that the gateway chose does not change the request.
        """
        if self.call is not None:
            given = {"named": self.call.digest, "extra_data": _without_secrets(self.extra_data)}
            return hashlib.sha256(jsonio.canonical(given)).hexdigest()
        decides = {
            "prompt": self.prompt,
            "images": [
                {"name": file.name, "image": _in_short(file.image), "subfolder": file.subfolder} for file in self.images
            ],
            "extra_data": _without_secrets(self.extra_data),
            "front": self.front,
            "number": self.number,
            "partial_execution_targets": self.partial_execution_targets,
        }
        return hashlib.sha256(jsonio.canonical(decides)).hexdigest()


def _without_secrets(extra_data: dict[str, Any] | None) -> dict[str, Any] | None:
    if extra_data is None or not any(name in extra_data for name in SECRETS):
        return extra_data
    return {name: value for name, value in extra_data.items() if name not in SECRETS} or None


def _in_short(text: str) -> str:
    if len(text) <= _HASHED_AT_ONCE:
        return text
    digest = hashlib.sha256()
    for start in range(0, len(text), _HASHED_AT_ONCE):
        digest.update(text[start : start + _HASHED_AT_ONCE].encode())
    return f"sha256:{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file that an output node wrote, as ComfyUI's history names it.

    Attributes:
        key: the output key under which the node listed it: ``images``, ``gifs``, ``video``, ``audio``, ``3d``, …
        type: ComfyUI's folder: ``output``, ``temp`` or ``input``.
    """

    node_id: str
    key: str
    filename: str
    subfolder: str
    type: str

    @property
    def content_type(self) -> str:
        return content_type_of(self.filename)

    @property
    def url(self) -> str:
        """The path below the gateway's own address at which the gateway serves the file."""
        return f"/view?{view_query(self.filename, self.subfolder, self.type)}"

    def of_prompt(self, prompt_id: str) -> OutputFile:
        """The file under the name that clients see if many servers appear as one: see `comfyui.merged_files`."""
        return replace(self, subfolder=merged_subfolder(prompt_id, self.subfolder))

    def to_json(self) -> FileEntry:
        return {
            "node_id": self.node_id,
            "filename": self.filename,
            "subfolder": self.subfolder,
            "type": self.type,
            "content_type": self.content_type,
            "url": self.url,
        }


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that each stage took. ``queued`` is the rest of the wait, without ComfyUI's execution.

    Attributes:
        nodes: seconds by the id of each node that ran; None if they are not known.
    """

    staging_s: float = 0.0
    queued_s: float = 0.0
    executing_s: float = 0.0
    collecting_s: float = 0.0
    nodes: Mapping[str, float] | None = None

    @property
    def total_s(self) -> float:
        return self.staging_s + self.queued_s + self.executing_s + self.collecting_s

    @property
    def stages(self) -> dict[str, float]:
        """Each stage by its name."""
        return {
            "staging": self.staging_s,
            "queued": self.queued_s,
            "executing": self.executing_s,
            "collecting": self.collecting_s,
        }

    def to_json(self) -> TimingsEntry:
        entry = cast("TimingsEntry", {stage: round(seconds, 4) for stage, seconds in self.stages.items()})
        if self.nodes is not None:
            entry["nodes"] = self.nodes
        return entry


@dataclass(frozen=True, slots=True)
class DeliveredFile:
    """A file in the object store, or `error`, which says why it is not there.

    Attributes:
        facts: those of the stored file, which may be a converted one.
        size: in bytes.
        blake3: of the stored file, in hex; "" if it is not known.
    """

    facts: FileFacts = field(default_factory=FileFacts)
    bucket: str = ""
    key: str = ""
    size: int = 0
    error: str = ""
    blake3: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a result's files were stored when its job ended.

    Attributes:
        output: the place that was asked for; None if the gateway stores by default.
        convert: the conversion that was asked for.
        files: in the order of the result's files.
    """

    output: OutputPlace | None
    convert: ImageConversion | None
    files: tuple[DeliveredFile, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What ComfyUI's history says about a prompt besides its outputs: ``messages`` as kind and data, and ``meta``."""

    messages: Sequence[tuple[str, Mapping[str, Any]]]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """A finished prompt.

    Attributes:
        outputs: ComfyUI's history outputs, verbatim: node id to output key to list.
        files: every file of every output node, in node order.
        node_errors: node id to messages, for outputs that ComfyUI left out when it accepted the prompt.
        server: the name (`ComfyUIClient.name`) of the ComfyUI server that ran it and holds its files.
        simulated: that server is a simulation, such as the embedded engine.
        delivery: None if no file was stored when the job ended.
        told: None if it is not known, or too large to keep.
        call: the call of the named workflow that has this result; None if a graph was sent.
    """

    prompt_id: str
    server: str
    outputs: Mapping[str, Any]
    files: tuple[OutputFile, ...]
    timings: Timings
    node_errors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    simulated: bool = False
    delivery: Delivery | None = None
    told: Told | None = None
    call: NamedCall | None = None

    @property
    def shown_outputs(self) -> Mapping[str, Any]:
        """`outputs` as answers have them: only the named ones, if the named workflow names any."""
        if self.call is None or not self.call.outputs:
            return self.outputs
        return {node_id: output for node_id, output in self.outputs.items() if node_id in self.call.outputs}

    def of_call(self, call: NamedCall | None) -> PromptResult:
        """The result of a named workflow's call: if its outputs have names, only their files count."""
        if call is None:
            return self
        files = tuple(file for file in self.files if file.node_id in call.outputs) if call.outputs else self.files
        return replace(self, call=call, files=files)
