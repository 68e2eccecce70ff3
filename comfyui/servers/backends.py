"""`Backend`: one ComfyUI server with all that is known of it. `BackendPool`: which one gets the next prompt.

A backend is in rotation or not. Its shared websocket tells at no cost that it is up; only without one is it asked, with
back-off while it does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import structlog

from comfyui.address import ServerAccess
from comfyui.client import ComfyUIClient, backoff_s
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUICredentialsError,
    ComfyUIDescriptorsError,
    ComfyUIError,
)
from comfyui.metrics import Metrics
from comfyui.offload import in_thread
from comfyui.replies import JSON, HistoryEntry, QueueItem
from comfyui.servers.process import Death
from comfyui.servers.prompt_worker import PromptWorker
from comfyui.servers.watcher import CompletionWatcher
from comfyui.workflows.preflight import preflight

_NO_ACCESS: Mapping[str, ServerAccess] = {}
_PROBE_START_S = 0.25
_PROBE_MAX_S = 3.0
_PROBE_UP_S = 5.0
# A server that does not soon say what it is, is taken for a ComfyUI.
_KIND_WITHIN_S = 1.0
# Of the smallest request there is: who does not answer it in this time does not take a prompt, either.
_PROBE_TIMEOUT_S = 5.0
_MOVE_AFTER_S = 5.0
_STALLED = "its prompt worker does not run: prompts wait and none is executed; restart ComfyUI"
_DEAD = "its prompt worker counts as dead (DEAD_AFTER): a prompt runs and no event comes; restart ComfyUI"
CHOICE_PATIENCE_S = 2.0
"""How long a new prompt waits for a server to come up: a moment, since its caller can try again."""
# What another server may have: the rest is wrong with the workflow wherever it runs.
_SERVER_LACKS = frozenset({"missing_node_type", "missing_model_file", "missing_input_file", "value_not_in_list"})
# Files come and go without a word: before no server is able, look once with lists no older than this.
_FRESH_S = 5.0
# How long after it was asked a server may take to say what it has: some seconds with many nodes on a slow disk. A wrong
# guess is a refused workflow; waiting costs once, since those who come later count from the same question.
_SAY_WITHIN_S = 5.0


class Health(enum.Enum):
    """One state feeds every probe."""

    STARTING = "starting"
    READY = "connected"
    DOWN = "unreachable"
    REFUSED = "refused"
    """It answers, and not to us: it wants other credentials."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a server that answers runs no prompts, and by which prompts of that time its restart is told.

    Nothing that ComfyUI answers says when it was started. But its queue and history live in its memory: as long as it
    knows one of these, it was not restarted, however often its connection was.
    """

    reason: str
    witnesses: frozenset[str]
    stalled: bool = False
    """Its prompt worker is dead: the witnesses are in its queue, from where it takes nothing."""


class _NodeDefinitions:
    """What one server says of its nodes: asked once for all who want it, and kept."""

    def __init__(self, client: ComfyUIClient) -> None:
        self._client = client
        self._known: JSON | None = None
        self._known_at = 0.0
        self._asking: asyncio.Task[JSON] | None = None
        self._asked_at = 0.0
        self._tasks: set[asyncio.Task[JSON]] = set()

    async def get(self, max_age_s: float) -> JSON:
        if self._known is not None and time.monotonic() - self._known_at <= max_age_s:
            return self._known
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name=f"definitions {self._client.name}")
            self._asked_at = time.monotonic()
            self._tasks.add(self._asking)
            self._asking.add_done_callback(self._ended)
        # It goes on without whoever gives up waiting: the answer is wanted by others, and later.
        return await asyncio.shield(self._asking)

    def patience_s(self) -> float:
        """How long to wait for an answer that a choice of servers depends on."""
        waited_s = time.monotonic() - self._asked_at if self._asking is not None else 0.0
        return max(0.0, _SAY_WITHIN_S - waited_s)

    def forget(self) -> None:
        """What is known, and what is being answered now."""
        self._known = self._asking = None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self) -> JSON:
        try:
            answer = await self._client.object_info()
            if self._asking is asyncio.current_task():
                self._known, self._known_at = answer, time.monotonic()
            return answer
        finally:
            if self._asking is asyncio.current_task():
                self._asking = None

    def _ended(self, task: asyncio.Task[JSON]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be waiting any more


class Backend:
    """One ComfyUI server. Open it with ``async with``; it owns its client and its watcher."""

    def __init__(
        self, client: ComfyUIClient, watcher: CompletionWatcher, metrics: Metrics, *, runs_elsewhere: bool = False
    ) -> None:
        self.client = client
        self.watcher = watcher
        self.health = Health.STARTING
        self.reason = "not reached yet"
        self.in_flight = 0
        self.simulated = False
        """Whether it says of itself that it is a simulation, as the embedded engine does."""
        # What such a server says of itself is not true of where the prompts run.
        self._runs_elsewhere = runs_elsewhere
        self._metrics = metrics
        self._in_flight = metrics.in_flight.labels(client.name)
        metrics.silent_seconds.labels(client.name).set_function(self._silent_s)
        self._log = structlog.get_logger(__name__).bind(server=client.name)
        self._changed = asyncio.Event()
        self._look_again = asyncio.Event()
        self._definitions = _NodeDefinitions(client)
        self._doubted = False
        self._fault: _Fault | None = None
        self._perhaps_restarted = False
        self.on_connected: Callable[[], None] = lambda: None
        """Called when it is reached for the first time or anew: what was known of it may not hold any more."""
        self._veto = ""
        self.last_death: Death | None = None
        self.deaths = 0
        """How often its process was seen to end."""
        self.abandoned = False
        """Its process ended and is not started again, as the one who started it knows."""
        self._hold = ""
        self._down_since: float | None = None
        self._moved: set[str] = set()
        self._cancelling: asyncio.Task[None] | None = None
        self.others_ready: Callable[[], bool] = lambda: False
        """Whether another server could take over; the pool knows."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.client)
            stack.push_async_callback(self._definitions.close)
            stack.push_async_callback(self._stop_cancelling)
            self.watcher.on_change = self._look_again.set
            await stack.enter_async_context(self.watcher)
            prober = asyncio.create_task(self._probe_loop(), name=f"probe {self.name}")
            stack.push_async_callback(_stop, prober)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def load(self) -> int:
        """How many prompts are before a new one: ComfyUI's own figure, or ours where that is ahead of it."""
        return max(self.watcher.queue_remaining, self.in_flight)

    @property
    def ready(self) -> bool:
        return self.health is Health.READY and self.watcher.crashed is None

    def _silent_s(self) -> float:
        silence = self.watcher.worker.silence
        return silence.seconds if silence is not None else 0.0

    def failed(self, error: ComfyUIError) -> None:
        """A request found it unreachable, or was refused: out of rotation until a probe gets through."""
        if isinstance(error, ComfyUIDescriptorsError):
            return
        self._doubted = True
        self._set(Health.REFUSED if isinstance(error, ComfyUICredentialsError) else Health.DOWN, error.detail)
        self._look_again.set()

    def broken(self, reason: str, prompt_id: str) -> None:
        """It answers, and cannot run prompts until it is restarted, and so has forgotten `prompt_id`, which failed."""
        self._fault = _Fault(reason, frozenset({prompt_id}))
        self._set(Health.BROKEN, reason)
        # This may be told late, after the restart.
        self._perhaps_restarted = True
        self._look_again.set()

    def process_ended(self, death: Death) -> None:
        """Its process has ended, as the one who starts it knows: what it had is lost, and is told so at once."""
        self.deaths += 1
        self.last_death = death
        self.hold(f"ComfyUI ended: {death.how}")
        self.watcher.process_ended(f"ComfyUI ended: {death.how}")

    def abandon(self, reason: str) -> None:
        """Nobody starts it again: nobody needs to wait for it. `release` lifts it."""
        self.abandoned = True
        self.hold(reason)
        self.watcher.give_up(reason)
        self._tell_change()

    def hold(self, reason: str) -> None:
        """Its own process does not serve, so that whatever answers at its address is another. `release` lifts it."""
        self._hold, self._doubted = reason, True
        self._set(Health.DOWN, reason)

    def release(self) -> None:
        """Its own process serves."""
        self._hold, self.abandoned = "", False
        self._look_again.set()

    def vetoed(self, reason: str) -> None:
        """Behind the server is somebody who refuses prompts; "" when not any more. No reconnect ends it."""
        was, self._veto = self._veto, reason
        if reason:
            self._set(Health.BROKEN, reason)
        elif was and self.reason == was:
            self._set(Health.READY)

    @contextmanager
    def working(self) -> Iterator[None]:
        """One prompt of ours more is on this server."""
        self.in_flight += 1
        self._in_flight.inc()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._in_flight.dec()

    def look_again(self) -> None:
        """Have it probed now and not at the next turn."""
        self._look_again.set()

    async def object_info(self, *, max_age_s: float = math.inf) -> JSON:
        """ComfyUI's node definitions, fetched once until ComfyUI is connected anew, or when older than wanted.

        Lists of files in it (models, inputs) are as old as the answer.
        """
        return await self._definitions.get(max_age_s)

    def soon(self) -> asyncio.Timeout:
        """Around a question about its nodes that others wait for: TimeoutError when it is not answered soon."""
        return asyncio.timeout(self._definitions.patience_s())

    async def has_all_of(self, prompt: Mapping[str, Any], *, max_age_s: float = math.inf) -> bool | None:
        """Whether it has the workflow's nodes, models and files; None when it does not say, or not soon."""
        try:
            async with self.soon():
                definitions = await self.object_info(max_age_s=max_age_s)
        except (ComfyUIError, TimeoutError):
            return None
        problems = await in_thread(preflight, prompt, definitions)
        return not any(problem.code in _SERVER_LACKS for problem in problems)

    async def find(self, prompt_id: str) -> HistoryEntry | QueueItem | None:
        """Its history entry, or its place in the queue: history, queue, history, since one can become the other."""
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
        """Take it out of the queue or interrupt it, whichever it needs; somebody else's prompt is never touched."""
        if await self.client.cancel_job(prompt_id) is None:
            # In this order: between the two a pending one can only begin to run.
            await self.client.delete_from_queue(prompt_id)
            await self.client.interrupt(prompt_id)

    def wait_for_change(self) -> Coroutine[Any, Any, Literal[True]]:
        """Until its health changes after this call."""
        return self._changed.wait()

    def _set(self, health: Health, reason: str = "") -> None:
        if self._hold:
            health, reason = Health.DOWN, self._hold
        elif health is Health.READY and self._veto:
            health, reason = Health.BROKEN, self._veto
        if health is not self.health:
            log = self._log.info if health is Health.READY else self._log.warning
            log("comfyui.health", health=health.value, was=self.health.value, reason=reason or None)
            self._tell_change()
        self.health, self.reason = health, reason
        self._metrics.server_up.labels(self.name).set(health is Health.READY)

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _probe_loop(self) -> None:
        failures = 0
        last_id: str | None = None
        kind_known = was_connected = False
        while True:
            self._look_again.clear()
            connected = self.watcher.connected
            # Each connection has its own: one that broke and came back unseen is another one.
            client_id = self.watcher.client_id if connected else None
            if connected and client_id != last_id:
                # It may have been restarted, with other nodes and models.
                self._definitions.forget()
                self.on_connected()
                # Its first connection is to the server that has just answered.
                kind_known, was_connected = kind_known and not was_connected, True
            self._perhaps_restarted |= client_id is None or client_id != last_id
            last_id = client_id
            if (connected and not self._doubted) or await self._answers():
                self._doubted, self._down_since = False, None
                if not kind_known:
                    await self._learn_kind()
                    kind_known = True
                failures = 0 if await self._judge() else failures + 1
                if self._moved and (self._cancelling is None or self._cancelling.done()):
                    # Beside the probing: it may hang, and take as long as all tries together.
                    self._cancelling = asyncio.create_task(self._cancel_moved(), name=f"cancel moved {self.name}")
            else:
                failures += 1
                kind_known = False
                self._move_when_gone()
            wait_s = None if connected else _PROBE_UP_S
            if failures:
                wait_s = backoff_s(failures, start_s=_PROBE_START_S, max_s=_PROBE_MAX_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._look_again.wait()

    async def _learn_kind(self) -> None:
        """Asks once for each connection whether a simulation answers."""
        if self._runs_elsewhere:
            return
        said: Any = None
        with contextlib.suppress(ComfyUIError, TimeoutError):
            async with asyncio.timeout(_KIND_WITHIN_S):
                said = (await self.client.system_stats()).get("system")
        self.simulated = isinstance(said, Mapping) and said.get("simulation") is True
        if self.simulated:
            self._log.info("comfyui.simulation", detail="a simulation answers: its pictures are not a model's")

    async def _judge(self) -> bool:
        """It answers: does it run prompts, too? False when that could not be found out, so that it stays as it is."""
        fault = self._fault
        worker = self.watcher.worker
        if fault is not None and fault.stalled and not (worker.stalled or worker.dead):
            self._fault = fault = None
        perhaps, self._perhaps_restarted = self._perhaps_restarted, False
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                # Meanwhile another prompt may have told of another fault.
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

    def _move_when_gone(self) -> None:
        """Give up what waits on a server that stays away, once another one can do it instead."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since >= _MOVE_AFTER_S and self.others_ready():
            self.watcher.give_up(f"{self.name} does not answer any more")

    def moved(self, prompt_id: str) -> None:
        """Another server was given the prompt: what this one still has of it is cancelled once it answers."""
        self._moved.add(prompt_id)
        self._look_again.set()

    def takes(self, prompt_id: str) -> None:
        """It gets the prompt (again): what it has under this id is wanted."""
        self._moved.discard(prompt_id)

    async def _cancel_moved(self) -> None:
        """A server that was only cut off still has the prompts that others ran meanwhile."""
        while self._moved:
            prompt_id = self._moved.pop()
            try:
                await self.cancel(prompt_id)
            except ComfyUIError as error:
                self._log.warning("prompt.cancel_failed", prompt_id=prompt_id, reason="moved", detail=error.detail)

    async def _stop_cancelling(self) -> None:
        if self._cancelling is not None:
            await _stop(self._cancelling)

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                self.watcher.queue_remaining = await self.client.get_queue_remaining()
        except TimeoutError:
            detail = f"no answer within {_PROBE_TIMEOUT_S:g} s"
        except ComfyUICredentialsError as error:
            self._set(Health.REFUSED, error.detail)
            return False
        except ComfyUIError as error:
            detail = error.detail
        else:
            return True
        self._set(Health.STARTING if self.health is Health.STARTING else Health.DOWN, detail)
        return False


class BackendPool:
    """All ComfyUI servers of a gateway or worker. Open it with ``async with``; it owns them."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        if not backends:
            raise ValueError("at least one ComfyUI server is needed")
        self.backends = tuple(backends)
        for backend in self.backends:
            backend.others_ready = self._others_ready(backend)
        self._stack = AsyncExitStack()

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str],
        *,
        http_timeout_s: float = 30.0,
        http_retries: int = 3,
        poll_interval_s: float = 1.0,
        stalled_after_s: float = 60.0,
        silent_after_s: float = 600.0,
        dead_after_s: float = 0.0,
        metrics: Metrics | None = None,
        name: str = "",
        access: Mapping[str, ServerAccess] = _NO_ACCESS,
    ) -> Self:
        """A pool over these addresses (``host:port`` or URLs). Nothing is sent before it is opened.

        `name`: by which people know the server, where there is one that is not its address and runs prompts elsewhere.
        `access`: by address, what is needed beside it.
        """
        metrics = metrics or Metrics()

        def backend(address: str) -> Backend:
            client = ComfyUIClient(
                address,
                timeout_s=http_timeout_s,
                retries=http_retries,
                metrics=metrics,
                lean=True,
                name=name,
                access=access.get(address),
            )
            worker = PromptWorker(
                stalled_after_s=stalled_after_s, silent_after_s=silent_after_s, dead_after_s=dead_after_s
            )
            watcher = CompletionWatcher(client, poll_interval_s=poll_interval_s, worker=worker, metrics=metrics)
            return Backend(client, watcher, metrics, runs_elsewhere=bool(name))

        return cls([backend(address) for address in addresses])

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for backend in self.backends:
                await stack.enter_async_context(backend)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    @property
    def ready(self) -> list[Backend]:
        return [backend for backend in self.backends if backend.ready]

    def _others_ready(self, backend: Backend) -> Callable[[], bool]:
        return lambda: any(other.ready for other in self.backends if other is not backend)

    def named(self, name: str) -> Backend | None:
        return next((backend for backend in self.backends if backend.name == name), None)

    async def choose(
        self, *, patience_s: float, avoid: Collection[Backend] = (), prompt: Mapping[str, Any] | None = None
    ) -> Backend:
        """The server in rotation with the least work, among those that have what `prompt` needs (when it is given).

        Those to `avoid` are taken only when there is no other. Waits up to `patience_s` for one to come up, then raises
        `ComfyUIConnectionError` with each one's reason.
        """
        deadline = time.monotonic() + patience_s
        while True:
            candidates = self.ready
            if len(candidates) > 1:
                candidates = [backend for backend in candidates if backend not in avoid] or candidates
                candidates = await self._able(candidates, prompt)
            if candidates:
                return min(candidates, key=lambda backend: backend.load)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or all(backend.abandoned for backend in self.backends):
                raise ComfyUIConnectionError(self.why_not_ready())
            await self._wait_for_change(left_s)

    async def _able(self, candidates: list[Backend], prompt: Mapping[str, Any] | None) -> list[Backend]:
        """Those that have what the workflow needs; else those that do not say, which may have it; else all of them,
        since ComfyUI says best what is missing."""
        if prompt is None or len(candidates) < 2:
            return candidates
        for max_age_s in (math.inf, _FRESH_S):
            said = await asyncio.gather(*(backend.has_all_of(prompt, max_age_s=max_age_s) for backend in candidates))
            if any(said):
                return [backend for backend, has_all in zip(candidates, said, strict=True) if has_all]
        return [backend for backend, has_all in zip(candidates, said, strict=True) if has_all is None] or candidates

    async def _wait_for_change(self, timeout_s: float) -> None:
        tasks = [asyncio.create_task(backend.wait_for_change()) for backend in self.backends]
        try:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def why_not_ready(self, *, in_detail: bool = True) -> str:
        """One sentence for each server that is not in rotation; not `in_detail`: how many are in which state."""
        if not in_detail:
            counts = Counter(backend.health for backend in self.backends if not backend.ready)
            # One that is connected and not ready: our own watcher of it has failed.
            said = (f"{count} {'failed' if at is Health.READY else at.value}" for at, count in counts.items())
            return f"ComfyUI servers: {', '.join(said)}"
        return "; ".join(
            backend.reason if backend.name in backend.reason else f"{backend.name}: {backend.reason or 'not ready'}"
            for backend in self.backends
            if not backend.ready
        )

    def report(self, *, in_detail: bool = True) -> list[dict[str, Any]]:
        """Per-server state for `/health`, from what is known: it asks nobody. Not `in_detail`: no names, no reasons."""
        return [
            (
                {"server": backend.name, "reason": backend.reason or None, "silent": _shown(backend.watcher.worker)}
                if in_detail
                else {}
            )
            | {
                "state": backend.health.value,
                "websocket": "connected"
                if backend.watcher.connected
                else "silent"
                if backend.watcher.silent
                else "disconnected",
                "queue_remaining": backend.watcher.queue_remaining,
                "in_flight": backend.in_flight,
                "simulation": backend.simulated,
            }
            for backend in self.backends
        ]


def _shown(worker: PromptWorker) -> dict[str, Any] | None:
    """The prompt that runs without any event."""
    silence = worker.silence
    return None if silence is None else {"prompt_id": silence.prompt_id, "seconds": round(silence.seconds, 1)}


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
