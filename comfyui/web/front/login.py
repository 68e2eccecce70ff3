"""The login page: a browser shows a key once and gets a cookie, since a page cannot set headers on a websocket."""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope

from comfyui.metrics import Metrics
from comfyui.web.front.errors import refusal
from comfyui.web.front.forwarded import prefix_of
from comfyui.web.front.keys import COOKIE, KeyRing

LOGIN, LOGOUT = "/login", "/logout"
LOGIN_FILES = frozenset({"console.css", "icon.svg"})
"""Files that the page loads; a browser gets them without a key."""
_MAX_FORM_BYTES = 16 * 1024
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'",
    # Not no-referrer: with that, the form's own POST has the Origin "null" and is refused.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in · ComfyUI</title>
<link rel="icon" href="{files}icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{files}console.css">
</head>
<body class="sign-in">
<main>
<form method="post" action="login" class="card fields">
<h1>Sign in to ComfyUI</h1>
{message}<div><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus></div>
<input name="next" type="hidden" value="{next}">
<button class="first">Sign in</button>
</form>
</main>
</body>
</html>
"""


def redirect_to_login(scope: Scope) -> Response:
    """The address to which a person's browser without a key is sent."""
    path = scope.get("raw_path") or scope["path"].encode()
    target = (path + b"?" + scope["query_string"] if scope["query_string"] else path).decode("latin-1")
    return RedirectResponse(_seen(scope, f"{LOGIN}?next={quote(target, safe='')}"), 303, _HEADERS)


async def answer_login(scope: Scope, receive: Receive, keys: KeyRing, metrics: Metrics, files: str) -> Response:
    """GET shows the form; POST takes the key and sets the cookie.

    Args:
        files: where the console's stylesheet is, relative to the login page: ``console/static/…/``.
    """
    if scope["method"] in {"GET", "HEAD"}:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return _page(query.get("next", ["/"])[0], files)
    if scope["method"] != "POST":
        return refusal(scope, 405, "the login page allows GET, HEAD and POST", {"Allow": "GET, HEAD, POST"})
    form = await _form(Request(scope, receive))
    if form is None:
        return refusal(scope, 413, "the form is too large: a key is shorter")
    token = keys.open_session(form.get("key", [""])[0].strip().encode())
    target = form.get("next", ["/"])[0]
    if token is None:
        metrics.rejected.labels("unauthorized").inc()
        return _page(target, files, message="The gateway does not know this key.", status=401)
    response = RedirectResponse(_seen(scope, _local(target)), 303, _HEADERS)
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(keys.session_s),
        path=_cookie_path(scope),
        httponly=True,
        samesite="strict",
        secure=scope["scheme"] == "https",
    )
    return response


def answer_logout(scope: Scope) -> Response:
    """Forget the cookie. ``next`` is the page for the next one who signs in, as at `LOGIN`."""
    target = _local(parse_qs(scope["query_string"].decode("latin-1")).get("next", ["/"])[0])
    page = LOGIN if target == "/" else f"{LOGIN}?next={quote(target, safe='')}"
    response = RedirectResponse(_seen(scope, page), 303, _HEADERS)
    response.set_cookie(COOKIE, max_age=0, expires=0, path=_cookie_path(scope), httponly=True, samesite="strict")
    return response


def _seen(scope: Scope, target: str) -> str:
    """A path of the gateway as this client must ask for it.

    A proxy that serves the gateway below a path may tell it, and need not: relative to the address of this request, the
    target is right in both cases.
    """
    if prefix := prefix_of(scope):
        return f"{prefix}{target}"
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    return f"{'../' * (path.count('/') - 1) or './'}{target.removeprefix('/')}"


def _cookie_path(scope: Scope) -> str | None:
    """Without it, a browser takes the folder of the page's address: the same, even if no proxy tells the prefix."""
    return prefix_of(scope) or None


def _page(target: str, files: str, *, message: str = "", status: int = 200) -> Response:
    shown = f'<p class="alert" role="alert">{escape(message)}</p>\n' if message else ""
    return HTMLResponse(
        _PAGE.format(message=shown, next=escape(_local(target), quote=True), files=files), status, _HEADERS
    )


def _local(target: str) -> str:
    """A path of this gateway; what a browser would take for another site's address, or one beside us, is ``/``."""
    plain = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    folders = target.partition("?")[0].partition("#")[0].replace("\\", "/").lower().replace("%2e", ".").split("/")
    return target if plain and not {".", ".."} & set(folders) else "/"


async def _form(request: Request) -> dict[str, list[str]] | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return None
    return parse_qs(body.decode(errors="replace"))
