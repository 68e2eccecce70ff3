"""Reads a request to ComfyUI's face as ComfyUI reads it: the query, a small body, the id in the path."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.types import Scope

from comfyui import jsonio
from comfyui.exceptions import BodyTooLargeError, JSONError
from comfyui.web.front.paths import target_of

_MOST_PAIRS = 20
# The largest body that names jobs.
_LONGEST_BODY = 1_000_000


class Asked(NamedTuple):
    """A request for ComfyUI: path and query. `server`: the name of the only one to ask; None: any."""

    target: str
    server: str | None = None


def last_part(request: Request) -> str:
    """The last part of the path: an id, or the name of a class or of a setting."""
    path: str = request.scope["path"]
    return path.rpartition("/")[2]


def raw_path(scope: Scope) -> str:
    """The path as it came, percent-encoded."""
    return target_of(scope["path"], scope.get("raw_path"), b"")


def raw_target(scope: Scope) -> str:
    """Path and query as they came."""
    return target_of(scope["path"], scope.get("raw_path"), scope["query_string"])


async def json_body(request: Request) -> Any:
    """A small body, whatever it says it is.

    Raises:
        JSONError: there is no body, or it is not JSON.
        BodyTooLargeError: it is longer than any list of ids that ComfyUI could know.
    """
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _LONGEST_BODY:
            raise BodyTooLargeError(f"the body is larger than {_LONGEST_BODY / 1e6:g} MB")
    try:
        return jsonio.loads(content)
    except ValueError as error:
        raise JSONError(str(error)) from None


def query_of(scope: Scope) -> dict[str, str]:
    """The first value of each name, as ComfyUI reads it; empty if there are too many."""
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("latin-1"),
            keep_blank_values=True,
            max_num_fields=_MOST_PAIRS,
            errors="surrogateescape",
        )
    except ValueError:
        return {}
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found
