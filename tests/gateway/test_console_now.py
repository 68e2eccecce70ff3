"""The Now page: servers, prompts that bypassed the gateway, and the queue of ComfyUI itself."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from comfyui.web.console.server_facts import Device, devices_in
from tests.support.keys import ALICE, ROOT, WATCHER, bearer
from tests.support.running import RunningGateway, prompts_are_queued, running_gateway, sleep_workflow, until
from tests.support.runpod_endpoint import FakeEndpoint

GIB = 1024**3
PAGE = {"Sec-Fetch-Site": "same-origin", "Accept": "application/json"}


async def shown(gateway: RunningGateway, key: str | None = None) -> str:
    headers = {} if key is None else bearer(key)
    async with gateway.http.get("/console", headers=headers) as answer:
        assert answer.status == 200
        return await answer.text()


async def queued(url: str, seconds: float = 30, tag: int = 0) -> str:
    """Submits a prompt to the server at `url` as ComfyUI's own clients do, and returns its id."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/prompt", json={"prompt": sleep_workflow(seconds, tag=tag)}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        prompt_id: str = (await answer.json())["prompt_id"]
        return prompt_id


async def test_the_card_of_a_server_shows_its_device_and_memory(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        text = await until(lambda: shown(gateway), lambda text: "<meter" in text)
    assert "simulation" in text
    assert "1.0 of 8.0 GiB" in text


async def test_prompts_that_bypassed_the_gateway_are_shown_as_external(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        first, second = await queued(engine.url), await queued(engine.url, tag=1)
        await prompts_are_queued(engine, 2)
        text = await until(lambda: shown(gateway), lambda text: first in text)
    card = text[text.index(f'id="running-{first}"') :]
    assert "external" in card[: card.index("</article>")]
    assert f'id="running-{second}"' not in text
    assert "Waiting on this server: 1" in text


async def test_with_comfyuis_queue_the_page_shows_the_prompts_in_it(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        first, second = await queued(gateway.url), await queued(gateway.url, tag=1)
        text = await until(lambda: shown(gateway), lambda text: first in text and second in text)
        assert f'id="running-{first}"' in text
        assert f'id="job-{second}"' in text
        assert "/drain" not in text
        async with gateway.http.post("/prompt_sync/nothing", data={}) as answer:
            assert answer.status >= 400


async def test_only_a_key_that_may_change_servers_gets_the_forms_for_it(engine: Engine, keys_path: Any) -> None:
    async with running_gateway(engine.url, keys_file=keys_path, queue="gateway") as gateway:
        name = gateway.handler.pool.backends[0].name
        for key, operates in ((ROOT, True), (WATCHER, False), (ALICE, False)):
            assert (f"servers/{name.replace(':', '%3A')}/drain" in await shown(gateway, key)) is operates
        (action,) = re.findall(r'action="\./(console/servers/[^"]+/drain)"', await shown(gateway, ROOT))
        async with gateway.http.post(f"/{action}", headers={**PAGE, **bearer(ROOT)}) as answer:
            assert answer.status == 200, await answer.text()
        assert gateway.handler.pool.backends[0].drained
        text = await shown(gateway, ROOT)
        assert ">drained<" in text
        assert "The server gets no more prompts until it is resumed." in text
        assert "POST /servers" not in text, "the page has a button for it"
        (action,) = re.findall(r'action="\./(console/servers/[^"]+/resume)"', text)
        async with gateway.http.post(f"/{action}", headers={**PAGE, **bearer(WATCHER)}) as answer:
            assert answer.status == 403
        async with gateway.http.post(f"/{action}", headers={**PAGE, **bearer(ROOT)}) as answer:
            assert answer.status == 200
        assert not gateway.handler.pool.backends[0].drained


@pytest.mark.parametrize(
    ("told", "device"),
    [
        (
            {"name": "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync", "vram_total": 24 * GIB, "vram_free": 2 * GIB},
            Device("cuda:0 NVIDIA GeForce RTX 4090", 24 * GIB, 2_100_000_000),
        ),
        ({"name": "cpu", "vram_total": 0, "vram_free": 5}, Device("cpu", 0, 0)),
        ({"name": "x" * 500, "vram_total": 10, "vram_free": 10}, Device("x" * 80, 10, 0)),
        ({"name": None, "vram_total": 10, "vram_free": 10}, None),
        ({"name": "gpu", "vram_total": "10", "vram_free": 10}, None),
        ({"name": "gpu", "vram_total": float("nan"), "vram_free": 10}, None),
        ("gpu", None),
    ],
)
def test_a_device_is_read_from_the_description_of_comfyui(told: Any, device: Device | None) -> None:
    assert devices_in({"devices": [told]}) == (() if device is None else (device,))


@pytest.mark.parametrize("stats", [{}, {"devices": None}, {"devices": {}}, {"devices": []}])
def test_invalid_device_lists_give_no_devices(stats: Any) -> None:
    assert devices_in(stats) == ()


async def test_a_runpod_endpoint_has_one_card_with_all_its_running_jobs(
    runpod_gateway: RunningGateway, endpoint: FakeEndpoint
) -> None:
    gateway = runpod_gateway
    calls = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(600, tag=tag))) for tag in (1, 2)]
    try:
        for job in [await endpoint.job(number) for number in (1, 2)]:
            endpoint.says(job, "IN_PROGRESS")
        text = await until(lambda: shown(gateway), lambda text: text.count('class="running"') == 2)
        assert text.count('class="card server"') == 1
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
