"""Work in threads: its result always has one owner, whenever the caller leaves."""

from __future__ import annotations

import asyncio
import threading

import pytest

from comfyui.offload import made_in_thread
from tests.support.running import until


async def test_a_result_for_a_caller_that_was_cancelled_twice_is_disposed_of() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    given_up: list[str] = []

    def make() -> str:
        begun.set()
        goes_on.wait(30)
        return "a file"

    making = asyncio.create_task(made_in_thread(make, given_up.append))
    assert await asyncio.to_thread(begun.wait, 30)
    for _ in range(2):
        making.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await making
    assert given_up == []
    goes_on.set()
    await until(lambda: _now(given_up), bool)
    assert given_up == ["a file"]


@pytest.mark.parametrize("turns", range(6))
async def test_a_result_goes_to_its_caller_or_is_disposed_of_if_the_caller_is_cancelled(turns: int) -> None:
    is_made = threading.Event()
    given_up: list[str] = []

    def make() -> str:
        is_made.set()
        return "a file"

    making = asyncio.create_task(made_in_thread(make, given_up.append))
    assert await asyncio.to_thread(is_made.wait, 30)
    for _ in range(turns):
        await asyncio.sleep(0)
    making.cancel()
    (outcome,) = await asyncio.gather(making, return_exceptions=True)
    had = [] if isinstance(outcome, BaseException) else [outcome]
    await until(lambda: _now([*had, *given_up]), bool)
    assert [*had, *given_up] == ["a file"]


async def _now(value: list[str]) -> list[str]:
    """The value as `until` needs it."""
    return value
