"""ComfyUI's folders are cleaned after jobs, and never of what a job may still need."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from comfyui.engine import Engine
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.cleanup import CleanupOptions, ComfyUIFolders
from comfyui.workers.options import WorkerOptions
from comfyui.workers.postgres.runner import TaskRunner
from tests.support.running import invert_workflow
from tests.support.tables import Tables
from tests.workers.test_postgres_runner import QUICK, WatchedStore


class Folders:
    """ComfyUI's three folders, and how often the worker was told to forget its inputs."""

    def __init__(self, base: Path) -> None:
        self.input, self.output, self.temp = (base / name for name in ("input", "output", "temp"))
        for folder in (self.input, self.output, self.temp):
            folder.mkdir(parents=True)
        self.forgotten = 0

    def opened(self, *, max_age_s: float = 0, max_bytes: int = 0) -> ComfyUIFolders:
        return ComfyUIFolders(CleanupOptions(self.input, self.output, self.temp, max_age_s, max_bytes), self._forget)

    def write(self, age_s: float = 0.0) -> list[Path]:
        """A file in each folder."""
        written = time.time() - age_s
        files = [folder / f"{age_s:g}.png" for folder in (self.input, self.output, self.temp)]
        for file in files:
            file.write_bytes(b"x")
            os.utime(file, (written, written))
        return files

    def _forget(self) -> None:
        self.forgotten += 1


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


async def test_after_a_job_its_files_go_from_all_three_folders_and_those_from_before_the_worker_stay(
    folders: Folders,
) -> None:
    before = folders.write(age_s=100)
    async with folders.opened() as cleaned:
        async with cleaned.job():
            files = folders.write()
            assert all(file.exists() for file in files)
        assert not any(file.exists() for file in files)
    assert all(file.exists() for file in before)
    assert folders.forgotten == 1


async def test_within_its_limits_a_folder_keeps_its_files(folders: Folders) -> None:
    async with folders.opened(max_age_s=1000, max_bytes=1000) as cleaned:
        async with cleaned.job():
            files = folders.write()
        assert all(file.exists() for file in files)
        async with cleaned.job():
            old = folders.write(age_s=2000)
        assert not any(file.exists() for file in old)
        assert all(file.exists() for file in files)


async def test_a_job_that_is_under_way_keeps_its_files_and_every_input(folders: Folders) -> None:
    async with folders.opened() as cleaned:
        async with cleaned.job():
            earlier, newer = folders.write(age_s=100), folders.write()
            async with cleaned.job():
                pass
            assert [file.exists() for file in earlier] == [True, False, False]
            assert all(file.exists() for file in newer)
            assert folders.forgotten == 0
        assert not any(file.exists() for file in (*earlier, *newer))


async def test_a_job_that_fails_is_cleaned_up_after_as_well(folders: Folders) -> None:
    files: list[Path] = []

    async def failing(cleaned: ComfyUIFolders) -> None:
        async with cleaned.job():
            files.extend(folders.write())
            raise RuntimeError("of the job")

    async with folders.opened() as cleaned:
        with pytest.raises(RuntimeError, match="of the job"):
            await failing(cleaned)
    assert len(files) == 3
    assert not any(file.exists() for file in files)


async def test_a_task_is_delivered_before_its_files_are_removed(tables: Tables, engine: Engine, tmp_path: Path) -> None:
    cleanup = CleanupOptions(output_dir=engine.folders.output, max_age_s=0, max_bytes=0)
    stop = asyncio.Event()
    task_id = await tables.add({"workflow": invert_workflow(1)})
    store = WatchedStore(tmp_path / "store")
    async with ComfyUIWorker(WorkerOptions(engine.url, cleanup=cleanup)) as comfyui, store, tables.queue() as queue:
        running = asyncio.create_task(TaskRunner("w", queue, comfyui, store, QUICK).run(stop))
        row = await tables.until_status(task_id, "complete", "failed")
        stop.set()
        await running
    assert row["status"] == "complete"
    assert (tmp_path / "store" / row["outputs"][0]["key"]).read_bytes().startswith(b"\x89PNG")
    assert list(engine.folders.output.rglob("*.png")) == []
