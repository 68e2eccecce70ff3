"""What endpoints need of a request: the objects that `create_app` made, and whether its client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from comfyui.delivery import Deliverer
from comfyui.handler import ComfyUIHandler

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WebOptions:
    """What the HTTP layer needs of the settings; durations in seconds."""

    default_timeout_s: float = 300.0
    max_timeout_s: float = 3600.0
    max_body_bytes: int = 100_000_000
    max_input_bytes: int = 512_000_000


class ClientGoneError(Exception):
    """The client closed its connection: there is nobody to answer."""


# Coroutines though they await nothing: FastAPI sends plain functions through its thread pool, at 0.5 ms a request.


async def get_handler(request: Request) -> ComfyUIHandler:
    handler: ComfyUIHandler = request.app.state.handler
    return handler


async def get_deliverer(request: Request) -> Deliverer:
    deliverer: Deliverer = request.app.state.deliverer
    return deliverer


async def get_options(request: Request) -> WebOptions:
    options: WebOptions = request.app.state.web_options
    return options


Handler = Annotated[ComfyUIHandler, Depends(get_handler)]
Delivery = Annotated[Deliverer, Depends(get_deliverer)]
Options = Annotated[WebOptions, Depends(get_options)]


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, but cancel it when the client goes away. Call it after the body was read.

    Raises:
        ClientGoneError: the client went away; `work` has been cancelled and has ended.
    """
    working = asyncio.create_task(work)
    listening = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        listening.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
