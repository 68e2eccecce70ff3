"""`/console`: what runs now, and what comes next."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.pages import page
from comfyui.web.front.gateway_state import gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)


@router.get("/console")
async def show_now(request: Request) -> Response:
    """The servers, and the beginning of the queue."""
    return page(request, "now.html", servers=[one.name for one in gateway_of(request).handler.pool.servers])
