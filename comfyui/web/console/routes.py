"""The pages of the console, the files that they load, and the answer to what is none of them."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from comfyui.exceptions import ComfyUINotFoundError
from comfyui.web.console import (
    files,
    job,
    keys,
    now,
    queue,
    queue_changes,
    results,
    run,
    usage,
)
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.static_files import static_answer
from comfyui.web.console.texts import TEXTS

_rest = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)


@_rest.get("/console/static/{digest}/{name}")
async def static_file(request: Request) -> Response:
    """A file of `static/`."""
    return static_answer(request.path_params["name"])


@_rest.get("/console/{path:path}")
async def no_page(request: Request) -> Response:
    """404: without it, the path would be ComfyUI's."""
    raise ComfyUINotFoundError(TEXTS.errors.no_page.format(path=request.url.path))


ROUTERS = (
    now.router,
    queue.router,
    queue_changes.router,
    results.router,
    files.router,
    job.router,
    run.router,
    usage.router,
    keys.router,
    _rest,
)
"""The last one has the paths that no page has."""
