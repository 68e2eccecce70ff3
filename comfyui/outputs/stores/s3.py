"""Storing output files in S3 and what speaks its protocol: R2, MinIO, SeaweedFS, Supabase.

The driver (``aiobotocore``, the extra ``s3``) is imported here only, and only when a store is opened: a gateway without
it starts.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import structlog
from pydantic import SecretStr

from comfyui.exceptions import StorageError, StorageRefusedError
from comfyui.outputs.stores.store import Parts, Placement, StoredObject, probe_key, safe_key
from comfyui.settings import MAX_PRESIGN_SECONDS, S3Fields
from comfyui.tasks import SideTasks

_log = structlog.get_logger(__name__)
_PARTS_IN_FLIGHT = 2
_MAX_PARTS = 10_000
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}", re.IGNORECASE)
_REFUSED_CODES = frozenset(
    {"AccessDenied", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"}
)


@dataclass(frozen=True, slots=True)
class S3Settings:
    """The store's address and options. Keys never appear in its repr.

    Attributes:
        endpoint_url: of a compatible store; None: AWS.
        public_endpoint_url: where clients reach the store, for links, when that is not `endpoint_url`.
        prefix: in front of every key.
        access_key, secret_key, session_token: None, empty: taken from where AWS's tools take them (role, environment,
            file).
        addressing_style: ``path`` (``host/bucket/key``) suits most compatible stores, ``virtual`` puts the bucket
            before the host.
        allowed_buckets: which others than `bucket` a request may name.
        last_aborts_s: at the end, for the store to remove the parts of uploads that were given up.
    """

    bucket: str
    region: str = "us-east-1"
    endpoint_url: str | None = None
    public_endpoint_url: str | None = None
    prefix: str = ""
    access_key: SecretStr | None = field(default=None, repr=False)
    secret_key: SecretStr | None = field(default=None, repr=False)
    session_token: SecretStr | None = field(default=None, repr=False)
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    presign_seconds: int = 3600
    allowed_buckets: Sequence[str] = ()
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    retries: int = 3
    last_aborts_s: float = 5.0


def s3_store(fields: S3Fields) -> S3Store | None:
    """The configured store, not opened; None without a bucket. Raises ValueError as `S3Store`."""
    if not fields.s3_bucket:
        return None
    options = S3Settings(
        fields.s3_bucket,
        region=fields.s3_region,
        endpoint_url=fields.s3_endpoint_url or None,
        public_endpoint_url=fields.s3_public_endpoint_url or None,
        prefix=fields.s3_prefix,
        access_key=fields.s3_access_key_id,
        secret_key=fields.s3_secret_access_key,
        session_token=fields.s3_session_token,
        addressing_style=fields.s3_addressing_style,
        presign_seconds=fields.s3_presign_seconds,
        allowed_buckets=fields.other_buckets(),
    )
    try:
        return S3Store(options)
    except ValueError as error:
        raise ValueError(f"S3_BUCKET: {error}") from error


class S3Store:
    """An `ObjectStore`. Small files go in one request, larger ones in parts of 8 MiB, two at a time: less than 48 MiB
    of memory for a file of any size. Raises ValueError for settings that cannot work."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._signer: Any = None
        self._errors: Any = None
        self._aborts = SideTasks()
        try:
            self.check(Placement())
        except StorageRefusedError as error:
            raise ValueError(error.detail) from error

    async def __aenter__(self) -> Self:
        """Raises `StorageError` if the extra is not installed. The store is not contacted yet."""
        session, config, self._errors = await asyncio.to_thread(_load_driver, self._settings)
        async with AsyncExitStack() as stack:
            try:
                self._client = await stack.enter_async_context(self._new_client(session, config, None))
                self._signer = self._client
                if public := self._settings.public_endpoint_url:
                    self._signer = await stack.enter_async_context(self._new_client(session, config, public))
            except (self._errors.BotoCoreError, ValueError) as error:
                raise StorageError(f"the object store's settings cannot be used: {type(error).__name__}") from error
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        # A store that is silent must not hold up the end.
        await self._aborts.close(patience_s=self._settings.last_aborts_s)
        await self._stack.aclose()

    def check(self, placement: Placement) -> None:
        settings = self._settings
        bucket = placement.bucket or settings.bucket
        if bucket not in {settings.bucket, *settings.allowed_buckets} or not _BUCKET.fullmatch(bucket):
            raise StorageRefusedError(
                f"the gateway may not store in the bucket {bucket!r}; S3_ALLOWED_BUCKETS lists the buckets"
            )
        _lifetime(placement, settings.presign_seconds)

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        length: int | None = None,
        content_type: str = "application/octet-stream",
        placement: Placement | None = None,
    ) -> StoredObject:
        """See `ObjectStore.put`; ``etag`` is the store's, without quotes."""
        if self._client is None:
            raise RuntimeError("use the store inside 'async with'")
        placement = placement or Placement()
        self.check(placement)
        bucket = placement.bucket or self._settings.bucket
        place = {"Bucket": bucket, "Key": safe_key(self._settings.prefix, placement.prefix or "", key)}
        parts = Parts(chunks, length)
        try:
            content = await parts.whole()
            if content is None:
                answer = await self._put_in_parts(place, parts, content_type)
            else:
                answer = await self._client.put_object(
                    **place, Body=io.BytesIO(content), ContentLength=len(content), ContentType=content_type
                )
            url = await self._signed(place, placement)
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            raise self._translated(error, bucket) from error
        return StoredObject(url, bucket, place["Key"], parts.size, str(answer.get("ETag", "")).strip('"'))

    async def link(self, bucket: str, key: str, placement: Placement) -> str:
        """See `ObjectStore.link`; a bucket that is no longer allowed gets none."""
        self.check(Placement(bucket, None, placement.presign_seconds))
        try:
            return await self._signed({"Bucket": bucket, "Key": key}, placement)
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            raise self._translated(error, bucket) from error

    async def _signed(self, place: dict[str, str], placement: Placement) -> str:
        url: str = await self._signer.generate_presigned_url(
            "get_object", Params=place, ExpiresIn=_lifetime(placement, self._settings.presign_seconds)
        )
        return url

    async def probe(self) -> None:
        """See `ObjectStore.probe`; the step and the store's code tell which right the key lacks."""
        if self._client is None:
            raise RuntimeError("use the store inside 'async with'")
        bucket = self._settings.bucket
        key, content = probe_key(self._settings.prefix)
        place = {"Bucket": bucket, "Key": key}
        step = "write"
        try:
            await self._client.put_object(**place, Body=io.BytesIO(content), ContentLength=len(content))
            step = "read"
            answer = await self._client.get_object(**place)
            async with answer["Body"] as body:
                read = await body.read()
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            reason = self._translated(error, bucket).detail
            raise StorageError(f"the check of the store failed at {step}: {reason}") from error
        if read != content:
            raise StorageError("the check of the store did not read what it had written")
        try:
            await self._client.delete_object(**place)
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            _log.warning("store.check_left", bucket=bucket, key=key, detail=self._translated(error, bucket).detail)

    async def _put_in_parts(self, place: dict[str, str], parts: Parts, content_type: str) -> Any:
        upload = await self._start(place, content_type)
        try:
            sent = await self._send_parts(upload, parts)
            return await self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent})
        except BaseException:
            await self._abort(upload)
            raise

    async def _start(self, place: dict[str, str], content_type: str) -> dict[str, str]:
        """If cancelled, it still waits for the answer: an upload without a known id could not be aborted."""
        request = asyncio.ensure_future(self._client.create_multipart_upload(**place, ContentType=content_type))
        try:
            return {**place, "UploadId": (await asyncio.shield(request))["UploadId"]}
        except asyncio.CancelledError:
            await asyncio.wait([request])
            if request.exception() is None:
                await self._abort({**place, "UploadId": request.result()["UploadId"]})
            raise

    async def _send_parts(self, upload: dict[str, str], parts: Parts) -> list[dict[str, Any]]:
        slots = asyncio.Semaphore(_PARTS_IN_FLIGHT)

        async def send(number: int, part: bytes) -> dict[str, Any]:
            try:
                answer = await self._client.upload_part(
                    **upload, PartNumber=number, Body=io.BytesIO(part), ContentLength=len(part)
                )
            finally:
                slots.release()
            return {"PartNumber": number, "ETag": answer["ETag"]}

        tasks: list[asyncio.Task[dict[str, Any]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                while not parts.ended:
                    if len(tasks) == _MAX_PARTS:
                        raise StorageError("the file has more parts than the object store's protocol allows")
                    await slots.acquire()
                    tasks.append(group.create_task(send(len(tasks) + 1, await parts.next()), name="s3 part"))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0]  # noqa: B904 - its own cause stays
        return [task.result() for task in tasks]

    async def _abort(self, upload: dict[str, str]) -> None:
        """Runs to its end even if its caller is cancelled: parts of an unfinished upload cost money."""

        async def abort() -> None:
            # The caller gets the reason for the abort.
            with suppress(self._errors.ClientError, self._errors.BotoCoreError):
                await self._client.abort_multipart_upload(**upload)

        await asyncio.shield(self._aborts.start(abort(), "s3 abort"))

    def _new_client(self, session: Any, config: Any, endpoint_url: str | None) -> Any:
        settings = self._settings
        return session.create_client(
            "s3",
            region_name=settings.region,
            endpoint_url=endpoint_url or settings.endpoint_url,
            aws_access_key_id=_revealed(settings.access_key),
            aws_secret_access_key=_revealed(settings.secret_key),
            aws_session_token=_revealed(settings.session_token),
            config=config,
        )

    def _translated(self, error: Any, bucket: str) -> StorageError:
        """The error for the store's code: its message may contain the key id and the signed request."""
        if not isinstance(error, self._errors.ClientError):
            if isinstance(error, self._errors.NoCredentialsError | self._errors.PartialCredentialsError):
                return StorageError("the object store's credentials are not set")
            if isinstance(error, self._errors.HTTPClientError | self._errors.ConnectionError):
                return StorageError("the object store cannot be reached, or did not answer in time")
            return StorageError(f"the object store's driver failed: {type(error).__name__}")
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code in {"NoSuchBucket", "404"}:
            return StorageError(f"bucket {bucket!r} does not exist")
        if code in _REFUSED_CODES:
            return StorageError(f"the object store refused the gateway's credentials for bucket {bucket!r}: {code}")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return StorageError(f"the object store answered {code} (HTTP {status})")


def _lifetime(placement: Placement, default: int) -> int:
    seconds = default if placement.presign_seconds is None else placement.presign_seconds
    if not 1 <= seconds <= MAX_PRESIGN_SECONDS:
        raise StorageRefusedError(f"presign_seconds must be from 1 to {MAX_PRESIGN_SECONDS}")
    return seconds


def _load_driver(settings: S3Settings) -> tuple[Any, Any, Any]:
    """The driver's session, its configuration, its exceptions. Reads many files: some 0.4 s, not for the event loop."""
    try:
        session = importlib.import_module("aiobotocore.session").get_session()
        config_type = importlib.import_module("aiobotocore.config").AioConfig
        errors = importlib.import_module("botocore.exceptions")
    except ImportError as error:
        raise StorageError("S3_BUCKET requires the extra s3: pip install 'comfyui-gateway[s3]'") from error
    # At DEBUG they log what they sign and send: session tokens, working links.
    for name in ("aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.INFO)
    # Into the loader's cache, from which the client takes them without reading.
    loader = session.get_component("data_loader")
    for name in ("endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data(name)
    for kind in ("service-2", "endpoint-rule-set-1", "paginators-1", "waiters-2"):
        loader.load_service_model("s3", kind)
    config = config_type(
        signature_version="s3v4",
        s3={"addressing_style": settings.addressing_style},
        # Compatible stores do not know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        retries={"total_max_attempts": settings.retries + 1, "mode": "standard"},
        max_pool_connections=50,
    )
    return session, config, errors


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
