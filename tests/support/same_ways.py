"""The ways to ComfyUI that are compared, and the servers at their ends."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine, EngineOptions
from tests.support.keys import ALICE, KEYS, ROOT, bearer, write_keys
from tests.support.running import running_gateway
from tests.support.same_answers import Caller, Case, Step, played

REAL: Final = "real"
# The other servers lack the checkpoint, so that workflows with it run one after the other on the first server.
_WITHOUT_CHECKPOINT = {
    "wrong_value": {
        "route": "/object_info",
        "path": ["CheckpointLoaderSimple", "input", "required", "ckpt_name", 0],
        "value": ["sd_xl_base_1.0.safetensors"],
    }
}


@dataclass(frozen=True)
class Way:
    """How a caller gets to ComfyUI.

    Attributes:
        version: the engine's version, or `REAL`.
        servers: number of servers behind the gateway.
        role: the role of the caller's key, or "" if the gateway has no keys.
        prefix: "" or ``/api``.
    """

    version: str
    servers: int
    role: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.version}-{self.servers}-{self.role or 'no keys'}{self.prefix}"


WAYS: Final = (
    Way(NEW_VERSION, 1, "user", ""),
    Way(NEW_VERSION, 1, "admin", "/api"),
    Way(NEW_VERSION, 3, "", ""),
    Way(NEW_VERSION, 3, "user", "/api"),
    Way(OLD_VERSION, 1, "user", "/api"),
    Way(OLD_VERSION, 3, "", "/api"),
)
REAL_WAYS: Final = (Way(REAL, 1, "user", ""), Way(REAL, 1, "admin", "/api"))


@dataclass
class Bare:
    """ComfyUI of each version without a gateway; it plays each script once and keeps the answers."""

    stack: AsyncExitStack
    callers: dict[str, Caller] = field(default_factory=dict)
    answers: dict[tuple[str, Case], list[Step]] = field(default_factory=dict)

    async def caller(self, version: str) -> Caller:
        if version not in self.callers:
            url = os.environ["COMFYUI_TEST_URL"] if version == REAL else await _engine(self.stack, version)
            http = await self.stack.enter_async_context(aiohttp.ClientSession(url))
            self.callers[version] = Caller(http, "", "comfyui", version == NEW_VERSION, version == REAL)
        return self.callers[version]

    async def played(self, version: str, case: Case) -> list[Step]:
        if (version, case) not in self.answers:
            self.answers[version, case] = await played(case, (await self.caller(version)).fresh())
        return self.answers[version, case]


@dataclass
class Sides:
    """ComfyUI itself, and a way through the gateway."""

    bare: Bare
    way: Way
    http: aiohttp.ClientSession

    async def of_comfyui(self, case: Case) -> list[Step]:
        return await self.bare.played(self.way.version, case)

    async def of_the_gateway(self, case: Case) -> list[Step]:
        way, version = self.way, self.way.version
        caller = Caller(self.http, way.prefix, way.role, version == NEW_VERSION, version == REAL, way.servers)
        return await played(case, caller)


@asynccontextmanager
async def open_way(bare: Bare, way: Way, folder: Path) -> AsyncIterator[Sides]:
    """Starts a gateway with its own servers; a real ComfyUI is shared."""
    async with AsyncExitStack() as stack:
        if way.version == REAL:
            urls = [os.environ["COMFYUI_TEST_URL"]]
        else:
            urls = [await _engine(stack, way.version, is_first=number == 0) for number in range(way.servers)]
        settings: dict[str, Any] = {"keys_file": write_keys(folder / "keys.toml", KEYS)} if way.role else {}
        gateway = await stack.enter_async_context(running_gateway(*urls, **settings))
        headers = bearer({"user": ALICE, "admin": ROOT}[way.role]) if way.role else {}
        http = await stack.enter_async_context(aiohttp.ClientSession(gateway.url, headers=headers))
        yield Sides(bare, way, http)


async def _engine(stack: AsyncExitStack, version: str, *, is_first: bool = True) -> str:
    faults = {} if is_first else _WITHOUT_CHECKPOINT
    engine = await stack.enter_async_context(Engine(EngineOptions(comfyui_version=version, faults=faults)))
    await _warm_up(engine.url)
    return engine.url


async def _warm_up(url: str) -> None:
    """Lets the server load the checkpoint once, so that its cache has it and its next number is not 0."""
    async with aiohttp.ClientSession(url) as http:
        caller = Caller(http, "", "comfyui", is_modern=False, is_real=False)
        await caller.ended(await caller.submit("warm up", caller.pinned()))
        await caller.cleared()
