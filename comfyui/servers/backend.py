"""`Backend`: one ComfyUI server with everything known about it.

A backend is in rotation or not. Its shared websocket shows at no cost that it is up. Only without a websocket is it
probed, with back-off while it does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import structlog

from comfyui.client import ComfyUIClient
from comfyui.exceptions import ComfyUICredentialsError, ComfyUIDescriptorsError, ComfyUIError
from comfyui.metrics import Metrics
from comfyui.models import OutputFile
from comfyui.replies import JSON, HistoryEntry, QueueItem
from comfyui.servers.definitions import NodeDefinitions
from comfyui.servers.options import DEFAULT_SERVERS, ServerOptions
from comfyui.servers.process import Death
from comfyui.servers.reports import report_of
from comfyui.servers.server import FileShelf, Health, ServerReport
from comfyui.servers.watcher import CompletionWatcher
from comfyui.tasks import SideTasks, happens_within
from comfyui.transport.body import OpenBody

_STALLED = "ComfyUI's prompt worker does not run, so prompts wait and none runs; restart ComfyUI"
_DEAD = "ComfyUI's prompt worker counts as dead (DEAD_AFTER), because a prompt runs without any event; restart ComfyUI"


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a server that answers runs no prompts, and the prompts that witness whether it was restarted.

    ComfyUI never says when it was started. But its queue and history are in its memory: while it knows one of these
    prompts, it was not restarted, however often its connection was.
    """

    reason: str
    witnesses: frozenset[str]
    stalled: bool = False
    """Its prompt worker is dead: the witnesses are in its queue, which it does not work off."""


class Backend:
    """One ComfyUI server. Open it with ``async with``; it owns its client and its watcher.

    Args:
        news: set when the health changes.
    """

    def __init__(
        self,
        client: ComfyUIClient,
        watcher: CompletionWatcher,
        metrics: Metrics,
        options: ServerOptions = DEFAULT_SERVERS,
        *,
        news: asyncio.Event | None = None,
        runs_prompts: bool = True,
    ) -> None:
        self.client = client
        self._runs_prompts = runs_prompts
        self.watcher = watcher
        self.health = Health.STARTING
        self.reason: str = "not reached yet"
        self.is_new = True
        """Whether nothing is known of it yet: no probe was answered or has failed."""
        self.in_flight = 0
        self.drained = False
        """Whether it gets no more prompts; see `comfyui.servers.fleet`. Running ones end there."""
        self.simulated = False
        """Whether it reports that it is a simulation, as the embedded engine does."""
        self.generation = 0
        """Grows each time the server becomes reachable: earlier knowledge of it may be wrong."""
        self.arrivals = 0
        """Grows when it answers for the first time or again, and with each new connection: it may have prompts from
        before."""
        self._options = options
        self._metrics = metrics
        self._in_flight = metrics.in_flight.labels(client.name)
        metrics.silent_seconds.labels(client.name).set_function(self._silent_s)
        self._log = structlog.get_logger(__name__).bind(server=client.name)
        self._changed = asyncio.Event()
        self._news = news or asyncio.Event()
        self._look_again = watcher.changed
        self._definitions = NodeDefinitions(client, within_s=options.definitions_within_s)
        self._doubted = False
        self._fault: _Fault | None = None
        self._perhaps_restarted = False
        self.last_death: Death | None = None
        self.deaths = 0
        """Number of times that its process ended."""
        self.abandoned = False
        """Whether its process ended and is not started again."""
        self._hold = ""
        self._away_since: float | None = None
        self._cleared = 0
        self._side = SideTasks()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.client)
            stack.push_async_callback(self._definitions.close)
            await stack.enter_async_context(self.watcher)
            await stack.enter_async_context(self._side)
            self._side.start(self._probe_loop(), f"probe {self.name}")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def ready(self) -> bool:
        return self.health is Health.READY and self.watcher.crashed is None

    @property
    def epoch(self) -> int:
        """A number that changes when the server may have been restarted, with another folder of inputs."""
        return self.watcher.epoch

    @property
    def takes_prompts(self) -> bool:
        """Whether it may get a new prompt."""
        return self.ready and not self.drained

    def drain(self, drained: bool) -> None:
        """Lets it get no more prompts, or some again."""
        self.drained = drained
        self._metrics.server_drained.labels(self.name).set(drained)
        self._tell_change()

    @property
    def answers(self) -> bool:
        """Whether it answered the last probe, though it may run nothing."""
        return self._away_since is None and self.health is not Health.DOWN

    @property
    def away_s(self) -> float:
        """Seconds since it last answered a probe; 0 while it answers."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    @property
    def is_cleared(self) -> bool:
        """Whether the prompts that it had when it came back, and that no request waits for, were cancelled."""
        return self._cleared == self.arrivals

    def look_through(self) -> None:
        """The server may run prompts of ours that no request waits for: `is_cleared` is false until it was looked
        through.
        """
        self.arrivals += 1
        self._tell_change()

    def cleared(self, arrivals: int) -> None:
        """The prompts that the server had at this one of its `arrivals` were looked through."""
        self._cleared = arrivals
        self._news.set()

    @property
    def why_not(self) -> str:
        """Why it gets no prompts; "" if it gets some."""
        if self.ready and self.drained:
            return f"drained: POST /servers/{self.name}/resume gives it prompts again"
        return self.reason

    @property
    def takes_more(self) -> bool:
        """The queue decides how many prompts it takes."""
        return True

    @property
    def delay(self) -> str:
        """Why its prompts take long, as far as is known; otherwise ""."""
        return str(self.watcher.worker.silence or self.reason)

    @property
    def shelf(self) -> FileShelf:
        """The place for input files."""
        return self.client

    def _silent_s(self) -> float:
        silence = self.watcher.worker.silence
        return silence.seconds if silence is not None else 0.0

    def failed(self, error: ComfyUIError) -> None:
        """A request found it unreachable, or was refused: out of rotation until a probe succeeds."""
        if isinstance(error, ComfyUIDescriptorsError):
            return
        self._doubted = True
        self._set(Health.REFUSED if isinstance(error, ComfyUICredentialsError) else Health.DOWN, error.detail)
        self._look_again.set()

    def broken(self, reason: str, prompt_id: str) -> None:
        """It answers, but cannot run prompts until it is restarted; a restart has forgotten `prompt_id`, which
        failed.
        """
        self._fault = _Fault(reason, frozenset({prompt_id}))
        self._set(Health.BROKEN, reason)
        # This may be reported late, after the restart.
        self._perhaps_restarted = True
        self._look_again.set()

    def process_ended(self, death: Death) -> None:
        """Its process has ended: its prompts are lost, and fail at once."""
        self.deaths += 1
        self.last_death = death
        self.hold(f"ComfyUI ended: {death.how}")
        self.watcher.process_ended(f"ComfyUI ended: {death.how}")

    def abandon(self, reason: str) -> None:
        """Its process is not started again, so no prompt needs to wait for it. `release` undoes this."""
        self.abandoned = True
        self.hold(reason)
        self.watcher.give_up(reason)
        self._tell_change()

    def hold(self, reason: str) -> None:
        """Its own process does not serve, so another one may answer at its address. `release` undoes this."""
        self._hold, self._doubted = reason, True
        self._set(Health.DOWN, reason)

    def release(self) -> None:
        """Its own process serves."""
        self._hold, self.abandoned = "", False
        self._look_again.set()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Counts one more prompt of ours on this server."""
        self.in_flight += 1
        self._in_flight.inc()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._in_flight.dec()

    def look_again(self) -> None:
        """Lets it be probed now instead of at the next turn."""
        self._look_again.set()

    async def object_info(self, *, max_age_s: float = math.inf) -> JSON:
        """ComfyUI's node definitions, fetched again after each new connection, and when older than `max_age_s`.

        The lists of files in it (models, inputs) are as old as the answer.
        """
        return await self._definitions.get(max_age_s)

    @property
    def last_definitions(self) -> JSON | None:
        """Its last known node definitions, even while it is down; None if it never gave any."""
        return self._definitions.last

    def soon(self) -> asyncio.Timeout:
        """Limits a question about its nodes that others wait for: TimeoutError when it is not answered soon."""
        return asyncio.timeout(self._definitions.patience_s())

    async def find(self, prompt_id: str) -> HistoryEntry | QueueItem | None:
        """The prompt's history entry, or its place in the queue. Asks for history, queue, history, since one can become
        the other.
        """
        entry = await self.client.get_history(prompt_id)
        if entry is not None:
            return entry
        job = await self.client.get_job(prompt_id)
        if isinstance(job, QueueItem):
            return job
        if job is None and await self.client.get_queue_remaining():
            item = (await self.client.get_queue()).get(prompt_id)
            if item is not None:
                return item
        return await self.client.get_history(prompt_id)

    async def cancel(self, prompt_id: str) -> None:
        """Takes the prompt out of the queue or interrupts it, whichever it needs; never touches another caller's
        prompt.
        """
        if await self.client.cancel_job(prompt_id) is None:
            # This order is safe: between the two, a pending prompt can only begin to run.
            await self.client.delete_from_queue(prompt_id)
            await self.client.interrupt(prompt_id)

    def open_file(self, _prompt_id: str, file: OutputFile) -> AbstractAsyncContextManager[OpenBody]:
        """A file that a prompt made here; see `ComfyUIClient.view`."""
        return self.client.view(file.filename, file.subfolder, file.type)

    def running_frames(self) -> list[tuple[str, list[bytes]]]:
        """The prompt that runs, with its latest frames."""
        watch = self.watcher.running
        return [] if watch is None else [(watch.prompt_id, list(watch.latest.values()))]

    async def path_of(self, _prompt_id: str, _subfolder: str, _filename: str) -> Path | None:
        """The file is on the server."""
        return None

    def report(self, *, in_detail: bool) -> ServerReport:
        """See `report_of`."""
        given = {"drained": self.drained, "simulated": self.simulated}
        return report_of(self, self.watcher, **given, in_detail=in_detail)

    def wait_for_change(self) -> Coroutine[Any, Any, Literal[True]]:
        """Waits until its health changes after this call, or until it should be looked through."""
        return self._changed.wait()

    def _set(self, health: Health, reason: str = "") -> None:
        if self._hold:
            health, reason = Health.DOWN, self._hold
        was, was_new = self.health, self.is_new
        self.health, self.reason, self.is_new = health, reason, False
        if health is was and was_new:
            self._tell_change()
        if health is not was:
            log = self._log.info if health is Health.READY else self._log.warning
            log("comfyui.health", health=health.value, was=was.value, reason=reason or None)
            self._tell_change()
        if self._runs_prompts:
            self._metrics.server_up.labels(self.name).set(health is Health.READY)

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._news.set()

    async def _probe_loop(self) -> None:
        failures = 0
        last_id: str | None = None
        kind_known = was_connected = False
        while True:
            self._look_again.clear()
            connected = self.watcher.connected
            # Each connection has its own: one that broke and came back unseen is a different one.
            client_id = self.watcher.client_id if connected else None
            if connected and client_id != last_id:
                # It may have been restarted, with other nodes and models.
                self._definitions.forget()
                self.generation += 1
                self.look_through()
                # Its first connection is to the server that has just answered.
                kind_known, was_connected = kind_known and not was_connected, True
            self._perhaps_restarted |= client_id is None or client_id != last_id
            last_id = client_id
            if (connected and not self._doubted) or await self._answers():
                if self._away_since is not None or self.health is Health.STARTING:
                    if not connected and self.health is not Health.STARTING:
                        # It may be a different server, and no websocket will tell.
                        self._definitions.forget()
                        self.generation += 1
                    self.look_through()
                self._doubted, self._away_since = False, None
                if not kind_known:
                    await self._learn_kind()
                    kind_known = True
                failures = 0 if await self._judge() else failures + 1
            else:
                failures += 1
                kind_known = False
                self._away_since = self._away_since or time.monotonic()
            wait_s = None if connected else self._options.probe_unwatched_s
            if failures:
                wait_s = self._options.probe_backoff.delay_s(failures)
            await happens_within(self._look_again, wait_s)

    async def _learn_kind(self) -> None:
        """Asks once for each connection whether a simulation answers."""
        said: Any = None
        with contextlib.suppress(ComfyUIError, TimeoutError):
            async with asyncio.timeout(self._options.kind_within_s):
                said = (await self.client.system_stats()).get("system")
        self.simulated = isinstance(said, Mapping) and said.get("simulation") is True
        if self.simulated:
            self._log.info(
                "comfyui.simulation",
                detail="the server is a simulation of ComfyUI: its pictures do not come from a model",
            )

    async def _judge(self) -> bool:
        """It answers: finds out whether it runs prompts too. False if that is unknown, so that its state stays."""
        fault = self._fault
        worker = self.watcher.worker
        if fault is not None and fault.stalled and not (worker.stalled or worker.dead):
            self._fault = fault = None
        perhaps, self._perhaps_restarted = self._perhaps_restarted, False
        try:
            async with asyncio.timeout(self._options.probe_timeout_s):
                # Another prompt may have reported another fault meanwhile.
                if fault is not None and perhaps and not await self._remembers(fault) and self._fault is fault:
                    self._fault = None
                    worker.forget()
                if self._fault is None and (worker.stalled or worker.dead):
                    reason = _STALLED if worker.stalled else _DEAD
                    self._fault = _Fault(reason, frozenset(await self.client.get_queue()), stalled=True)
        except (ComfyUIError, TimeoutError):
            self._perhaps_restarted = True
            return False
        if self._fault is None:
            self._set(Health.READY)
        else:
            self._set(Health.BROKEN, self._fault.reason)
        return True

    async def _remembers(self, fault: _Fault) -> bool:
        if fault.stalled:
            return not fault.witnesses.isdisjoint(await self.client.get_queue())
        entries = [await self.client.get_history(prompt_id) for prompt_id in fault.witnesses]
        return any(entry is not None for entry in entries)

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self._options.probe_timeout_s):
                self.watcher.probed(await self.client.get_queue_remaining())
        except TimeoutError:
            detail = f"no answer within {self._options.probe_timeout_s:g} s"
        except ComfyUICredentialsError as error:
            self._set(Health.REFUSED, error.detail)
            return False
        except ComfyUIError as error:
            detail = error.detail
        else:
            return True
        self._set(Health.STARTING if self.health is Health.STARTING else Health.DOWN, detail)
        return False
