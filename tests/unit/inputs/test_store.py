"""The input store keeps only whole files, one for each content, and only as long as something needs them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

import pytest

from comfyui.exceptions import ComfyUIDiskError, ComfyUILimitError, ComfyUIOverloadedError
from comfyui.inputs.content import Content
from comfyui.inputs.store import InputStore


def content(text: str) -> Content:
    return Content.of_bytes(text.encode())


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def name_none(_: Collection[str]) -> Collection[str]:
    return set()


async def put(store: InputStore, *texts: str) -> None:
    with store.holding() as holding:
        for text in texts:
            await holding.put(content(text))


async def test_a_file_is_stored_once_under_its_hash_and_only_its_user_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "inputs"
    async with InputStore(folder) as store:
        await asyncio.gather(put(store, "one"), put(store, "one"), put(store, "two"))
        assert names_in(folder) == sorted([digest("one"), digest("two")])
        assert (store.files, store.bytes) == (2, 6)
        assert (folder / digest("one")).read_text() == "one"
        assert stat.S_IMODE((folder / digest("one")).stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert b"".join([chunk async for chunk in store.kept(digest("two"), ".txt").chunks()]) == b"two"
    async with InputStore(folder) as store:
        assert (store.files, store.bytes) == (2, 6)


async def test_a_moved_file_leaves_its_old_place(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("brought")
    given.chmod(0o644)
    async with InputStore(tmp_path / "inputs") as store:
        with store.holding() as holding:
            brought = await Content.of_hashed_file(given, digest("brought"))
            await holding.put(brought, moved=True)
    assert not given.exists()
    assert names_in(tmp_path / "inputs") == [digest("brought")]
    assert stat.S_IMODE((tmp_path / "inputs" / digest("brought")).stat().st_mode) == 0o600


async def test_half_written_files_are_removed_at_the_start_and_foreign_files_stay(tmp_path: Path) -> None:
    for name in ("new-0123", digest("kept"), "notes.txt", "A" * 64):
        (tmp_path / name).write_text("kept")
    (tmp_path / digest("link")).symlink_to("/etc/passwd")
    async with InputStore(tmp_path) as store:
        assert store.files == 1
        await store.sweep(name_none)
    assert names_in(tmp_path) == sorted([digest("link"), "notes.txt", "A" * 64])


async def test_no_symbolic_link_is_read_or_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    folder = tmp_path / "inputs"
    async with InputStore(folder) as store:
        (folder / digest("one")).symlink_to(outside)
        with pytest.raises(ComfyUIDiskError, match="STATE_DIR"):
            _ = [chunk async for chunk in store.kept(digest("one"), ".txt").chunks()]
        await put(store, "one")
        assert (folder / digest("one")).read_text() == "one"
    assert outside.read_text() == "theirs"
    (tmp_path / "linked").symlink_to(folder)
    with pytest.raises(ComfyUIDiskError, match="STATE_DIR"):
        await InputStore(tmp_path / "linked").__aenter__()


async def test_a_file_that_was_cut_or_removed_by_hand_is_written_again(tmp_path: Path) -> None:
    async with InputStore(tmp_path) as store:
        for spoil in (lambda path: path.write_text("o"), Path.unlink):
            await put(store, "one")
            spoil(tmp_path / digest("one"))
            await put(store, "one")
            assert (tmp_path / digest("one")).read_text() == "one"
            assert store.bytes == 3


async def test_a_sweep_keeps_the_files_that_are_held_or_named(tmp_path: Path) -> None:
    async with InputStore(tmp_path) as store:
        await put(store, "named", "unused")

        async def named(_: Collection[str]) -> Collection[str]:
            return {digest("named")}

        with store.holding() as holding:
            await holding.put(content("held"))
            assert await store.sweep(named) == 1
            assert names_in(tmp_path) == sorted([digest("named"), digest("held")])
        assert await store.sweep(named) == 1
        assert await store.sweep(name_none) == 1
        assert (names_in(tmp_path), store.files, store.bytes) == ([], 0, 0)


async def test_a_sweep_asks_about_a_limited_number_of_files_at_once(tmp_path: Path) -> None:
    """One question about a hundred thousand assets would stop the event loop for a tenth of a second."""
    names = [digest(str(number)) for number in range(1100)]
    for name in names:
        (tmp_path / name).touch()
    asked: list[str] = []
    async with InputStore(tmp_path) as store:

        async def named(digests: Collection[str]) -> Collection[str]:
            assert len(digests) <= 500
            asked.extend(digests)
            return names[3:]

        assert await store.sweep(named) == 3
        assert sorted(asked) == sorted(names)
        assert store.files == 1097


async def test_files_that_are_taken_during_a_sweep_stay(tmp_path: Path) -> None:
    """The answer that the sweep gets does not name their job, and the job no longer holds them afterwards."""
    async with InputStore(tmp_path) as store:
        await put(store, "same", "old")

        async def named(_: Collection[str]) -> Collection[str]:
            await put(store, "same", "new")
            return set()

        assert await store.sweep(named) == 1
        assert names_in(tmp_path) == sorted([digest("same"), digest("new")])


async def test_concurrent_sweeps_and_submissions_lose_no_file(tmp_path: Path) -> None:
    named: set[str] = set()
    async with InputStore(tmp_path) as store:

        async def submit(number: int) -> None:
            text = f"input {number % 7}"
            with store.holding() as holding:
                await holding.put(content(text))
                named.add(digest(text))
            assert await asyncio.to_thread((tmp_path / digest(text)).exists)
            await asyncio.sleep(0)
            assert await asyncio.to_thread((tmp_path / digest(text)).exists)
            named.discard(digest(text))

        async def sweep() -> None:
            while True:
                await store.sweep(lambda _: asyncio.sleep(0, set(named)))
                await asyncio.sleep(0)

        sweeping = asyncio.create_task(sweep())
        for start in range(0, 140, 14):
            # Only one job at a time uses a content, because `named` is a set and does not count.
            await asyncio.gather(*(submit(number) for number in range(start, start + 7)))
        sweeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sweeping
        await store.sweep(name_none)
        assert (names_in(tmp_path), store.files, store.bytes) == ([], 0, 0)


async def test_an_unused_file_is_kept_for_the_set_time(tmp_path: Path) -> None:
    async with InputStore(tmp_path, keep_s=3600) as store:
        await put(store, "young", "old")
        os.utime(tmp_path / digest("old"), (1, 1))
        assert await store.sweep(name_none) == 1
        assert names_in(tmp_path) == [digest("young")]
        os.utime(tmp_path / digest("young"), (1, 1))
        await put(store, "young")
        assert await store.sweep(name_none) == 0


async def test_the_store_has_a_size_limit_and_a_stored_content_needs_no_room(tmp_path: Path) -> None:
    async with InputStore(tmp_path, max_bytes=10) as store:
        await put(store, "12345678")
        await put(store, "12345678")
        with pytest.raises(ComfyUIOverloadedError, match="MAX_STORED_INPUTS_MB"):
            await put(store, "abc")
        with pytest.raises(ComfyUILimitError, match="MAX_STORED_INPUTS_MB"):
            await put(store, "12345678901")
        assert store.bytes == 8
        await store.sweep(name_none)
        await put(store, "abc")
        assert names_in(tmp_path) == [digest("abc")]


async def test_the_error_for_a_folder_that_is_a_file_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "inputs").write_text("")
    with pytest.raises(ComfyUIDiskError, match="STATE_DIR") as refused:
        await InputStore(tmp_path / "inputs").__aenter__()
    assert str(tmp_path) not in refused.value.detail


async def test_a_store_without_a_folder_is_removed_when_it_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with InputStore(None) as store:
        assert names_in(tmp_path) == []
        await put(store, "one")
        (folder,) = tmp_path.iterdir()
        assert names_in(folder) == [digest("one")]
    assert names_in(tmp_path) == []


async def test_opening_a_large_store_reads_no_contents(tmp_path: Path) -> None:
    """To read the sparse file of a terabyte would take hours."""
    for number in range(10_000):
        (tmp_path / f"{number:064x}").touch()
    with (tmp_path / f"{1:064x}").open("wb") as file:
        file.truncate(1 << 40)
    async with asyncio.timeout(20), InputStore(tmp_path, max_bytes=1) as store:
        assert (store.files, store.bytes) == (10_000, 1 << 40)


async def test_a_cancelled_caller_leaves_whole_files_only(tmp_path: Path) -> None:
    async with InputStore(tmp_path) as store:
        for _ in range(20):
            task = asyncio.create_task(put(store, "x" * 100_000))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert {path.stat().st_size for path in tmp_path.iterdir()} <= {100_000}
        await store.sweep(name_none)
        assert (names_in(tmp_path), store.bytes) == ([], 0)
        await put(store, "x" * 100_000)
        assert store.bytes == 100_000
