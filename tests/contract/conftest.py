"""Each contract test runs against the engine, old and new, and a real ComfyUI where COMFYUI_TEST_URL names one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from comfyui.engine import NEW_VERSION, OLD_VERSION, Engine, EngineOptions
from tests.contract.conversion import (
    INSTALL,
    Editor,
    chromium,
    installed_files,
    open_editor,
)
from tests.support import browsing
from tests.support.described import KEY
from tests.support.keys import ALICE, KEYS, write_keys
from tests.support.named_folder import named_folder
from tests.support.pairs import Pair
from tests.support.running import RunningGateway, running_gateway
from tests.support.same_ways import REAL_WAYS, WAYS, Bare, Sides, open_way
from tests.support.target import Target, any_color, inverted
from tests.support.visits import Visit

_REAL = "real"


@pytest.fixture(params=[OLD_VERSION, NEW_VERSION, pytest.param(_REAL, marks=pytest.mark.real)])
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    timeout = aiohttp.ClientTimeout(total=30)
    if request.param != _REAL:
        async with (
            Engine(EngineOptions(comfyui_version=request.param)) as engine,
            aiohttp.ClientSession(engine.url, timeout=timeout) as session,
        ):
            yield Target(engine.url, session, request.param, is_real=False)
        return
    url = os.environ.get("COMFYUI_TEST_URL")
    if not url:
        pytest.skip("COMFYUI_TEST_URL does not name a real ComfyUI")
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        async with session.get("/system_stats") as response:
            version = (await response.json())["system"]["comfyui_version"]
        yield Target(url, session, version, is_real=True)


@pytest.fixture
async def gateway(target: Target) -> AsyncIterator[RunningGateway]:
    """A gateway in front of `target`."""
    async with running_gateway(target.url) as running:
        yield running


@pytest.fixture
def real_editor(real_comfyui: str) -> str:
    """The address of the real ComfyUI; skips without a browser or without workflows to convert."""
    pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    if not chromium():
        pytest.skip("no chromium: apt-get install --no-install-recommends chromium, or set CHROMIUM to one")
    if not installed_files():
        pytest.skip(f"no workflows to convert: {INSTALL}")
    return real_comfyui


@pytest.fixture
async def editor(real_editor: str) -> AsyncIterator[Editor]:
    async with open_editor(real_editor) as found:
        yield found


@pytest.fixture
def chromium_path() -> str:
    return browsing.chromium()


@pytest.fixture
async def no_first_visit(real_comfyui: str) -> None:
    """Marks the tutorial as done, because the frontend shows a new user a dialog over the whole page."""
    url = f"{real_comfyui}/settings/Comfy.TutorialCompleted"
    async with aiohttp.ClientSession() as http, http.post(url, json=True) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def bare_visit() -> dict[str, Visit]:
    """Keeps the visit to ComfyUI itself, so that it is made only once."""
    return {}


@pytest.fixture
async def engine_info() -> AsyncIterator[dict[str, Any]]:
    async with (
        Engine(EngineOptions(comfyui_version=OLD_VERSION)) as engine,
        aiohttp.ClientSession(engine.url) as session,
        session.get("/object_info") as response,
    ):
        yield await response.json()


@pytest.fixture
async def guarded(engine: Engine, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with a key and named workflows, so that its OpenAPI document is complete."""
    folder = named_folder(tmp_path / "workflows")
    async with running_gateway(engine.url, api_keys=(KEY,), workflows_dir=folder) as running:
        yield running


@pytest.fixture
async def document_file(guarded: RunningGateway, tmp_path: Path) -> Path:
    """The OpenAPI document of `guarded` as a file."""
    async with guarded.http.get("/openapi.json", headers={"X-API-Key": KEY}) as response:
        assert response.status == 200
        path = tmp_path / "openapi.json"
        path.write_bytes(await response.read())
        return path


@pytest.fixture
async def pair(target: Target) -> AsyncIterator[Pair]:
    run = await target.run(inverted(target.prefix, color=any_color()))
    [file] = run.entry["outputs"]["3"]["images"]
    view = f"filename={file['filename']}&subfolder={file['subfolder'].replace('/', '%2F')}&type=output"
    async with running_gateway(target.url) as gateway:
        yield Pair(target.url, gateway.url, view)


@pytest.fixture
async def three_servers() -> AsyncIterator[RunningGateway]:
    """A gateway without keys in front of three servers."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine()) for _ in range(3)]
        yield await stack.enter_async_context(running_gateway(*(engine.url for engine in engines)))


@pytest.fixture(params=["one server, a user's key", "three servers"])
async def merged(
    request: pytest.FixtureRequest, three_servers: RunningGateway, engine: Engine, tmp_path: Path
) -> AsyncIterator[tuple[RunningGateway, str]]:
    """A gateway in whose own queue prompts wait, and the key to use, or ""."""
    if request.param == "three servers":
        yield three_servers, ""
        return
    async with running_gateway(engine.url, keys_file=write_keys(tmp_path / "keys.toml", KEYS)) as gateway:
        yield gateway, ALICE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare_comfyui() -> AsyncIterator[Bare]:
    async with AsyncExitStack() as stack:
        yield Bare(stack)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[*WAYS, *(pytest.param(way, marks=pytest.mark.real) for way in REAL_WAYS)],
    ids=str,
)
async def sides(
    request: pytest.FixtureRequest, bare_comfyui: Bare, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Sides]:
    """ComfyUI itself, and each way through the gateway in turn."""
    if request.param.version == _REAL and not os.environ.get("COMFYUI_TEST_URL"):
        pytest.skip("COMFYUI_TEST_URL does not name a real ComfyUI")
    async with open_way(bare_comfyui, request.param, tmp_path_factory.mktemp("keys")) as opened:
        yield opened
