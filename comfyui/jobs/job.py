"""`Job`: one prompt from its first request to its end. Its methods are the only ones that change it.

The handler says who waits for the job and how it ended; an executor says how far it is, through the narrower protocol
`comfyui.executors.assignment.Assignment`. Everyone may read its attributes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from copy import copy
from typing import Any, Literal

import structlog

from comfyui.events import (
    Event,
    Executed,
    Executing,
    ExecutionCached,
    ExecutionStart,
    Preview,
    ProgressState,
    QueuePosition,
)
from comfyui.exceptions import ComfyUIError, ComfyUIPromptLostError, ComfyUITaskCancelledError
from comfyui.inputs.content import BroughtFiles
from comfyui.jobs.attempt_log import JobAttempts
from comfyui.jobs.entry import Entry
from comfyui.jobs.journal.records import NewJob, State
from comfyui.models import PromptRequest, PromptResult
from comfyui.named_call import NamedCall
from comfyui.outputs.history import files_of
from comfyui.owners import place_of
from comfyui.servers.server import Server
from comfyui.servers.watcher import Watch

_log = structlog.get_logger(__name__)

# Events that say how it is, and not only what happened: a listener that comes later is told the last one of each kind.
_HOLDS_ON = frozenset({QueuePosition, ExecutionCached, Executing, ProgressState, Preview})

Reason = Literal["timeout", "disconnect", "request", "shutdown", "restart", "orphan"]
"""Why a prompt is cancelled."""
Listener = Callable[[Event], None]


class Job:
    """One prompt.

    Attributes:
        request: the request to run. None while the job only watches a prompt of another client.
        files: further inputs of the request, which the job holds while its task needs them.
        fingerprint: of the request, if the caller chose the id, so that ComfyUI may know the prompt from before.
            Without a request: the one that ComfyUI was sent.
        workflow: in API format, once it is known.
        cancelled_before: the same id was cancelled a moment ago, and ComfyUI may not have ended that prompt yet.
        backend: the server that has the prompt, as soon as that is decided.
        left_on: names of servers that may still have an attempt that is over for us.
        watch: the watch of the present try, while the prompt is waited for on a server.
        begun: the present attempt has begun to run.
        alone: a server died while the prompt had begun there, or was being sent there. It may cause that again, so it
            is placed only on a server without other prompts.
        losses: how many attempts ComfyUI lost after they had begun, over all ways in which they can be lost.
        entry: writes each step into the journal; None while the job only watches.
        node_errors: what ComfyUI said when it took the prompt, of outputs that it leaves out.
        awaits_verdict: whether a caller of ComfyUI's own endpoint waits for a server's answer to the prompt. If the
            server refuses it, the prompt was no job.
        began_at: when ComfyUI began to run the present try, on the event loop's clock.
        waiters: how many requests wait for the outcome now.
        joined: how many have waited or wait.
        cancel_wanted: why a request that left wanted the prompt cancelled. It could not have that while others waited;
            the last of them takes the prompt with it.
    """

    def __init__(
        self,
        prompt_id: str,
        request: PromptRequest | None = None,
        files: BroughtFiles | None = None,
        fingerprint: str | None = None,
        *,
        entry: Entry | None = None,
        cancelled_before: bool = False,
    ) -> None:
        self.prompt_id = prompt_id
        self.entry = entry
        self.began_at: float | None = None
        self.request = request
        self.files = files
        self.fingerprint = fingerprint
        self.workflow: Mapping[str, Any] | None = request.prompt if request else None
        self.cancelled_before = cancelled_before
        self.state = State.RUNNING if entry is not None and entry.state is State.RUNNING else State.QUEUED
        self.begun = entry is not None and entry.begun
        self.alone = entry is not None and entry.alone
        self.backend: Server | None = None
        self.left_on: set[str] = set()
        self.watch: Watch | None = None
        self.losses = entry.losses if entry else 0
        self.node_errors: Mapping[str, Any] = {}
        self.awaits_verdict = False
        self.waiters = self.joined = 0
        self.cancel_wanted: Reason | None = None
        self._outcome: asyncio.Future[PromptResult] = asyncio.get_running_loop().create_future()
        self._listeners: set[Listener] = set()
        self._latest: dict[type[Event], Event] = {}
        self._shown: set[str] = set()
        self._executed: dict[str, Executed] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._asking: set[asyncio.Future[None]] = set()
        self._looks: set[Callable[[], None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._limit: asyncio.Timeout | None = None
        self._cancelled_with: tuple[State, ComfyUIError] | None = None
        self._max_execution_s = 0.0
        self._has_started = self.state is State.RUNNING

    @property
    def file_names(self) -> Collection[str]:
        """The names of the further inputs."""
        return self.files.paths if self.files else ()

    @property
    def perhaps_known(self) -> bool:
        """Whether ComfyUI may have the prompt from before: the caller chose the id, or another attempt reached it."""
        entry = self.entry
        return self.fingerprint is not None if entry is None else entry.chosen or entry.was_placed

    @property
    def mark(self) -> Mapping[str, str]:
        """Stored with the prompt by ComfyUI: its owner, for the check of a server that was away; and the fingerprint of
        its body, because a caller's id may be used again with another one.
        """
        marks = {} if self.fingerprint is None else {"fingerprint": self.fingerprint}
        if self.entry is not None:
            marks |= {"journal": self.entry.journal_id, "attempt": self.entry.fence.mark}
            marks |= {"id": "chosen"} if self.entry.chosen else {}
        return marks

    @property
    def placed_before(self) -> bool:
        """Whether this run was placed before, so that a prompt in ComfyUI with its id belongs to this run."""
        return self.entry is not None and self.entry.was_placed

    def has_shown(self, place: str) -> bool:
        """Whether a node of an owner's prompt has already reported this file: see `comfyui.owners.place_of`."""
        return place in self._shown

    @property
    def server_before(self) -> str | None:
        """The server of the present attempt, from the journal."""
        return None if self.entry is None else self.entry.server

    def is_on(self, server: str) -> bool:
        """Whether the prompt belongs on that server. Only this job knows of a prompt that it merely watches."""
        if self.entry is None:
            return True
        on = self.server_before if self.backend is None else self.backend.name
        return on == server and server not in self.left_on

    @property
    def shown_number(self) -> float:
        """The number for ComfyUI's clients; 0 if it has none yet."""
        return 0.0 if self.entry is None else self.entry.shown_number

    @property
    def attempts(self) -> JobAttempts:
        """How far the present attempt is at a platform, in the journal."""
        if self.entry is None:
            raise RuntimeError("a job that only watches is submitted to no platform")
        return self.entry.attempts

    @property
    def owner(self) -> str | None:
        """The owner; None without keys, and for a prompt that is only watched."""
        return None if self.entry is None else self.entry.owner

    @property
    def call(self) -> NamedCall | None:
        """The call of its named workflow, from the journal or the request."""
        noted = None if self.entry is None else self.entry.call
        return self.request.call if noted is None and self.request is not None else noted

    @property
    def others_are_hidden(self) -> bool:
        """Whether the caller may not join a prompt that ComfyUI has, and that no journal has as the caller's."""
        return self.entry is not None and self.entry.others_are_hidden

    @property
    def stays(self) -> bool:
        """Whether it goes on after all requests have left."""
        return self.entry is not None and self.entry.kind == "async"

    @property
    def may_be_asked_for(self) -> bool:
        """Whether its caller chose the id, and can return with it."""
        return self.entry is not None and self.entry.chosen

    def returns_within(self, reattach_s: float) -> float:
        """How long it waits for a caller who has left. `reattach_s`: if the caller chose the id."""
        if self.entry is None:
            return 0.0
        return reattach_s if self.entry.chosen else self.entry.returns_s

    @property
    def started(self) -> bool:
        """Whether ComfyUI began to run it."""
        return self._has_started

    @property
    def has_task(self) -> bool:
        return self._task is not None

    async def keep(self, new: NewJob, first_s: float | None) -> None:
        """The job goes on even if all requests leave. Returns when it is committed as the async job `new`.

        `first_s` is how long it may take until it starts. Raises `JournalError` if it could not be changed.
        """
        if self.entry is None or self.stays:
            return
        await self.entry.keep(new)
        if self._limit is None or self._limit.expired() or self.ended:
            return
        with contextlib.suppress(RuntimeError):  # the limited part is over: the result is being delivered
            if self.begun:
                self._limit_from_start(self._limit)
            else:
                self._limit.reschedule(None if first_s is None else asyncio.get_running_loop().time() + first_s)

    # The task

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as the job's task; it calls `let_go` as its last step."""
        self._task = asyncio.create_task(work, name=f"prompt {self.prompt_id}")
        self._hold_files(self._task)

    def adopt(
        self, request: PromptRequest, files: BroughtFiles | None, fingerprint: str | None, entry: Entry | None = None
    ) -> None:
        """Turn a job that only watches into one that this request owns: it is submitted if ComfyUI does not know it."""
        if self.request is None:
            self.request, self.files, self.fingerprint = request, files, fingerprint
            self.entry = self.entry or entry
            self.workflow = self.workflow or request.prompt
            if self._task is not None:
                self._hold_files(self._task)

    def stop(self) -> None:
        """Cancels the task, if it still runs."""
        if self._task is not None:
            self._task.cancel()

    async def stopped(self) -> None:
        """Cancel the task, and wait until it has ended."""
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait([task])

    def let_go(self) -> None:
        """Drop what refers back to the job when its task ends, so that the garbage collector has no work."""
        self._task = self.watch = self._limit = None

    def _hold_files(self, task: asyncio.Task[None]) -> None:
        if (files := self.files) is not None:
            files.hold()
            task.add_done_callback(lambda _: files.release())

    # Reports of an executor

    async def waits(self) -> None:
        """It waits for its turn in our queue. Returns and raises as `Entry.waits` does."""
        self._answer()
        if self.entry is not None:
            await self.entry.waits(self.request, self.fingerprint)

    def place_now(self, server: str) -> None:
        """It is about to go to `server`. See `Entry.place_now`."""
        if self.entry is not None and self.request is not None:
            self.entry.place_now(server, self.request, self.fingerprint)

    async def placed(self, backend: Server) -> None:
        """`backend` is the server that has the prompt, or is about to get it.

        Returns when that is committed, if the job outlives this process. Raises as `Entry.placed` does.
        """
        self.backend, self.began_at = backend, None
        self.left_on.discard(backend.name)
        if self.stays and self.begun and self._limit is not None and not self._limit.expired():
            self._limit.reschedule(None)  # until it begins again
        self.begun = False
        if self.entry is not None:
            await self.entry.placed(backend.name, self.request, self.fingerprint)

    async def attached(self, backend: Server) -> None:
        """`backend` has the prompt from before. See `placed`."""
        self.backend = backend
        self.left_on.discard(backend.name)
        if self.entry is not None:
            await self.entry.attached(backend.name, self.request, self.fingerprint)

    def move(self, turn: float | None) -> None:
        """See `Entry.move`."""
        if self.entry is not None:
            self.entry.move(turn)

    def put_back(self) -> None:
        """The attempt came to nothing, and the job waits in our queue again."""
        self._answer()
        self.backend = None
        if self.entry is not None:
            self.entry.put_back()

    def accepted(self, node_errors: Mapping[str, Any]) -> None:
        """ComfyUI has taken the prompt, without the outputs that `node_errors` are about."""
        self.node_errors = node_errors
        self._answer()

    def watched(self, watch: Watch) -> None:
        """`watch` is how this try waits for the prompt."""
        self.watch = watch

    def found(self, workflow: Mapping[str, Any]) -> None:
        """ComfyUI has the prompt already, with this workflow."""
        self.workflow = workflow

    def identified(self, fingerprint: str) -> None:
        """ComfyUI was sent the prompt with this fingerprint: requests that join later are compared with it."""
        self.fingerprint = fingerprint

    def suspect(self, *, ended_comfyui: bool) -> None:
        """The server died while it had the prompt, or was being sent it. `ended_comfyui`: whether this prompt probably
        caused it; it then counts as begun.
        """
        self.alone = True
        self.begun = self.begun or ended_comfyui
        if self.entry is not None:
            self.entry.suspect(begun=self.begun)

    def leaves(self, server: str) -> None:
        """The attempt on that server is over for us, though the server may still have it."""
        self.left_on.add(server)

    def lost(self, times: int) -> None:
        """ComfyUI has lost the prompt this many times in all, as far as is known."""
        self.losses = max(self.losses, times)

    @property
    def followed(self) -> bool:
        """Whether anyone listens to published events."""
        return bool(self._listeners)

    @property
    def collects(self) -> bool:
        """Whether the outputs of nodes are kept until the end, for callers that ask for the job's state."""
        return self.stays

    def publish(self, event: Event) -> None:
        """Tell all listeners, and keep what holds on for those that come later."""
        kind = type(event)
        if kind is ExecutionStart:
            self.began_at = asyncio.get_running_loop().time()
            self._latest.clear()
            self._executed.clear()
            self._start()
        elif kind in _HOLDS_ON:
            self._latest.pop(kind, None)
            self._latest[kind] = event
        elif isinstance(event, Executed):
            if self.collects:
                self._executed[event.node] = event
                for look in self._looks:
                    look()
            if self.owner is not None:
                self._shown.update(_places_in(event))
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                # One reader's trouble with an event must not end the watcher that all prompts share.
                self._listeners.discard(listener)
                _log.exception("listener.failed", prompt_id=self.prompt_id)

    def _start(self) -> None:
        """ComfyUI runs it: it began now, or before this process took it up."""
        if self.ended:
            return
        if self.state is State.QUEUED:
            self.state, self._has_started = State.RUNNING, True
        if not self.begun:
            self.begun = True
            if self.entry is not None:
                self.entry.started()
        if self.stays and self._limit is not None and not self._limit.expired():
            self._limit_from_start(self._limit)

    def _limit_from_start(self, limit: asyncio.Timeout) -> None:
        began = self.entry.started_at if self.entry is not None else None
        ran_s = max(0.0, time.time() - (began or math.inf))
        limit.reschedule(asyncio.get_running_loop().time() + self._max_execution_s - ran_s)

    def limited(self, first_s: float | None, max_execution_s: float) -> asyncio.Timeout:
        """How long the task may take: `first_s` in all; of a job that stays, until it starts, and then so long again.

        Use it without a name: a frame that is left by an exception would keep it, and it keeps the task.
        """
        self._limit, self._max_execution_s = asyncio.timeout(first_s), max_execution_s
        return self._limit

    def made(self) -> list[Executed]:
        """Reports of nodes about their outputs, if they are kept."""
        return list(self._executed.values())

    def latest(self) -> list[Event]:
        """The lasting events, oldest first."""
        if self.watch is not None:
            self.watch.catch_up()
        return [*self._latest.values(), *self._executed.values()]

    # Requests that wait

    def join(self, listener: Listener | None = None) -> None:
        """One more request waits. `listener` gets the lasting events that it missed, and then each event."""
        self.waiters += 1
        self.joined += 1
        if listener is None:
            return
        for event in self.latest():
            listener(event)
        self._listeners.add(listener)

    def leave(self, listener: Listener | None = None, *, cancel: Reason | None = None) -> None:
        """One request no longer waits. `cancel`: why it wants the prompt cancelled, if it does."""
        self.waiters -= 1
        self.cancel_wanted = cancel or self.cancel_wanted
        if listener is not None:
            self._listeners.discard(listener)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the outcome; whether there is one. `asyncio.wait` took three times as long, and two turns more."""
        if self.ended:
            return True
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _set, woken)
        self._waiting.add(woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._waiting.discard(woken)
        return self.ended

    def follow_outputs(self, look: Callable[[], None]) -> None:
        """Calls `look` now, each time that a node has reported an output, and once there is an outcome."""
        self._looks.add(look)
        look()

    def unfollow_outputs(self, look: Callable[[], None]) -> None:
        """Stops the calls of `look`."""
        self._looks.discard(look)

    # The verdict

    def stop_asking(self) -> None:
        """Its caller no longer waits for a server's answer: it is a job, whatever the answer is."""
        self._answer()

    def ask(self) -> None:
        """A caller waits for a server's answer to the prompt."""
        self.awaits_verdict = True

    async def verdict(self) -> None:
        """Returns once a server has taken or refused the prompt, or it has to wait for its turn after all."""
        if self.awaits_verdict and not self.ended:
            asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._asking.add(asked)
            try:
                await asked
            finally:
                self._asking.discard(asked)

    def _answer(self) -> None:
        self.awaits_verdict = False
        for asked in self._asking:
            _set(asked)

    # The outcome

    @property
    def ended(self) -> bool:
        """Whether there is an outcome. The task may still run, to cancel or to clean up."""
        return self._outcome.done()

    def result(self) -> PromptResult:
        """The result of a job that has ended. Raises the `ComfyUIError` that it ended with."""
        if (error := self._outcome.exception()) is not None:
            raise copy(error)  # the traceback of the raised error has this job in it
        return self._outcome.result()

    def finish(self, result: PromptResult, kept: bytes | None = None) -> None:
        """End the job with its result, unless it has ended already. `kept`: see `Entry.succeeded`."""
        if not self.ended:
            if self.entry is not None:
                self.entry.succeeded(result, self.request, self.fingerprint, kept)
            self._outcome.set_result(result)
            self._end(State.SUCCEEDED)

    def fail(self, error: ComfyUIError) -> None:
        """End the job with an error, unless it has ended already."""
        if isinstance(error, ComfyUITaskCancelledError):
            self._fail(error, State.CANCELED)
        else:
            self._fail(error, State.LOST if isinstance(error, ComfyUIPromptLostError) else State.FAILED)

    def cancel(self, error: ComfyUIError, state: State = State.CANCELED) -> None:
        """End the job because its prompt is taken out of ComfyUI; `error` is what those who wait are told.

        The journal has it as being cancelled until `cancelled`, and then with `state` as its end.
        """
        if not self.ended:
            self._cancelled_with = state, error
            if self.entry is not None:
                self.entry.canceling()
            self._fail(error, state, written=False)

    def interrupted(self, result: PromptResult) -> None:
        """ComfyUI's history has `result` of the prompt that was taken out of it; a job that failed says why it did."""
        if self._cancelled_with is not None and self._cancelled_with[0] is State.CANCELED:
            self._cancelled_with[1].saved = result

    def cancelled(self) -> None:
        """The prompt has been taken out of ComfyUI, as far as possible."""
        if self._cancelled_with is not None and self.entry is not None:
            self.entry.failed(*self._cancelled_with, self.request, self.fingerprint)

    def abandon(self, error: ComfyUIError) -> None:
        """Ends the job for its waiters. In the journal it goes on."""
        self._fail(error, State.FAILED, written=False)

    def _fail(self, error: ComfyUIError, state: State, *, written: bool = True) -> None:
        if self.ended:
            return
        # The error's traceback has the whole try, which would keep this job and its request in memory.
        kept = copy(error)
        kept.prompt_id = kept.prompt_id or self.prompt_id
        if written and self.entry is not None:
            if self.awaits_verdict and state is State.FAILED:
                self.entry.withdraw()
            else:
                self.entry.failed(state, kept, self.request, self.fingerprint)
        self._outcome.set_exception(kept)
        self._outcome.exception()  # no request may be waiting any longer
        self._end(state)

    def _end(self, state: State) -> None:
        self.state = state
        for woken in (*self._waiting, *self._asking):
            _set(woken)
        for look in self._looks:
            look()

    @property
    def failure(self) -> ComfyUIError | None:
        """The error that ended the job for its waiters; None if there is none."""
        error = self._outcome.exception() if self.ended and not self._outcome.cancelled() else None
        return error if isinstance(error, ComfyUIError) else None


def _set(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _places_in(executed: Executed) -> set[str]:
    files = files_of({executed.node: executed.output})
    return {place_of(file.type, file.subfolder, file.filename) for file in files}
