"""Run times of earlier prompts, by the shape of their workflows."""

from __future__ import annotations

from comfyui.jobs.run_times import RunTimes, shape_of
from comfyui.workflows.needs import Needs, needs_of
from tests.support.running import invert_workflow


def needs(*classes: str, model: str = "", file: str = "") -> Needs:
    files = frozenset({("LoadImage", "image", file)} if file else ())
    return Needs(frozenset(classes), files, frozenset({model} if model else ()))


def test_runs_of_the_same_shape_tell_the_expected_run_time() -> None:
    times = RunTimes()
    assert times.mean_s is None
    assert times.expected_s(shape_of(needs("A"))) is None
    for seconds in (60.0, 10.0, 12.0, 0.01):
        times.ended("x", needs("A", model="m", file="one.png"), seconds)
    times.ended("y", needs("A", model="n"), 100.0)
    assert times.expected_s(shape_of(needs("A", model="m", file="two.png"))) == 11.0, (
        "the longest run, which loaded models, and the shortest, which was cached, are left out"
    )
    assert times.expected_s(shape_of(needs("A", model="n"))) == 100.0
    assert times.expected_s(None) is None
    assert times.mean_s == (60 + 10 + 12 + 0.01 + 100) / 5


def test_failed_runs_and_runs_of_unknown_shape_do_not_count() -> None:
    times = RunTimes()
    times.ended("x", needs("A"), 0.0)
    times.ended("x", None, 5.0)
    assert times.mean_s is None


def test_a_prompt_that_passed_the_queue_counts_if_its_shape_was_noted() -> None:
    times, found = RunTimes(), needs_of(invert_workflow())
    times.look_at("x", found)
    assert times.looked_at("x") == shape_of(found)
    times.ended("x", None, 4.0)
    assert times.expected_s(shape_of(found)) == 4.0
    assert times.looked_at("x") is None


def test_the_number_of_remembered_run_times_is_bounded() -> None:
    times = RunTimes()
    for count in range(3000):
        times.ended("x", needs(str(count)), 1.0)
        times.look_at(str(count), needs("A"))
    known = [count for count in range(3000) if times.expected_s(shape_of(needs(str(count)))) is not None]
    assert known == list(range(2500, 3000))
    assert [count for count in range(3000) if times.looked_at(str(count))] == list(range(2000, 3000))
