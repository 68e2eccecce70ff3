"""The remembered places of jobs, which a job gets back when it waits again."""

from __future__ import annotations

from comfyui.jobs.lines import Waiting
from comfyui.jobs.numbers import InLine, Numbers
from comfyui.models import PromptRequest
from tests.support.running import invert_workflow


def request(**fields: object) -> PromptRequest:
    return PromptRequest.model_validate({"prompt": invert_workflow(), **fields})


def test_a_moved_job_waits_again_at_the_place_that_it_was_moved_to() -> None:
    numbers = Numbers()
    numbers.remember(Waiting("a", 4, priority=1, turn=7.0))
    numbers.move("a", 5, None)
    assert numbers.of("a", request(priority=1)) == InLine(5, 7.0, 4)
    numbers.move("a", None, -9.0)
    assert numbers.of("a", request(priority=1)) == InLine(5, -9.0, 4)
    numbers.forget("a")
    assert numbers.of("a", request(priority=1)) == InLine(1, 1, 1)


def test_moving_an_unknown_job_does_not_remember_it() -> None:
    numbers = Numbers()
    numbers.move("a", 5, -1.0)
    assert numbers.known("a") is None
