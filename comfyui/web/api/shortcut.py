"""The short way to `/prompt_sync`: the endpoint that FastAPI would call, without what it does before and around."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager

import structlog
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.exceptions import ComfyUIError
from comfyui.web.api import prompt_sync as api
from comfyui.web.api.bodies import get_submission
from comfyui.web.front.deps import get_deliverer, get_handler, get_options
from comfyui.web.front.errors import answer_error, answer_to_nobody, unexpected
from comfyui.web.front.headers import header
from comfyui.web.front.middleware import TooLargeError

_log = structlog.get_logger(__name__)

# No query, or a timeout above 0 in the form in which everybody writes it.
_PLAIN_QUERY = re.compile(rb"(?:timeout=([1-9][0-9]{0,8}(?:\.[0-9]{1,9})?))?")

_submission = asynccontextmanager(get_submission)


class PromptShortcut:
    """Middleware for calls of which nothing but the body is to be resolved: nearly all. The others go FastAPI's way.

    A fifth of the gateway's time for a prompt, and of a waiting caller's memory, was FastAPI's routing and resolving.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _plain_query(scope)
        if match is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            async with _submission(request) as submitted:
                response = await api.prompt_sync(
                    request,
                    submitted,
                    await get_handler(request),
                    await get_deliverer(request),
                    await get_options(request),
                    float(match[1]) if match[1] else None,
                )
        except ComfyUIError as error:
            response = await answer_error(request, error)
        except TooLargeError:
            raise  # `BodyLimit` answers it
        except ClientDisconnect:
            response = answer_to_nobody()
        except Exception:
            _log.exception("request.crashed")
            response = unexpected(request)
        await response(scope, receive, send)


def _plain_query(scope: Scope) -> re.Match[bytes] | None:
    if scope["type"] != "http" or scope["path"] != "/prompt_sync" or scope["method"] != "POST":
        return None
    if header(scope, b"idempotency-key") is not None:
        return None
    return _PLAIN_QUERY.fullmatch(scope["query_string"])
