"""The objects that all requests share, made by the application and its lifespan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request
from starlette.types import Scope

from comfyui.assets.rooms import Assets
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.usage import SentBytes
from comfyui.jobs.webhooks.rules import WebhookRules
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.metrics import Metrics
from comfyui.named.library import NamedWorkflows
from comfyui.named.model_names import ModelNames
from comfyui.outputs.delivery import Deliverer
from comfyui.outputs.thumbnails import Thumbnails
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.named_document import NamedDocuments
from comfyui.web.front.rates import SubmissionRates
from comfyui.web.front.streams import OpenStreams
from comfyui.web.front.tickets import Tickets

_KEY = "comfyui_gateway.gateway"


@dataclass(frozen=True, slots=True)
class WebOptions:
    """The endpoints' part of the settings; durations in seconds."""

    default_timeout_s: float = 300.0
    max_timeout_s: float = 3600.0
    max_body_bytes: int = 100_000_000
    max_input_bytes: int = 512_000_000
    limits: Limits = DEFAULT_LIMITS
    jobs_are_stored: bool = True
    """Jobs outlive the gateway: STATE_DIR is set."""
    public_url: str = ""
    """The gateway's URL for clients, without a slash at its end; "": as each client writes it."""
    webhooks: WebhookRules = field(default_factory=WebhookRules)
    keep_alive_s: float = 15.0
    """Between two signs of life in a stream of events."""
    jobs_keep_s: float = 7 * 24 * 3600.0
    """Jobs that have ended are kept so long."""
    models: ModelNames = field(default_factory=dict)
    verdict_s: float = 20.0
    """For ComfyUI to say whether it accepts a job of Comfy API v2, whose SDKs wait 30 s for the answer."""


class Warnings(Protocol):
    """Something that an operator has to see to, though the gateway works."""

    @property
    def problem(self) -> str | None:
        """The problem in words; None if there is none."""


@dataclass(frozen=True, slots=True)
class GatewayState:
    """The running gateway, as its endpoints see it."""

    options: WebOptions
    handler: ComfyUIHandler
    assets: Assets
    deliverer: Deliverer
    thumbnails: Thumbnails
    tickets: Tickets
    named: NamedWorkflows
    metrics: Metrics
    sent: SentBytes
    keys: KeyRing
    keys_file: Warnings | None = None
    rates: SubmissionRates = field(default_factory=SubmissionRates)
    streams: OpenStreams = field(default_factory=OpenStreams)
    documents: NamedDocuments = field(default_factory=NamedDocuments)


def set_gateway(scope: Scope, gateway: GatewayState) -> None:
    """Lets `gateway_of` find it."""
    scope.setdefault("state", {})[_KEY] = gateway


def gateway_of(request: Request) -> GatewayState:
    """The gateway that serves a request."""
    gateway: GatewayState = request.scope["state"][_KEY]
    return gateway
