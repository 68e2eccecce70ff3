"""`InputFetching`: fetches the URLs of async jobs as soon as these are taken, few jobs at once, in their order.

A job leaves the queue only after its inputs have arrived, and blocks no other: the jobs behind it go on. Fetched inputs
are in the input store, and the journal says so; a gateway that is killed leaves the rest to the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from functools import partial
from typing import Protocol

import structlog

from comfyui.exceptions import ComfyUIDiskError, ComfyUIError, ComfyUIOverloadedError, JournalError
from comfyui.jobs.inputs import JobInputs
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import JobRecord, State
from comfyui.jobs.journal.writes import Fetched
from comfyui.jobs.runs import NEEDS_SECRETS
from comfyui.models import PromptRequest
from comfyui.retrying import Backoff
from comfyui.servers.pool import BackendPool
from comfyui.tasks import SideTasks

_PAGE = 200
# Each has its request in memory.
_AT_ONCE = 16
# While the disk has no room.
_BACKOFF = Backoff(start_s=1.0, max_s=10.0)
_TRIES_WITHOUT_ROOM = 6
_TRIES_FOR_DEFINITIONS = 5
_LOOK_S = 5.0
_PAUSE_S = 1.0
_WITHOUT_ROOM = (ComfyUIDiskError, ComfyUIOverloadedError)

_log = structlog.get_logger(__name__)


class Jobs(Protocol):
    """Passes jobs on."""

    async def request_of(self, record: JobRecord) -> PromptRequest | None: ...

    def inputs_came(self, prompt_id: str) -> None:
        """The job may be passed on now."""

    def fail(self, record: JobRecord, error: ComfyUIError) -> None:
        """The job ends with this error."""


class InputFetching:
    """`open` resumes the jobs of the journal. Its opener closes it."""

    def __init__(self, journal: Journal, inputs: JobInputs, pool: BackendPool, jobs: Jobs) -> None:
        self._journal = journal
        self._inputs = inputs
        self._pool = pool
        self._jobs = jobs
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._without_definitions: list[str] = []
        # How often a server was up, and said nothing of its nodes.
        self._unanswered: Counter[str] = Counter()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks = SideTasks()

    async def open(self) -> None:
        """Raises `JournalError`."""
        after = 0
        while page := await self._journal.fetching(after, _PAGE):
            for record in page:
                self.added(record.prompt_id)
            after = page[-1].number

    async def close(self) -> None:
        """Inputs that are not fetched by now are left to the next gateway."""
        self._waiting.clear()
        await self._tasks.close()

    def added(self, prompt_id: str) -> None:
        """The job is in the journal, and has inputs to be fetched."""
        self._waiting[prompt_id] = None
        self._begin()

    def left(self, prompt_id: str) -> None:
        """The job has ended."""
        self._waiting.pop(prompt_id, None)
        del self._unanswered[prompt_id]
        if (task := self._running.get(prompt_id)) is not None:
            task.cancel()

    def _begin(self) -> None:
        while self._waiting and len(self._running) < _AT_ONCE:
            prompt_id, _ = self._waiting.popitem(last=False)
            task = self._tasks.start(self._see_to(prompt_id), f"inputs of {prompt_id}")
            self._running[prompt_id] = task
            task.add_done_callback(partial(self._ended, prompt_id))

    def _ended(self, prompt_id: str, _task: asyncio.Task[None]) -> None:
        self._running.pop(prompt_id, None)
        self._begin()

    async def _see_to(self, prompt_id: str) -> None:
        failures = without_room = 0
        while True:
            record: JobRecord | None = None
            try:
                record = await self._journal.get(prompt_id)
                if record is None or record.state is not State.QUEUED or not record.is_fetching:
                    return
                await self._fetch(record)
                return
            except JournalError as error:
                _log.error("inputs.not_written", prompt_id=prompt_id, reason=error.detail)
            except ComfyUIError as error:
                without_room += isinstance(error, _WITHOUT_ROOM)
                if record is not None and not 0 < without_room < _TRIES_WITHOUT_ROOM:
                    self._jobs.fail(record, error)
                    return
                _log.warning("inputs.wait", prompt_id=prompt_id, reason=error.detail)
            failures += 1
            await asyncio.sleep(_BACKOFF.delay_s(failures))

    async def _fetch(self, record: JobRecord) -> None:
        request = await self._jobs.request_of(record)
        if request is None:
            self._jobs.fail(record, ComfyUIError(NEEDS_SECRETS, prompt_id=record.prompt_id))
            return
        prompt_id = record.prompt_id
        last = self._unanswered[prompt_id] >= _TRIES_FOR_DEFINITIONS
        async with self._inputs.fetched(record, request, last=last) as inputs:
            if inputs is None:
                self._unanswered[prompt_id] += bool(self._pool.ready_servers)
                self._without_definitions.append(prompt_id)
                if len(self._without_definitions) == 1:
                    self._tasks.start(self._await_definitions(), "definitions for inputs")
                return
            await self._journal.write(Fetched(prompt_id, record.run, inputs))
        del self._unanswered[prompt_id]
        self._jobs.inputs_came(prompt_id)

    async def _await_definitions(self) -> None:
        """Jobs that wait for a server to say which texts are inputs take no place of those that can be fetched."""
        await asyncio.sleep(_PAUSE_S)
        while not self._pool.ready_servers:
            await self._pool.wait_for_change(_LOOK_S)
        waiting, self._without_definitions = self._without_definitions, []
        for prompt_id in waiting:
            self.added(prompt_id)
