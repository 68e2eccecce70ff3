"""Counts for tests and benches: the engine's requests and runs."""

from __future__ import annotations

from collections import Counter
from typing import Any


class Stats:
    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._executed: Counter[str] = Counter()

    def count_request(self, method: str, route: str) -> None:
        self._requests[f"{method} {route}"] += 1

    def count_execution(self, prompt_id: str) -> None:
        """Called on the prompt thread, which is the only one to write here."""
        self._executed[prompt_id] += 1

    def reset(self) -> None:
        self._requests = Counter()
        self._executed = Counter()

    def show(self) -> dict[str, Any]:
        return {"requests": dict(self._requests), "executed": dict(self._executed)}
