"""The disk of STATE_DIR refuses writes for a while."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfyui.engine import Engine
from comfyui.jobs.journal.sqlite import FILE_NAME
from tests.support.jobs import ASYNC, fetch, look, status_is, submit
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.running import invert_workflow, queue_of, sleep_workflow, until

Full = Callable[[GatewayProcess, Path], contextlib.AbstractContextManager[None]]


@contextmanager
def no_room(_gateway: GatewayProcess, folder: Path) -> Iterator[None]:
    """Fills every byte of the disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    yield
    filler.unlink()


@contextmanager
def no_growth(gateway: GatewayProcess, folder: Path) -> Iterator[None]:
    """Forbids the process to make its files longer."""
    size = (folder / f"{FILE_NAME}-wal").stat().st_size
    _, most = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    yield
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (most, most))


async def probe(gateway: GatewayProcess, path: str) -> Any:
    async with gateway.http.get(path) as response:
        assert response.status == 200, "sync calls go on"
        return await response.json()


async def refused(gateway: GatewayProcess) -> Any:
    """Returns the error of an async submission."""
    async with gateway.http.post("/prompt_sync", json={"prompt": invert_workflow(1000)}, headers=ASYNC) as response:
        body = await response.json()
        assert (response.status, body["type"]) == (503, "disk_failed")
        assert int(response.headers["Retry-After"]) > 0
        return body


async def test_on_a_full_disk_sync_calls_work_and_jobs_recover_afterwards(small_disk: Path, engine: Engine) -> None:
    await check_sync_calls_and_jobs(small_disk, engine, no_room)


async def test_sync_calls_work_and_jobs_recover_when_files_may_not_grow_for_a_while(
    tmp_path: Path, engine: Engine
) -> None:
    await check_sync_calls_and_jobs(tmp_path, engine, no_growth)


async def check_sync_calls_and_jobs(folder: Path, engine: Engine, full: Full) -> None:
    async with gateway_process(engine.url, STATE_DIR=str(folder)) as gateway:
        running = await submit(gateway.http, sleep_workflow(1))
        await status_is(gateway.http, running, "running")
        with full(gateway, folder):
            assert "STATE_DIR" in (await refused(gateway))["detail"]
            for color in range(1, 4):
                status, body = await gateway.prompt_sync(invert_workflow(color))
                assert (status, body["status"]) == (200, "success")
            assert "STATE_DIR" in (await probe(gateway, "/health/ready"))["degraded"]
            assert "STATE_DIR" in (await probe(gateway, "/health"))["degraded"]
            # The job has ended, but the journal could not store that.
            await until(lambda: queue_is_empty(engine), bool)
            assert (await look(gateway.http, running))[0] == 202
            await refused(gateway)
        await until(lambda: probe(gateway, "/health/ready"), lambda body: "degraded" not in body)
        status, body = await until(lambda: look(gateway.http, running), lambda found: found[0] != 202)
        assert (status, body["status"]) == (200, "success")
        later = await submit(gateway.http, invert_workflow(9))
        assert (await fetch(gateway.http, later))[0] == 200
        lost = [line for line in gateway.lines if line["event"] == "journal.writes_not_kept"]
        assert len(lost) == 1, "one line a minute"
        assert "STATE_DIR" in lost[0]["reason"]
        assert not gateway.lines_of("critical")


async def queue_is_empty(engine: Engine) -> bool:
    return not any(await queue_of(engine))
