"""Estimates of when jobs begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.jobs.forecast import UNKNOWN, Eta, Forecast, OnServer, begins_in

SECONDS = st.floats(0, 1000)


@pytest.mark.parametrize(
    ("free_in", "ahead", "begins_s"),
    [
        ([7.0], 0, 7.0),
        ([7.0], 2, 27.0),
        ([0.0, 0.0], 4, 20.0),
        ([3.0, 50.0], 0, 3.0),
        ([0.0, 100.0], 3, 30.0),  # the other server is busy for longer
        ([0.0, 10.0], 3, 20.0),  # 20 s of work on the first server, 10 s on the second
    ],
)
def test_servers_share_the_work_ahead_of_a_job(free_in: list[float], ahead: int, begins_s: float) -> None:
    assert begins_in(free_in, ahead, 10.0) == begins_s


@given(st.lists(SECONDS, min_size=1, max_size=5), st.integers(0, 50), SECONDS, SECONDS)
def test_more_work_never_makes_a_job_begin_sooner_nor_another_server_later(
    free_in: list[float], ahead: int, each_s: float, another: float
) -> None:
    begins_s = begins_in(free_in, ahead, each_s)
    assert begins_s >= min(free_in)
    assert begins_in(free_in, ahead + 1, each_s) >= begins_s
    assert begins_in([*free_in, another], ahead, each_s) <= begins_s * (1 + 1e-9) + 1e-6


def test_the_jobs_on_a_server_end_one_after_the_other() -> None:
    jobs = [OnServer("runs", "a", 20.0, 5.0), OnServer("behind", "a", 30.0, None), OnServer("other", "b", None, 2.0)]
    forecast = Forecast(jobs, {"a": 0, "b": 0}, 10.0)
    assert forecast.on_server("runs") == Eta(0.0, 15.0)
    assert forecast.on_server("behind") == Eta(15.0, 45.0)
    assert forecast.on_server("other") == Eta(0.0, None), "its usual run time is unknown"
    assert forecast.on_server("waits") is None
    # The forecast assumes that "other" runs for as long as an average job: 8 s more.
    assert forecast.waiting(["a", "b"], 0, 4.0) == Eta(8.0, 12.0)
    assert forecast.waiting(["a"], 2, 4.0) == Eta(65.0, 69.0)


def test_prompts_of_other_clients_count_in_the_forecast() -> None:
    forecast = Forecast([OnServer("runs", "a", 20.0, 5.0)], {"a": 2}, 10.0)
    assert forecast.waiting(["a"], 0, 1.0) == Eta(35.0, 36.0)


def test_the_end_of_a_job_that_runs_far_longer_than_others_is_unknown() -> None:
    forecast = Forecast([OnServer("late", "a", 20.0, 25.0), OnServer("stuck", "b", 20.0, 31.0)], {"a": 0, "b": 0}, 20.0)
    assert forecast.on_server("late") == Eta(0.0, 0.0)
    assert forecast.on_server("stuck") == Eta(0.0, None)
    assert forecast.waiting(["a"], 0, 1.0) == Eta(0.0, 1.0)
    assert forecast.waiting(["b"], 0, 1.0) == UNKNOWN, "the begin of the jobs behind it is unknown too"
    assert forecast.waiting(["a", "b"], 2, 1.0) == Eta(40.0, 41.0)


def test_a_forecast_without_run_times_is_unknown_unless_a_server_is_idle() -> None:
    forecast = Forecast([OnServer("runs", "a", None, 5.0)], {"a": 0, "b": 0}, None)
    assert forecast.on_server("runs") == Eta(0.0, None)
    assert forecast.waiting(["a"], 0, None) == UNKNOWN
    assert forecast.waiting([], 0, 5.0) == UNKNOWN, "no server that can run it is up"
    assert forecast.waiting(["b"], 3, 5.0) == UNKNOWN
    assert forecast.waiting(["a", "b"], 0, 5.0) == Eta(0.0, 5.0), "one of the servers is idle"
