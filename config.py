"""`Settings`: every setting of the gateway, typed, one line of meaning each, and the options that they become."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from comfyui.address import ServerAccess, parse_headers, parse_server_address, parse_verify, tls_context
from comfyui.exceptions import SettingsError
from comfyui.executors.checking import AS_COMFYUI
from comfyui.executors.comfyui import RunnerOptions
from comfyui.executors.runpod.options import RunPodOptions
from comfyui.handler import HandlerOptions
from comfyui.jobs.queue_options import QueueOptions
from comfyui.jobs.runs import RunLimits
from comfyui.jobs.webhooks.outbox import OutboxOptions
from comfyui.jobs.webhooks.rules import WebhookRules
from comfyui.jobs.webhooks.sending import SenderOptions
from comfyui.jobs.webhooks.signing import Signer, key_of
from comfyui.limits import Limits
from comfyui.named.library import NamedOptions
from comfyui.named.model_names import check_models, parse_models
from comfyui.outputs.delivery import DeliveryOptions
from comfyui.outputs.images import ConversionLimits
from comfyui.outputs.stores.s3 import S3Store, s3_store
from comfyui.outputs.stores.store import ObjectStore
from comfyui.servers.options import ServerOptions
from comfyui.settings import (
    MB,
    AnswerFields,
    ComfyUIFields,
    CommaList,
    InputFields,
    LogFields,
    NamedFields,
    PollFields,
    RecoveryFields,
    S3ChoiceFields,
    SecretList,
    WebUrl,
)
from comfyui.transport.address_guard import AddressPolicy
from comfyui.warmup import load_workflow
from comfyui.web.app import AppOptions
from comfyui.web.comfyui.hub.hub import HubOptions
from comfyui.web.comfyui.hub.session import SessionLimits
from comfyui.web.comfyui.proxy import RelayOptions
from comfyui.web.front.forwarded import DEFAULT_PROXIES, parse_proxies
from comfyui.web.front.gateway_state import WebOptions
from comfyui.web.front.hosts import KnownHosts, parse_hosts
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.keys_file import KeysFile, signing_secret
from comfyui.web.front.middleware import BodyLimits
from comfyui.web.front.paths import DEFAULT_DENY, PathRules, ProxyMode
from comfyui.web.front.tickets import LINK_S
from comfyui.web.mcp.options import McpOptions
from comfyui.web.server.listening import parse_listen
from comfyui.web.server.serving import ServingOptions

_LONGEST_LINK_S = 366 * 24 * 3600
# An image may have a pixel for so much of the memory for conversions: 80 megapixels within 2,000 MB.
_BYTES_PER_PIXEL = 25
# An international name is written in ASCII, because links are also sent as headers.
_PUBLIC_URL = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]+)?(?:/(?:[A-Za-z0-9._~!$&()*+,;=:@-]|%[0-9A-Fa-f]{2})*)"
    "*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """The options of each part of a gateway: those that the settings set, and limits that are no settings."""

    app: AppOptions
    servers: ServerOptions
    handler: HandlerOptions
    conversion: ConversionLimits
    delivery: DeliveryOptions
    store: ObjectStore | None
    """Not open yet; None if no object store is set up."""
    runpod: RunPodOptions | None
    """None if all prompts run on ComfyUI."""
    sender: SenderOptions
    outbox: OutboxOptions = field(default_factory=OutboxOptions)
    serving: ServingOptions = field(default_factory=ServingOptions)
    named: NamedOptions = field(default_factory=NamedOptions)


class Settings(
    ComfyUIFields, AnswerFields, PollFields, RecoveryFields, InputFields, NamedFields, S3ChoiceFields, LogFields
):
    """The settings that the gateway shares with workers, and its own. Durations are in seconds."""

    server_host: Annotated[CommaList, AfterValidator(parse_listen)] = Field(
        default=("0.0.0.0",),  # noqa: S104 - a container's default
        description="IPv4 or IPv6 addresses to listen on; 0.0.0.0,:: means all of both kinds.",
    )
    server_port: int = Field(default=18188, ge=0, le=65535, description="Port to listen on; 0 means any free port.")
    comfyui_headers: SecretStr | None = Field(
        default=None,
        description=(
            "Headers that the gateway sends to ComfyUI: lines of 'Name: value', or a JSON object by address if they"
            " differ."
        ),
    )
    comfyui_tls_verify: str = Field(
        default="true",
        description=(
            "Whether ComfyUI's TLS certificate is checked: true, false, or a PEM file of its authority; or JSON by"
            " address."
        ),
    )
    backend: CommaList = Field(
        default=("comfyui",),
        description="Where prompts run: comfyui, runpod (a serverless endpoint), or both: comfyui,runpod.",
    )
    runpod_endpoint_id: str = Field(
        default="", description="Id of the RunPod endpoint that runs prompts; required if BACKEND has runpod."
    )
    runpod_api_key: SecretStr | None = Field(
        default=None, description="RunPod's API key; required if BACKEND has runpod."
    )
    runpod_endpoint_url: WebUrl = Field(
        default="", description="URL of another API server with RunPod's protocol; empty means RunPod's own server."
    )
    runpod_data_dir: Path = Field(
        default=Path("runpod-data"),
        description=(
            "Folder for results and inputs of prompts that ran on RunPod. Only one gateway at a time may use it."
        ),
    )
    runpod_data_days: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Days after which results and inputs in RUNPOD_DATA_DIR are removed; 0 means never, as in ComfyUI.",
    )
    default_timeout: float = Field(
        default=300, gt=0, description="Seconds that a request waits for its result if it does not set timeout."
    )
    max_timeout: float = Field(default=3600, gt=0, description="Longest timeout, in seconds, that a request may set.")
    max_concurrent_requests: int = Field(
        default=1000, ge=1, description="Most requests that wait at the same time; further ones get 429."
    )
    max_request_body_mb: float = Field(
        default=100, gt=0, description="Largest request body of the gateway's own endpoints, in MB."
    )
    max_buffered_mb: float = Field(
        default=1000,
        gt=0,
        description="Most MB that the bodies of all current requests take together; further requests get 429.",
    )
    max_json_values: int = Field(
        default=250_000,
        ge=1000,
        description="Most values in one JSON body, at all depths together; a body with more gets 413.",
    )
    client_idle_seconds: float = Field(
        default=60,
        gt=0,
        description="Seconds after which a client is disconnected if it neither sends its body nor reads its answer.",
    )
    oom_retries: int = Field(
        default=0,
        ge=0,
        le=10,
        description="How often a prompt that ran out of GPU memory is submitted again, after a call of /free.",
    )
    silent_after: float = Field(
        default=600, gt=0, description="Seconds without any event from ComfyUI after which a running prompt is logged."
    )
    dead_after: float = Field(
        default=0,
        ge=0,
        description=(
            "Seconds without any event after which a server that runs a prompt counts as not ready; 0 means never."
        ),
    )
    cancel_on_timeout: bool = Field(
        default=True, description="Whether a prompt is cancelled when the last request for it has timed out."
    )
    cancel_on_disconnect: bool = Field(
        default=True,
        description="Whether a prompt is cancelled when the last client that waits for it has disconnected.",
    )
    cancel_on_shutdown: bool = Field(
        default=False,
        description="Whether unfinished prompts are cancelled at shutdown; if not, callers can attach to them again.",
    )
    shutdown_grace_seconds: float = Field(
        default=30, ge=0, description="Seconds that unfinished prompts get to finish after SIGTERM."
    )
    warmup_workflow: Path | None = Field(
        default=None,
        description="File of a workflow (API format) that runs once before the gateway reports that it is ready.",
    )
    queue: Literal["auto", "gateway", "comfyui"] = Field(
        default="auto",
        description="Where prompts wait: gateway or comfyui; auto means comfyui with one server and no KEYS_FILE.",
    )
    state_dir: Path | None = Field(
        default=Path("gateway-state"),
        description=(
            "Folder of the jobs, so that they survive a restart; empty keeps them in memory. Only one gateway at a"
            " time."
        ),
    )
    jobs_keep_days: float = Field(
        default=7, ge=1, allow_inf_nan=False, description="Days after which ended jobs are removed."
    )
    jobs_keep: int = Field(
        default=100_000, ge=1, description="Most ended jobs that are kept; those of the last day are always kept."
    )
    inputs_keep_days: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description=(
            "Days that inputs of async jobs are kept after no job needs them; 0 means they stay only in ComfyUI."
        ),
    )
    max_stored_inputs_mb: float = Field(
        default=10_000,
        gt=0,
        description="Most MB of inputs, uploads and assets; old uploads are removed first, then further ones get 429.",
    )
    usage_keep_days: float = Field(
        default=400, ge=1, allow_inf_nan=False, description="Days for which the usage records of each key are kept."
    )
    max_queued_jobs: int = Field(default=10_000, ge=1, description="Most async jobs that wait; further ones get 429.")
    reattach_seconds: float = Field(
        default=60,
        ge=0,
        allow_inf_nan=False,
        description=(
            "Seconds that a job with its caller's id waits for a caller who left; 0 means it is cancelled at once."
        ),
    )
    max_execution_seconds: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Most seconds that an async job may run; 0 means MAX_TIMEOUT.",
    )
    max_queued_seconds: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Most seconds that an async job may wait before it runs; 0 means no limit.",
    )

    webhook_secret: SecretList = Field(
        default=(),
        description="Secrets that sign webhooks: base64 of 24 bytes or more. Give both secrets while you replace one.",
    )
    webhook_url: WebUrl = Field(
        default="", description="URL that gets a webhook when any job ends; requires WEBHOOK_SECRET and PUBLIC_URL."
    )
    webhook_url_allow: CommaList = Field(
        default=(), description="Private hosts, host:port or CIDRs that callers' webhooks may be sent to."
    )
    max_multipart_mb: float = Field(
        default=1000,
        gt=0,
        description=(
            "Largest form (multipart/form-data) for /prompt_sync and assets, in MB; its files are buffered on disk."
        ),
    )
    preflight: bool = Field(
        default=False,
        description="Whether workflows are checked against ComfyUI's node definitions before they are queued.",
    )
    convert_memory_mb: float = Field(
        default=2000,
        gt=0,
        description=(
            "Most MB of memory for all conversions together; others wait, and an image that needs more is not"
            " converted."
        ),
    )
    output_store: Literal["none", "s3"] = Field(
        default="none",
        description="Where files are stored if a request does not say: none or s3; s3 requires S3_BUCKET.",
    )

    api_keys: SecretList = Field(
        default=(),
        description=(
            "Keys that may do everything. With API_KEYS or KEYS_FILE, every path except the probes requires a key."
        ),
    )
    keys_file: Path | None = Field(
        default=None, description="TOML file of keys with names, roles and limits; it is read again when it changes."
    )
    login_hours: float = Field(default=168, gt=0, description="Hours that a browser stays signed in.")
    cors_allow_origins: CommaList = Field(
        default=(), description="Origins (https://example.org) whose pages may call the gateway; * means all."
    )
    allowed_hosts: Annotated[CommaList, AfterValidator(parse_hosts)] = Field(
        default=(),
        description="Further host names that requests may use if no keys are set (*.example.org); * means all.",
    )
    openai_models: Annotated[CommaList, AfterValidator(check_models)] = Field(
        default=(),
        description=(
            "Named workflows that serve as models of OpenAI's image API: gpt-image-1=portrait,gpt-image-1=retouch. A"
            " call that names no model gets the first workflow that can serve it."
        ),
    )
    public_url: WebUrl = Field(
        default="",
        description="The gateway's URL for clients (https://example.org/comfy); links in answers begin with it.",
    )
    link_seconds: int = Field(
        default=LINK_S,
        ge=1,
        le=_LONGEST_LINK_S,
        description="Seconds that file links in a webhook work without a key, if keys are required.",
    )
    forwarded_allow_ips: CommaList = Field(
        default=DEFAULT_PROXIES,
        description="Addresses or CIDRs of reverse proxies whose X-Forwarded headers are trusted; * means all.",
    )
    proxy_mode: ProxyMode = Field(
        default="full",
        description="Which of ComfyUI's paths are relayed: full (all), api (those of client libraries) or off (none).",
    )
    proxy_deny: CommaList = Field(
        default=DEFAULT_DENY,
        description="Paths that are not relayed; * matches any text, and ! before a path makes it an exception.",
    )
    proxy_timeout: float = Field(
        default=300,
        ge=0,
        description="Seconds that a relayed request waits for ComfyUI's answer to begin; 0 means no limit.",
    )
    max_upload_mb: float = Field(
        default=0,
        ge=0,
        description="Largest body that is relayed or uploaded, in MB; 0 means only ComfyUI's own limit.",
    )
    websocket_buffer_mb: float = Field(
        default=512,
        gt=0,
        description="MB that may wait in memory for all clients' websockets; above it, the client furthest behind is"
        " dropped, or, if prompts wait in the gateway, messages wait in files.",
    )

    mcp: bool = Field(
        default=False, description="Whether the Model Context Protocol is served at /mcp; requires the extra mcp."
    )
    mcp_wait: float = Field(
        default=45,
        gt=0,
        le=3600,
        description=(
            "Seconds that a tool waits for its job. After them it answers with the job's id, and the job goes on."
        ),
    )
    mcp_max_tools: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description="Most named workflows that are MCP tools of their own; run_named runs the others.",
    )

    @field_validator("warmup_workflow", "state_dir", "keys_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("comfyui_server_address")
    @classmethod
    def _one_address_at_least(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must have at least one host:port or URL")
        return value

    @field_validator("cors_allow_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or parts.path.strip("/") or parts.query):
                raise ValueError(f"{origin!r} is not an origin, which has the form scheme://host[:port]")
        return tuple(origin.rstrip("/").lower() for origin in value)

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_proxies(value)
        return value

    @field_validator("public_url")
    @classmethod
    def _public(cls, value: str) -> str:
        if value and not _PUBLIC_URL.fullmatch(value):
            raise ValueError(
                "must be a percent-encoded http(s) URL with a host name and without user, query and fragment, such as"
                " https://example.org/comfy"
            )
        if value and urlsplit(value).port == 0:  # raises for a port that is too large
            raise ValueError("must have a port from 1 to 65535")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _accesses(self) -> Self:
        headers = self.comfyui_headers.get_secret_value() if self.comfyui_headers else ""
        for name, parse, text in (
            ("COMFYUI_HEADERS", parse_headers, headers),
            ("COMFYUI_TLS_VERIFY", parse_verify, self.comfyui_tls_verify),
        ):
            try:
                parse(text, self.comfyui_server_address)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return self

    @field_validator("backend")
    @classmethod
    def _backends(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value) or not set(value) <= {"comfyui", "runpod"}:
            raise ValueError("must be comfyui, runpod or both: comfyui,runpod")
        return tuple(sorted(value))

    @field_validator("webhook_secret")
    @classmethod
    def _secrets(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            key_of(secret.get_secret_value())
        return value

    @field_validator("input_url_allow", "webhook_url_allow")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AddressPolicy(value)
        return value

    @model_validator(mode="after")
    def _webhooks_are_complete(self) -> Self:
        if self.webhook_url and (missing := self._missing_for_webhooks()):
            raise ValueError(
                f"WEBHOOK_URL requires {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} not set"
            )
        return self

    def _missing_for_webhooks(self) -> list[str]:
        given = {"WEBHOOK_SECRET": self.webhook_secret, "PUBLIC_URL": self.public_url}
        return [name for name, value in given.items() if not value]

    def signer(self) -> Signer | None:
        """The signer of webhooks; None if none are sent."""
        return None if self._missing_for_webhooks() else Signer([one.get_secret_value() for one in self.webhook_secret])

    @model_validator(mode="after")
    def _store_is_complete(self) -> Self:
        if self.output_store == "s3" and not self.s3_bucket:
            raise ValueError("OUTPUT_STORE is s3, so S3_BUCKET must be set")
        return self

    @model_validator(mode="after")
    def _runpod_is_complete(self) -> Self:
        if "runpod" not in self.backend:
            return self
        given = {"RUNPOD_ENDPOINT_ID": self.runpod_endpoint_id, "RUNPOD_API_KEY": self.runpod_api_key}
        if missing := [name for name, value in given.items() if not value or not str(value)]:
            raise ValueError(
                f"BACKEND has runpod, and {' and '.join(missing)} {'are' if missing[1:] else 'is'} not set"
            )
        if self.queue == "comfyui":
            raise ValueError(
                "QUEUE must be auto or gateway if BACKEND has runpod, because prompts cannot wait in ComfyUI's queue"
            )
        if self.runs_on_comfyui:
            return self
        if len(self.comfyui_server_address) > 1:
            raise ValueError(
                "COMFYUI_SERVER_ADDRESS must be one address, that of the local ComfyUI, if BACKEND is runpod"
            )
        if self.preflight:
            raise ValueError(
                "PREFLIGHT must be false if BACKEND is runpod: only the endpoint's worker knows its nodes and models"
            )
        return self

    @model_validator(mode="after")
    def _one_server_for_its_own_queue(self) -> Self:
        if self.queue != "comfyui":
            return self
        if (count := len(self.comfyui_server_address)) > 1:
            raise ValueError(
                f"QUEUE must not be comfyui with the {count} servers of COMFYUI_SERVER_ADDRESS, each with its own"
                " queue:"
                " set QUEUE to auto or gateway"
            )
        if self.keys_file is not None:
            raise ValueError(
                "QUEUE must not be comfyui with KEYS_FILE, because ComfyUI's own queue has no owners, weights and"
                " limits:"
                " set QUEUE to auto or gateway"
            )
        return self

    @model_validator(mode="after")
    def _timeouts_agree(self) -> Self:
        if self.default_timeout > self.max_timeout:
            raise ValueError(
                f"DEFAULT_TIMEOUT ({self.default_timeout:g}) must not be above MAX_TIMEOUT ({self.max_timeout:g})"
            )
        return self

    @property
    def runs_on_comfyui(self) -> bool:
        """Whether ComfyUI servers run prompts. If not, the first one serves everything but prompts."""
        return "comfyui" in self.backend

    @property
    def shown_addresses(self) -> list[str]:
        """The addresses of ComfyUI as a log may show them: with their names, without user and password."""
        addresses = [parse_server_address(address) for address in self.comfyui_server_address]
        return [f"{each.given_name}={each.url}" if each.given_name else str(each.url) for each in addresses]

    def _limits(self) -> Limits:
        return Limits(max_json_values=self.max_json_values)

    def options(self) -> GatewayOptions:
        """Raises `SettingsError` if the object store's driver is not installed, or its bucket cannot be used."""
        return GatewayOptions(
            app=self._app_options(),
            servers=ServerOptions(
                http_timeout_s=self.http_timeout,
                http_retries=self.http_retries,
                poll_interval_s=self.poll_interval,
                silent_after_s=self.silent_after,
                dead_after_s=self.dead_after,
                answers=self.answers(),
            ),
            handler=self._handler_options(),
            conversion=self._conversion_limits(),
            delivery=DeliveryOptions(
                merged=self._whose_queue() == "gateway",
                store_by_default=self.output_store == "s3",
                public_url=self.public_url,
            ),
            store=self._object_store(),
            runpod=self._runpod_options(),
            sender=SenderOptions(allow=self.webhook_url_allow),
            named=NamedOptions(max_bytes=int(self.max_request_body_mb * MB), limits=self._limits()),
        )

    def _app_options(self) -> AppOptions:
        max_body_bytes = int(self.max_request_body_mb * MB)
        keys, keys_file = self._keys()
        # PUBLIC_URL's own name is one of the names by which the gateway may be called.
        public_host = urlsplit(self.public_url).hostname
        return AppOptions(
            keys=keys,
            keys_file=keys_file,
            link_s=self.link_seconds,
            trusted_proxies=self.forwarded_allow_ips,
            allowed_origins=frozenset(self.cors_allow_origins),
            hosts=KnownHosts([*self.allowed_hosts, *([public_host] if public_host else [])]),
            client_idle_s=self.client_idle_seconds,
            bodies=BodyLimits(
                max_bytes=max_body_bytes,
                max_total_bytes=int(self.max_buffered_mb * MB),
                max_form_bytes=int(self.max_multipart_mb * MB),
            ),
            relay=self._relay_options(),
            hub=self._hub_options(),
            web=WebOptions(
                default_timeout_s=self.default_timeout,
                max_timeout_s=self.max_timeout,
                max_body_bytes=max_body_bytes,
                max_input_bytes=self.max_input_bytes,
                limits=self._limits(),
                jobs_are_stored=self.state_dir is not None,
                jobs_keep_s=self.jobs_keep_days * 24 * 3600,
                public_url=self.public_url,
                webhooks=WebhookRules(self._missing_for_webhooks(), self.webhook_url_allow),
                models=parse_models(self.openai_models),
            ),
            mcp=self._mcp_options(),
        )

    def _mcp_options(self) -> McpOptions | None:
        if not self.mcp:
            return None
        if find_spec("mcp") is None:
            raise SettingsError("MCP requires the extra mcp: pip install 'comfyui-gateway[mcp]'")
        return McpOptions(wait_s=self.mcp_wait, max_tools=self.mcp_max_tools)

    def _keys(self) -> tuple[KeyRing, KeysFile | None]:
        """Raises `SettingsError` for a KEYS_FILE that cannot be used."""
        keys, session_s = [key.get_secret_value() for key in self.api_keys], self.login_hours * 3600
        if self.keys_file is None:
            return KeyRing(keys, session_s=session_s), None
        file = KeysFile(self.keys_file, self.state_dir)
        secret = signing_secret(self.state_dir)
        try:
            named = file.load()
            ring = KeyRing(keys, session_s=session_s, named=named, secret=secret)
            file.remember(named)
        except ValueError as error:
            raise SettingsError(f"KEYS_FILE ({self.keys_file}): {error}") from error
        return ring, file

    def _handler_options(self) -> HandlerOptions:
        return HandlerOptions(
            max_concurrent_requests=self.max_concurrent_requests,
            reattach_s=self.reattach_seconds,
            run_limits=RunLimits(
                max_timeout_s=self.max_timeout,
                max_execution_s=self.max_execution_seconds or self.max_timeout,
                max_queued_s=self.max_queued_seconds,
                cancel_on_timeout=self.cancel_on_timeout,
            ),
            queue=self._queue_options(),
            cancel_on_disconnect=self.cancel_on_disconnect,
            cancel_on_shutdown=self.cancel_on_shutdown,
            limits=self._limits(),
            runner=RunnerOptions(
                submission_retries=self.http_retries,
                lost_prompt_retries=self.lost_prompt_retries,
                oom_retries=self.oom_retries,
                preflight=AS_COMFYUI if self.preflight else None,
                limits=self._limits(),
            ),
        )

    def _whose_queue(self) -> Literal["gateway", "comfyui"]:
        if self.queue == "auto":
            is_one = len(self.comfyui_server_address) == 1 and self.backend == ("comfyui",)
            return "comfyui" if is_one and self.keys_file is None else "gateway"
        return self.queue

    def _queue_options(self) -> QueueOptions:
        return QueueOptions(
            queue=self._whose_queue(),
            max_queued=self.max_queued_jobs,
            max_queued_s=self.max_queued_seconds,
        )

    def _conversion_limits(self) -> ConversionLimits:
        memory = int(self.convert_memory_mb * MB)
        return ConversionLimits(max_pixels=memory // _BYTES_PER_PIXEL, max_memory=memory)

    def _hub_options(self) -> HubOptions:
        return HubOptions(
            buffer_bytes=int(self.websocket_buffer_mb * MB),
            sessions=SessionLimits(idle_s=self.client_idle_seconds),
        )

    def _relay_options(self) -> RelayOptions:
        return RelayOptions(
            rules=PathRules(self.proxy_mode, self.proxy_deny),
            timeout_s=self.proxy_timeout,
            max_upload_bytes=int(self.max_upload_mb * MB) or None,
            socket_buffer_bytes=int(self.websocket_buffer_mb * MB),
            socket_idle_s=self.client_idle_seconds,
            public_url=self.public_url,
            home_folder=None if self.state_dir is None else self.state_dir / "home",
        )

    def with_comfyui_at(self, address: str) -> Self:
        """The same settings with one plain ComfyUI that needs no headers."""
        plain = {"comfyui_server_address": (address,), "comfyui_headers": None, "comfyui_tls_verify": "true"}
        return self.model_copy(update=plain)

    def _runpod_options(self) -> RunPodOptions | None:
        if "runpod" not in self.backend or self.runpod_api_key is None:
            return None
        return RunPodOptions(
            endpoint_id=self.runpod_endpoint_id,
            api_key=self.runpod_api_key,
            data_dir=self.runpod_data_dir,
            endpoint_url=self.runpod_endpoint_url,
            url_allow=self.input_url_allow,
            data_days=self.runpod_data_days,
        )

    def accesses(self) -> dict[str, ServerAccess]:
        """The headers for each address of ComfyUI, and how its certificate is checked.

        Raises:
            SettingsError: a file that COMFYUI_TLS_VERIFY names cannot be used.
        """
        addresses = self.comfyui_server_address
        headers = parse_headers(self.comfyui_headers.get_secret_value() if self.comfyui_headers else "", addresses)
        verify = parse_verify(self.comfyui_tls_verify, addresses)
        try:
            return {address: ServerAccess(headers[address], tls_context(verify[address])) for address in addresses}
        except ValueError as error:
            raise SettingsError(f"COMFYUI_TLS_VERIFY: {error}") from error

    def warmup_prompt(self) -> dict[str, Any] | None:
        """The workflow of the file that WARMUP_WORKFLOW names; None if it is not set.

        Raises:
            SettingsError: the file cannot be read, or has no workflow in API format.
        """
        try:
            return load_workflow(self.warmup_workflow) if self.warmup_workflow else None
        except ValueError as error:
            raise SettingsError(f"WARMUP_WORKFLOW: {error}") from error

    def _object_store(self) -> S3Store | None:
        if self.s3_bucket and find_spec("aiobotocore") is None:
            raise SettingsError("S3_BUCKET requires the extra s3: pip install 'comfyui-gateway[s3]'")
        try:
            return s3_store(self)
        except ValueError as error:
            raise SettingsError(str(error)) from error
