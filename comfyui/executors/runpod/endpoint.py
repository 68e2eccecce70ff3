"""`RunPodEndpoint`: the HTTP API of one serverless endpoint. No other module knows it.

There are two such APIs: the real platform's (https://docs.runpod.io/serverless/endpoints/operations), and that of
``--rp_serve_api``, by which RunPod's SDK serves a worker without the platform. The latter has only ``/run`` and
``/status``; its status is a POST, in which the job *runs*: it lasts as long as the job, must not be sent twice at once,
and its result is forgotten afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs
from pydantic import SecretStr
from yarl import URL

from comfyui import jsonio
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIError,
    ComfyUINotFoundError,
    ComfyUIOverloadedError,
    ComfyUIServerError,
    JSONError,
    RunPodRefusedError,
)
from comfyui.metrics import Metrics
from comfyui.retrying import Backoff, retry

PLATFORM = "https://api.runpod.ai/v2"
MAX_RUN_BYTES = 10_000_000
"""Body of ``/run``: "10 MB" in https://docs.runpod.io/serverless/endpoints/operation-reference."""

_LONGEST_ANSWER = 256 << 20
_TIMEOUT_S = 30.0
_CONNECT_S = 10.0
_RETRIES = 3
_BACKOFF = Backoff(start_s=0.2, max_s=5.0)
_SHOWN_BYTES = 300
# Answers that came before the job was accepted: from a limit, or from a proxy that did not reach the API (the last
# ones: Cloudflare's).
_NOT_TAKEN = frozenset({429, 503, 521, 522, 523})
_REFUSED = frozenset({401, 403, 404})
_LONGEST_RETRY_AFTER_S = 120
# Parsed at once up to this size; a larger answer would block the event loop.
_PARSED_ON_LOOP = 256 * 1024
_NO_SUCH_JOB = "Job ID not found"


class JobStatus(enum.Enum):
    """RunPod's status of a job. An unknown one counts as queued, so RunPod is asked again."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @classmethod
    def _missing_(cls, _value: object) -> JobStatus:
        return cls.IN_QUEUE


@dataclass(frozen=True, slots=True)
class Submitted:
    """RunPod accepted the job."""

    job_id: str
    status: JobStatus


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """The answer of ``/status``. ``body`` is the whole answer, unchanged, so that a completed job's result can be
    kept.
    """

    status: JobStatus
    output: Any
    error: Any
    execution_ms: float | None
    body: bytes = field(repr=False)


class Reachability(Protocol):
    """Is told when RunPod's API cannot be reached."""

    def unreachable(self, reason: str) -> None: ...


class RunPodEndpoint:
    """Open it with ``async with``; it owns its session. The key goes only into the Authorization header.

    Args:
        endpoint_id: for messages, and for the address if no `url` is given.
        url: another API server with the same protocol; empty: RunPod's.
        health: is told when no connection can be made.
    """

    def __init__(
        self,
        endpoint_id: str,
        api_key: SecretStr,
        url: str = "",
        *,
        health: Reachability | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self.endpoint_id = endpoint_id
        self._api_key = api_key
        self._is_platform = not url
        self._url = URL(url.rstrip("/") or f"{PLATFORM}/{quote(endpoint_id, safe='')}")
        self._status_method = "GET"
        self._health = health
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._api_key.get_secret_value()}", "User-Agent": "comfyui-gateway"},
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def run(self, body: bytes) -> Submitted:
        """``POST /run``, once: RunPod does not know our ids, so the same job sent twice would run twice.

        Raises:
            ComfyUIConnectionError: ``sent`` says whether RunPod may have accepted it.
            ComfyUIOverloadedError: it was not accepted; try again after ``retry_after_s``.
            RunPodRefusedError: it will never be accepted.
            ComfyUIServerError: an answer that leaves open whether the job was accepted; with an ``upstream_status`` of
                400 to 499 it was not.
        """
        async with self._request("POST", "run", data=body) as response:
            answer = await _json(response)
            try:
                return Submitted(str(answer["id"]), JobStatus(answer.get("status")))
            except KeyError as error:
                raise ComfyUIServerError("RunPod's answer to /run has no job id") from error

    async def status(self, job_id: str) -> JobAnswer:
        """Raises `ComfyUINotFoundError` if RunPod does not know the job (any more), otherwise as `run`. Not retried."""
        path = f"status/{quote(job_id, safe='')}"
        try:
            return await self._status(path)
        except ComfyUIServerError as error:
            if error.upstream_status != 405 or self._status_method == "POST":
                raise
        self._status_method = "POST"
        return await self._status(path)

    async def _status(self, path: str) -> JobAnswer:
        # With POST, the answer comes when the job is done: the wait ends only with the connection.
        total_s = _TIMEOUT_S if self._status_method == "GET" else None
        async with self._request(self._status_method, path, total_s=total_s, of_a_job=True) as response:
            body = await _body(response)
            answer = _parsed(body) if len(body) <= _PARSED_ON_LOOP else await asyncio.to_thread(_parsed, body)
            if answer.get("error") == _NO_SUCH_JOB:
                raise ComfyUINotFoundError("RunPod does not know this job")
            execution_ms = answer.get("executionTime")
            status = JobStatus(answer.get("status"))
            if status is JobStatus.COMPLETED:
                self._metrics.runpod_result_bytes.labels("reply").inc(len(body))
            return JobAnswer(
                status,
                answer.get("output"),
                answer.get("error"),
                float(execution_ms) if isinstance(execution_ms, int | float) else None,
                body,
            )

    async def cancel(self, job_id: str) -> bool:
        """False if nothing can be cancelled: RunPod does not know the job, or this API server has no such route."""
        try:
            async with self._request("POST", f"cancel/{quote(job_id, safe='')}", of_a_job=True) as response:
                await _body(response)
                return True
        except ComfyUINotFoundError:
            return False
        except ComfyUIServerError as error:
            if error.upstream_status == 405:
                return False
            raise

    async def health(self) -> None:
        """Returns when the key and the endpoint's id are valid. Raises as `run` does; retried after errors that may
        pass.
        """

        async def ask() -> None:
            async with self._request("GET", "health", of_a_job=not self._is_platform) as response:
                await _body(response)

        # An API server without this route does not refuse anything.
        with contextlib.suppress(ComfyUINotFoundError):
            await retry(ask, ComfyUIError, _BACKOFF, retries=_RETRIES, worth=lambda error: error.retryable)

    # The edge to aiohttp

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        total_s: float | None = _TIMEOUT_S,
        of_a_job: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request that was answered with success; `of_a_job`: a 404 concerns the job, not the endpoint."""
        if self._session is None:
            raise RuntimeError("use the endpoint inside 'async with'")
        headers = {"Content-Type": "application/json"} if data is not None else {}
        status = 0
        try:
            async with self._session.request(
                method,
                URL(f"{self._url}/{path}", encoded=True),
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=total_s, sock_connect=_CONNECT_S),
                # The key goes only to the configured address.
                allow_redirects=False,
            ) as response:
                status = response.status
                await self._check(response, path, of_a_job=of_a_job)
                yield response
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or type(error).__name__
            raise self._unreachable(f"RunPod's API cannot be reached: {reason}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise self._unreachable("RunPod's API did not accept a connection in time") from error
        except TimeoutError as error:
            raise ComfyUIConnectionError(f"RunPod's API did not answer /{_route(path)} in time", sent=True) from error
        except (aiohttp.ClientError, OSError) as error:
            detail = f"the connection to RunPod's API broke at /{_route(path)}"
            raise ComfyUIConnectionError(detail, sent=True) from error
        finally:
            self._metrics.runpod_requests.labels(_route(path), status).inc()

    def _unreachable(self, reason: str) -> ComfyUIConnectionError:
        if self._health is not None:
            self._health.unreachable(reason)
        return ComfyUIConnectionError(reason)

    async def _check(self, response: aiohttp.ClientResponse, path: str, *, of_a_job: bool) -> None:
        status = response.status
        if status == 200:
            return
        if status in _NOT_TAKEN:
            what = "too many requests" if status == 429 else f"HTTP {status}"
            raise ComfyUIOverloadedError(f"RunPod's API answered: {what}", retry_after_s=_retry_after_s(response))
        if status == 404 and of_a_job:
            raise ComfyUINotFoundError("RunPod does not know this job")
        if status in _REFUSED:
            raise RunPodRefusedError(self._refusal(status), upstream_status=status)
        if 300 <= status < 400:
            raise RunPodRefusedError(self._redirected(response), upstream_status=status)
        said = await _said(response) if status < 500 else ""
        raise ComfyUIServerError(
            f"RunPod's API answered /{_route(path)} with HTTP {status}{said}", upstream_status=status
        )

    def _refusal(self, status: int) -> str:
        if status == 404:
            return f"RunPod does not know the endpoint {self.endpoint_id!r}: check RUNPOD_ENDPOINT_ID"
        return f"RunPod refuses the key (HTTP {status}): check RUNPOD_API_KEY"

    def _redirected(self, response: aiohttp.ClientResponse) -> str:
        """Names only the origin: the rest may be a secret."""
        who = "RunPod's own API" if self._is_platform else "RUNPOD_ENDPOINT_URL"
        advice = "a proxy may stand in between" if self._is_platform else "correct the setting"
        try:
            origin = str(response.url.join(URL(response.headers[hdrs.LOCATION])).origin())
        except (KeyError, ValueError):
            return f"{who} answers with a redirect (HTTP {response.status}) that leads nowhere: {advice}"
        where = "to another path of its own" if origin == str(response.url.origin()) else f"to {origin}"
        return f"{who} redirects {where} (HTTP {response.status}), which is not followed: {advice}"


def _route(path: str) -> str:
    return path.partition("/")[0]


def _retry_after_s(response: aiohttp.ClientResponse) -> int:
    """The seconds of ``Retry-After``, within reason; 0 if it has none that we understand."""
    text = response.headers.get("Retry-After", "")
    return min(int(text), _LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0


async def _said(response: aiohttp.ClientResponse) -> str:
    """RunPod's reason for refusing a request."""
    text = (await response.content.read(_SHOWN_BYTES)).decode(errors="replace").strip()
    return f": {text}" if text else ""


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _LONGEST_ANSWER:
            raise ComfyUIServerError("RunPod's answer is larger than the result of a job may be")
    return bytes(body)


async def _json(response: aiohttp.ClientResponse) -> Mapping[str, Any]:
    return _parsed(await _body(response))


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        answer = jsonio.loads(body)
    except JSONError as error:
        raise ComfyUIServerError("RunPod's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise ComfyUIServerError("RunPod's answer is not a JSON object")
    return answer
