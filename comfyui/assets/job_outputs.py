"""`JobOutputs`: the outputs of jobs by their ids: found, measured, and opened on their server.

Only the size and the hash of a file are stored. It exists as long as its job exists and its server has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

import structlog
from blake3 import blake3

from comfyui.assets.outputs import JobOutput, job_of, outputs_of
from comfyui.events import Executed
from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError, ComfyUIUnreadableError
from comfyui.executors.made_files import MadeFiles
from comfyui.jobs.admission import Look
from comfyui.jobs.journal.asset_writes import KnowOutputs, OutputFacts
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import JobRecord
from comfyui.jobs.origin import Origin
from comfyui.jobs.standing import StandingJobs
from comfyui.jobs.stored import result_from_bytes
from comfyui.models import DeliveredFile, OutputFile, PromptResult
from comfyui.offload import offloaded
from comfyui.owners import place_of
from comfyui.servers.backend import Backend
from comfyui.servers.pool import BackendPool
from comfyui.servers.server import Server
from comfyui.tasks import SideTasks
from comfyui.transport.body import IteratedBody, OpenBody
from comfyui.transport.drivers import OpenReply

_log = structlog.get_logger(__name__)
# Questions for sizes that one caller has under way.
_ASKED_AT_ONCE = 8
# Outputs with the same bytes.
_MOST_LOOKED_AT = 20
# How many results of a list of jobs are in memory at once.
_MOST_BYTES = 4_000_000
# How many files are remembered whose sizes a list has requested, so that a missing file is not requested each time.
_MOST_ASKED = 20_000
_NONE: Mapping[str, OutputFacts] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a job.

    Attributes:
        server: the name of the server that has the files; None if there is none.
        stored: by the id of an output, the same bytes in the object store.
        node_errors: of outputs that ComfyUI left out of the run; see `PromptResult`.
    """

    server: str | None
    outputs: Sequence[JobOutput]
    stored: Mapping[str, DeliveredFile] = field(default_factory=dict)
    node_errors: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FoundOutput:
    """One output, and its job as the journal has it. `made` has this output alone."""

    record: JobRecord
    output: JobOutput
    made: Outputs

    @property
    def stored(self) -> DeliveredFile | None:
        """The output's file in the object store, if it is there."""
        return self.made.stored.get(self.output.id)


class JobOutputs:
    """Open it with ``async with``. Its arguments belong to their creator.

    Args:
        made: knows the owners of files; None if the one server knows its own.
    """

    def __init__(self, journal: Journal, standing: StandingJobs, pool: BackendPool, made: MadeFiles | None) -> None:
        self._journal = journal
        self._standing = standing
        self._pool = pool
        self._made = made
        self._asked: set[str] = set()
        self._measuring: asyncio.Task[None] | None = None
        self._tasks = SideTasks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._tasks.close()

    async def of(self, record: JobRecord, look: Look | None = None, *, result: PromptResult | None = None) -> Outputs:
        """The outputs of the job; while it runs, those in `look`, as its server has reported them.

        Args:
            result: of a job that ended at this moment, so that it need not be read.
        """
        prompt_id = record.prompt_id
        if record.state.is_end and result is not None:
            return _outputs_in(prompt_id, result)
        if record.state.is_end:
            kept = await self._journal.result_of(prompt_id)
            if kept is None:
                return Outputs(None, ())
            return await offloaded(len(kept), _kept_outputs, prompt_id, kept)
        events = look.events if look is not None else ()
        if (job := self._standing.job(prompt_id)) is not None and look is None:
            events = tuple(job.latest())
        told = {event.node: dict(event.output) for event in events if isinstance(event, Executed)}
        server = record.server if job is None or job.backend is None else job.backend.name
        return Outputs(server, outputs_of(prompt_id, told))

    async def of_all(self, records: Sequence[JobRecord]) -> tuple[list[Outputs], Mapping[str, OutputFacts]]:
        """The outputs of each of these jobs, and all known facts, by id; no server is asked."""
        made = await self.of_each(records)
        known: dict[str, OutputFacts] = {}
        for record, one in zip(records, made, strict=True):
            known |= await _facts_by_itself(record, one)
        measured = await self._journal.output_facts([(record.prompt_id, record.run) for record in records])
        known = _together(known, {one.id: one for one in measured})
        self._measure_later(records, made, known)
        return made, known

    async def of_each(self, records: Sequence[JobRecord]) -> list[Outputs]:
        """The outputs of each of these jobs."""
        by_job = await self._all_kept([record.prompt_id for record in records if record.state.is_end])
        return [by_job.get(record.prompt_id) or await self.of(record) for record in records]

    def _measure_later(
        self, records: Sequence[JobRecord], made: Sequence[Outputs], known: Mapping[str, OutputFacts]
    ) -> None:
        """Requests the sizes that a list lacked, once for each file: the next list has them."""
        if self._measuring is not None and not self._measuring.done():
            return
        wanted: list[tuple[JobRecord, str, list[JobOutput]]] = []
        for record, one in zip(records, made, strict=True):
            server = None if one.server is None or not record.state.is_end else self._pool.named(one.server)
            fresh = [output for output in one.outputs if output.id not in known and output.id not in self._asked]
            if fresh and server is not None and (not isinstance(server, Backend) or server.ready):
                wanted.append((record, server.name, fresh))
        if not wanted:
            return
        if len(self._asked) > _MOST_ASKED:
            self._asked.clear()
        self._asked |= {output.id for _, _, fresh in wanted for output in fresh}

        async def measure() -> None:
            for record, server, fresh in wanted:
                await self.measured(record.prompt_id, record.run, server, fresh)

        self._measuring = self._tasks.start(measure(), "measure what was listed")

    async def _all_kept(self, prompt_ids: Sequence[str]) -> dict[str, Outputs]:
        """The outputs of these jobs, which have ended."""
        found: dict[str, Outputs] = {}
        while len(found) < len(prompt_ids):
            more = prompt_ids[len(found) :]
            for prompt_id, result in zip(more, await self._journal.results_of(more, _MOST_BYTES), strict=False):
                if result is None:
                    found[prompt_id] = Outputs(None, ())
                else:
                    found[prompt_id] = await offloaded(len(result), _kept_outputs, prompt_id, result)
        return found

    async def find(self, asset_id: str, origin: Origin) -> FoundOutput | None:
        """The output; None if this id does not exist, or the caller may not have it."""
        prompt_id = job_of(asset_id)
        if prompt_id is None:
            return None
        return await self._found(prompt_id, origin, lambda one, _index: one.id == asset_id)

    async def at(self, prompt_id: str, index: int, origin: Origin) -> FoundOutput | None:
        """As `find`: the output at this position among all of this job."""
        return await self._found(prompt_id, origin, lambda _one, place: place == index)

    async def _found(
        self, prompt_id: str, origin: Origin, is_wanted: Callable[[JobOutput, int], bool]
    ) -> FoundOutput | None:
        record = await self._journal.get(prompt_id)
        if record is None or not origin.sees(record.owner):
            return None
        made = await self.of(record)
        found = next((one for index, one in enumerate(made.outputs) if is_wanted(one, index)), None)
        if found is None or (found.file is not None and not await self._may_have(found.file, record, made, origin)):
            return None
        return FoundOutput(record, found, Outputs(made.server, (found,), made.stored))

    async def by_hash(self, digest: str, origin: Origin) -> FoundOutput | None:
        """One with these bytes, by their BLAKE3, that the caller may have, and that is there still: the newest."""
        key = origin.rules.name if origin.rules is not None and origin.is_confined else None
        for known in await self._journal.outputs_with(digest, key, _MOST_LOOKED_AT):
            found = await self.find(known.id, origin)
            if found is not None and await self._is_there(found, known.size):
                return found
        return None

    async def _is_there(self, found: FoundOutput, size: int) -> bool:
        """Whether its server still has it, as far as the server answers soon."""
        server, file = self._server(found), found.output.file
        if file is None:
            return True
        if server is None or (isinstance(server, Backend) and not server.ready):
            return False
        try:
            async with server.soon():
                return await _size_on(server, found.record.prompt_id, file) == size
        except (ComfyUIError, TimeoutError):
            return False

    async def _may_have(self, file: OutputFile, record: JobRecord, made: Outputs, origin: Origin) -> bool:
        """Whether the file is this job's, and not one that a node only mentioned, as for ComfyUI's own ``/view``."""
        if self._made is None or made.server is None:
            return not origin.is_confined
        place = place_of(file.type, file.subfolder, file.filename)
        if (job := self._standing.job(record.prompt_id)) is not None and job.has_shown(place):
            return True
        is_own = await self._made.is_of(record.prompt_id, record.owner, made.server, place)
        return is_own is True or (is_own is None and not origin.is_confined)

    # Sizes and hashes

    async def facts(
        self, record: JobRecord, made: Outputs, known: Mapping[str, OutputFacts] = _NONE
    ) -> Mapping[str, OutputFacts]:
        """The known facts about each output, by its id. The server is asked for unknown sizes.

        A file that is missing, or whose server does not answer soon, has no entry.

        Args:
            known: earlier facts about this run; if they are complete, the journal is not read.
        """
        if not made.outputs:
            return {}
        by_itself = await _facts_by_itself(record, made)
        measured = dict(known)
        if not all(output.id in known for output in made.outputs):
            measured |= {one.id: one for one in await self._journal.output_facts([(record.prompt_id, record.run)])}
        # Texts, and files in the object store, are also found by their hashes.
        hashed = {name for name, one in measured.items() if one.blake3 is not None}
        told = [one for one in by_itself.values() if one.blake3 is not None and one.id not in hashed]
        if told:
            self._journal.write_behind(KnowOutputs(record.prompt_id, record.run, tuple(told)), soon=False)
        found = _together(by_itself, measured)
        unknown = [output for output in made.outputs if output.id not in found]
        if unknown and made.server is not None:
            fresh = await self.measured(record.prompt_id, record.run, made.server, unknown)
            found |= {one.id: one for one in fresh}
        return found

    async def measured(self, prompt_id: str, run: int, server: str, outputs: Sequence[JobOutput]) -> list[OutputFacts]:
        """The server's facts about these outputs of a run. They are recorded."""
        there = self._pool.named(server)
        if there is None or (isinstance(there, Backend) and not there.ready):
            return []
        slots = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def measure(output: JobOutput, file: OutputFile) -> OutputFacts | None:
            try:
                async with slots, there.soon():
                    size = await _size_on(there, prompt_id, file)
            except (ComfyUIError, TimeoutError) as error:
                _log.info("output.not_measured", prompt_id=prompt_id, reason=str(error))
                return None
            return None if size is None else OutputFacts(prompt_id, run, output.id, size, None)

        asked = [measure(output, output.file) for output in outputs if output.file is not None]
        # A task for each delays the question by turns of the event loop, and most prompts make one file.
        answers = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)
        found = [one for one in answers if one is not None]
        if found:
            self._journal.write_behind(KnowOutputs(prompt_id, run, tuple(found)), soon=False)
        return found

    def hashed(self, found: FoundOutput, size: int, digest: str) -> None:
        """All bytes of the output have passed: this is their BLAKE3."""
        record = found.record
        facts = OutputFacts(record.prompt_id, record.run, found.output.id, size, digest)
        self._journal.write_behind(KnowOutputs(record.prompt_id, record.run, (facts,)), soon=False)

    # Bytes

    @asynccontextmanager
    async def whole(self, found: FoundOutput) -> AsyncIterator[OpenBody | None]:
        """The whole content; if a file's connection breaks, the rest is requested. None if it no longer exists.

        Raises:
            ComfyUIError: its server does not answer.
        """
        server, file = self._server(found), found.output.file
        async with AsyncExitStack() as stack:
            body: OpenBody | None = None
            if file is None:
                content = await offloaded(len(found.output.text), found.output.content)
                body = IteratedBody(_piece(content), len(content))
            elif server is not None:
                with suppress(ComfyUINotFoundError):
                    body = await stack.enter_async_context(server.open_file(found.record.prompt_id, file))
            yield body

    async def path_of(self, found: FoundOutput) -> Path | None:
        """The file's path, if it is on the gateway's own disk: files of a platform are fetched."""
        server, file = self._server(found), found.output.file
        if server is None or file is None:
            return None
        return await server.path_of(found.record.prompt_id, file.subfolder, file.filename)

    async def open(self, found: FoundOutput, headers: Mapping[str, str]) -> OpenReply | None:
        """ComfyUI's answer for the file with these request headers: 200, 206 or 416. The caller closes it.

        None if the server, or the file on it, no longer exists.

        Raises:
            ComfyUIError: the server does not answer.
        """
        backend = self._server(found)
        if not isinstance(backend, Backend) or found.output.file is None:
            return None
        reply = await backend.client.open_view(found.output.file, headers)
        if reply.status in {200, 206, 416}:
            return reply
        reply.close()
        if reply.status == 404:
            return None
        raise ComfyUIUnreadableError("GET /view: ComfyUI cannot send the file", upstream_status=reply.status)

    def _server(self, found: FoundOutput) -> Server | None:
        """The server that has it, if it is still configured."""
        return None if found.made.server is None else self._pool.named(found.made.server)


async def _size_on(server: Server, prompt_id: str, file: OutputFile) -> int | None:
    """The file's size in bytes, without reading it; None if it does not exist."""
    if isinstance(server, Backend):
        return await server.client.size_of(file)
    with suppress(ComfyUINotFoundError):
        async with server.open_file(prompt_id, file) as body:
            return body.length
    return None


async def _facts_by_itself(record: JobRecord, made: Outputs) -> dict[str, OutputFacts]:
    """The job's own record of its outputs: everything about a text, and the size of a stored file."""
    found: dict[str, OutputFacts] = {}
    for output in made.outputs:
        if output.file is None:
            size, digest = await offloaded(len(output.text), _size_and_hash, output)
            found[output.id] = OutputFacts(record.prompt_id, record.run, output.id, size, digest)
        elif (stored := made.stored.get(output.id)) is not None:
            found[output.id] = OutputFacts(record.prompt_id, record.run, output.id, stored.size, stored.blake3 or None)
    return found


def _together(by_itself: Mapping[str, OutputFacts], measured: Mapping[str, OutputFacts]) -> dict[str, OutputFacts]:
    """All known facts: a job's own record may have a hash, of the bytes that the job has made."""
    return {**by_itself, **measured, **{name: one for name, one in by_itself.items() if one.blake3 is not None}}


async def _piece(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


def _size_and_hash(output: JobOutput) -> tuple[int, str]:
    content = output.content()
    return len(content), blake3(content).hexdigest()


def _kept_outputs(prompt_id: str, kept: bytes) -> Outputs:
    return _outputs_in(prompt_id, result_from_bytes(prompt_id, kept))


def _outputs_in(prompt_id: str, result: PromptResult) -> Outputs:
    outputs, delivery = outputs_of(prompt_id, result.outputs), result.delivery
    if delivery is None or delivery.convert is not None:
        return Outputs(result.server, outputs, {}, result.node_errors)
    by_file = dict(zip(result.files, delivery.files, strict=True))
    stored = {one.id: by_file[one.file] for one in outputs if one.file in by_file}
    there = {name: file for name, file in stored.items() if not file.error}
    return Outputs(result.server, outputs, there, result.node_errors)
