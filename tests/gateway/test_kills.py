"""A short run of `make kills`: jobs when the gateway, ComfyUI or both are killed."""

from __future__ import annotations

import pytest

from tests.chaos.kills.calls import CALLS, Call
from tests.chaos.kills.matrix import run
from tests.chaos.kills.points import Point, When
from tests.chaos.kills.world import Victim

_BY_NAME = {call.name: call for call in CALLS}
_EVERYWHERE: tuple[Victim, ...] = ("gateway", "ComfyUI", "both")


def at(call: str, what: str, when: When, *victims: Victim, number: int = 1) -> list[tuple[Call, Point, Victim]]:
    """Returns a run for each victim that is killed at this point."""
    return [(_BY_NAME[call], Point(what, number, when), victim) for victim in victims]


KILLS = [
    *at("sync, no id", "POST /prompt", "after", "ComfyUI"),
    *at("sync, no id", "Start", "before", "gateway", "both"),
    *at("sync, prompt_id", "Add", "after", *_EVERYWHERE),
    *at("sync, key", "POST /prompt", "after", "gateway", "both"),
    *at("sync, prompt_id, caller gone", "Start", "after", "gateway", "both"),
    *at("async, key", "POST /prompt", "before", "both"),
    *at("async, key", "Finish", "before", "gateway", "ComfyUI"),
    # The second attempt had not begun, so it is no second loss.
    *at("async, forgotten once", "POST /prompt", "before", "gateway", number=2),
    *at("async, forgotten once", "POST /prompt", "after", "ComfyUI", number=2),
    *at("DELETE, running", "Cancel", "after", "gateway", "both"),
    # The call ended with the gateway; the journal cancels its job too, and no GET runs it.
    *at("DELETE, sync, prompt_id", "Cancel", "before", "gateway"),
    *at("DELETE, sync, prompt_id", "Finish", "before", "gateway"),
    *at("second run, sync", "Again", "after", "gateway", "both"),
]


@pytest.mark.parametrize(
    ("call", "point", "victim"), KILLS, ids=[f"{call.name}: {victim} {point}" for call, point, victim in KILLS]
)
async def test_a_job_ends_as_promised_when_a_process_is_killed(call: Call, point: Point, victim: Victim) -> None:
    ended = await run(call, victim, point)
    assert not ended.wrong, ended
    assert "not reached" not in ended.told, ended


@pytest.mark.parametrize(("when", "told"), [("before", "200"), ("after", "502 prompt_lost")])
async def test_a_loss_counts_only_if_the_start_of_the_run_was_committed(when: When, told: str) -> None:
    """The start of a run is committed up to 0.25 s after its event, so that a quick end shares the commit.

    Gateway and ComfyUI are killed when the job, which was lost once and has one retry, has started again.
    """
    ended = await run(_BY_NAME["async, forgotten once"], "both", Point("Start", 2, when))
    assert not ended.wrong, ended
    assert ended.told.startswith(told), ended
