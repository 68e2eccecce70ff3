"""Changes by a visitor of the console: each is a POST by a form on a page of ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from comfyui.exceptions import RequestError
from comfyui.offload import offloaded
from comfyui.web.console.pages import HEADERS, root_of
from comfyui.web.console.viewer import Visitor, visitor_of
from comfyui.web.front.errors import json_response, refusal
from comfyui.web.front.headers import header
from comfyui.web.front.origins import Origins, Page

_OWN_PAGES = Origins()
_MOST_FIELDS = 2000
# Of a form without files: what people type.
_MOST_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of a change.

    Attributes:
        message: what the visitor is told.
        to: the page that shows it, below the root: ``console/queue``. A browser without JavaScript goes there.
        follow: a browser with JavaScript goes there, too, in place of showing the message.
    """

    message: str
    to: str
    follow: bool = False


Change = Callable[[Request, Visitor], Awaitable[Done]]


def changes(change: Change) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a change: 403 for what no page of ours sends. `Guard` has checked the visitor's right before."""

    @wraps(change)
    async def answer(request: Request) -> Response:
        if not is_of_our_page(request):
            return refusal(
                request.scope, 403, "the console accepts changes from its own pages only; programs must use the API"
            )
        done = await change(request, visitor_of(request))
        if wants_json(request):
            to = f"{root_of(request)}{done.to}"
            return json_response(200, {"message": done.message, "to": to, "follow": done.follow}, HEADERS)
        return RedirectResponse(f"{root_of(request)}{done.to}", 303, HEADERS)

    # FastAPI would read the parameters of the change, and ask for a visitor in the query.
    del answer.__wrapped__
    return answer


def is_of_our_page(request: Request) -> bool:
    """Whether a browser says that a page of ours sends this.

    `Guard` lets pass what says nothing, as programs do; and what says ``same-site``, which a page of a host beside ours
    is, too.
    """
    if header(request.scope, b"origin"):
        return _OWN_PAGES.page_of(request.scope) is Page.OWN
    return header(request.scope, b"sec-fetch-site") == b"same-origin"


def wants_json(request: Request) -> bool:
    """Whether a module of ours sent the form, and shows the answer itself."""
    return request.headers.get("accept", "").startswith("application/json")


async def fields_of(request: Request) -> Mapping[str, str]:
    """The fields of a form without files; of several with one name the last. Raises `RequestError`."""
    return dict(await all_fields_of(request))


async def all_fields_of(request: Request, most_bytes: int = _MOST_BYTES) -> list[tuple[str, str]]:
    """The fields of a form without files, in their order. Raises `RequestError`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if len(body) > most_bytes:
        raise RequestError(f"the form is larger than {most_bytes / 1_000_000:g} MB; use the API for so large a body")
    if body and kind != "application/x-www-form-urlencoded":
        raise RequestError("Content-Type must be application/x-www-form-urlencoded")
    try:
        read = partial(parse_qsl, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        return await offloaded(len(body), read, body.decode())
    except ValueError as error:
        raise RequestError(f"the form cannot be read: {error}") from None
