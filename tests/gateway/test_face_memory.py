"""Reading a long queue or history takes an amount of memory that does not grow with its length."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from comfyui import jsonio
from comfyui.engine import Engine
from comfyui.jobs.journal.records import Fence, State
from comfyui.jobs.journal.sqlite import SqliteJournal
from comfyui.jobs.journal.writes import Add, Finish, Pause
from comfyui.jobs.stored import result_to_bytes
from comfyui.models import PromptResult, Timings
from tests.support.journals import new_job, prompt_id
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.running import invert_workflow

LIMIT_KB = 40_000
QUEUED, ENDED = 10_000, 12_000
BODY_BYTES = 5_000

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc"),
    pytest.mark.timeout(300),
]


def memory_kb(gateway: GatewayProcess, name: str) -> int:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def forget_peak(gateway: GatewayProcess) -> None:
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")


async def count_in(chunks: AsyncIterator[bytes], text: bytes) -> tuple[int, int]:
    """Returns how often the text occurs in the answer, and the answer's size, without holding the whole answer."""
    found = size = 0
    rest = b""
    async for chunk in chunks:
        size += len(chunk)
        rest += chunk
        found += rest.count(text)
        rest = rest[max(0, len(rest) - len(text) + 1) :]
    return found, size


async def write_old_journal(folder: Path) -> None:
    """Writes the journal of an earlier gateway: paused, with many jobs that each have their own workflow."""
    began = time.time() - 3600
    async with SqliteJournal(folder) as journal:
        await journal.write(Pause(True))
        for number in range(1, ENDED + QUEUED + 1):
            extra_data = {"extra_pnginfo": {"workflow": {"id": f"{number}", "nodes": f"{number}" * (BODY_BYTES // 5)}}}
            body = jsonio.canonical({"prompt": invert_workflow(number), "extra_data": extra_data})
            journal.write_behind(Add(new_job(number, body=body)))
            if number <= ENDED:
                outputs = {"3": {"images": [{"filename": f"{number}.png", "subfolder": "", "type": "output"}]}}
                result = result_to_bytes(PromptResult(prompt_id(number), "gpu", outputs, (), Timings()))
                fence, at = Fence(prompt_id(number), 1, 0), began + number / 1000
                journal.write_behind(Finish(fence=fence, state=State.SUCCEEDED, at=at, result=result))
            if number % 500 == 0:
                await journal.get(prompt_id(number))


async def test_long_lists_take_bounded_memory(engine: Engine, tmp_path: Path) -> None:
    await write_old_journal(tmp_path)
    settings = {"QUEUE": "gateway", "MAX_QUEUED_JOBS": "20000"}
    async with gateway_process(engine.url, STATE_DIR=str(tmp_path), **settings) as gateway:
        async with gateway.http.get("/prompt") as response:
            assert await response.json() == {"exec_info": {"queue_remaining": QUEUED}}
        # Memory for things that are loaded once does not count.
        for path in ("/history?max_items=5", "/api/jobs?limit=5"):
            async with gateway.http.get(path) as response:
                assert response.status == 200
                await count_in(response.content.iter_any(), b"?")
        for path, text, count in (
            ("/queue", b'"create_time":', QUEUED),
            ("/history", b'"status_str":', 10_000),
            ("/api/jobs", b'"create_time":', QUEUED + 10_000),
        ):
            forget_peak(gateway)
            before = memory_kb(gateway, "VmRSS")
            async with gateway.http.get(path) as response:
                found, size = await count_in(response.content.iter_any(), text)
            grown = memory_kb(gateway, "VmHWM") - before
            print(json.dumps({"path": path, "jobs": found, "answer_mb": size / 1e6, "grown_kb": grown}))
            assert found == count
            assert grown < LIMIT_KB, path
