"""Stores output files in Supabase's storage; the task queue uses the same session to a project.

The storage API tells the outcome in its body: most refusals are HTTP 400 with the real status as ``statusCode``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import structlog
from pydantic import SecretStr
from yarl import URL

from comfyui import jsonio
from comfyui.exceptions import JSONError, StorageError, StorageRefusedError
from comfyui.outputs.stores.store import Placement, StoredObject, probe_key, safe_key

_log = structlog.get_logger(__name__)
# A file may have any size: only silence ends its upload.
_FILE_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)
TRANSIENT = frozenset({408, 425, 429})
"""Statuses below 500 after which the same request may succeed."""
# The newer API keys are no JSON web tokens, and as a bearer token they are refused.
_OPAQUE_KEY = "sb_"


class SupabaseApi:
    """One session to one project, open with ``async with``. The key goes there only, never along a redirect."""

    def __init__(self, url: str, service_role_key: SecretStr) -> None:
        self.url = url.rstrip("/")
        self._key = service_role_key
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        key = self._key.get_secret_value()
        headers = {"apikey": key}
        if not key.startswith(_OPAQUE_KEY):
            headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """aiohttp's errors are the caller's to translate: they mean something else for a row than for a file."""
        if self._session is None:
            raise RuntimeError("use it inside 'async with'")
        url = URL(self.url + path, encoded=True)
        async with self._session.request(method, url, allow_redirects=False, **options) as response:
            yield response

    @asynccontextmanager
    async def post(self, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """See `request`."""
        async with self.request("POST", path, **options) as response:
            yield response


class SupabaseStorage:
    """`ObjectStore` on a bucket of Supabase's storage.

    Args:
        signed_url_s: how long the link of a stored file works; None: the bucket is public, and links do not end.
    """

    def __init__(self, api: SupabaseApi, bucket: str, *, prefix: str = "", signed_url_s: int | None = None) -> None:
        self._api = api
        self._bucket = bucket
        self._prefix = prefix
        self._signed_url_s = signed_url_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass

    def check(self, placement: Placement) -> None:
        if placement.bucket not in {None, self._bucket} or placement.presign_seconds is not None:
            raise StorageRefusedError(
                "a job cannot choose the bucket and the lifetime of links; the worker's settings do"
            )

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        length: int | None = None,
        content_type: str = "application/octet-stream",
        placement: Placement | None = None,
    ) -> StoredObject:
        """See `ObjectStore.put`; in one request, which Supabase limits to the project's upload size."""
        placement = placement or Placement()
        self.check(placement)
        key = safe_key(self._prefix, placement.prefix or "", key)
        body = _Body(chunks)
        headers = {"Content-Type": content_type, "x-upsert": "true"}
        if length is not None:
            headers["Content-Length"] = str(length)
        try:
            answer = await self._post(f"/object/{self._path(key)}", data=body.chunks(), headers=headers)
        except StorageError:
            if body.error is not None:
                raise body.error from None
            raise
        if length is not None and body.size != length:
            raise StorageError(f"the file does not have the {length} bytes that were announced")
        return StoredObject(await self._url(key), self._bucket, key, body.size, str(answer.get("Id") or ""))

    async def link(self, bucket: str, key: str, placement: Placement) -> str:
        self.check(Placement(bucket, None, placement.presign_seconds))
        return await self._url(key)

    async def probe(self) -> None:
        """See `ObjectStore.probe`. It reads by a link such as a file gets."""
        key, content = probe_key(self._prefix)
        path = f"/storage/v1/object/{self._path(key)}"
        try:
            await self._post(f"/object/{self._path(key)}", data=content, headers={"Content-Type": "text/plain"})
            link = (await self._url(key)).removeprefix(self._api.url)
            async with self._api.request("GET", link, timeout=_FILE_TIMEOUT) as response:
                if response.status != 200 or await response.read() != content:
                    raise StorageError(
                        f"the check of the store failed at read: HTTP {response.status} for a file's link"
                    )
            async with self._api.request("DELETE", path, timeout=_FILE_TIMEOUT) as response:
                if response.status != 200:
                    _log.warning("store.check_left", bucket=self._bucket, key=key, status=response.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise StorageError(f"Supabase's storage cannot be reached: {type(error).__name__}") from None

    async def _url(self, key: str) -> str:
        if self._signed_url_s is None:
            return f"{self._api.url}/storage/v1/object/public/{self._path(key)}"
        answer = await self._post(f"/object/sign/{self._path(key)}", json={"expiresIn": self._signed_url_s})
        # Relative to the storage API, and not percent-encoded.
        path, _, query = str(answer.get("signedURL") or "").partition("?")
        if not path.startswith("/object/sign/"):
            raise StorageError("Supabase's answer has no signed URL")
        return f"{self._api.url}/storage/v1{quote(path)}?{query}"

    def _path(self, key: str) -> str:
        return f"{quote(self._bucket, safe='')}/{quote(key)}"

    async def _post(self, path: str, **options: Any) -> Mapping[str, Any]:
        try:
            async with self._api.post(f"/storage/v1{path}", timeout=_FILE_TIMEOUT, **options) as response:
                answer = parsed(await response.read())
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise StorageError(f"Supabase's storage cannot be reached: {type(error).__name__}") from None
        fields = answer if isinstance(answer, dict) else {}
        if status == 200:
            return fields
        raise self._refusal(fields, status)

    def _refusal(self, fields: Mapping[str, Any], http_status: int) -> StorageError:
        said = str(fields.get("statusCode") or http_status)
        status = int(said) if said.isdecimal() else http_status
        match status:
            case 404:
                return StorageRefusedError(f"Supabase has no bucket {self._bucket!r}")
            case 413:
                return StorageRefusedError(
                    "the file is larger than the project's upload limit; use S3 for outputs instead"
                )
            case 401 | 403:
                return StorageRefusedError("Supabase's storage refused the key; it must be the service-role key")
        text = f"Supabase's storage answered {status}: {str(fields.get('error') or 'no reason given')[:200]}"
        transient = status >= 500 or status in TRANSIENT
        return StorageError(text) if transient else StorageRefusedError(text)


class _Body:
    """The chunks of an upload, with their number of bytes and their error, which aiohttp would hide."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.size = 0
        self.error: Exception | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                self.size += len(chunk)
                yield chunk
        except Exception as error:
            self.error = error
            raise


def parsed(body: bytes) -> Any:
    """An answer's body as JSON; None if it is not JSON."""
    try:
        return jsonio.loads(body)
    except JSONError:
        return None
