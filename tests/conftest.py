"""Guards for the whole suite, and the servers that tests share."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import settings

from comfyui.engine import Engine, EngineOptions
from tests.support.object_store import running_seaweedfs
from tests.support.running import RunningGateway, running_gateway
from tests.support.runpod_endpoint import FakeEndpoint
from tests.support.settings import all_variables

# A shell makes its background processes ignore SIGINT, and processes that tests start would inherit that: servers that
# SIGINT must stop, and a client that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Hypothesis draws the same examples in each run, so no run fails by chance. `make scheduler` and `make framing` draw
# new ones.
settings.register_profile("suite", derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the settings of the developer's shell. Only entry points read `.env`, so no test does by accident."""
    for name in all_variables():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Restores the logging after a test that configures it: later lines would go to the test's closed stream."""
    root = logging.getLogger()
    before, configured = (root.handlers[:], root.level), structlog.get_config()
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.configure(**configured)


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that connects to another machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test tried to connect to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """The embedded engine as the newest ComfyUI, with quick sampling steps."""
    async with Engine(EngineOptions(step_seconds=0.002)) as running:
        yield running


@pytest.fixture
async def gateway(engine: Engine) -> AsyncIterator[RunningGateway]:
    """A gateway with default settings in front of `engine`."""
    async with running_gateway(engine.url) as running:
        yield running


@pytest.fixture
async def endpoint() -> AsyncIterator[FakeEndpoint]:
    """A fake of RunPod's API for one endpoint."""
    async with FakeEndpoint() as running:
        yield running


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 server that runs for the whole session."""
    with running_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url


@pytest.fixture
def real_comfyui() -> str:
    """The address of a real ComfyUI, from COMFYUI_TEST_URL."""
    url = os.environ.get("COMFYUI_TEST_URL")
    if not url:
        pytest.skip("no real ComfyUI: set COMFYUI_TEST_URL=http://127.0.0.1:8188")
    return url
