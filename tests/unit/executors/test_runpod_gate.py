"""The gate holds jobs back while RunPod is known to refuse them."""

from __future__ import annotations

import asyncio

from comfyui.executors.runpod.gate import Gate
from comfyui.executors.runpod.submissions import NotTaken
from comfyui.retrying import Backoff


async def test_the_gate_closes_after_a_refusal_and_signals_when_it_opens() -> None:
    news = asyncio.Event()
    gate = Gate(Backoff(0.01, 0.02), news)
    gate.refused(NotTaken("429"))
    assert (gate.is_open, news.is_set()) == (False, False)
    async with asyncio.timeout(30):
        await news.wait()
    assert (gate.is_open, news.is_set()) == (True, True)


async def test_the_gate_stays_closed_for_as_long_as_runpod_asks() -> None:
    news = asyncio.Event()
    gate = Gate(Backoff(0.0, 0.0), news)
    gate.refused(NotTaken("429", wait_s=3600.0))
    # Neither a second refusal, of a job that was already under way, nor a stop opens the gate sooner.
    gate.refused(NotTaken("503", wait_s=3600.0))
    gate.close()
    await asyncio.sleep(0)
    assert (gate.is_open, news.is_set()) == (False, False)
