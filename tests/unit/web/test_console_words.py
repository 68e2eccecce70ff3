"""Times in the console's queue."""

from __future__ import annotations

import pytest

from comfyui.jobs.forecast import UNKNOWN, Eta
from comfyui.web.console.queue_rows import about, eta_text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (9.2, "10 s"), (41, "40 s"), (59.9, "60 s"), (61, "1 min"), (3000, "50 min"), (5400, "1.5 h")],
)
def test_an_estimate_is_shown_in_round_numbers(seconds: float, said: str) -> None:
    assert about(seconds) == said


def test_the_begin_of_a_job_is_shown_if_it_is_known() -> None:
    assert eta_text(UNKNOWN) == ""
    assert eta_text(Eta(0.4, None)) == "begins at any moment"
    assert eta_text(Eta(130.0, 140.0)) == "begins in about 2 min"
