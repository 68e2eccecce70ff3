"""A short run of `make chaos`: the promises of the gateway hold under random faults."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import report, run


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_promises_hold_under_random_faults(seed: int) -> None:
    outcome, struck, counted = await run(prompts=80, clients=16, seconds=5, seed=seed, blow_pace_s=0.8)
    assert report(outcome, struck, counted, 80)
