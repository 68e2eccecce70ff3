"""ComfyUI's folders are cleaned after jobs; files that a job may still need stay."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from comfyui.engine import Engine
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.cleanup import CleanupOptions, ComfyUIFolders
from comfyui.workers.options import WorkerOptions
from comfyui.workers.postgres.runner import TaskRunner
from tests.support.comfyui_folders import Folders
from tests.support.running import invert_workflow
from tests.support.tables import Tables
from tests.support.watched_store import WatchedStore
from tests.workers.test_postgres_runner import QUICK


async def test_a_finished_jobs_files_are_removed_and_files_from_before_the_worker_stay(
    cleaned_folders: Folders,
) -> None:
    before = cleaned_folders.write(age_s=100)
    async with cleaned_folders.opened() as cleaned:
        async with cleaned.job():
            files = cleaned_folders.write()
            assert all(file.exists() for file in files)
        assert not any(file.exists() for file in files)
    assert all(file.exists() for file in before)
    assert cleaned_folders.forgotten == 1


async def test_a_folder_within_its_limits_keeps_its_files(cleaned_folders: Folders) -> None:
    async with cleaned_folders.opened(max_age_s=1000, max_bytes=1000) as cleaned:
        async with cleaned.job():
            files = cleaned_folders.write()
        assert all(file.exists() for file in files)
        async with cleaned.job():
            old = cleaned_folders.write(age_s=2000)
        assert not any(file.exists() for file in old)
        assert all(file.exists() for file in files)


async def test_a_running_job_keeps_its_files_and_all_inputs(cleaned_folders: Folders) -> None:
    async with cleaned_folders.opened() as cleaned:
        async with cleaned.job():
            earlier, newer = cleaned_folders.write(age_s=100), cleaned_folders.write()
            async with cleaned.job():
                pass
            assert [file.exists() for file in earlier] == [True, False, False]
            assert all(file.exists() for file in newer)
            assert cleaned_folders.forgotten == 0
        assert not any(file.exists() for file in (*earlier, *newer))


async def test_files_of_a_failed_job_are_removed_as_well(cleaned_folders: Folders) -> None:
    files: list[Path] = []

    async def failing(cleaned: ComfyUIFolders) -> None:
        async with cleaned.job():
            files.extend(cleaned_folders.write())
            raise RuntimeError("of the job")

    async with cleaned_folders.opened() as cleaned:
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
