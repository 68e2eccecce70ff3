"""One file of a result on its way into a store: retries, the deadline and bugs of a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from comfyui.exceptions import ComfyUIConnectionError, StorageError, StorageRefusedError
from comfyui.models import OutputFile, PromptResult, Timings
from comfyui.outputs.files import OutputFiles, Patience
from comfyui.outputs.stores.store import Placement, StoredObject
from comfyui.retrying import Backoff
from comfyui.transport.body import IteratedBody, OpenBody
from tests.support.local_store import LocalStore

FILE = OutputFile("9", "images", "a.bin", "", "output")
RESULT = PromptResult("p", "127.0.0.1:8188", {}, (FILE,), Timings())
QUICK = Backoff(0.001, 0.001)


async def _chunks() -> AsyncIterator[bytes]:
    yield b"0123456789"


@asynccontextmanager
async def open_file(_result: PromptResult, _file: OutputFile) -> AsyncIterator[OpenBody]:
    yield IteratedBody(_chunks(), 10)


class FailingStore(LocalStore):
    """A store that raises the given errors, one at each call, and then stores in a folder."""

    def __init__(self, folder: Path, *errors: Exception) -> None:
        super().__init__(folder, "http://files.test")
        self.errors = list(errors)

    async def put(self, *arguments: Any, **named: Any) -> StoredObject:
        if self.errors:
            raise self.errors.pop(0)
        return await super().put(*arguments, **named)


class SilentStore(LocalStore):
    """A store that stores nothing until `open` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "http://files.test")
        self.open = asyncio.Event()
        self.ended = asyncio.Event()

    async def put(self, *arguments: Any, **named: Any) -> StoredObject:
        try:
            await self.open.wait()
            return await super().put(*arguments, **named)
        finally:
            self.ended.set()


async def put(files: OutputFiles, deadline: float | None = None) -> StoredObject:
    return (await files.put(RESULT, FILE, lambda file: f"k/{file.filename}", Placement(), deadline=deadline)).object


async def test_a_failing_store_is_tried_again_up_to_the_set_number_of_times(tmp_path: Path) -> None:
    away = StorageError("away")
    async with OutputFiles(open_file, FailingStore(tmp_path, away, away), patience=Patience(2, QUICK)) as files:
        assert (await put(files)).key == "k/a.bin"
    store = FailingStore(tmp_path, away, away, away)
    async with OutputFiles(open_file, store, patience=Patience(2, QUICK)) as files:
        with pytest.raises(StorageError, match="away"):
            await put(files)
    assert store.errors == []


async def test_a_refusal_is_not_tried_again(tmp_path: Path) -> None:
    store = FailingStore(tmp_path, StorageRefusedError("no"), StorageRefusedError("no again"))
    async with OutputFiles(open_file, store, patience=Patience(2, QUICK)) as files:
        with pytest.raises(StorageRefusedError):
            await put(files)
    assert len(store.errors) == 1


async def test_the_next_try_waits_until_comfyui_is_ready_again(tmp_path: Path) -> None:
    waited: list[int] = []
    tries = 0

    @asynccontextmanager
    async def away_once(_result: PromptResult, _file: OutputFile) -> AsyncIterator[OpenBody]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ComfyUIConnectionError("away")
        yield IteratedBody(_chunks(), 10)

    async def ready() -> None:
        waited.append(tries)

    async with OutputFiles(away_once, LocalStore(tmp_path, ""), patience=Patience(1, QUICK, ready)) as files:
        await put(files)
        assert await files.read(RESULT, FILE, 10) == b"0123456789"
        assert await files.read(RESULT, FILE, 9) is None
    assert waited == [1]


async def test_a_file_not_stored_by_the_deadline_is_given_up_and_makes_room(tmp_path: Path) -> None:
    store = SilentStore(tmp_path)
    async with OutputFiles(open_file, store) as files:
        now = asyncio.get_running_loop().time()
        ends = await asyncio.gather(*(put(files, now + 0.05) for _ in range(9)), return_exceptions=True)
        assert [str(end) for end in ends] == ["the object store did not take the file in time"] * 9
        await store.ended.wait()
        store.open.set()
        assert (await put(files)).size == 10
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.bin"]


async def test_a_bug_in_a_store_costs_one_file_and_not_the_job(tmp_path: Path) -> None:
    """A worker's job once ended with "the worker failed" because of that, and its render was lost."""
    async with OutputFiles(open_file, FailingStore(tmp_path, KeyError("x")), patience=Patience(2, QUICK)) as files:
        with pytest.raises(StorageError, match="the log has the reason") as failed:
            await put(files)
    assert failed.value.retryable
