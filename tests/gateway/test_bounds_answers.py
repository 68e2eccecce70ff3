"""Answers and messages of ComfyUI are limited too: an endless one ends at once, with an error that names the limit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import aiohttp
import pytest

from benchmarks.bombs import probing
from benchmarks.processes import Server
from comfyui.client import ComfyUIClient
from comfyui.engine import Engine
from comfyui.exceptions import ComfyUIUnreadableError
from comfyui.limits import AnswerLimits
from tests.support.held_up import assert_not_held_up
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.running import RunningGateway, executions, invert_workflow


async def test_a_prompt_fails_at_once_when_its_history_is_endless(
    small_answers: RunningGateway, engine: Engine
) -> None:
    await engine.set_faults({"long_answer": {"route": "/history/*"}})
    async with asyncio.timeout(30):
        status, body = await small_answers.prompt_sync(invert_workflow(), timeout=300)
    assert (status, body["type"]) == (502, "server_error")
    assert body["detail"].endswith("the answer is larger than 1 MB (MAX_ANSWER_MB)")
    assert body["prompt_id"]


async def test_a_prompt_is_found_although_the_reply_to_its_submission_is_endless(
    small_answers: RunningGateway, engine: Engine
) -> None:
    await engine.set_faults({"long_answer": {"route": "/prompt", "method": "POST", "times": 1}})
    async with asyncio.timeout(30):
        status, body = await small_answers.prompt_sync(invert_workflow(), timeout=300)
    assert (status, executions(engine)) == (200, {body["prompt_id"]: 1})


@pytest.mark.parametrize(("path", "route"), [("/prompt", "/prompt"), ("/validate", "/object_info")])
async def test_other_endless_answers_give_status_502(
    small_answers: RunningGateway, engine: Engine, path: str, route: str
) -> None:
    await engine.set_faults({"long_answer": {"route": route}})
    async with asyncio.timeout(30), small_answers.http.post(path, json={"prompt": invert_workflow()}) as response:
        body = await response.json()
    assert (response.status, body["type"]) == (502, "server_error")
    assert "(MAX_ANSWER_MB)" in body["detail"]


@pytest.mark.parametrize("lean", [True, False])
async def test_an_answer_just_below_the_limit_is_read(engine: Engine, lean: bool) -> None:
    async with ComfyUIClient(engine.url, lean=lean, answers=AnswerLimits(max_bytes=10_000)) as client:
        await engine.set_faults({"long_answer": {"route": "/queue", "bytes": 9_000}})
        assert await client.get_queue() == {}
        await engine.set_faults({"long_answer": {"route": "/queue", "bytes": 10_000}})
        with pytest.raises(ComfyUIUnreadableError, match="MAX_ANSWER_MB"):
            await client.get_queue()


async def test_the_watcher_survives_a_message_that_is_too_long(small_answers: RunningGateway, engine: Engine) -> None:
    await engine.set_faults({"ws_wrong_value": {"type": "executed", "raw": "x" * 1_200_000, "times": 1}})
    async with asyncio.timeout(30):
        assert (await small_answers.prompt_sync(invert_workflow(1)))[0] == 200
        assert (await small_answers.prompt_sync(invert_workflow(2)))[0] == 200


async def test_a_websocket_closes_with_1009_when_a_message_of_comfyui_is_too_long(
    small_answers: RunningGateway, engine: Engine
) -> None:
    async with small_answers.http.ws_connect("/ws?clientId=a") as websocket:
        await engine.set_faults({"ws_wrong_value": {"type": "status", "raw": "x" * 1_200_000}})
        await small_answers.http.post("/prompt", json={"prompt": invert_workflow()})
        async with asyncio.timeout(30):
            while (message := await websocket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1009)
    assert message.extra == "ComfyUI sent a message of more than 1 MB (MAX_ANSWER_MB)"


LISTS = f'{{"type": "executed", "data": [{"[]," * 3_000_000}1]}}'


# Each entry has a fault and the statuses of /validate and /prompt_sync. Node definitions are cached once they are read.
LARGE = {
    "object_info": ({"wrong_value": {"route": "/object_info", "raw": LISTS}}, (502, 200)),
    "history": ({"wrong_value": {"route": "/history/*", "raw": LISTS}}, (200, 502)),
    "message": ({"ws_wrong_value": {"type": "executed", "raw": LISTS}}, (200, 200)),
}


@pytest.mark.alone
async def test_the_health_probe_answers_while_a_large_answer_is_read(engine: Engine) -> None:
    async with gateway_process(engine.url) as gateway:
        for kind, (fault, statuses) in LARGE.items():
            engine.faults.clear()
            await engine.set_faults(fault)
            measured = partial(_cpu_s_of_reading, gateway, kind, statuses, itertools.count())
            await assert_not_held_up(kind, measured)


async def _cpu_s_of_reading(
    gateway: GatewayProcess, kind: str, statuses: tuple[int, int], seeds: Iterator[int]
) -> float:
    with probing(Server(gateway.process.pid, gateway.port)) as worst:
        assert await _statuses(gateway, invert_workflow(next(seeds))) == statuses, kind
    return worst().cpu_s


async def _statuses(gateway: GatewayProcess, workflow: dict[str, Any]) -> tuple[int, int]:
    async with gateway.http.post("/validate", json={"prompt": workflow}) as checked:
        return checked.status, (await gateway.prompt_sync(workflow))[0]
