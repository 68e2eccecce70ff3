"""Waiting for one prompt over as many connections as that takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from comfyui.sdk.calls import Call, reattachment
from comfyui.sdk.connection import JSON, Connection
from comfyui.sdk.errors import (
    GatewayConnectionError,
    GatewayError,
    GatewayOverloadedError,
    GatewayTimeoutError,
)
from comfyui.sdk.events import Event, Finished, Reconnecting, event_of, server_sent_events
from comfyui.sdk.jobs import Job
from comfyui.sdk.models import PromptResult

GRACE_S = 30.0
"""Beyond the prompt's own timeout: the gateway still cancels, collects and answers after it."""


_HELD_S = 5.0  # a connection that lasted longer was a working one: its loss starts a new series of attempts


_QUIET_S = 60.0  # the gateway sends something every 15 s; a connection that is silent for so long is dead


_EVENT_STREAM = "text/event-stream"


def delay_s(delays: Sequence[float], attempt: int) -> float:
    """The pause before this attempt, from 1 on; the last of `delays` again and again."""
    return delays[min(attempt, len(delays)) - 1] if delays else 0.0


async def run_events(
    connection: Connection, call: Call, timeout_s: float, delays: Sequence[float], *, stream: bool
) -> AsyncGenerator[Event, None]:
    """The events of the prompt of `call` until it is finished. It is given up after as many lost connections as there
    are delays; a call that a lost connection may have ended is posted once more.
    """
    again = call if call.method == "POST" else None
    remaining_s = timeout_s
    deadline = time.monotonic() + remaining_s
    failures, lost_before = 0, False
    while True:
        began = time.monotonic()
        try:
            async with aclosing(_exchange(connection, call, timeout_s=remaining_s, stream=stream)) as events:
                async for event in events:
                    failures = 0
                    yield event
            return
        except GatewayConnectionError as error:
            error.prompt_id = call.prompt_id
            if not (error.sent or lost_before):
                raise
            lost = error
        except GatewayError as error:
            error.prompt_id = error.prompt_id or call.prompt_id
            if not (lost_before and again and error.type in {"not_found", "task_cancelled"}):
                raise
            # It never arrived, or was forgotten, or the gateway noticed the loss and cancelled it, as its setting
            # CANCEL_ON_DISCONNECT wants. Under its id it cannot run twice at a time.
            call, again = again, None
            continue
        failures = 1 if time.monotonic() - began > _HELD_S else failures + 1
        pause_s = delay_s(delays, failures)
        remaining_s = deadline - time.monotonic() - pause_s
        if failures > len(delays) or remaining_s <= 0:
            raise lost
        yield Reconnecting(call.prompt_id, failures, lost.detail)
        await asyncio.sleep(pause_s)
        call, lost_before = reattachment(call), True


async def job_events(
    connection: Connection, call: Call, timeout_s: float, delays: Sequence[float]
) -> AsyncGenerator[Event, None]:
    """The events of a job until it has ended, through lost connections and restarts of the gateway.

    An event stream ends for many reasons, so that the job is looked at before the reason is believed.

    Raises:
        GatewayTimeoutError: not within `timeout_s`; its type is ``not_finished``.
        GatewayError: the job ended so (``job_status``), the request is refused, or since `timeout_s` nothing answered.
    """
    deadline = time.monotonic() + timeout_s
    failures = 0
    while True:
        began = time.monotonic()
        lost: GatewayError
        try:
            async with aclosing(_exchange(connection, call, quiet_s=_QUIET_S)) as events:
                while True:
                    async with asyncio.timeout(max(deadline - time.monotonic(), 0.0)):
                        event = await anext(events)
                    yield event
                    if isinstance(event, Finished):
                        return
        except TimeoutError:
            lost = _not_finished(call.prompt_id, timeout_s)
        except GatewayError as error:
            lost = error
        try:
            job = await look(connection, call)
        except (GatewayConnectionError, GatewayOverloadedError, GatewayTimeoutError) as error:
            known, lost = False, error
        else:
            if job.error is not None:
                raise job.error
            if job.result is not None:
                yield Finished(job.result)
                return
            known = True
        failures = 1 if time.monotonic() - began > _HELD_S else failures + 1
        pause_s = max(delay_s(delays, failures), lost.retry_after_s or 0.0)
        if time.monotonic() + pause_s >= deadline:
            raise _not_finished(call.prompt_id, timeout_s) if known else lost
        if lost.type != "timeout":  # that of one request, which the gateway ends after its DEFAULT_TIMEOUT
            yield Reconnecting(call.prompt_id, failures, lost.detail)
        await asyncio.sleep(pause_s)


async def look(connection: Connection, call: Call) -> Job:
    """The present state of the job of `call`, a GET. Raises GatewayError if it is not known."""
    query = {**call.query, "timeout": "0"}
    return await job_of(connection, Call(call.method, call.path, call.prompt_id, query), quiet_s=GRACE_S)


async def job_of(connection: Connection, call: Call, *, quiet_s: float) -> Job:
    """The job that a request is answered with that does not wait for its end, or not for long.

    Raises:
        GatewayError: the answer concerns only the request, and has no job.
    """
    try:
        async with connection.request(
            call.method, call.path, query=call.query, body=call.body, headers=call.headers, quiet_s=quiet_s
        ) as response:
            body = await connection.json_of(response)
            return Job.pending(body) if response.status == 202 else Job.succeeded(PromptResult.from_json(body))
    except GatewayError as error:
        error.prompt_id = error.prompt_id or call.prompt_id
        if error.job_status is None:
            raise
        return Job.without_result(error)


def _not_finished(prompt_id: str, timeout_s: float) -> GatewayTimeoutError:
    return GatewayTimeoutError(
        f"The job has not ended within {timeout_s:g} s; it goes on",
        title="Not finished",
        code="not_finished",
        prompt_id=prompt_id,
    )


async def _exchange(
    connection: Connection,
    call: Call,
    *,
    timeout_s: float | None = None,
    quiet_s: float | None = None,
    stream: bool = True,
) -> AsyncGenerator[Event, None]:
    """One connection: events until `Finished`. Raises GatewayConnectionError when it ends before that.

    Args:
        timeout_s: how long the gateway waits for the prompt; by its own setting when None.
        quiet_s: the longest silence; None: as long as the gateway may wait.
    """
    query = dict(call.query) if timeout_s is None else {**call.query, "timeout": f"{timeout_s:.3f}"}
    async with connection.request(
        call.method,
        call.path,
        accept=_EVENT_STREAM if stream else JSON,
        query=query,
        body=call.body,
        quiet_s=(timeout_s or 0.0) + GRACE_S if quiet_s is None else quiet_s,
    ) as response:
        if response.status != 200 or response.content_type != _EVENT_STREAM:
            yield Finished(PromptResult.from_json(await connection.json_of(response)))
            return
        async with aclosing(server_sent_events(response.content.iter_any())) as messages:
            async for name, data in messages:
                event = event_of(name, data)
                if event is not None:
                    yield event
                if isinstance(event, Finished):
                    return
    raise GatewayConnectionError(
        "The gateway ended the event stream before the result came",
        title="Connection lost",
        code="connection_lost",
        sent=True,
    )


async def taken(connection: Connection, call: Call, wait_s: float, delays: Sequence[float]) -> Job:
    """The job that `call` submits. A lost reply is requested again under the same id.

    Raises:
        GatewayError: it was not taken, or nothing answers.
    """
    attempt, lost_before = 0, False
    while True:
        try:
            return await job_of(connection, call, quiet_s=wait_s + GRACE_S)
        except GatewayConnectionError as error:
            attempt += 1
            lost_before = lost_before or error.sent
            if not lost_before or attempt > len(delays):
                raise
            await asyncio.sleep(delay_s(delays, attempt))


async def result_of(events: AsyncGenerator[Event, None], show: Callable[[Event], None] | None = None) -> PromptResult:
    """The end of a wait; `show` is called with all events before it. Raises the error at the end."""
    async with aclosing(events):
        async for event in events:
            if show is not None:
                show(event)
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("a wait ends with a result or an error")
