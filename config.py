"""`Settings`: every setting of the gateway, typed, one line of meaning each, and the options that they become."""

from __future__ import annotations

import dataclasses
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
from comfyui.named.model_names import ModelKind, ModelNames, check_models, parse_models
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
from comfyui.web.server.request_head import HeadLimits
from comfyui.web.server.serving import ServingOptions

_LONGEST_LINK_S = 366 * 24 * 3600
# An international name is written in ASCII, because links are also sent as headers.
_PUBLIC_URL = re.compile(
    r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]+)?(?:/(?:[A-Za-z0-9._~!$&()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """The options of each part of a gateway: those that the settings set, and limits that are no settings."""

    app: AppOptions
    serving: ServingOptions
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
    named: NamedOptions = field(default_factory=NamedOptions)


class Settings(
    ComfyUIFields, AnswerFields, PollFields, RecoveryFields, InputFields, NamedFields, S3ChoiceFields, LogFields
):
    """The settings that the gateway shares with workers, and its own. Durations are in seconds."""

    server_host: Annotated[CommaList, AfterValidator(parse_listen)] = Field(
        default=("0.0.0.0",),  # noqa: S104 - a container's default
        description="Addresses to listen on, IPv4 or IPv6 (0.0.0.0,:: for all of both).",
    )
    server_port: int = Field(default=18188, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    comfyui_headers: SecretStr | None = Field(
        default=None,
        description="Headers to send to ComfyUI: lines of 'Name: value', or JSON by address if they differ.",
    )
    comfyui_tls_verify: str = Field(
        default="true",
        description="Check ComfyUI's certificate: true, false, or a file with its authority; JSON by address.",
    )
    backend: CommaList = Field(
        default=("comfyui",),
        description="The runner of prompts: comfyui, runpod (a serverless endpoint), or both: comfyui,runpod.",
    )
    runpod_endpoint_id: str = Field(
        default="", description="Id of the endpoint that runs prompts; needed with runpod in BACKEND."
    )
    runpod_api_key: SecretStr | None = Field(
        default=None, description="RunPod's API key; needed with runpod in BACKEND."
    )
    runpod_endpoint_url: WebUrl = Field(
        default="", description="Another API server with RunPod's protocol; empty: RunPod's own."
    )
    runpod_data_dir: Path = Field(
        default=Path("runpod-data"),
        description="Folder of results and inputs of prompts that ran on RunPod. One gateway at a time.",
    )
    runpod_data_days: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Days after which results and inputs in RUNPOD_DATA_DIR are removed; 0: never, as in ComfyUI.",
    )
    default_timeout: float = Field(
        default=300, gt=0, description="Seconds that a request waits if it does not say how long."
    )
    max_timeout: float = Field(default=3600, gt=0, description="Most seconds that a request may ask to wait.")
    max_concurrent_requests: int = Field(
        default=1000, ge=1, description="Requests that may wait at once; more get 429."
    )
    max_request_body_mb: float = Field(
        default=100, gt=0, description="Largest body of the gateway's own endpoints, in MB."
    )
    max_buffered_mb: float = Field(
        default=1000, gt=0, description="Bodies of all requests in flight together, in MB; more get 429."
    )
    max_json_values: int = Field(
        default=250_000, ge=1000, description="Values of one JSON body, at every depth; more get 413."
    )
    max_json_depth: int = Field(
        default=900, ge=16, le=900, description="Lists and objects within each other in one JSON body; more get 400."
    )
    max_workflow_nodes: int = Field(default=10_000, ge=1, description="Nodes of one workflow; more get 413.")
    max_node_inputs: int = Field(default=1_000, ge=1, description="Inputs of one node; more get 413.")
    max_inputs: int = Field(
        default=1_000, ge=1, description="Files that one request may bring, in any form; more get 413."
    )
    max_name_length: int = Field(
        default=512, ge=16, le=4000, description="Characters of a node id, class or input name; more get 413."
    )
    max_problems: int = Field(
        default=500, ge=1, description="Errors that an answer lists, and as many warnings; the rest are only counted."
    )
    max_header_kb: float = Field(
        default=64, ge=1, le=1000, description="A request's target and headers together, in KB; more get 431."
    )
    header_seconds: float = Field(
        default=20, gt=0, description="Seconds within which a connection must send the whole head of a request."
    )
    client_idle_seconds: float = Field(
        default=60,
        gt=0,
        description="Seconds after which a client that neither sends its body nor reads is disconnected.",
    )
    min_body_kb_per_second: float = Field(
        default=1, ge=0, description="Least KB a second of a body, after CLIENT_IDLE_SECONDS of waiting; 0: no limit."
    )
    oom_retries: int = Field(
        default=0, ge=0, le=10, description="How often a prompt that ran out of memory is submitted again, after /free."
    )
    silent_after: float = Field(
        default=600, gt=0, description="Seconds that a prompt may run without any event before it is logged."
    )
    dead_after: float = Field(
        default=0,
        ge=0,
        description="Seconds without any event after which a server that runs a prompt is not ready; 0: never.",
    )
    cancel_on_timeout: bool = Field(default=True, description="Cancel the prompt when its last request timed out.")
    cancel_on_disconnect: bool = Field(default=True, description="Cancel the prompt when its last client went away.")
    cancel_on_shutdown: bool = Field(
        default=False, description="Cancel prompts in flight at shutdown; otherwise callers can attach to them again."
    )
    shutdown_grace_seconds: float = Field(
        default=30, ge=0, description="Seconds that prompts in flight get to finish after SIGTERM."
    )
    warmup_workflow: Path | None = Field(
        default=None, description="A workflow (API format) to run before the gateway says that it is ready."
    )
    queue: Literal["auto", "gateway", "comfyui"] = Field(
        default="auto",
        description="Place where prompts wait: gateway or comfyui; auto: comfyui with one server and no KEYS_FILE.",
    )
    state_dir: Path | None = Field(
        default=Path("gateway-state"),
        description="Folder of the jobs, which survive a restart there. One gateway at a time; empty: in memory.",
    )
    jobs_keep_days: float = Field(
        default=7, ge=1, allow_inf_nan=False, description="Days after which jobs that have ended are removed."
    )
    jobs_keep: int = Field(
        default=100_000, ge=1, description="Ended jobs that are kept; those of the last day are always kept."
    )
    inputs_keep_days: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Days that inputs of async jobs are kept when no job needs them; 0: only in ComfyUI.",
    )
    max_stored_inputs_mb: float = Field(
        default=10_000,
        gt=0,
        description="Inputs of async jobs, uploads and assets, in MB; above it, old uploads are removed, then 429.",
    )
    usage_keep_days: float = Field(
        default=400, ge=1, allow_inf_nan=False, description="Days for which the usage of each key is kept."
    )
    max_queued_jobs: int = Field(default=10_000, ge=1, description="Async jobs that may wait; more get 429.")
    reattach_seconds: float = Field(
        default=60,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a job with its caller's id waits for a caller who left; 0: it is canceled at once.",
    )
    max_execution_seconds: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that an async job may run; 0: MAX_TIMEOUT.",
    )
    max_queued_seconds: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="Seconds that an async job may wait before it runs; 0: any."
    )

    webhook_secret: SecretList = Field(
        default=(),
        description="Secrets that sign webhooks: base64 of 24 bytes or more; several during a rotation.",
    )
    webhook_url: WebUrl = Field(
        default="", description="URL that gets the end of every job; needs WEBHOOK_SECRET and PUBLIC_URL."
    )
    webhook_url_allow: CommaList = Field(
        default=(), description="Private hosts, host:port or CIDRs that callers' webhooks may reach."
    )
    max_multipart_mb: float = Field(
        default=1000,
        gt=0,
        description="Largest form (multipart/form-data) of /prompt_sync and of assets, in MB; it is kept on disk.",
    )
    preflight: bool = Field(
        default=False, description="Check workflows against the node definitions before they are queued."
    )
    convert_max_megapixels: float = Field(
        default=80, gt=0, description="Largest image that is converted to another format; larger ones pass unchanged."
    )
    convert_at_once: int = Field(
        default=2, ge=1, le=64, description="Images that are converted at the same time; the others wait."
    )
    convert_memory_mb: float = Field(
        default=2000,
        gt=0,
        description="MB of memory that all conversions together may take; others wait, larger ones are not done.",
    )
    output_store: Literal["none", "s3"] = Field(
        default="none", description="Store for the files of requests that name none; s3 needs S3_BUCKET."
    )

    api_keys: SecretList = Field(
        default=(),
        description="Keys that may do everything; with these or KEYS_FILE, every path but the probes needs a key.",
    )
    keys_file: Path | None = Field(
        default=None, description="A TOML file of keys with names, roles and limits, read again when it changes."
    )
    login_hours: float = Field(default=168, gt=0, description="Hours that a browser stays signed in.")
    cors_allow_origins: CommaList = Field(
        default=(), description="Origins (https://example.org) whose pages may use the gateway; * for all."
    )
    allowed_hosts: Annotated[CommaList, AfterValidator(parse_hosts)] = Field(
        default=(),
        description="Without keys: further names by which the gateway may be called (*.example.org); * for all.",
    )
    openai_models: Annotated[CommaList, AfterValidator(check_models)] = Field(
        default=(),
        description="Models of OpenAI's image API as named workflows: gpt-image-1=portrait,gpt-image-1=retouch.",
    )
    openai_generations: str | None = Field(
        default=None, description="The named workflow for generations that name no model."
    )
    openai_edits: str | None = Field(default=None, description="The named workflow for edits that name no model.")
    public_url: WebUrl = Field(
        default="",
        description="URL of the gateway for clients (https://example.org/comfy); links in answers begin with it.",
    )
    link_seconds: int = Field(
        default=LINK_S,
        ge=1,
        le=_LONGEST_LINK_S,
        description="Seconds that links to files in a webhook open without a key, if keys are required.",
    )
    forwarded_allow_ips: CommaList = Field(
        default=DEFAULT_PROXIES,
        description="Addresses or CIDRs of reverse proxies whose X-Forwarded headers are believed; * for all.",
    )
    proxy_mode: ProxyMode = Field(
        default="full", description="Paths that are relayed: full, api (those of client libraries) or off (none)."
    )
    proxy_deny: CommaList = Field(
        default=DEFAULT_DENY, description="Paths that are not relayed, with *; ! before one makes it an exception."
    )
    proxy_timeout: float = Field(
        default=300,
        ge=0,
        description="Seconds that a relayed request waits for ComfyUI's answer to begin; 0: no limit.",
    )
    max_upload_mb: float = Field(
        default=0,
        ge=0,
        description="Largest body that is relayed or uploaded, in MB; 0: only ComfyUI's own limit.",
    )
    websocket_buffer_mb: float = Field(
        default=512,
        gt=0,
        description="MB that may wait in memory for all clients' websockets; above it, the client furthest behind is"
        " dropped, or, if prompts wait in the gateway, messages wait in files.",
    )

    mcp: bool = Field(default=False, description="Serve the Model Context Protocol at /mcp; it needs the extra mcp.")
    mcp_wait: float = Field(
        default=45,
        gt=0,
        le=3600,
        description="Seconds that a tool waits for its job; then it answers with the job's id, and the job goes on.",
    )
    mcp_max_tools: int = Field(
        default=100, ge=0, le=10_000, description="Named workflows that are tools of MCP; run_named runs the others."
    )

    @field_validator("warmup_workflow", "state_dir", "keys_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("comfyui_server_address")
    @classmethod
    def _one_address_at_least(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("give at least one host:port or URL")
        return value

    @field_validator("cors_allow_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or parts.path.strip("/") or parts.query):
                raise ValueError(f"{origin!r} is not an origin: it must be scheme://host[:port]")
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
                "must be an http(s) URL with a host name, percent-encoded, without user, query and fragment:"
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
            raise ValueError(f"WEBHOOK_URL is set, and {' and '.join(missing)} {'are' if missing[1:] else 'is'} not")
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
            raise ValueError("OUTPUT_STORE is s3, but S3_BUCKET is not set")
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
            raise ValueError("QUEUE is comfyui, and BACKEND has runpod, which has no such queue: use auto or gateway")
        if self.runs_on_comfyui:
            return self
        if len(self.comfyui_server_address) > 1:
            raise ValueError("COMFYUI_SERVER_ADDRESS: BACKEND=runpod takes one address, that of the local ComfyUI")
        if self.preflight:
            raise ValueError("PREFLIGHT: with BACKEND=runpod only the endpoint's worker knows its nodes and models")
        return self

    @model_validator(mode="after")
    def _one_server_for_its_own_queue(self) -> Self:
        if self.queue != "comfyui":
            return self
        if (count := len(self.comfyui_server_address)) > 1:
            raise ValueError(
                f"QUEUE is comfyui, and COMFYUI_SERVER_ADDRESS has {count} servers, each with a queue of its own:"
                " use auto or gateway"
            )
        if self.keys_file is not None:
            raise ValueError(
                "QUEUE is comfyui, and KEYS_FILE is set: ComfyUI's own queue knows no owners, weights and limits;"
                " use auto or gateway"
            )
        return self

    @model_validator(mode="after")
    def _timeouts_agree(self) -> Self:
        if self.default_timeout > self.max_timeout:
            raise ValueError(f"DEFAULT_TIMEOUT ({self.default_timeout:g}) is above MAX_TIMEOUT ({self.max_timeout:g})")
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

    def limits(self) -> Limits:
        return Limits(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)})

    def options(self) -> GatewayOptions:
        """Raises `SettingsError` if the object store's driver is not installed, or its bucket cannot be used."""
        return GatewayOptions(
            app=self._app_options(),
            serving=ServingOptions(self._head_limits()),
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
            named=NamedOptions(max_bytes=int(self.max_request_body_mb * MB), limits=self.limits()),
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
            min_body_rate=self.min_body_kb_per_second * 1000,
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
                limits=self.limits(),
                jobs_are_stored=self.state_dir is not None,
                jobs_keep_s=self.jobs_keep_days * 24 * 3600,
                public_url=self.public_url,
                webhooks=WebhookRules(self._missing_for_webhooks(), self.webhook_url_allow),
                models=self._models(),
            ),
            mcp=self._mcp_options(),
        )

    def _models(self) -> ModelNames:
        defaults: dict[ModelKind, str | None] = {"generations": self.openai_generations, "edits": self.openai_edits}
        return ModelNames(parse_models(self.openai_models), {kind: name for kind, name in defaults.items() if name})

    def _mcp_options(self) -> McpOptions | None:
        if not self.mcp:
            return None
        if find_spec("mcp") is None:
            raise SettingsError("MCP: the Model Context Protocol needs the extra: pip install 'comfyui-gateway[mcp]'")
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
            limits=self.limits(),
            runner=RunnerOptions(
                submission_retries=self.http_retries,
                lost_prompt_retries=self.lost_prompt_retries,
                oom_retries=self.oom_retries,
                preflight=AS_COMFYUI if self.preflight else None,
                limits=self.limits(),
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
        return ConversionLimits(
            max_pixels=int(self.convert_max_megapixels * 1_000_000),
            at_once=self.convert_at_once,
            max_memory=int(self.convert_memory_mb * MB),
        )

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

    def _head_limits(self) -> HeadLimits:
        return HeadLimits(max_bytes=int(self.max_header_kb * 1000), seconds=self.header_seconds)

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
            raise SettingsError("S3_BUCKET: object storage needs the extra: pip install 'comfyui-gateway[s3]'")
        try:
            return s3_store(self)
        except ValueError as error:
            raise SettingsError(str(error)) from error
