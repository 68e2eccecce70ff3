"""Fetching a caller's URL without becoming the caller's way into our network (server-side request forgery).

- Only http and https, without user and password in the URL, and only to the addresses that
  `comfyui.transport.address_guard` permits.
- Redirects are followed by hand, few, each hop checked as the first; no cookie, referrer or credential goes along.
- Time, silence, bytes (as announced, and as counted after decompression) and simultaneous downloads are limited.
- Refused addresses and names that lead to them give the same error. Only a name that cannot be looked up is told apart,
  because that may pass.
- Errors that may pass are retried, from the first URL on, with every check; a partial download is continued if the
  server can (Range), and only if it is still the same file (If-Range).
"""

from __future__ import annotations

import asyncio
import mimetypes
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from comfyui.exceptions import (
    ComfyUIInputError,
    ComfyUIInputUnavailableError,
    InflateError,
    NoSuchNameError,
    NotPermittedError,
)
from comfyui.inputs.content import Content, Spool, too_large
from comfyui.retrying import Backoff, retry_after_of
from comfyui.transport.address_guard import AddressPolicy, GuardedResolver, parse_url
from comfyui.transport.inflate import Inflater, coding_of
from comfyui.transport.interim import BoundedResponse

_MAX_REDIRECTS = 5
_MAX_DOWNLOADS = 32
_CONNECT_S = 10.0
# Further tries after the first: about twelve seconds in all.
_RETRIES = 6
_BACKOFF = Backoff(start_s=0.25, max_s=8.0)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Statuses, besides all from 500 on, that the server may answer differently a moment later.
_PASSING_STATUSES = frozenset({408, 425, 429})
_NO_ADDRESS = "the URL, or one that it redirects to, has no public address; INPUT_URL_ALLOW lists exceptions"
_BROKEN_OFF = "the download ended before the file was complete"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class UrlFetcher:
    """Downloads callers' URLs to disk. Open it with ``async with``; it owns its session and closes it.

    Args:
        max_bytes: of one file, decompressed.
        allow: see `AddressPolicy`.
        timeout_s: for one download with all its tries, redirects and name look-ups.
        resolver: for names; the system's by default.
        retries: further tries after the first, as long as no byte arrives.
        backoff: between the tries.
        silence_s: how long a server may send nothing.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        allow: Sequence[str],
        timeout_s: float,
        resolver: AbstractResolver | None = None,
        retries: int = _RETRIES,
        backoff: Backoff = _BACKOFF,
        silence_s: float = 20.0,
    ) -> None:
        self._policy = AddressPolicy(allow)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._retries = retries
        self._backoff = backoff
        self._silence_s = silence_s
        self._slots = asyncio.Semaphore(_MAX_DOWNLOADS)
        self._session: aiohttp.ClientSession | None = None
        self._guard: GuardedResolver | None = None

    async def __aenter__(self) -> Self:
        self._guard = GuardedResolver(self._policy, self._resolver or aiohttp.DefaultResolver())
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_DOWNLOADS, resolver=self._guard, use_dns_cache=False),
            response_class=BoundedResponse,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Proxies and .netrc of the environment would connect for us, past the check.
            trust_env=False,
            headers={"User-Agent": "comfyui-gateway", "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=self._silence_s),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._guard is not None:
            await self._guard.close()
            self._guard = None

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Content]:
        """The file at `url`, on disk until the ``async with`` ends.

        Raises:
            ComfyUIInputUnavailableError: failed or too slow in all tries; it may work later.
            ComfyUIInputError: refused, too large, or not a file (an HTML page). The text names no address and no
                received bytes.
        """
        if self._session is None:
            raise RuntimeError("use the fetcher inside 'async with'")
        async with Spool(self._max_bytes) as spool:
            yield await self._insist(_Download(url, spool, self._session, self._policy, self._max_bytes))

    async def _insist(self, download: _Download) -> Content:
        """Tries until it has the content, or an error that will not pass, or no tries or time are left."""
        loop = asyncio.get_running_loop()
        left_s = self._timeout_s
        tries = failures = 0
        while True:
            # A place is held while something is transferred only, and waiting for one does not count.
            async with self._slots:
                started, kept = loop.time(), download.kept
                limit = asyncio.timeout(left_s)
                try:
                    async with limit:
                        return await download.run()
                except (aiohttp.ClientError, TimeoutError) as error:
                    if limit.expired():
                        raise ComfyUIInputUnavailableError(self._too_slow()) from error
                    failure = self._translated(error)
                except _PassingError as error:
                    failure = error
                left_s -= loop.time() - started
            tries += 1
            failures = 1 if download.kept > kept else failures + 1
            delay_s = max(self._backoff.delay_s(failures), failure.retry_after_s)
            if failures > self._retries or delay_s >= left_s:
                tried = f"{failure} ({tries} tries)" if tries > 1 else str(failure)
                raise ComfyUIInputUnavailableError(tried, retry_after_s=failure.retry_after_s) from failure
            await asyncio.sleep(delay_s)
            left_s -= delay_s

    def _too_slow(self) -> str:
        return f"the URL's server was too slow ({self._timeout_s:g} s in all, {self._silence_s:g} s of silence at most)"

    def _translated(self, error: Exception) -> _PassingError:
        """An error that a caller can act on. Raises `ComfyUIInputError` for an error that the next try would repeat."""
        reason = ""
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            if isinstance(error.os_error, NotPermittedError):
                reason = _NO_ADDRESS
            elif isinstance(error.os_error, NoSuchNameError):
                reason = "the host name of the URL is not valid"
            else:
                return _PassingError("the host name of the URL, or of one that it redirects to, could not be looked up")
        elif isinstance(error, aiohttp.ClientSSLError):
            reason = "no secure connection to the URL's server could be made; its certificate may be the cause"
        elif isinstance(error, aiohttp.InvalidURL):
            reason = "not a valid URL"
        elif isinstance(error, aiohttp.ClientResponseError):
            reason = "the URL's server did not answer in valid HTTP"
        if reason:
            raise ComfyUIInputError(reason) from error
        if isinstance(error, TimeoutError):
            return _PassingError(self._too_slow())
        if isinstance(error, aiohttp.ClientConnectionError):
            return _PassingError("the URL's server could not be reached, or closed the connection")
        return _PassingError(_BROKEN_OFF)


class _PassingError(Exception):
    """One try failed, and the next one may not; `retry_after_s` is how long the server asks to wait."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _Download:
    """One file while it arrives; a failed try leaves here what the next one can continue.

    Attributes:
        kept: bytes at its start that need not be sent again.
    """

    def __init__(
        self, url: str, spool: Spool, session: aiohttp.ClientSession, policy: AddressPolicy, max_bytes: int
    ) -> None:
        self._url = url
        self._spool = spool
        self._session = session
        self._policy = policy
        self._max_bytes = max_bytes
        self._validator: str | None = None
        self._size: int | None = None

    @property
    def kept(self) -> int:
        return self._spool.size if self._validator is not None else 0

    async def run(self) -> Content:
        """One try. Raises `_PassingError`, `ComfyUIInputError`, and what aiohttp raises."""
        target = self._checked(_parse(self._url))
        headers: dict[str, str] = {}
        if self.kept and self._validator is not None:
            headers = {"Range": f"bytes={self.kept}-", "If-Range": self._validator}
        for _hop in range(_MAX_REDIRECTS + 1):
            async with self._session.get(target, allow_redirects=False, headers=headers) as response:
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    target = self._checked(target.join(_parse(location)))
                    continue
                inflater = await self._begin(response, continued=bool(headers))
                await self._receive(response, inflater)
                return await self._spool.finish(_extension_hint(target, response.content_type))
        raise ComfyUIInputError(f"the URL redirects more than {_MAX_REDIRECTS} times")

    async def _begin(self, response: aiohttp.ClientResponse, *, continued: bool) -> Inflater | None:
        """Refuses a body that is not a file, and prepares the spool for this one. Returns the unpacker, if it is
        packed.
        """
        status = response.status
        if continued and status in {206, 416}:
            if status == 206 and _range_of(response) == (self._spool.size, self._size):
                return None
            await self._forget()
            raise _PassingError("the URL's server did not send the rest of the file")
        if status == 206:
            start, size = _range_of(response)
            if start != 0 or size is None or response.content_length != size:
                raise ComfyUIInputError("the URL's server sent only a part of the file")
        elif not 200 <= status < 300:
            reason = f"the URL's server answered HTTP {status}"
            if status >= 500 or status in _PASSING_STATUSES:
                raise _PassingError(reason, retry_after_of(response.headers.get("Retry-After", ""), time.time()))
            raise ComfyUIInputError(reason)
        if (response.content_length or 0) > self._max_bytes:
            raise too_large(self._max_bytes)
        await self._forget()
        try:
            coding = coding_of(response.headers.get("Content-Encoding"))
        except ValueError as error:
            raise ComfyUIInputError(
                "the URL's server compressed the file in a way that the gateway does not support"
            ) from error
        if coding is not None:
            return Inflater(coding)
        self._size = response.content_length
        self._validator = _validator_of(response) if self._size else None
        return None

    async def _forget(self) -> None:
        """The next bytes are the file's first ones."""
        self._validator = self._size = None
        await self._spool.clear()

    async def _receive(self, response: aiohttp.ClientResponse, inflater: Inflater | None) -> None:
        if inflater is None:
            async for chunk in response.content.iter_any():
                await self._spool.write(chunk)
            if self._size is not None and self._spool.size != self._size:
                raise _PassingError(_BROKEN_OFF)
            return
        async for chunk in response.content.iter_any():
            try:
                for piece in inflater.feed(chunk):
                    await self._spool.write(piece)
            except InflateError as error:
                raise ComfyUIInputError(
                    "the file does not match the Content-Encoding that the URL's server sent"
                ) from error
        try:
            inflater.finish()
        except InflateError as error:
            raise _PassingError(_BROKEN_OFF) from error

    def _checked(self, url: URL) -> URL:
        """Raises `ComfyUIInputError` for a URL that is not fetched."""
        try:
            return self._policy.checked(url)
        except NotPermittedError:
            raise ComfyUIInputError(_NO_ADDRESS) from None
        except ValueError as error:
            raise ComfyUIInputError(str(error)) from None


def _parse(url: str) -> URL:
    try:
        return parse_url(url)
    except ValueError as error:
        raise ComfyUIInputError(str(error)) from None


def _validator_of(response: aiohttp.ClientResponse) -> str | None:
    """A validator of this file that is strong enough for If-Range; None if there is none."""
    tag = response.headers.get("ETag", "")
    if tag.startswith('"'):
        return tag
    return None if tag else response.headers.get("Last-Modified")


def _range_of(response: aiohttp.ClientResponse) -> tuple[int | None, int | None]:
    """The first byte that is sent, and the size of the whole file; the rest from there on must be sent."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[2]) != int(match[3]) - 1:
        return None, None
    return int(match[1]), int(match[3])


def _extension_hint(url: URL, content_type: str) -> str:
    """The extension by the URL's path or the answer's type; the file's bytes decide in the end."""
    suffix = PurePosixPath(url.path).suffix
    return suffix or mimetypes.guess_extension(content_type) or ""
