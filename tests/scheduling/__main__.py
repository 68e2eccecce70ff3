"""`make scheduler`: checks the scheduler's promises in many random runs, and prints how much was checked.

Exit status 1 if a promise is broken; Hypothesis prints the shortest run that shows it. The suite makes fewer runs of
the same tests.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scheduling", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="runs of the state machine, and of each property")
    parser.add_argument("--steps", type=int, default=100, help="steps in each run of the state machine")
    options = parser.parse_args()
    # The tests take their default settings from this profile, so it is loaded before they are imported.
    settings.register_profile(
        "long",
        max_examples=options.runs,
        stateful_step_count=options.steps,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("long")
    from tests.unit.jobs import test_scheduler, test_scheduler_machine

    for name, test in vars(test_scheduler).items():
        if hasattr(test, "hypothesis"):
            _property(name, test)
    machine = test_scheduler_machine.Fleet
    began = time.monotonic()
    run_state_machine_as_test(machine, settings=settings.get_profile("long"))
    _print("any step in any order: servers, owners, others, cancels, deaths", machine.checked, time.monotonic() - began)
    return 0


def _property(name: str, test: Any) -> None:
    inner: Callable[..., None] = test.hypothesis.inner_test
    checked: Counter[str] = Counter()

    @functools.wraps(inner)
    def counted(*args: Any, **kwargs: Any) -> None:
        inner(*args, **kwargs)
        checked["runs"] += 1

    test.hypothesis.inner_test = counted
    began = time.monotonic()
    test()
    _print(name.removeprefix("test_").replace("_", " "), checked, time.monotonic() - began)


def _print(name: str, checked: Counter[str], seconds: float) -> None:
    counts = ", ".join(f"{count:,} {what}" for what, count in checked.items())
    print(f"held: {name}\n      {counts}; {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
