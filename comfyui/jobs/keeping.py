"""`Keeping`: lets a running sync job go on without its caller, as an async job."""

from __future__ import annotations

from comfyui.inputs.content import SpooledFiles
from comfyui.jobs.entries import Entries
from comfyui.jobs.entry import Clock
from comfyui.jobs.fingerprints import fingerprint_of
from comfyui.jobs.inputs import JobInputs, Taken
from comfyui.jobs.job import Job
from comfyui.jobs.journal.records import NewJob
from comfyui.jobs.new_job import new_job
from comfyui.jobs.origin import Origin
from comfyui.jobs.queue import JobQueue
from comfyui.jobs.runs import Runs
from comfyui.jobs.stored import secrets_of
from comfyui.models import PromptRequest
from comfyui.offload import offloaded


class Keeping:
    """Works on jobs of `runs`; its arguments belong to their creator."""

    def __init__(self, entries: Entries, runs: Runs, queue: JobQueue, inputs: JobInputs, clock: Clock) -> None:
        self._entries = entries
        self._runs = runs
        self._queue = queue
        self._inputs = inputs
        self._clock = clock

    async def keep(
        self, prompt_id: str, origin: Origin, request: PromptRequest, files: SpooledFiles | None = None
    ) -> bool:
        """The sync job of this id goes on even if all requests leave. Its caller must still wait meanwhile.

        Returns whether there is such a job; False before it has begun, and after its end. It never begins a new run.

        Raises:
            ComfyUIError: an input could not be kept, or the job not written; it goes on as before.
        """
        job = self._runs.live.get(prompt_id)
        if job is None or job.ended or job.stays:
            return job is not None and not job.ended
        fingerprint = await offloaded(request.size, fingerprint_of, request, files)
        async with self._inputs.taken(request, files) as taken:
            new = await self.new_async(taken, prompt_id, origin, fingerprint, callers_id=job.may_be_asked_for)
            if job.state.is_end:  # meanwhile
                return False
            await self.make_async(job, origin, taken.request, new)
            return True

    async def new_async(
        self, taken: Taken, prompt_id: str, origin: Origin, fingerprint: str, *, callers_id: bool
    ) -> NewJob:
        """The async job of a request whose inputs were taken, as it is written at first."""
        return await offloaded(
            taken.request.size,
            new_job,
            taken.request,
            prompt_id,
            origin,
            fingerprint,
            kind="async",
            callers_id=callers_id,
            inputs=taken.inputs,
            now=self._clock(),
        )

    async def make_async(self, job: Job, origin: Origin, request: PromptRequest, new: NewJob) -> None:
        """Turns a running sync job into the async job `new`. Raises `JournalError`."""
        entry = self._entries.new(job.prompt_id, origin, kind="sync", callers_id=True)
        job.adopt(request, self._inputs.files_of(new), new.fingerprint, entry)
        # Before it is written: else the queue might hand on a job that has a task.
        self._queue.kept(job, secrets_of(request))
        await self._runs.keep(job, new)
