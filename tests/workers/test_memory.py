"""What a worker remembers of its jobs."""

from __future__ import annotations

from uuid import uuid4

from comfyui.engine import Engine
from comfyui.models import PromptRequest
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.options import WorkerOptions
from tests.support.running import executions, invert_workflow


async def test_a_worker_remembers_only_its_last_jobs(engine: Engine) -> None:
    async with ComfyUIWorker(WorkerOptions(engine.url, max_journal_bytes=20_000)) as worker:
        jobs = [PromptRequest(prompt=invert_workflow(color), prompt_id=uuid4()) for color in range(40)]
        for job in jobs:
            await worker.run(job)
        counts = await worker.handler.journal.counts()
        assert 5 < sum(counts.values()) < 20
        # The platform delivers the last job again: it is not rendered again.
        result = await worker.run(jobs[-1])
        assert result.prompt_id == str(jobs[-1].prompt_id)
    assert sum(executions(engine).values()) == 40
