"""Fixtures of the tests in this folder."""

from __future__ import annotations

import pytest

from comfyui.servers.node_times import NodeTimes
from comfyui.servers.prompt_worker import PromptWorker
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(clock: Clock) -> PromptWorker:
    return PromptWorker(stalled_after_s=60, silent_after_s=600, dead_after_s=900, clock=clock)


@pytest.fixture
def times() -> NodeTimes:
    """The node times of a prompt that has begun."""
    made = NodeTimes()
    made.started()
    return made
