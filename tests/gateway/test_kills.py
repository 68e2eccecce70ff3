"""A short run of `make kills`: what becomes of a job when gateway, ComfyUI or both are killed."""

from __future__ import annotations

import pytest

from tests.chaos.kills.calls import CALLS, Call
from tests.chaos.kills.matrix import run
from tests.chaos.kills.points import Point, When
from tests.chaos.kills.world import Victim

_BY_NAME = {call.name: call for call in CALLS}
_EVERYWHERE: tuple[Victim, ...] = ("gateway", "ComfyUI", "both")


def at(call: str, what: str, when: When, *victims: Victim, number: int = 1) -> list[tuple[Call, Point, Victim]]:
    """Runs that strike at this point."""
    return [(_BY_NAME[call], Point(what, number, when), victim) for victim in victims]


KILLS = [
    *at("sync, no id", "POST /prompt", "after", "ComfyUI"),
    *at("sync, no id", "Start", "before", "gateway", "both"),
    *at("sync, prompt_id", "Add", "after", *_EVERYWHERE),
    *at("sync, key", "POST /prompt", "after", "gateway", "both"),
    *at("sync, prompt_id, caller gone", "Start", "after", "gateway", "both"),
    *at("async, key", "POST /prompt", "before", "both"),
    *at("async, key", "Finish", "before", "gateway", "ComfyUI"),
    # The attempt that was placed had not begun: it is no second loss.
    *at("async, forgotten once", "POST /prompt", "before", "gateway", number=2),
    *at("async, forgotten once", "POST /prompt", "after", "ComfyUI", number=2),
    *at("DELETE, running", "Cancel", "after", "gateway", "both"),
    # The job of a call that ended with the gateway: it is cancelled in the journal, too, and no GET runs it.
    *at("DELETE, sync, prompt_id", "Cancel", "before", "gateway"),
    *at("DELETE, sync, prompt_id", "Finish", "before", "gateway"),
    *at("second run, sync", "Again", "after", "gateway", "both"),
]


@pytest.mark.parametrize(
    ("call", "point", "victim"), KILLS, ids=[f"{call.name}: {victim} {point}" for call, point, victim in KILLS]
)
async def test_a_job_ends_whichever_process_is_killed(call: Call, point: Point, victim: Victim) -> None:
    ended = await run(call, victim, point)
    assert not ended.wrong, ended
    assert "not reached" not in ended.told, ended


@pytest.mark.parametrize(("when", "told"), [("before", "200"), ("after", "502 prompt_lost")])
async def test_a_loss_counts_once_the_begin_of_its_run_is_committed(when: When, told: str) -> None:
    """A begin is committed up to a quarter of a second after ComfyUI has told of it, so that a quick end shares that.

    Gateway and ComfyUI are killed when the job has begun again, and has been lost once: with its one retry.
    """
    ended = await run(_BY_NAME["async, forgotten once"], "both", Point("Start", 2, when))
    assert not ended.wrong, ended
    assert ended.told.startswith(told), ended
