"""The number of async jobs that a server may have in ComfyUI's own queue."""

from __future__ import annotations

import pytest

from comfyui.jobs.paces import Paces


def paces_after(seconds: list[float], ahead: int = 4) -> Paces:
    paces = Paces(ahead)
    for one in seconds:
        paces.ran("a", one)
    return paces


@pytest.mark.parametrize(
    ("seconds", "ahead"),
    [
        ([], 4),
        ([0.01] * 15, 4),
        ([0.01] * 16, 32),
        ([0.0001] * 16, 32),
        ([0.0] * 16, 4),
        ([0.1] * 16, 10),
        ([0.01] * 15 + [0.1], 10),
        ([0.5] * 16, 4),
        ([0.01] * 100 + [60.0], 4),
        ([60.0] + [0.01] * 16, 32),
    ],
)
def test_a_server_may_have_as_many_quick_jobs_as_it_runs_in_a_second(seconds: list[float], ahead: int) -> None:
    paces = paces_after(seconds)
    assert paces.of("a") == ahead
    assert paces.of("b") == 4


@pytest.mark.parametrize(("least", "most"), [(0, 0), (1, 8)])
def test_the_largest_number_of_jobs_is_eight_times_the_least(least: int, most: int) -> None:
    assert paces_after([0.001] * 16, least).of("a") == most
