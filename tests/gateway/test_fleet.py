"""Servers that die, hang, lose their connection and return: where prompts run, and how often."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from PIL import Image

from comfyui.engine import Engine
from config import GatewayOptions
from tests.support.fleet import Member, fleet
from tests.support.jobs import begins, fetch, look, submit
from tests.support.links import Link
from tests.support.processes import gateway_process
from tests.support.running import (
    RunningGateway,
    engines,
    executions,
    invert_workflow,
    moving_after,
    prompts_are_queued,
    running_gateway,
    server_options,
    sleep_workflow,
    until,
)

T = TypeVar("T")


def impatient(made: GatewayOptions) -> GatewayOptions:
    """Shortens waits of half a minute to a second."""
    return server_options(probe_timeout_s=0.5, heartbeat_s=0.6)(moving_after(0.3)(made))


def began(*members: Member) -> Counter[str]:
    """Returns how often each prompt was started, on all servers together."""
    return sum((member.executions() for member in members), Counter())


async def states(gateway: RunningGateway) -> dict[str, str]:
    async with gateway.http.get("/health") as response:
        return {server["server"]: server["state"] for server in (await response.json())["servers"]}


async def has_state(gateway: RunningGateway, member: Member | Engine, state: str) -> None:
    name = member.url.removeprefix("http://")
    await until(lambda: states(gateway), lambda now: now[name] == state)


async def two_on_each(gateway: RunningGateway, members: list[Member], seconds: float) -> list[asyncio.Task[Any]]:
    """Starts sync calls until each server has one that runs and one that waits."""
    calls = [
        asyncio.create_task(gateway.prompt_sync(sleep_workflow(seconds, tag=tag), timeout=50))
        for tag in range(2 * len(members))
    ]
    for member in members:
        await until(member.queue, lambda queue: (len(queue[0]), len(queue[1])) == (1, 1))
    return calls


async def test_prompts_of_a_disconnected_server_move_and_are_cancelled_there_on_its_return(
    tmp_path: Path,
) -> None:
    async with fleet(tmp_path, 3) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        ids = {await submit(gateway.http, sleep_workflow(60, tag=tag)) for tag in range(6)}
        await until(lambda: _queues(members), lambda queued: set(queued) == ids)
        cut_off, *others = members
        (running,), (waiting,) = await cut_off.queue()
        await begins(gateway.http, running)
        await cut_off.link.cut()
        for one in ids - {running, waiting}:
            async with gateway.http.delete(f"/prompt_sync/{one}") as response:
                assert response.status == 200
        await until(lambda: _queues(others), lambda queued: set(queued) == {running, waiting})
        assert await cut_off.queue() == ([running], [waiting])
        await cut_off.link.mend()
        await until(cut_off.is_empty, bool)
        assert set(await _queues(others)) == {running, waiting}
        assert cut_off.executions() == {running: 1}
        assert max(began(*others).values()) == 1


async def _queues(members: list[Member]) -> list[str]:
    return [prompt_id for member in members for queue in await member.queue() for prompt_id in queue]


async def test_prompts_of_a_hanging_server_run_elsewhere(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        calls = await two_on_each(gateway, members, 1)
        members[0].hang()
        assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 6
        members[0].go_on()
        await until(members[0].is_empty, bool)
        assert max(began(*members).values()) <= 2


async def test_a_submission_to_a_hanging_server_goes_to_another(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        members[0].hang()
        async with asyncio.timeout(20):  # less than a request may take
            answers = await asyncio.gather(*(gateway.prompt_sync(invert_workflow(tag)) for tag in range(2)))
        assert [status for status, _ in answers] == [200, 200]
        members[0].go_on()
        await until(members[0].is_empty, bool)


async def test_a_prompt_that_only_one_server_can_run_waits_for_it_and_runs_once(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members:
        having, other = members
        name = "only_here.png"
        having.input(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(having.input(name))
        workflow = {
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "SimulatedSleep", "inputs": {"value": ["1", 0], "seconds": 2, "steps": 1}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
        }
        async with running_gateway(*(m.url for m in members), changed=impatient) as gateway:
            running, waiting = [await submit(gateway.http, workflow) for _ in range(2)]
            await begins(gateway.http, running)
            await having.link.cut()
            await has_state(gateway, having, "unreachable")
            third = await submit(gateway.http, workflow)
            told = (await look(gateway.http, third))[1]
            assert (told["status"], told["waits_for"]) == ("queued", [having.name])
            await having.link.mend()
            assert [(await fetch(gateway.http, one))[0] for one in (running, waiting, third)] == [200] * 3
        assert having.executions() == {running: 1, waiting: 1, third: 1}
        assert other.executions() == {}


async def test_accepted_sync_calls_survive_the_death_of_all_servers(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        calls = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.3, tag=tag), timeout=50)) for tag in range(8)]
        await until(members[1].queue, lambda queue: (len(queue[0]), len(queue[1])) == (1, 1))
        for member in members:
            await member.kill()
            await has_state(gateway, member, "unreachable")
        status, body = await gateway.prompt_sync(invert_workflow())
        assert (status, body["type"]) == (503, "connection_failed"), body
        await asyncio.gather(*(member.start() for member in members))
        assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 8


async def test_after_a_gateway_restart_no_prompt_stays_on_two_servers(tmp_path: Path) -> None:
    settings = {"STATE_DIR": str(tmp_path / "state"), "REATTACH_SECONDS": "1"}
    async with fleet(tmp_path, 2) as members:
        addresses = ",".join(member.url for member in members)
        async with gateway_process(addresses, **settings) as gateway:
            ids = [await submit(gateway.http, sleep_workflow(60, tag=tag)) for tag in range(4)]
            await until(lambda: _queues(members), lambda queued: sorted(queued) == sorted(ids))
            cut_off, other = members
            (running,), (waiting,) = await cut_off.queue()
            await begins(gateway.http, running)
            await cut_off.link.cut()
            await gateway.kill()
        async with gateway_process(addresses, **settings) as gateway:
            await begins(gateway.http, (await other.queue())[0][0])
            # The other server has neither of the two prompts yet.
            for one in ids:
                if one not in {running, waiting}:
                    async with gateway.http.delete(f"/prompt_sync/{one}") as response:
                        assert response.status == 200
            await until(lambda: _queues([other]), lambda queued: waiting in queued)
            assert await cut_off.queue() == ([running], [waiting])
            await cut_off.link.mend()
            # Each is on one server only: where it ran already, or where it was submitted again.
            await until(lambda: _queues(members), lambda queued: sorted(queued) == sorted([running, waiting]))
        assert began(*members)[running] <= 2
        assert began(*members)[waiting] <= 1


# GPU faults


async def test_a_prompt_that_hits_a_gpu_fault_runs_on_another_server() -> None:
    async with engines(2) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        broken, well = servers
        await broken.set_faults({"cuda_fault": {}})
        for tag in range(3):
            status, body = await gateway.prompt_sync(invert_workflow(tag))
            assert status == 200, body
        assert await states(gateway) == {_name(broken): "broken", _name(well): "connected"}
        assert (len(executions(broken)), len(executions(well))) == (1, 3)
        assert set(executions(well).values()) == {1}


async def test_prompts_waiting_on_a_server_with_a_gpu_fault_run_elsewhere() -> None:
    """Running prompts that fail by the same fault are not blamed for it."""
    async with engines(2) as servers, running_gateway(*(server.url for server in servers), oom_retries=0) as gateway:
        calls = [asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.5, tag=tag))) for tag in range(8)]
        for server in servers:
            await prompts_are_queued(server, 2)
        broken, well = servers
        await broken.set_faults({"cuda_fault": {"class_type": "SaveImage"}})
        assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 8
        assert set(executions(well).values()) == {1}
        assert len(executions(broken)) <= 2


async def test_a_workflow_that_causes_gpu_faults_breaks_two_servers_at_most() -> None:
    async with engines(3) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        for server in servers:
            await server.set_faults({"cuda_fault": {"class_type": "ImageInvert"}})
        status, body = await gateway.prompt_sync(invert_workflow())
        assert (status, body["type"]) == (500, "task_failed"), body
        assert "illegal memory access" in body["detail"]
        assert sorted((await states(gateway)).values()) == ["broken", "broken", "connected"]
        status, body = await gateway.prompt_sync(invert_workflow())
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
        assert "GPU fault" in body["detail"]
        assert sum(len(executions(server)) for server in servers) == 2


async def test_a_gpu_fault_is_the_answer_when_no_other_server_is_available() -> None:
    async with engines(2) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        here, other = servers
        await other.set_faults({"status": {}, "ws_refuse": {}, "ws_drop": {}})
        await has_state(gateway, other, "unreachable")
        await here.set_faults({"cuda_fault": {}})
        status, body = await gateway.prompt_sync(invert_workflow())
        assert (status, body["type"]) == (500, "task_failed"), body


# Joining


async def test_a_new_server_gets_prompts_only_after_its_queue_was_checked() -> None:
    """Its queue may hold abandoned prompts; other servers get new prompts until the queue is known."""
    async with engines(2) as servers:
        silent, speaking = servers
        await silent.set_faults({"hang": {"route": "/prompt", "method": "GET"}})
        async with running_gateway(*(server.url for server in servers)) as gateway:
            answers = await asyncio.gather(*(gateway.prompt_sync(invert_workflow(tag)) for tag in range(4)))
            assert [status for status, _ in answers] == [200] * 4
            assert (len(executions(silent)), len(executions(speaking))) == (0, 4)
            silent.faults.clear()
            await until(lambda: _share(gateway, silent), bool)


async def _share(gateway: RunningGateway, server: Engine) -> bool:
    """Sends two prompts at once and tells whether one of them ran on the server."""
    await asyncio.gather(*(gateway.prompt_sync(sleep_workflow(0.1, tag=tag)) for tag in range(2)))
    return bool(executions(server))


async def test_prompts_of_other_clients_and_gateways_are_left_alone(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        member = members[0]
        marked = {"prompt": sleep_workflow(60), "extra_data": {"comfyui_gateway": {"journal": "another"}}}
        async with aiohttp.ClientSession(member.engine) as http:
            for body in ({"prompt": sleep_workflow(60, tag=1)}, marked):
                async with http.post("/prompt", json=body) as response:
                    assert response.status == 200
        before = await member.queue()
        await member.link.cut()
        await has_state(gateway, member, "unreachable")
        await member.link.mend()
        backend = gateway.handler.pool.backends[0]
        await until(lambda: _value(backend.ready and backend.is_cleared), bool)
        assert await member.queue() == before


async def _value(value: T) -> T:
    return value


def _name(server: Engine) -> str:
    return server.url.removeprefix("http://")


async def test_two_addresses_of_one_server_do_not_cancel_each_others_prompts(tmp_path: Path) -> None:
    async with fleet(tmp_path, 1) as members:
        (member,) = members
        async with Link(int(member.engine.rpartition(":")[2])) as other:
            addresses = (member.url, other.url)
            async with running_gateway(*addresses, changed=impatient, state_dir=tmp_path / "state") as gateway:
                calls = [
                    asyncio.create_task(gateway.prompt_sync(sleep_workflow(1, tag=tag), timeout=50)) for tag in range(4)
                ]
                await until(member.queue, lambda queue: len(queue[0]) + len(queue[1]) >= 2)
                # The queue is checked after each return; it holds prompts that were sent to the other address.
                for link in (member.link, other):
                    await link.cut()
                    await link.mend()
                assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 4


async def test_prompts_run_on_servers_whose_websockets_are_refused() -> None:
    async with engines(3) as servers:
        for server in servers[:2]:
            await server.set_faults({"ws_refuse": {}})
        async with running_gateway(*(server.url for server in servers)) as gateway:
            answers = await asyncio.gather(
                *(gateway.prompt_sync(sleep_workflow(0.2, tag=tag), timeout=50) for tag in range(9))
            )
        assert [status for status, _ in answers] == [200] * 9
        assert all(executions(server) for server in servers)
        assert sum(sum(executions(server).values()) for server in servers) == 9


async def test_jobs_wait_while_all_servers_are_drained() -> None:
    async with engines(2) as servers, running_gateway(*(server.url for server in servers)) as gateway:
        for server in servers:
            async with gateway.http.post(f"/servers/{_name(server)}/drain") as response:
                assert response.status == 200
        async with gateway.http.get("/health/ready") as response:
            assert response.status == 503
        prompt_id = await submit(gateway.http, invert_workflow())
        assert (await look(gateway.http, prompt_id))[1]["status"] == "queued"
        assert not any(executions(server) for server in servers)
        async with gateway.http.post(f"/servers/{_name(servers[1])}/resume") as response:
            assert response.status == 200
        assert (await fetch(gateway.http, prompt_id))[0] == 200
        assert not executions(servers[0])


@pytest.mark.parametrize("through", ["proxy", "direct"])
async def test_a_workflow_that_crashes_servers_ends_two_at_most(tmp_path: Path, through: str) -> None:
    """The servers stay down. The link behaves as a proxy: it accepts a connection and closes it without an answer."""
    async with AsyncExitStack() as stack:
        members = await stack.enter_async_context(fleet(tmp_path, 3))
        addresses = [member.url if through == "proxy" else member.engine for member in members]
        gateway = await stack.enter_async_context(running_gateway(*addresses, changed=moving_after(3)))
        for member in members:
            await member.fault(segfault={"class_type": "SimulatedSleep"})
        status, body = await gateway.prompt_sync(sleep_workflow(0.1), timeout=50)
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
        assert sum(began(*members).values()) == 2
        status, body = await gateway.prompt_sync(sleep_workflow(0.1), timeout=50)
        assert (status, body["type"]) == (500, "prompt_quarantined"), body
        status, body = await gateway.prompt_sync(invert_workflow(), timeout=50)
        assert status == 200, body
        assert sorted((await states(gateway)).values()) == ["connected", "unreachable", "unreachable"]
