"""Shows an error to a visitor: a page with the reason, or only the reason if a module of ours asks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from comfyui.exceptions import ComfyUIError, error_body_of
from comfyui.web.console.actions import wants_json
from comfyui.web.console.pages import HEADERS, page
from comfyui.web.front.errors import json_response, log_failure
from comfyui.web.front.request_state import state_of


class ConsoleRoute(APIRoute):
    """A route whose errors are shown as the console shows them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ComfyUIError as error:
                return error_page(request, error)

        return answer


def error_page(request: Request, error: ComfyUIError) -> Response:
    """The answer to a request that failed, with the error's status."""
    request_id = state_of(request.scope).request_id
    log_failure(error)
    if wants_json(request):
        body = error_body_of(error, request_id=request_id)
        return json_response(error.status, {**body, "message": error.detail}, HEADERS)
    title = HTTPStatus(error.status).phrase
    return page(
        request, "error.html", error.status, title=title, detail=error.detail, error=error.code, request_id=request_id
    )
