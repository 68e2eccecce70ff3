"""`WebhookSender`: one request to one receiver, without becoming a caller's way into our network.

- The address that a caller's URL leads to is checked at each try, and the connection goes to the checked address.
- Redirects are not followed: a receiver that moved can tell its new address to the person who set it up.
- Only the status and ``Retry-After`` of the answer are read. Its body is not, and the connection is closed.
- A try has a time limit from the look-up of the name to the status.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver

from comfyui.exceptions import NoSuchNameError, NotPermittedError
from comfyui.jobs.webhooks.names import OwnThreadsResolver
from comfyui.retrying import retry_after_of
from comfyui.transport.address_guard import AddressPolicy, GuardedResolver, parse_url
from comfyui.transport.interim import BoundedResponse

_GONE = 410
_NAMES_AT_ONCE = 64
_AT_ONCE = 256 * 1024
_NO_ADDRESS = "the gateway may not connect to this address"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a try went.

    Attributes:
        text: the status or why there is none, without any part of the URL or of the answer.
        delivered: the receiver has it.
        gone: the receiver wants nothing more of this.
        refused: nothing was sent, since the URL leads to no permitted address.
        retry_after_s: how long the receiver asks to wait.
    """

    text: str
    delivered: bool = False
    gone: bool = False
    refused: bool = False
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """How webhooks are sent.

    Attributes:
        allow: addresses that callers' URLs may lead to though they are not public; see `AddressPolicy`.
        timeout_s: for one try.
        resolver: for names; the system's by default.
    """

    allow: Sequence[str] = ()
    timeout_s: float = 15.0
    resolver: AbstractResolver | None = None


class WebhookSender:
    """Open it with ``async with``; it owns its connections.

    Args:
        clock: Unix time, for a ``Retry-After`` that is a date.
    """

    def __init__(self, options: SenderOptions | None = None, *, clock: Callable[[], float] = time.time) -> None:
        options = options or SenderOptions()
        self._policy = AddressPolicy(options.allow)
        self._timeout_s = options.timeout_s
        self._resolver = options.resolver
        self._clock = clock
        self._names: AbstractResolver | None = None
        self._guarded: aiohttp.ClientSession | None = None
        self._plain: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        resolver = self._names = self._resolver or OwnThreadsResolver(_NAMES_AT_ONCE)
        self._guarded = self._session(GuardedResolver(self._policy, resolver))
        self._plain = self._session(resolver)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for session in (self._guarded, self._plain):
            if session is not None:
                await session.close()
        self._guarded = self._plain = None
        if self._names is not None:
            await self._names.close()

    def _session(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # A connection that is kept would go to an address that was checked some time ago.
            connector=aiohttp.TCPConnector(limit=0, resolver=resolver, use_dns_cache=False, force_close=True),
            response_class=BoundedResponse,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Proxies and .netrc of the environment would connect for us, past the check.
            trust_env=False,
            headers={"User-Agent": "comfyui-gateway", "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            auto_decompress=False,
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, guarded: bool) -> Answer:
        """Send it once. `guarded`: the URL is a caller's."""
        session = self._guarded if guarded else self._plain
        if session is None:
            raise RuntimeError("use the sender inside 'async with'")
        try:
            target = parse_url(url)
            if guarded:
                target = self._policy.checked(target)
            # A long one at once would hold up the event loop; aiohttp reads a file in pieces.
            data = body if len(body) <= _AT_ONCE else io.BytesIO(body)
            async with session.post(
                target, data=data, headers={**headers, "Content-Type": "application/json"}, allow_redirects=False
            ) as response:
                response.close()  # unread
                return self._answer(response.status, response.headers.get("Retry-After", ""))
        except NotPermittedError:
            return Answer(_NO_ADDRESS, refused=True)
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._failure(error)
        except (OSError, ValueError):
            return Answer("the URL cannot be used")

    def _answer(self, status: int, retry_after: str) -> Answer:
        if 200 <= status < 300:
            return Answer(f"HTTP {status}", delivered=True)
        if 300 <= status < 400:
            return Answer(f"HTTP {status}; redirects are not followed")
        return Answer(f"HTTP {status}", gone=status == _GONE, retry_after_s=retry_after_of(retry_after, self._clock()))

    def _failure(self, error: Exception) -> Answer:
        if isinstance(error, TimeoutError):
            return Answer(f"no answer within {self._timeout_s:g} s")
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            if isinstance(error.os_error, NotPermittedError):
                return Answer(_NO_ADDRESS, refused=True)
            if isinstance(error.os_error, NoSuchNameError):
                return Answer("the host name is not valid")
            return Answer("the host's name could not be looked up")
        if isinstance(error, aiohttp.ClientSSLError):
            return Answer("no secure connection could be made; the certificate may be the cause")
        if isinstance(error, aiohttp.ClientConnectorError):
            return Answer("no connection could be made")
        if isinstance(error, aiohttp.ClientResponseError):
            return Answer("the answer is not valid HTTP")
        return Answer("the connection was closed without an answer")
