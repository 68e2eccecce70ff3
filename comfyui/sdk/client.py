"""`GatewayClient`: one gateway, one session, any number of prompts."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any, Self

from yarl import URL

from comfyui.sdk.calls import Call, attachment, job_submission, path_of, submission
from comfyui.sdk.connection import DEFAULT_SERVER, Connection, read_json
from comfyui.sdk.errors import (
    GatewayConnectionError,
    GatewayError,
    GatewayNotFinishedError,
    GatewayProtocolError,
    JobStatus,
)
from comfyui.sdk.events import Event
from comfyui.sdk.files import create_file
from comfyui.sdk.jobs import Job, ListedJob, Webhook, listed
from comfyui.sdk.models import Health, InputFile, OutputFile, PromptResult
from comfyui.sdk.named import NamedWorkflows
from comfyui.sdk.waiting import GRACE_S, delay_s, job_events, look, result_of, run_events, taken

_CHUNK_BYTES = 1 << 16


_DOWNLOAD_ATTEMPTS = 3
# The errors during a restart of the gateway, without and with a proxy in front of it.
_AWAY = frozenset({"shutting_down", "unreachable", "proxy_failed"})


# Together a minute, in which a gateway can be restarted.
_RECONNECT_DELAYS_S = (0.25, 0.5, 1.0, 2.0, 4.0, *(8.0,) * 6)


_MOST_LISTED = 200  # jobs that the gateway puts on one page, at most


class GatewayClient:
    """One gateway, one pooled session. Use it as an async context manager; many prompts may wait at the same time.

    Args:
        server: the gateway's address; a path in it is kept, ``http://`` may be left out.
        api_key: sent as ``Authorization: Bearer``.
        timeout_s: how long a prompt may take if the call does not say.
        reconnect_delays_s: the pauses before each attempt to attach again after a lost connection.

    Attributes:
        named: the gateway's named workflows, and their runs.

    Raises:
        ValueError: `server` is no http(s) address.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        api_key: str | None = None,
        *,
        timeout_s: float = 300.0,
        reconnect_delays_s: Sequence[float] = _RECONNECT_DELAYS_S,
    ) -> None:
        self._connection = Connection(server, api_key)
        self._timeout_s = timeout_s
        self._reconnect_delays_s = tuple(reconnect_delays_s)
        self.named = NamedWorkflows(self._connection, timeout_s, self._reconnect_delays_s)

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._connection.close()

    async def run(
        self,
        workflow: Mapping[str, Any],
        *,
        images: Sequence[InputFile] = (),
        timeout_s: float | None = None,
        prompt_id: str | None = None,
        return_base64: bool = False,
    ) -> PromptResult:
        """Runs `workflow` (ComfyUI's API format) until it is done; attaches again when the connection breaks.

        With `prompt_id` (a UUID) the call is idempotent: the same call joins the running prompt, or returns its result.

        Raises:
            GatewayError: one of its classes; with ``prompt_id``, even if the server did not send it.
        """
        return await result_of(
            self._run(submission(workflow, images, prompt_id, return_base64), timeout_s, stream=False)
        )

    def stream(
        self,
        workflow: Mapping[str, Any],
        *,
        images: Sequence[InputFile] = (),
        timeout_s: float | None = None,
        prompt_id: str | None = None,
        return_base64: bool = False,
        previews: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """The same as `run`, with the events on the way; the last event is `Finished`, and some servers send no
        other.
        """
        call = submission(workflow, images, prompt_id, return_base64, previews)
        return self._run(call, timeout_s, stream=True)

    async def attach(
        self, prompt_id: str, *, timeout_s: float | None = None, return_base64: bool = False
    ) -> PromptResult:
        """The same as `wait`, for prompts of any kind."""
        return await self.wait(prompt_id, timeout_s=timeout_s, return_base64=return_base64)

    def follow(
        self, prompt_id: str, *, timeout_s: float | None = None, return_base64: bool = False, previews: bool = False
    ) -> AsyncGenerator[Event, None]:
        """The events of a prompt that was posted before; the last one is `Finished`.

        It attaches again as often as there are delays; `wait` goes on until its time is up.
        """
        return self._run(attachment(prompt_id, return_base64, previews), timeout_s, stream=True)

    async def submit(
        self,
        workflow: Mapping[str, Any],
        *,
        images: Sequence[InputFile] = (),
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        webhook: Webhook | str | None = None,
        prompt_id: str | None = None,
        idempotency_key: str | None = None,
        wait_s: float = 0.0,
    ) -> Job:
        """Submits `workflow` (ComfyUI's API format) as a job, which runs when its turn comes, with or without a waiting
        caller.

        A lost reply is requested again under the same id, so that nothing runs twice.

        Args:
            images: inputs; each goes with the request, but for those that are a URL.
            labels: up to 16 pairs of text, by which `jobs` can be narrowed.
            priority: -1,000,000 to 1,000,000; kept with the job.
            webhook: who is told when the job ends, or the URL alone. The gateway needs WEBHOOK_SECRET for it.
            prompt_id: a UUID; the same one again is the same job. A new one when not given.
            idempotency_key: any text of 1 to 255 characters instead of `prompt_id`, from which the gateway makes the
                id.
            wait_s: seconds to wait for its end, which the job then has in it; 0: only until it is taken.

        Returns:
            The job, once the gateway has it on its disk. If it has already ended, with its result or its error.

        Raises:
            ValueError: `prompt_id` and `idempotency_key` are both given.
            GatewayRefusedError: it was not taken, and there is no such job.
            GatewayOverloadedError: as many jobs wait as may.
            GatewayConnectionError: nothing answers, or the gateway cannot store the job; if the reply was lost, the job
                may exist nevertheless.
        """
        told = Webhook(webhook) if isinstance(webhook, str) else webhook
        more = {"labels": dict(labels or {}), "priority": priority, "webhook": told and told.to_json()}
        call = job_submission(workflow, images, prompt_id, idempotency_key, wait_s, more)
        return await taken(self._connection, call, wait_s, self._reconnect_delays_s)

    async def job(self, prompt_id: str, *, return_base64: bool = False) -> Job:
        """The present state of a job, with its result or its error if it has ended.

        Raises:
            GatewayRefusedError: the job is unknown (``type`` is ``not_found``), or this call is refused.
            GatewayConnectionError: nothing answers.
        """
        return await look(self._connection, attachment(prompt_id, return_base64))

    async def jobs(
        self,
        status: JobStatus | Collection[JobStatus] = (),
        *,
        labels: Mapping[str, str] | None = None,
        workflow: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[ListedJob, None]:
        """Jobs, newest first; pages are fetched as needed. Close it if you leave it early.

        Args:
            status: only jobs in this state, or in one of these.
            labels: only jobs that have all of these labels.
            workflow: only jobs of the workflow with this name.
            limit: the largest number of jobs; None for all that are kept.

        Raises:
            ValueError: `limit` is below 1.
            GatewayError: a page could not be had.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be 1 or more, or None for all jobs, not {limit}")
        query = {f"label.{key}": value for key, value in (labels or {}).items()}
        if status:
            query["status"] = status if isinstance(status, str) else ",".join(status)
        if workflow is not None:
            query["workflow"] = workflow
        while limit is None or limit > 0:
            query["limit"] = str(_MOST_LISTED if limit is None else min(limit, _MOST_LISTED))
            async with self._connection.request("GET", "/prompt_sync", query=query, quiet_s=GRACE_S) as response:
                found, cursor = listed(await self._connection.json_of(response))
            for job in found:
                yield job
            if cursor is None:
                return
            query["cursor"] = cursor
            limit = None if limit is None else limit - len(found)

    async def wait(
        self,
        prompt_id: str,
        *,
        timeout_s: float | None = None,
        return_base64: bool = False,
        show: Callable[[Event], None] | None = None,
    ) -> PromptResult:
        """Waits until a job has ended, submitted by whomever, through lost connections and restarts of the gateway.

        Args:
            timeout_s: of this call alone; the job goes on.
            show: is called with what happens on the way, `Reconnecting` included.

        Raises:
            GatewayTimeoutError: it has not ended by then (``type`` is ``not_finished``).
            GatewayRefusedError: the job is unknown (``not_found``): the gateway answered, and no job of it has this id.
            GatewayConnectionError: nothing answered until the time was up.
            GatewayError: any other of its classes with ``job_status``: the job ended so.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        call = attachment(prompt_id, return_base64)
        return await result_of(job_events(self._connection, call, timeout_s, self._reconnect_delays_s), show)

    async def result(self, prompt_id: str, *, return_base64: bool = False) -> PromptResult:
        """The result of a job, at once.

        Raises:
            GatewayNotFinishedError: it has not ended.
            GatewayRefusedError: the job is unknown (``type`` is ``not_found``).
            GatewayError: it ended so (``job_status``), or nothing answers.
        """
        job = await self.job(prompt_id, return_base64=return_base64)
        if job.error is not None:
            raise job.error
        if job.result is None:
            place = "" if job.position is None else f", position {job.position}"
            detail = f"The job has not ended: it is {job.status}{place}"
            raise GatewayNotFinishedError(detail, title="Not finished", code="not_finished", prompt_id=prompt_id)
        return job.result

    async def cancel(self, prompt_id: str) -> Mapping[str, Any]:
        """Takes the prompt out of the queue or interrupts it; the server's answer. Raises GatewayError."""
        async with self._connection.request("DELETE", path_of(prompt_id), quiet_s=GRACE_S) as response:
            return await self._connection.json_of(response)

    async def health(self) -> Health:
        """Raises GatewayError when no gateway answers; a gateway without ComfyUI is an answer."""
        async with self._connection.request("GET", "/health", quiet_s=GRACE_S) as response:
            body = await read_json(response)
            if not isinstance(body, dict) or body.get("status") not in {"healthy", "unhealthy"}:
                body = await self._connection.json_of(response)
        return Health(
            healthy=body["status"] == "healthy",
            comfyui_server=str(body.get("comfyui_server", "unknown")),
            queue_running=body.get("queue_running"),
            queue_pending=body.get("queue_pending"),
            error=body.get("error"),
            body=body,
        )

    async def download(self, file: OutputFile) -> AsyncGenerator[bytes, None]:
        """The bytes of `file` in chunks, from the reply if it has them, otherwise from the gateway.

        Raises:
            GatewayError: the file has an ``error``, is gone, or the connection broke.
        """
        if file.error is not None:
            raise GatewayError(file.error, title="File could not be read", code="file_failed")
        if file.base64 is not None:
            try:
                yield base64.b64decode(file.base64, validate=True)
            except binascii.Error as error:
                raise GatewayError(f"base64 of {file.filename} is broken: {error}", code="file_failed") from error
            return
        async with self._connection.request("GET", _within(file.url), accept="*/*", quiet_s=GRACE_S) as response:
            if response.status != 200:
                await self._connection.json_of(response)
                raise GatewayProtocolError(f"{file.url} answered {response.status}", status=response.status)
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    async def save(self, file: OutputFile, folder: Path) -> Path:
        """Writes `file` below `folder` under its own name, or a numbered one: no existing file is overwritten.

        A connection that breaks on the way is tried again.

        Raises:
            GatewayError: see `download`. OSError: it cannot be written. In both cases no file is left behind.
        """
        path, opened = await asyncio.to_thread(create_file, folder, file)
        try:
            with opened:
                await self._copy_until_whole(file, opened)
        except BaseException:
            await asyncio.to_thread(path.unlink, missing_ok=True)
            raise
        return path

    async def _copy_until_whole(self, file: OutputFile, opened: IO[bytes]) -> None:
        """A connection that breaks is tried again a few times; a gateway that is away, for example to be restarted,
        is waited for.
        """
        broken = away = 0
        while True:
            try:
                return await self._copy(file, opened)
            except GatewayConnectionError as error:
                is_away = error.type in _AWAY
                broken, away = broken + (not is_away), away + is_away
                if broken == _DOWNLOAD_ATTEMPTS or away > len(self._reconnect_delays_s):
                    raise
                await asyncio.sleep(delay_s(self._reconnect_delays_s, away if is_away else broken))

    async def _copy(self, file: OutputFile, opened: IO[bytes]) -> None:
        await asyncio.to_thread(opened.truncate, 0)
        opened.seek(0)
        async with aclosing(self.download(file)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(opened.write, chunk)

    def _run(self, call: Call, timeout_s: float | None, *, stream: bool) -> AsyncGenerator[Event, None]:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return run_events(self._connection, call, timeout_s, self._reconnect_delays_s, stream=stream)


def _within(url: str) -> str:
    """A file's address within the gateway: links begin with the gateway's PUBLIC_URL, if it has one, even if we use
    another address.
    """
    address = URL(url) if "://" in url else None
    return f"/view?{address.raw_query_string}" if address is not None and address.path.endswith("/view") else url
