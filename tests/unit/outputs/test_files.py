"""One file of a result on its way into a store: tried again, given up at the deadline, never worth a crash."""

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
    """A folder that raises what it is given, one for each call, and then stores."""

    def __init__(self, folder: Path, *errors: Exception) -> None:
        super().__init__(folder, "http://files.test")
        self.errors = list(errors)

    async def put(self, *arguments: Any, **named: Any) -> StoredObject:
        if self.errors:
            raise self.errors.pop(0)
        return await super().put(*arguments, **named)


class SilentStore(LocalStore):
    """A folder that takes a file only when it is told to."""

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


async def test_a_store_that_fails_for_a_moment_is_tried_again_as_often_as_it_may_be(tmp_path: Path) -> None:
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


async def test_comfyui_that_is_away_is_waited_for_before_the_next_try(tmp_path: Path) -> None:
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


async def test_what_is_not_stored_by_the_deadline_is_given_up_and_leaves_room_for_the_next(tmp_path: Path) -> None:
    store = SilentStore(tmp_path)
    async with OutputFiles(open_file, store) as files:
        now = asyncio.get_running_loop().time()
        ends = await asyncio.gather(*(put(files, now + 0.05) for _ in range(9)), return_exceptions=True)
        assert [str(end) for end in ends] == ["the object store did not take the file in time"] * 9
        await store.ended.wait()
        store.open.set()
        assert (await put(files)).size == 10
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.bin"]


async def test_a_store_with_a_mistake_in_it_costs_one_file_and_no_job(tmp_path: Path) -> None:
    """A worker's job ended with "the worker failed", and its render was for nothing."""
    async with OutputFiles(open_file, FailingStore(tmp_path, KeyError("x")), patience=Patience(2, QUICK)) as files:
        with pytest.raises(StorageError, match="the log has the reason") as failed:
            await put(files)
    assert failed.value.retryable
