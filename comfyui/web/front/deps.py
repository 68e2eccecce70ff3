"""What endpoints need of a request: the objects that `create_app` made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from comfyui.handler import ComfyUIHandler
from comfyui.limits import DEFAULT_LIMITS, Limits
from comfyui.outputs.delivery import Deliverer

CALLER = "caller"
"""Where a request's state has the name of the key that was shown; nothing is there where none is needed."""


@dataclass(frozen=True, slots=True)
class WebOptions:
    """What the HTTP layer needs of the settings; durations in seconds."""

    default_timeout_s: float = 300.0
    max_timeout_s: float = 3600.0
    max_body_bytes: int = 100_000_000
    max_input_bytes: int = 512_000_000
    limits: Limits = DEFAULT_LIMITS


def get_handler(request: Request) -> ComfyUIHandler:
    handler: ComfyUIHandler = request.app.state.handler
    return handler


def get_deliverer(request: Request) -> Deliverer:
    deliverer: Deliverer = request.app.state.deliverer
    return deliverer


def get_options(request: Request) -> WebOptions:
    options: WebOptions = request.app.state.web_options
    return options


# Coroutines though they await nothing: FastAPI sends plain functions through its thread pool, at 0.5 ms a request.


async def _handler(request: Request) -> ComfyUIHandler:
    return get_handler(request)


async def _options(request: Request) -> WebOptions:
    return get_options(request)


Handler = Annotated[ComfyUIHandler, Depends(_handler)]
Options = Annotated[WebOptions, Depends(_options)]
