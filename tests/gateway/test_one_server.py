"""`/servers/{name}/…` reaches exactly one server, and a drained server gets no new prompts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from comfyui.engine import Engine, EngineOptions
from tests.support.keys import ALICE, KEYS, ROOT, WATCHER, bearer, write_keys
from tests.support.running import (
    RunningGateway,
    executions,
    invert_workflow,
    queue_of,
    running_gateway,
    sleep_workflow,
    until,
)

Pair = tuple[Engine, Engine, RunningGateway]


def named(*engines: Engine) -> list[str]:
    return [f"gpu-{number}={engine.url}" for number, engine in enumerate(engines, 1)]


async def asked(gateway: RunningGateway, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with gateway.http.request(method, path, **options) as response:
        is_json = response.content_type == "application/json"
        return response.status, await (response.json() if is_json else response.text())


async def asked_directly(engine: Engine, path: str) -> tuple[int, bytes, str | None]:
    async with aiohttp.ClientSession() as http, http.get(f"{engine.url}{path}") as response:
        return response.status, await response.read(), response.headers.get("Content-Type")


async def test_paths_below_a_servers_name_are_answered_by_that_server(gpu_pair: Pair) -> None:
    _, second, gateway = gpu_pair
    (second.folders.output / "only here.txt").write_text("second")
    for path in (
        "/models",
        "/api/models",
        "/features",
        "/queue",
        "/view?filename=only%20here.txt",
        "/nothing/here",
        "/",
    ):
        async with gateway.http.get(f"/servers/gpu-2{path}") as response:
            answer = response.status, await response.read(), response.headers.get("Content-Type")
        assert answer == await asked_directly(second, path), path


async def test_a_prompt_below_a_servers_name_runs_there_and_sends_its_events(gpu_pair: Pair) -> None:
    first, second, gateway = gpu_pair
    async with gateway.http.ws_connect("/servers/gpu-2/ws?clientId=mine") as socket:
        assert (await socket.receive_json(timeout=30))["data"]["sid"] == "mine"
        body = {"prompt": invert_workflow(7), "client_id": "mine"}
        status, answer = await asked(gateway, "POST", "/servers/gpu-2/prompt", json=body)
        assert status == 200
        async with asyncio.timeout(30):
            while True:
                message = await socket.receive_json()
                if message["type"] == "executing" and message["data"]["node"] is None:
                    break
        assert message["data"]["prompt_id"] == answer["prompt_id"]
    status, history = await asked(gateway, "GET", f"/servers/gpu-2/history/{answer['prompt_id']}")
    assert list(history) == [answer["prompt_id"]]
    assert (executions(first), list(executions(second))) == ({}, [answer["prompt_id"]])


async def test_an_unknown_server_name_gets_404_with_the_known_names(gpu_pair: Pair) -> None:
    status, answer = await asked(gpu_pair[2], "GET", "/servers/gpu-3/queue")
    assert status == 404
    assert answer["detail"] == "there is no server 'gpu-3'; the servers are gpu-1, gpu-2"
    assert (await asked(gpu_pair[2], "POST", "/servers/gpu-3/drain"))[0] == 404


async def test_the_address_of_a_server_redirects_to_a_trailing_slash(gpu_pair: Pair) -> None:
    async with gpu_pair[2].http.get("/servers/gpu-1", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (307, "gpu-1/")


async def test_path_rules_apply_to_the_path_after_the_server_name() -> None:
    async with Engine() as first, Engine() as second:
        async with running_gateway(*named(first, second), proxy_mode="api") as gateway:
            for path in ("/internal/logs", "/api/internal/logs", "//internal/logs", "/x/..%2finternal/logs"):
                assert (await asked(gateway, "GET", f"/servers/gpu-2{path}"))[0] == 403, path
            assert (await asked(gateway, "GET", "/servers/gpu-2/extensions"))[0] == 404
            assert (await asked(gateway, "GET", "/servers/gpu-2/queue"))[0] == 200
        async with running_gateway(*named(first, second), proxy_deny=("/servers/*",)) as gateway:
            assert (await asked(gateway, "GET", "/servers/gpu-2/queue"))[0] == 403


async def test_only_admins_reach_and_drain_single_servers(tmp_path: Path) -> None:
    async with Engine() as only:
        keys_file = write_keys(tmp_path / "keys.toml", KEYS)
        async with running_gateway(*named(only), keys_file=keys_file) as gateway:
            for path in ("/servers/gpu-1/queue", "/servers/gpu-1/ws", "/servers/gpu-9/queue"):
                for key in (ALICE, WATCHER):
                    status, answer = await asked(gateway, "GET", path, headers=bearer(key))
                    assert status == 403
                    assert "gpu-1" not in str(answer)
            assert (await asked(gateway, "GET", "/servers/gpu-1/queue", headers=bearer(ROOT)))[0] == 200
            for role, wanted in ((ALICE, 403), (WATCHER, 403), (ROOT, 200)):
                assert (await asked(gateway, "POST", "/servers/gpu-1/drain", headers=bearer(role)))[0] == wanted


async def test_a_single_server_without_keys_has_no_server_paths() -> None:
    async with Engine() as only, running_gateway(*named(only)) as gateway:
        assert (await asked(gateway, "GET", "/servers/gpu-1/queue"))[0] == 404
        status, answer = await asked(gateway, "POST", "/servers/gpu-1/drain")
        assert (status, answer["type"]) == (409, "conflict")


async def test_a_drained_server_gets_no_new_prompts_and_finishes_its_own(gpu_pair: Pair) -> None:
    first, second, gateway = gpu_pair
    running = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(1.5, tag=tag))) for tag in range(2)]
    await until(lambda: queue_of(first), lambda queue: len(queue[0]) == 1)
    await until(lambda: queue_of(second), lambda queue: len(queue[0]) == 1)
    status, answer = await asked(gateway, "POST", "/servers/gpu-2/drain")
    assert (status, answer) == (200, {"server": "gpu-2", "status": "drained", "in_flight": 1})
    later = [asyncio.create_task(gateway.prompt_sync(invert_workflow(tag))) for tag in range(4)]
    assert [status for status, _ in await asyncio.gather(*running, *later)] == [200] * 6
    assert len(executions(second)) == 1
    _, health = await asked(gateway, "GET", "/health")
    assert [server["drained"] for server in health["servers"]] == [False, True]
    assert health["servers"][1]["reason"] == "drained: POST /servers/gpu-2/resume gives it prompts again"
    assert 'server_drained{server="gpu-2"} 1.0' in (await asked(gateway, "GET", "/metrics"))[1]
    assert (await asked(gateway, "POST", "/servers/gpu-2/resume"))[1]["status"] == "in use"
    results = await asyncio.gather(*(gateway.prompt_sync(sleep_workflow(0.2, tag=tag)) for tag in range(10, 14)))
    assert [status for status, _ in results] == [200] * 4
    assert len(executions(second)) > 1


async def test_prompts_that_wait_on_a_drained_server_move_to_an_idle_one(gpu_pair: Pair) -> None:
    first, second, gateway = gpu_pair
    tasks = [
        asyncio.create_task(gateway.prompt_sync(sleep_workflow(seconds, tag=tag)))
        for tag, seconds in ((1, 0.8), (2, 4))
    ]
    await until(lambda: queue_of(first), lambda queue: len(queue[0]) == 1)
    await until(lambda: queue_of(second), lambda queue: len(queue[0]) == 1)
    waiting = [asyncio.create_task(gateway.prompt_sync(invert_workflow(tag))) for tag in range(2)]
    await until(lambda: queue_of(second), lambda queue: len(queue[1]) == 1)
    await asked(gateway, "POST", "/servers/gpu-2/drain")
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 2
    assert len(executions(first)) == 3
    assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 2


async def test_servers_stay_drained_after_a_restart_and_readiness_needs_one_in_use(tmp_path: Path) -> None:
    async with Engine() as first, Engine() as second:
        async with running_gateway(*named(first, second), state_dir=tmp_path) as gateway:
            for name in ("gpu-1", "gpu-2"):
                assert (await asked(gateway, "POST", f"/servers/{name}/drain"))[0] == 200
            status, answer = await asked(gateway, "GET", "/health/ready")
            assert (status, answer["reason"].count("drained:")) == (503, 2)
            await asked(gateway, "POST", "/servers/gpu-1/resume")
        async with running_gateway(*named(first, second), state_dir=tmp_path) as gateway:
            await until(lambda: asked(gateway, "GET", "/health/ready"), lambda told: told[0] == 200)
            results = await asyncio.gather(*(gateway.prompt_sync(sleep_workflow(0.1, tag=tag)) for tag in range(4)))
            assert [status for status, _ in results] == [200] * 4
    assert executions(second) == {}


async def test_health_names_a_server_with_other_node_definitions() -> None:
    wrong = {
        "wrong_value": {"route": "/object_info", "path": ["KSampler", "input", "required", "cfg", 0], "value": "INT"}
    }
    models = {"checkpoints": ("other.safetensors",)}
    async with (
        Engine() as first,
        Engine(EngineOptions(models=models)) as same,
        Engine(EngineOptions(faults=wrong)) as other,
        running_gateway(*named(first, same, other)) as gateway,
    ):

        async def told() -> list[Any]:
            _, health = await asked(gateway, "GET", "/health")
            return [server.get("definitions") for server in health["servers"]]

        found = await until(told, lambda servers: servers[2] is not None)
    assert found == [None, None, {"lacks": [], "adds": [], "differs": ["KSampler"], "count": 1}]
