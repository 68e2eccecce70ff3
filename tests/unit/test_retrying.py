"""The delay before the next try, and the end of the tries."""

from __future__ import annotations

import pytest

from comfyui.retrying import Backoff, retry

AT_ONCE = Backoff(0, 0)


class Failing:
    """Raises each of the errors in turn, then returns its number of calls."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return self.calls


def test_delays_double_up_to_their_limit() -> None:
    backoff = Backoff(0.1, 1.0, jitter=lambda _low, high: high)
    assert [backoff.delay_s(failures) for failures in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.delay_s(10_000) == 1.0


def test_jitter_takes_at_most_half_of_a_delay() -> None:
    asked: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    assert Backoff(0.5, 8.0, jitter=lowest).delay_s(3) == 1.0
    assert asked == [(1.0, 2.0)]
    assert 0.5 <= Backoff(1.0, 8.0).delay_s(1) <= 1.0


async def test_a_call_is_tried_again_until_it_succeeds() -> None:
    assert await retry(Failing(OSError("1"), TimeoutError("2")), (OSError, TimeoutError), AT_ONCE) == 3


async def test_the_last_error_is_raised_when_the_tries_are_used_up() -> None:
    work = Failing(OSError("1"), OSError("2"), OSError("3"))
    with pytest.raises(OSError, match="2"):
        await retry(work, OSError, AT_ONCE, retries=1)
    assert work.calls == 2


async def test_without_retries_there_is_one_call() -> None:
    work = Failing(OSError("1"))
    with pytest.raises(OSError, match="1"):
        await retry(work, OSError, AT_ONCE, retries=0)
    assert work.calls == 1


async def test_an_error_of_another_type_ends_the_tries() -> None:
    work = Failing(KeyError("not named"))
    with pytest.raises(KeyError):
        await retry(work, OSError, AT_ONCE)
    assert work.calls == 1


async def test_an_error_that_is_not_worth_a_try_ends_the_tries() -> None:
    work = Failing(OSError("passes"), OSError("stays"), OSError("never"))
    with pytest.raises(OSError, match="stays"):
        await retry(work, OSError, AT_ONCE, worth=lambda error: str(error) == "passes")
    assert work.calls == 2


async def test_no_further_call_is_made_after_the_time_limit() -> None:
    times = iter([100.0, 104.0, 106.0])
    work = Failing(OSError("1"), OSError("2"), OSError("3"))
    with pytest.raises(OSError, match="2"):
        await retry(work, OSError, AT_ONCE, within_s=5, clock=lambda: next(times))
    assert work.calls == 2


async def test_each_error_that_is_followed_by_a_try_is_reported() -> None:
    told: list[tuple[str, int]] = []
    work = Failing(OSError("1"), OSError("2"), OSError("3"))
    with pytest.raises(OSError, match="3"):
        await retry(work, OSError, AT_ONCE, retries=2, told=lambda error, failures: told.append((str(error), failures)))
    assert told == [("1", 1), ("2", 2)]
