"""While RunPod surely takes no jobs, none is sent to it."""

from __future__ import annotations

import asyncio

from comfyui.executors.runpod.gate import Gate
from comfyui.executors.runpod.submissions import NotTaken
from comfyui.retrying import Backoff


async def test_it_is_closed_for_a_time_after_a_refusal_and_says_when_it_opens() -> None:
    news = asyncio.Event()
    gate = Gate(Backoff(0.01, 0.02), news)
    gate.refused(NotTaken("429"))
    assert (gate.is_open, news.is_set()) == (False, False)
    async with asyncio.timeout(30):
        await news.wait()
    assert (gate.is_open, news.is_set()) == (True, True)


async def test_it_stays_closed_as_long_as_runpod_asks_for() -> None:
    news = asyncio.Event()
    gate = Gate(Backoff(0.0, 0.0), news)
    gate.refused(NotTaken("429", wait_s=3600.0))
    # Another one that was on its way does not open it sooner, and neither does a stop.
    gate.refused(NotTaken("503", wait_s=3600.0))
    gate.close()
    await asyncio.sleep(0)
    assert (gate.is_open, news.is_set()) == (False, False)
