"""Tickets: addresses that a browser may open without a key, for a picture or a websocket on a page of another origin.

Such a page can set no header on either, has no cookie of the gateway, and a key has no place in an address: those stand
in logs and histories. A ticket is a statement signed with its maker's key, as a session is: "this may be fetched until
then". It opens one exact path and query with GET, or one websocket once, and ends with its key.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field
from starlette.types import Message, Scope, Send
from typing_extensions import TypedDict

from comfyui.exceptions import RequestError
from comfyui.web.front.keys import KeyRing
from comfyui.web.front.paths import target_of

TICKET_S = 300
_PARAMETER = "ticket"
_MARK = f"{_PARAMETER}=".encode()
_NONCE_BYTES = 12
_PLAIN = r"-A-Za-z0-9._~!$&()*+,;=:@/%\[\]"
# What a browser sends as it stands: with anything else, the address that comes is not the one that was signed.
_TARGET = re.compile(rf"/[{_PLAIN}]*(?:\?[{_PLAIN}?]+)?")


class Ticket(TypedDict):
    """An address that may be opened without a key."""

    url: Annotated[str, Field(description="The address with the ticket.")]
    ticket: str
    expires_at: Annotated[str, Field(description="UTC, to the second.", json_schema_extra={"format": "date-time"})]


class Tickets:
    """Makes and takes tickets.

    Args:
        public_url: where clients see the gateway, for the addresses; empty: as a path.
        most_used: websockets that were opened by a ticket which is still valid. Above that, none is opened.
    """

    def __init__(
        self, keys: KeyRing, *, public_url: str = "", most_used: int = 10_000, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._public_url = public_url
        self._most_used = most_used
        self._clock = clock
        self._used: dict[str, float] = {}
        """Nonces of websockets, with the time at which their ticket ends."""

    def make(self, caller: UUID, url: str, *, websocket: bool) -> Ticket:
        """The answer of `POST /tickets`. Raises `RequestError` for an address that cannot have a ticket."""
        target = self._target(url)
        expiry = int(self._clock()) + TICKET_S
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        signature = self._keys.sign(caller, _statement(_kind(websocket), str(expiry), nonce, target))
        ticket = f"{expiry}.{nonce}.{signature}"
        address = f"{self._public_url}{target}{'&' if '?' in target else '?'}{_PARAMETER}={ticket}"
        if websocket and self._public_url:
            address = f"ws{address.removeprefix('http')}"
        expires_at = datetime.fromtimestamp(expiry, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"url": address, "ticket": ticket, "expires_at": expires_at}

    def redeem(self, scope: Scope) -> tuple[UUID, Scope] | None:
        """Whose ticket opens this request, and the request without it; None where none does."""
        if _MARK not in scope["query_string"]:
            return None
        websocket = scope["type"] == "websocket"
        if not websocket and scope["method"] != "GET":
            return None
        pairs = scope["query_string"].split(b"&")
        shown = [pair for pair in pairs if pair.startswith(_MARK)]
        query = b"&".join(pair for pair in pairs if not pair.startswith(_MARK))
        if len(shown) != 1:
            return None
        expiry, _, rest = shown[0].removeprefix(_MARK).decode("latin-1").partition(".")
        nonce, _, signature = rest.partition(".")
        target = target_of(scope["path"], scope.get("raw_path"), query)
        caller = self._keys.signer_of(_statement(_kind(websocket), expiry, nonce, target), signature)
        # Only what we signed is sure to be a number that can be read.
        if caller is None or int(expiry) <= self._clock() or (websocket and not self._use(nonce, int(expiry))):
            return None
        return caller, {**scope, "query_string": query}

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
            raise RequestError("url: a path and query of the gateway is wanted, such as /view?filename=a.png")
        if not _TARGET.fullmatch(target):
            raise RequestError("url: percent-encode it as a browser would, without a fragment")
        path = target.partition("?")[0]
        if "//" in path or {".", ".."} & set(path.lower().replace("%2e", ".").split("/")):
            raise RequestError("url: a path without // and without . or .. is wanted")
        if f"&{_PARAMETER}=" in target or f"?{_PARAMETER}=" in target:
            raise RequestError("url: it has a ticket already")
        return target


def carries_ticket(scope: Scope) -> bool:
    return any(pair.startswith(_MARK) for pair in scope["query_string"].split(b"&"))


def without_referrer(send: Send) -> Send:
    """`send` for an answer whose own address has a ticket: what it loads must not tell it."""

    async def guarded_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", ()) if pair[0] != b"referrer-policy"]
            message["headers"] = [*kept, (b"referrer-policy", b"no-referrer")]
        await send(message)

    return guarded_send


def _kind(websocket: bool) -> str:
    return "websocket" if websocket else "GET"


def _statement(kind: str, expiry: str, nonce: str, target: str) -> str:
    return "\0".join(("ticket", kind, expiry, nonce, target))
