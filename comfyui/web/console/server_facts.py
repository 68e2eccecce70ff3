"""`ServerFacts`: facts that only the servers have. They are asked seldom, and only while a console is open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfyui.exceptions import ComfyUIError, JournalError
from comfyui.handler import ComfyUIHandler
from comfyui.replies import QueueItem
from comfyui.servers.backend import Backend
from comfyui.tasks import SideTasks
from comfyui.web.comfyui.externals import Externals

_ASKED_EVERY_S = 10.0
_PATIENCE_S = 3.0
_MOST_DEVICES = 16
_LONGEST_NAME = 80
# What is free changes with every allocation: it is shown, and told, in steps of this many bytes.
_STEP = 100_000_000


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a server. `total` and `free`: bytes of its memory."""

    name: str
    total: int
    free: int

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return max(0, self.total - self.free)


class ServerFacts:
    """The devices of each server, and prompts that came to it past the gateway. It never waits for a server."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._pool = handler.pool
        self._externals = Externals(handler)
        self._devices: dict[str, tuple[float, tuple[Device, ...]]] = {}
        self._others: Mapping[str, Sequence[QueueItem]] = {}
        self._asking: set[str] = set()
        self._asks_others = False
        self._tasks = SideTasks()

    async def close(self) -> None:
        """Gives up what is being asked."""
        await self._tasks.close()

    def devices_of(self, server: str) -> tuple[Device, ...]:
        """The devices that the server reported last; none if it never did, or is away."""
        return self._devices[server][1] if server in self._devices else ()

    def others_of(self, server: str) -> Sequence[QueueItem]:
        """Prompts that came to the server past the gateway, as it said last."""
        return self._others.get(server, ())

    def look(self) -> None:
        """Asks again what was not asked for some time, beside the caller."""
        for backend in self._pool.backends:
            asked_at = self._devices[backend.name][0] if backend.name in self._devices else float("-inf")
            if not backend.ready:
                self._devices.pop(backend.name, None)
            elif backend.name not in self._asking and time.monotonic() - asked_at >= _ASKED_EVERY_S:
                self._asking.add(backend.name)
                self._tasks.start(self._ask_devices(backend), f"devices of {backend.name}")
        if not self._asks_others:
            self._asks_others = True
            self._tasks.start(self._ask_others(), "prompts of others")

    async def looked(self, timeout_s: float) -> None:
        """As `look`, and waits at most `timeout_s` for the answers."""
        self.look()
        await self._tasks.join(timeout_s)

    async def _ask_devices(self, backend: Backend) -> None:
        found = self.devices_of(backend.name)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                found = devices_in(await backend.client.system_stats())
        except (ComfyUIError, TimeoutError):
            pass  # as before; whether it answers at all, its state says
        finally:
            self._asking.discard(backend.name)
        self._devices[backend.name] = time.monotonic(), found

    async def _ask_others(self) -> None:
        try:
            self._others = await self._externals.by_server()
        except JournalError:
            pass  # readiness and log say why
        finally:
            self._asks_others = False


def devices_in(stats: Mapping[str, Any]) -> tuple[Device, ...]:
    """The devices of an answer to ``GET /system_stats``, without those that it does not describe as ComfyUI does."""
    listed = stats.get("devices")
    found = (_device(one) for one in (listed[:_MOST_DEVICES] if isinstance(listed, list) else ()))
    return tuple(one for one in found if one is not None)


def _device(told: Any) -> Device | None:
    if not isinstance(told, Mapping):
        return None
    name, total, free = told.get("name"), _size(told.get("vram_total")), _size(told.get("vram_free"))
    if not isinstance(name, str) or total is None or free is None:
        return None
    # ComfyUI writes "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync".
    shown = name.partition(" : ")[0].strip()[:_LONGEST_NAME]
    return Device(shown, total, min(total, free // _STEP * _STEP))


def _size(value: Any) -> int | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18
    return int(value) if is_one else None
