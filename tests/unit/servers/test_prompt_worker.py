"""When a look at ComfyUI's queue is due, and the state of the prompt worker that follows from it."""

from __future__ import annotations

import pytest

from comfyui.replies import QueueItem
from comfyui.servers.prompt_worker import PromptWorker
from tests.support.clock import Clock


def queue(*, running: str = "", pending: str = "") -> dict[str, QueueItem]:
    items = [(prompt_id, True) for prompt_id in running.split()] + [(prompt_id, False) for prompt_id in pending.split()]
    return {prompt_id: QueueItem(0, prompt_id, runs, {}, {}) for prompt_id, runs in items}


def test_the_silence_counts_from_the_last_event_of_the_running_prompt(worker: PromptWorker, clock: Clock) -> None:
    worker.heard("mine")
    clock.now += 59
    assert not worker.look_due()
    clock.now += 1
    assert worker.look_due()
    worker.looked(queue(running="mine", pending="next"))
    assert (worker.silence is not None, worker.silence and worker.silence.seconds) == (True, 60)
    assert not worker.look_due()
    clock.now += 540
    assert (worker.is_silent, worker.dead) == (True, False)
    clock.now += 300
    assert worker.dead


def test_the_silence_of_another_clients_prompt_counts_from_its_first_sight(worker: PromptWorker, clock: Clock) -> None:
    worker.heard("mine")
    clock.now += 100
    worker.looked(queue(running="another's"))
    clock.now += 5
    assert worker.silence is not None
    assert worker.silence.seconds == 5


def test_the_silence_goes_on_while_requests_come_and_go(worker: PromptWorker, clock: Clock) -> None:
    clock.now += 60
    worker.looked(queue(running="dead", pending="a"))
    for _ in range(20):
        worker.nothing_waits()
        clock.now += 30
        if worker.look_due():
            worker.looked(queue(running="dead", pending="b"))
    assert worker.silence is not None
    assert worker.silence.seconds == 600
    assert not worker.stalled


@pytest.mark.parametrize("end", ["heard", "emptied", "forget", "another", "nothing"])
def test_the_silence_ends_with_any_sign_of_work(worker: PromptWorker, clock: Clock, end: str) -> None:
    clock.now += 60
    worker.looked(queue(running="one"))
    clock.now += 900
    assert [worker.dead, worker.is_silent] == [True, True]
    match end:
        case "heard":
            worker.heard("any")
        case "emptied":
            worker.emptied()
        case "forget":
            worker.forget()
        case "another":
            worker.looked(queue(running="two"))
        case "nothing":
            worker.looked(queue(pending="two"))
    assert [worker.dead, worker.is_silent] == [False, False]


def test_a_worker_is_stalled_when_its_queue_waits_and_nothing_runs(worker: PromptWorker, clock: Clock) -> None:
    clock.now += 60
    worker.looked(queue(pending="one"))
    assert worker.stalled
    worker.looked(queue(running="one"))
    assert not worker.stalled


def test_a_worker_without_a_limit_is_never_dead(clock: Clock) -> None:
    worker = PromptWorker(clock=clock)
    clock.now += 60
    worker.looked(queue(running="one"))
    clock.now += 1e9
    assert (worker.is_silent, worker.dead) == (True, False)
