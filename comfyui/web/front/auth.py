"""The guard before everything: the page that a browser acts for, and the key that a caller shows."""

from __future__ import annotations

import base64
import binascii

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from comfyui.exceptions import RequestError, TooManySubmissionsError
from comfyui.metrics import Metrics
from comfyui.web.front import comfyui_errors
from comfyui.web.front.errors import error_response, refusal
from comfyui.web.front.guesses import Guesses
from comfyui.web.front.headers import header
from comfyui.web.front.hosts import KnownHosts
from comfyui.web.front.keys import Caller, KeyRing, session_in, without_session
from comfyui.web.front.login import LOGIN, LOGIN_FILES, LOGOUT, answer_login, answer_logout, redirect_to_login
from comfyui.web.front.origins import Origins, Page, answer_preflight, is_preflight, with_grant
from comfyui.web.front.paths import PROBES, server_path, target_of
from comfyui.web.front.rates import SubmissionRates
from comfyui.web.front.request_state import state_of
from comfyui.web.front.rights import WEBSOCKET, verdict
from comfyui.web.front.tickets import Tickets, carries_ticket, without_referrer

_BEARER, _BASIC = b"bearer ", b"basic "
_SHOWN_HOST = 100
_LONGEST_PERSON = 128


class Guard:
    """Middleware: refuses foreign pages (403) and, if there are keys, callers without one (401). Probes need no key.

    Without keys, the host name of a request must be one of `hosts` (403). Requests that pass no longer carry the
    gateway's own key or cookie, which are not for ComfyUI.

    Args:
        login_files: the folder with the files of the login page, below the root: ``console/static/…/``.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        origins: Origins,
        hosts: KnownHosts,
        metrics: Metrics,
        *,
        tickets: Tickets,
        guesses: Guesses,
        rates: SubmissionRates,
        login_files: str,
    ) -> None:
        self._app = app
        self._keys = keys
        self._origins = origins
        self._hosts = hosts
        self._metrics = metrics
        self._tickets = tickets
        self._guesses = guesses
        self._rates = rates
        self._login_files = login_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._origins.page_of(scope)
        unknown_host = None if self._keys else self._hosts.unknown_in(scope)
        if scope["type"] == "http" and scope["path"] in PROBES:
            if not self._keys:
                state_of(scope).in_detail = unknown_host is None
            else:
                known = self._caller(scope, page)
                # Addresses and reasons are the operator's.
                state_of(scope).in_detail = known is not None and known.rules.role != "user"
                # The missing details say that the key is wrong, so a guess must take its time here, too.
                if known is None and _shows_a_key(scope) and not await self._guesses.slow_down(scope):
                    await self._too_many_guesses(scope, receive, send)
                    return
            await self._app(scope, receive, send)
            return
        if unknown_host is not None:
            self._metrics.rejected.labels("host").inc()
            detail = (
                f"the gateway has no keys and does not accept the host name {unknown_host[:_SHOWN_HOST]!r}: add it to"
                " ALLOWED_HOSTS, or set API_KEYS (a foreign web site can point its own name at this address)"
            )
            await refusal(scope, 403, detail)(scope, receive, send)
            return
        ticket = self._tickets.redeem(scope) if self._keys else None
        if page is Page.FOREIGN and ticket is None:
            self._metrics.rejected.labels("origin").inc()
            detail = "a web page of another site sent this request; add the site to CORS_ALLOW_ORIGINS to allow it"
            await refusal(scope, 403, detail)(scope, receive, send)
            return
        if page not in {Page.OWN, Page.FOREIGN} and scope["type"] == "http":
            if is_preflight(scope):
                await answer_preflight(scope, send, page)
                return
            send = with_grant(scope, send, page)
        if ticket is not None:
            caller, scope = ticket
            await self._let_in(caller, scope, receive, without_referrer(send))
        elif self._keys:
            await self._with_key(scope, receive, send, page)
        else:
            await self._app(scope, receive, send)

    async def _with_key(self, scope: Scope, receive: Receive, send: Send, page: Page) -> None:
        if scope["type"] == "http" and scope["path"] in {LOGIN, LOGOUT}:
            try:
                if scope["path"] == LOGIN:
                    response = await answer_login(scope, receive, self._keys, self._metrics, self._login_files)
                else:
                    response = answer_logout(scope)
            except ClientDisconnect:
                return
            if response.status_code == 401 and not await self._guesses.slow_down(scope):
                await self._too_many_guesses(scope, receive, send)
                return
            await response(scope, receive, send)
        elif (caller := self._caller(scope, page)) is not None:
            await self._let_in(caller, scope, receive, send)
        elif self._is_login_file(scope):
            await self._app(self._without_credentials(scope), receive, send)
        elif _is_navigation(scope):
            await redirect_to_login(scope)(scope, receive, send)
        else:
            self._metrics.rejected.labels("unauthorized").inc()
            shows_a_key = _shows_a_key(scope)
            if shows_a_key and not await self._guesses.slow_down(scope):
                await self._too_many_guesses(scope, receive, send)
                return
            challenge = {"WWW-Authenticate": 'Bearer realm="comfyui-gateway"'}
            detail = "send an API key: Authorization: Bearer <key>, or X-API-Key: <key>"
            if shows_a_key:
                detail = f"the gateway does not know the API key that was sent; {detail}"
            if carries_ticket(scope):
                detail = f"the ticket has expired, was already used, or belongs to another address or method; {detail}"
            await refusal(scope, 401, detail, challenge)(scope, receive, send)

    async def _let_in(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on requests that the caller's role allows. 403 for others, 422 for an invalid person."""
        state = state_of(scope)
        state.caller = caller
        try:
            state.caller = _with_person(caller, scope)
        except RequestError as error:
            await error_response(error, scope)(scope, receive, send)
            return
        raw_path = target_of(scope["path"], scope.get("raw_path"), b"")
        method = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
        found = verdict(caller.rules, method, raw_path)
        if found.refusal is None and (addressed := server_path(raw_path)) is not None:
            # A submission to exactly one server is one as any other.
            found = verdict(caller.rules, method, addressed.rest)
        if found.refusal is not None:
            self._metrics.rejected.labels("rights").inc()
            await refusal(scope, 403, found.refusal)(scope, receive, send)
            return
        if found.row is not None and found.row.counted and (wait_s := self._rates.take(caller.rules)):
            self._metrics.rejected.labels("key_limit").inc()
            detail = (
                f"the key {caller.rules.name!r} may submit only {caller.rules.per_minute} times a minute (per_minute)"
            )
            over = TooManySubmissionsError(detail, retry_after_s=wait_s)
            headers = {"Connection": "close"}  # the body is not read
            if scope["path"] in comfyui_errors.PATHS:
                answer = comfyui_errors.comfyui_error(over, headers)
            else:
                answer = error_response(over, scope, headers)
            await answer(scope, receive, send)
            return
        state.right = found.right
        await self._app(self._without_credentials(scope), receive, send)

    async def _too_many_guesses(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = "too many requests with wrong API keys arrive; try again later"
        await refusal(scope, 429, detail, {"Retry-After": "5", "Connection": "close"})(scope, receive, send)

    def _is_login_file(self, scope: Scope) -> bool:
        """Whether this asks for what the login page loads: a file that everyone may have, spelt plainly."""
        folder, _, name = scope["path"].rpartition("/")
        is_one = f"{folder}/" == f"/{self._login_files}" and name in LOGIN_FILES
        return is_one and scope["type"] == "http" and scope["method"] == "GET"

    def _caller(self, scope: Scope, page: Page) -> Caller | None:
        for name, value in scope["headers"]:
            caller = None
            # If any page may ask, none may ask in the name of the signed-in user: a browser sends the cookie, and a
            # password that it was told once, by itself.
            if (key := _key_in(name, value)) is not None:
                if page is not Page.ANY or not _is_basic(name, value):
                    caller = self._keys.caller(key)
            elif name == b"cookie" and page is not Page.ANY:
                caller = self._keys.session_caller(session_in(value) or "")
            if caller is not None:
                return caller
        return None

    def _without_credentials(self, scope: Scope) -> Scope:
        headers = []
        for name, value in scope["headers"]:
            if (key := _key_in(name, value)) is not None and self._keys.holds(key):
                continue
            kept = without_session(value) if name == b"cookie" else value
            if kept or name != b"cookie":
                headers.append((name, kept))
        return {**scope, "headers": headers}


def _key_in(name: bytes, value: bytes) -> bytes | None:
    """The key in a header, ours or not. For HTTP Basic it is the password, with any user."""
    if name == b"x-api-key":
        return value.strip()
    if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
        return value[len(_BEARER) :].strip()
    if _is_basic(name, value):
        try:
            return base64.b64decode(value[len(_BASIC) :].strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return None


def _with_person(caller: Caller, scope: Scope) -> Caller:
    """The caller with the person that the key's `user_header` names. Raises `RequestError` for an invalid name."""
    wanted = caller.rules.user_header
    value = None if wanted is None else header(scope, wanted.encode())
    if not value or wanted is None:
        return caller
    person = value.decode("utf-8", errors="replace").strip()
    if not person.isprintable() or "\ufffd" in person or len(person) > _LONGEST_PERSON:
        raise RequestError(f"{wanted}: the header must have at most {_LONGEST_PERSON} characters, all printable")
    return caller.acting_for(person)


def _is_basic(name: bytes, value: bytes) -> bool:
    return name == b"authorization" and value[: len(_BASIC)].lower() == _BASIC


def _shows_a_key(scope: Scope) -> bool:
    return any(_key_in(name, value) for name, value in scope["headers"])


def _is_navigation(scope: Scope) -> bool:
    """A person's browser opens a page; a script's request would only get the login page's HTML for its JSON."""
    if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
        return False
    mode = header(scope, b"sec-fetch-mode")
    return b"text/html" in (header(scope, b"accept") or b"") and mode in {None, b"navigate"}
