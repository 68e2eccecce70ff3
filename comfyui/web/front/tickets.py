"""Tickets: addresses that a browser may open without a key, for a picture or a websocket on a page of another origin.

Such a page can set no header on either and has no cookie of the gateway, and a key must not be in an address, which
ends up in logs and histories. A ticket is a statement signed with its maker's key, like a session: "this may be fetched
until then". It opens one exact path and query with GET, or one websocket once, and ends with its key.

A signed link has a ticket that the gateway makes itself, for the receiver of a webhook: it lasts longer, and opens its
path and query with HEAD, too.

The signatures need no key of their own, and nothing on the disk: every gateway that has the API key makes and takes the
same ones, also after a restart, and who takes the key off the list ends them all.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import unquote

from pydantic import Field
from starlette.types import Message, Scope, Send
from typing_extensions import TypedDict

from comfyui.exceptions import RequestError
from comfyui.web.front.keys import Caller, KeyRing
from comfyui.web.front.paths import target_of

TICKET_S = 300
LINK_S = 24 * 3600
_PARAMETER = "ticket"
_MARK = f"{_PARAMETER}=".encode()
_NONCE_BYTES = 12
# Stands in the place of a nonce, which never has a dot and is never so short.
_LINK = "link"
_PLAIN = r"-A-Za-z0-9._~!$&()*+,;=:@/%\[\]"
# Characters that a browser sends unchanged: with any other, the received address would not be the signed one.
_TARGET = re.compile(rf"/[{_PLAIN}]*(?:\?[{_PLAIN}?]+)?")
# aiohttp's client sends these characters of a query as they are, also where an address has them encoded. Browsers and
# other clients leave them as they come.
_SENT_AS_THEY_ARE = re.compile(r"%(?:21|24|28|29|2A|2C|2F|3A|3F|40)")


class Ticket(TypedDict):
    """An address that opens without a key."""

    url: Annotated[str, Field(description="The address with the ticket in it.")]
    ticket: str
    expires_at: Annotated[str, Field(description="UTC, to the second.", json_schema_extra={"format": "date-time"})]


class Tickets:
    """Makes and takes tickets.

    Args:
        public_url: where clients see the gateway, for the addresses; empty: as a path. A ticket is for this address.
        link_s: how long a signed link opens.
        most_used: websockets that were opened by a ticket which is still valid. Above that, none is opened.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        public_url: str = "",
        link_s: int = LINK_S,
        most_used: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._public_url = public_url
        self._link_s = link_s
        self._most_used = most_used
        self._clock = clock
        self._used: dict[str, float] = {}
        """Nonces of websockets, with the time at which their ticket ends."""

    def make(self, caller: Caller, url: str, *, websocket: bool) -> Ticket:
        """The answer of `POST /tickets`. Raises `RequestError` for an address that cannot have a ticket."""
        target = self._target(url)
        expiry = int(self._clock()) + TICKET_S
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        ticket = self._signed(caller, "websocket" if websocket else "GET", expiry, nonce, target)
        address = f"{self._public_url}{_with(ticket, target)}"
        if websocket and self._public_url:
            address = f"ws{address.removeprefix('http')}"
        expires_at = datetime.fromtimestamp(expiry, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"url": address, "ticket": ticket, "expires_at": expires_at}

    def link(self, owner: str | None, target: str) -> str:
        """The address of a path and query of ours, for a reader without a key: made for a job of this `owner`.

        It is not signed if no key is needed, or if the owner's key was removed.

        Args:
            owner: see `comfyui.owners.owner_of`.
            target: percent-encoded, such as `OutputFile.url`.
        """
        caller = None if owner is None else self._keys.caller_named(owner)
        path, _, query = target.partition("?")
        if query:
            target = f"{path}?{_SENT_AS_THEY_ARE.sub(lambda found: unquote(found[0]), query)}"
        if caller is not None:
            target = _with(self._signed(caller, _LINK, int(self._clock()) + self._link_s, _LINK, target), target)
        return f"{self._public_url}{target}"

    def redeem(self, scope: Scope) -> tuple[Caller, Scope] | None:
        """The caller whose ticket opens this request, and the request without the ticket; None if there is none."""
        if _MARK not in scope["query_string"]:
            return None
        pairs = scope["query_string"].split(b"&")
        shown = [pair for pair in pairs if pair.startswith(_MARK)]
        query = b"&".join(pair for pair in pairs if not pair.startswith(_MARK))
        if len(shown) != 1:
            return None
        expiry, _, rest = shown[0].removeprefix(_MARK).decode("latin-1").partition(".")
        nonce, _, signature = rest.partition(".")
        kind = _kind(scope, nonce)
        if kind is None or (kind == _LINK and pairs[-1] is not shown[0]):
            return None
        # aiohttp's client sends a quote as it is, and browsers encode it.
        signed = query.replace(b"'", b"%27") if kind == _LINK else query
        target = target_of(scope["path"], scope.get("raw_path"), signed)
        caller = self._keys.signer_of(self._statement(kind, expiry, nonce, target), signature)
        # Only a signed text is certainly a number that can be read.
        if caller is None or int(expiry) <= self._clock():
            return None
        if kind == "websocket" and not self._use(nonce, int(expiry)):
            return None
        return caller, {**scope, "query_string": query}

    def _signed(self, caller: Caller, kind: str, expiry: int, nonce: str, target: str) -> str:
        signature = self._keys.sign(caller, self._statement(kind, str(expiry), nonce, target))
        return f"{expiry}.{nonce}.{signature}"

    def _statement(self, kind: str, expiry: str, nonce: str, target: str) -> str:
        return "\0".join(("ticket", kind, expiry, nonce, f"{self._public_url}{target}"))

    def _use(self, nonce: str, expiry: int) -> bool:
        now = self._clock()
        if len(self._used) >= self._most_used:
            self._used = {known: ends for known, ends in self._used.items() if ends > now}
        if nonce in self._used or len(self._used) >= self._most_used:
            return False
        self._used[nonce] = expiry
        return True

    def _target(self, url: str) -> str:
        target = url
        if self._public_url and url.startswith((f"{self._public_url}/", f"{self._public_url}?")):
            target = url.removeprefix(self._public_url)
        if not target.startswith("/"):
            raise RequestError("url must be a path and query of the gateway, such as /view?filename=a.png")
        if not _TARGET.fullmatch(target):
            raise RequestError("url must be percent-encoded as a browser does it, and have no fragment")
        path = target.partition("?")[0]
        if "//" in path or {".", ".."} & set(path.lower().replace("%2e", ".").split("/")):
            raise RequestError("url must be a path without //, . and ..")
        if f"&{_PARAMETER}=" in target or f"?{_PARAMETER}=" in target:
            raise RequestError("url must not have a ticket already")
        return target


def carries_ticket(scope: Scope) -> bool:
    return any(pair.startswith(_MARK) for pair in scope["query_string"].split(b"&"))


def without_referrer(send: Send) -> Send:
    """`send` for an answer whose own address has a ticket: its Referer must not reveal it."""

    async def guarded_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", ()) if pair[0] != b"referrer-policy"]
            message["headers"] = [*kept, (b"referrer-policy", b"no-referrer")]
        await send(message)

    return guarded_send


def _with(ticket: str, target: str) -> str:
    return f"{target}{'&' if '?' in target else '?'}{_PARAMETER}={ticket}"


def _kind(scope: Scope, nonce: str) -> str | None:
    """The kind of ticket that can open this request; None if none can."""
    if scope["type"] == "websocket":
        return "websocket"
    if nonce == _LINK:
        return _LINK if scope["method"] in {"GET", "HEAD"} else None
    return "GET" if scope["method"] == "GET" else None
