"""Groups of settings that the gateway and the workers share. Each name has its type, default, unit and check only here.

A process inherits the groups that it needs and adds its own settings. To change a default, it declares the field again
with the same annotated type. Nothing is read at import: `load` reads the environment, and the `.env` file that its
caller names. Durations are in seconds; an MB is 1,000,000 bytes.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from comfyui.address import parse_server_address
from comfyui.exceptions import SettingsError
from comfyui.limits import AnswerLimits

MB = 1_000_000
# The file in the working directory that entry points read besides the environment.
ENV_FILE = Path(".env")
# The longest lifetime of a link that S3's signature version 4 allows.
MAX_PRESIGN_SECONDS = 7 * 24 * 3600
# Settings of former versions, and what holds instead. The process does not start with one of them: it must not ignore a
# limit that an operator lowered.
REMOVED = {
    "COMFYUI_MAX_CRASHES": "ComfyUI is given up at its fourth crash in a row",
    "COMFYUI_RESTART_DELAY": "a crashed ComfyUI is started again after at most 0.5 seconds, later with each crash",
    "COMFYUI_STOP_GRACE": "ComfyUI has 10 seconds to stop",
    "COMFY_ARGS": "set COMFYUI_COMMAND, the whole command line",
    "COMFY_PYTHON": "set COMFYUI_COMMAND, the whole command line",
    "CONVERT_AT_ONCE": "half of the processors convert images, within CONVERT_MEMORY_MB",
    "CONVERT_MAX_MEGAPIXELS": "set CONVERT_MEMORY_MB; an image may have a megapixel for each 25 MB of it",
    "HEADER_SECONDS": "the limit is 20 seconds",
    "LHW_HEARTBEAT_INTERVAL_SEC": "a lost connection to LittleHorse is made again after 5 seconds",
    "MAX_FRAME_MB": "set MAX_ANSWER_MB, which limits messages by websocket, too",
    "MAX_HEADER_FIELDS": "the limit is 200 header fields",
    "MAX_HEADER_KB": "the limit is 64 KB",
    "MAX_INPUTS": "the limit is 1,000 files of a request",
    "MAX_JSON_DEPTH": "the limit is 900 levels",
    "MAX_NAME_LENGTH": "the limit is 512 characters",
    "MAX_NODE_INPUTS": "the limit is 1,000 inputs of a node",
    "MAX_PROBLEMS": "an answer lists 500 errors and 500 warnings",
    "MAX_WORKFLOW_NODES": "the limit is 10,000 nodes of a workflow",
    "MIN_BODY_KB_PER_SECOND": "the limit is 1 KB a second",
    "OPENAI_EDITS": "calls without a model get the first workflow of OPENAI_MODELS that can do them",
    "OPENAI_GENERATIONS": "calls without a model get the first workflow of OPENAI_MODELS that can do them",
    "PROGRESS_INTERVAL": "the worker reports progress every second",
    "STALLED_AFTER": "ComfyUI's prompt worker is checked after 60 seconds without any execution",
}
# The similarity from which an unknown variable counts as a misspelled setting; 1 is equal.
_ALIKE = 0.93


def split_commas(value: Any) -> Any:
    """The parts of a text between commas, without blanks and empty parts; any other value unchanged."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def check_http_url(value: str) -> str:
    """The value if it is empty or an http(s) URL; raises ValueError for others."""
    parts = urlsplit(value)
    if value and (parts.scheme not in {"http", "https"} or not parts.netloc or "@" in parts.netloc):
        raise ValueError("must be an http(s) URL without user and password")
    return value


def check_address(value: str) -> str:
    """The value if it is an address of ComfyUI; raises ValueError for others."""
    parse_server_address(value)
    return value


def _check_addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    servers = [parse_server_address(address) for address in value]
    names, urls = [server.name for server in servers], [server.url for server in servers]
    for name, url in zip(names, urls, strict=True):
        if names.count(name) > 1:
            raise ValueError(
                f"{name!r} is the name of several servers; each needs its own name, because jobs are stored by it"
            )
        if urls.count(url) > 1:
            raise ValueError(f"{str(url)!r} is listed more than once; list each server once")
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
SecretList = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split_commas)]
WebUrl = Annotated[str, AfterValidator(check_http_url)]

# Fields whose default differs in some process.
ServerAddresses = Annotated[
    CommaList,
    AfterValidator(_check_addresses),
    Field(
        description=(
            "ComfyUI's host:port or URL. The gateway takes several, with names: gpu-1=host:port,gpu-2=host:port."
        )
    ),
]
MaxInputMb = Annotated[
    float, Field(gt=0, description="Largest single input file (base64, data URI, URL or form part), in MB.")
]
InputUrlTimeout = Annotated[
    float, Field(gt=0, description="Most seconds for the download of one input URL, retries included.")
]
PresignSeconds = Annotated[
    int,
    Field(
        ge=1,
        le=MAX_PRESIGN_SECONDS,
        description="Seconds that links to stored files work if a request or job does not set them.",
    ),
]


class FieldGroup(BaseSettings):
    """The base of all settings. The class itself reads only the environment; see `load` for `.env`."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class LogFields(FieldGroup):
    """The level and the destination of the log."""

    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(_upper),
        Field(description="Lowest level of the log lines that are written."),
    ] = "INFO"
    log_output: str = Field(
        default="console",
        min_length=1,
        description="Where and how the log is written: console, json, or the path of a file (in JSON).",
    )


class AnswerFields(FieldGroup):
    """The most that ComfyUI may send at once."""

    max_answer_mb: float = Field(
        default=256,
        gt=0,
        description="Largest answer of ComfyUI that is read into memory as a whole (history, queue, …), and largest"
        " message by websocket, in MB.",
    )

    def answers(self) -> AnswerLimits:
        return AnswerLimits(max_bytes=int(self.max_answer_mb * MB))


class ComfyUIFields(FieldGroup):
    """The addresses of ComfyUI, and its time limits."""

    comfyui_server_address: ServerAddresses = ("127.0.0.1:8188",)
    http_timeout: float = Field(
        default=30, gt=0, description="Most seconds for one request to ComfyUI; for files, most seconds without data."
    )
    http_retries: int = Field(
        default=3, ge=0, le=20, description="How often a failed request to ComfyUI is tried again."
    )


class PollFields(FieldGroup):
    """How ComfyUI is watched. The Postgres worker's POLL_INTERVAL is another setting."""

    poll_interval: float = Field(
        default=1,
        gt=0,
        le=60,
        description="Most seconds between two polls of ComfyUI while its websocket does not work.",
    )


class RecoveryFields(FieldGroup):
    """What follows if ComfyUI crashes, forgets a prompt, or has nothing to do."""

    lost_prompt_retries: int = Field(
        default=1, ge=0, le=10, description="How often a prompt is submitted again after ComfyUI crashed or forgot it."
    )
    quarantine_after: int = Field(
        default=2,
        ge=0,
        le=100,
        description="Number of crashes of ComfyUI after which the workflow that caused them is refused; 0 means never.",
    )
    quarantine_seconds: float = Field(
        default=600, gt=0, description="Seconds for which a crash counts, and for which that workflow is refused."
    )
    free_after_idle: float = Field(
        default=0, ge=0, description="Idle seconds after which ComfyUI's models are unloaded (/free); 0 means never."
    )


class InputFields(FieldGroup):
    """Limits of the inputs of a request or job."""

    max_input_mb: MaxInputMb = 512
    input_url_allow: CommaList = Field(
        default=(), description="Private hosts, host:port or CIDRs from which input URLs may be downloaded."
    )
    input_url_timeout: InputUrlTimeout = 60

    @property
    def max_input_bytes(self) -> int:
        return int(self.max_input_mb * MB)


class NamedFields(FieldGroup):
    """Workflows that are called by name."""

    workflows_dir: Path | None = Field(
        default=Path("workflows"),
        description=(
            "Folder of the named workflows, which is watched and need not exist; empty means no named workflows."
        ),
    )

    @field_validator("workflows_dir", mode="before")
    @classmethod
    def _no_folder(cls, value: Any) -> Any:
        return value or None


class S3Fields(FieldGroup):
    """An object store for output files, which is not used without a bucket. `outputs.stores.s3.s3_store` makes it."""

    s3_bucket: str = Field(
        default="",
        description=(
            "Bucket for output files. If it is set, requests may ask for the store s3, and workers store there."
        ),
    )
    s3_region: str = Field(default="us-east-1", min_length=1, description="Region of the bucket.")
    s3_endpoint_url: WebUrl = Field(default="", description="URL of an S3-compatible store; empty means AWS.")
    s3_public_endpoint_url: WebUrl = Field(
        default="", description="URL of the store in links for clients, if it differs from S3_ENDPOINT_URL."
    )
    s3_access_key_id: SecretStr | None = Field(
        default=None, description="Id of the access key; empty means that it is looked up as AWS's own tools do."
    )
    s3_secret_access_key: SecretStr | None = Field(default=None, description="Secret of the access key.")
    s3_session_token: SecretStr | None = Field(default=None, description="Session token of a temporary access key.")
    s3_prefix: str = Field(default="", description="Folder of all outputs in the bucket.")
    s3_addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="Form of the store's URLs; path (host/bucket/key) suits most S3-compatible stores."
    )
    s3_presign_seconds: PresignSeconds = 3600

    def other_buckets(self) -> tuple[str, ...]:
        """The buckets besides S3_BUCKET that a request or job may name."""
        return ()

    @model_validator(mode="after")
    def _keys_are_a_pair(self) -> Self:
        if bool(self.s3_access_key_id) != bool(self.s3_secret_access_key):
            raise ValueError("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY must be set together")
        return self


class S3ChoiceFields(S3Fields):
    """An object store; a request or job may choose its bucket."""

    s3_allowed_buckets: CommaList = Field(
        default=(), description="Buckets besides S3_BUCKET that a request or job may name."
    )

    def other_buckets(self) -> tuple[str, ...]:
        return self.s3_allowed_buckets


_Fields = TypeVar("_Fields", bound=FieldGroup)


def variables(settings: type[FieldGroup]) -> dict[str, FieldInfo]:
    """Each environment variable that these settings are read from, with its field."""
    return {(field.alias or name).upper(): field for name, field in settings.model_fields.items()}


def load(settings: type[_Fields], *, env_file: Path | None = None) -> _Fields:
    """The settings of this type from the environment, then from `env_file`, which need not exist.

    Raises:
        SettingsError: with a line for each bad value, for each name that looks misspelt, and for each setting that was
            removed.
    """
    fields = variables(settings)
    problems = _unknown({*os.environ, *DotEnvSettingsSource(settings, env_file=env_file).env_vars}, fields)
    read: dict[str, Any] = {"_env_file": env_file}
    try:
        loaded = settings(**read)
    except ValidationError as error:
        problems += [_problem(item["loc"], item["msg"], fields) for item in error.errors()]
    if problems:
        raise SettingsError("\n".join(problems))
    return loaded


def _problem(where: tuple[int | str, ...], message: str, fields: Mapping[str, FieldInfo]) -> str:
    message = message.removeprefix("Value error, ")
    if not where:
        return message
    name = str(where[0]).upper()
    meaning = f" ({fields[name].description})" if name in fields else ""
    return f"{name}: {message}{meaning}"


def _unknown(names: Iterable[str], known: Mapping[str, FieldInfo]) -> list[str]:
    """The problems with those names that are no settings, and that were settings or look like one."""
    problems = []
    for name in sorted({name.upper() for name in names} - known.keys()):
        if instead := REMOVED.get(name):
            problems.append(f"{name}: this setting was removed: {instead}. Remove the variable.")
        elif close := difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE):
            problems.append(f"{name}: there is no such setting; did you mean {close[0]}?")
    return problems
