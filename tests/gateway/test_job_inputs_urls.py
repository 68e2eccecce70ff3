"""URLs in async jobs are fetched once, after the 202 and before their turn, by this gateway or by the next one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from comfyui.engine import Engine
from comfyui.jobs.queue_options import QueueOptions
from tests.support.job_inputs import b64, blocked, by_image, files_of, inverted, loading, picture, post, taken
from tests.support.jobs import fetch, listed, look, status_is, submit
from tests.support.ports import free_port
from tests.support.processes import engine_process, gateway_process
from tests.support.relaying import eventually
from tests.support.running import (
    RunningGateway,
    executions,
    handler_options,
    invert_workflow,
    running_gateway,
    sleep_workflow,
    until,
)
from tests.support.url_server import Server, serve

_COLOR = (10, 200, 30)
_SECRET = "token=s3cret-of-the-url"
_ALLOW: dict[str, Any] = {"input_url_allow": "127.0.0.1"}


async def give(_request: web.Request) -> web.Response:
    return web.Response(body=picture(_COLOR), content_type="image/png")


async def hang(_request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


def answering(status: int) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    return answer


async def has_asked(server: Server, count: int = 1) -> None:
    async def asked() -> int:
        return len(server.requests)

    await until(asked, lambda found: found >= count)


async def fetched(gateway: RunningGateway) -> None:
    """Waits until no job waits for its inputs."""
    await until(lambda: gateway.handler.journal.fetching(0, 1), lambda found: not found)


@pytest.mark.parametrize("where", ["images", "workflow"])
async def test_a_url_is_fetched_once_while_the_job_waits(engine: Engine, tmp_path: Path, where: str) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path, **_ALLOW) as gateway:
        blockers = await blocked(gateway.http, 20)
        async with serve(give) as server:
            url = server.url(f"/a.png?{_SECRET}")
            prompt_id = await taken(gateway.http, by_image(url) if where == "images" else {"prompt": loading(url)})
            await fetched(gateway)
            assert len(server.requests) == 1
        assert (await look(gateway.http, prompt_id))[1]["status"] == "queued"
        assert list(await asyncio.to_thread(lambda: files_of(tmp_path).values())) == [picture(_COLOR)]
        async with gateway.http.delete(f"/prompt_sync/{blockers[0]}") as response:
            assert response.status == 200
        assert await inverted(gateway.http, prompt_id) == _COLOR
        assert _SECRET not in str(await listed(gateway.http))


async def test_a_url_in_a_text_that_is_not_an_input_is_not_fetched(engine: Engine) -> None:
    async with serve(give) as server, running_gateway(engine.url, **_ALLOW) as gateway:
        workflow = invert_workflow(prefix=server.url())
        prompt_id = await taken(gateway.http, {"prompt": workflow})
        await fetch(gateway.http, prompt_id)
        assert server.requests == []


async def test_a_url_in_the_workflow_waits_for_the_node_definitions_of_a_server() -> None:
    port = free_port()
    async with serve(give) as server, running_gateway(f"127.0.0.1:{port}", ready=False, **_ALLOW) as gateway:
        prompt_id = await taken(gateway.http, {"prompt": loading(server.url())})
        plain = await taken(gateway.http, {"prompt": invert_workflow(7)})
        assert server.requests == []
        async with engine_process("--port", str(port)):
            assert await inverted(gateway.http, prompt_id) == _COLOR
            assert (await fetch(gateway.http, plain))[0] == 200
        assert len(server.requests) == 1


async def test_without_node_definitions_a_job_with_a_url_fails_at_its_turn(engine: Engine) -> None:
    async with serve(give) as server, running_gateway(engine.url, **_ALLOW) as gateway:
        engine.faults.merge({"status": {"route": "/object_info*", "status": 500}})
        prompt_id = await taken(gateway.http, {"prompt": loading(server.url())})
        status, body = await fetch(gateway.http, prompt_id)
        assert (status, body["type"]) == (502, "server_error")
        assert server.requests == []


async def test_a_job_with_late_inputs_lets_others_pass_and_keeps_its_place(engine: Engine) -> None:
    come = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await come.wait()
        return await give(request)

    options = handler_options(queue=QueueOptions(ahead=1))
    async with serve(slow) as server, running_gateway(engine.url, changed=options, **_ALLOW) as gateway:
        late = await taken(gateway.http, by_image(server.url()))
        first = await submit(gateway.http, sleep_workflow(0.3, tag=1))
        assert (await fetch(gateway.http, first))[0] == 200
        assert (await look(gateway.http, late))[1] == {**(await look(gateway.http, late))[1], "position": 0}
        blocker = await submit(gateway.http, sleep_workflow(20, tag=2))
        last = await submit(gateway.http, sleep_workflow(0.01, tag=3))
        await status_is(gateway.http, blocker, "running")
        assert (await look(gateway.http, last))[1]["position"] == 1
        come.set()
        await fetched(gateway)
        async with gateway.http.delete(f"/prompt_sync/{blocker}") as response:
            assert response.status == 200
        assert (await fetch(gateway.http, last))[0] == 200
    assert list(executions(engine)) == [first, blocker, late, last]


async def test_a_hanging_file_server_delays_neither_the_202_nor_the_queue(engine: Engine) -> None:
    async with serve(hang) as server, running_gateway(engine.url, input_url_timeout=30, **_ALLOW) as gateway:
        hanging = [await taken(gateway.http, by_image(server.url(f"/{tag}.png"))) for tag in range(40)]
        await has_asked(server, 16)
        done = await submit(gateway.http, invert_workflow(1))
        assert (await fetch(gateway.http, done))[0] == 200
        assert len(server.requests) == 16, "16 downloads run at once"
        async with gateway.http.delete(f"/prompt_sync/{hanging[0]}") as response:
            assert response.status == 200
        await has_asked(server, 17)
        assert (await look(gateway.http, hanging[0]))[1]["type"] == "task_cancelled"


async def test_a_file_server_that_is_down_at_first_is_tried_again(engine: Engine) -> None:
    port = free_port()
    async with running_gateway(engine.url, **_ALLOW) as gateway:
        prompt_id = await taken(gateway.http, by_image(f"http://127.0.0.1:{port}/a.png"))
        assert (await look(gateway.http, prompt_id))[0] == 202
        async with serve(give, port=port):
            assert await inverted(gateway.http, prompt_id) == _COLOR


async def to_inside(_request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "http://127.0.0.9:1/a.png"})


async def html(_request: web.Request) -> web.Response:
    return web.Response(text="<html>log in</html>", content_type="text/html")


async def large(_request: web.Request) -> web.Response:
    return web.Response(body=b"\x89PNG\r\n\x1a\n" + bytes(200_000))


@pytest.mark.parametrize(
    ("handler", "says", "again"),
    [
        (to_inside, "no public address", False),
        (answering(404), "answered HTTP 404", False),
        (html, "HTML page", False),
        (large, "larger than the 0.1 MB", False),
        (answering(503), "answered HTTP 503", True),
        (hang, "too slow (0.5 s in all", True),
    ],
    ids=["private", "404", "html", "large", "503", "hangs"],
)
async def test_a_failed_download_fails_the_job(
    engine: Engine, tmp_path: Path, handler: Callable[[web.Request], Awaitable[web.Response]], says: str, again: bool
) -> None:
    settings = {"state_dir": tmp_path, "input_url_timeout": 0.5, "max_input_mb": 0.1, **_ALLOW}
    prompt_id = str(uuid4())
    async with serve(handler) as server, running_gateway(engine.url, **settings) as gateway:
        body = {**by_image(server.url(f"/a.png?{_SECRET}")), "prompt_id": prompt_id}
        await taken(gateway.http, body)
        status, error = await fetch(gateway.http, prompt_id)
        assert (status, error["type"]) == (400, "input_failed")
        assert error["detail"].startswith("images[0].image: ")
        assert says in error["detail"]
        job = (await listed(gateway.http, "?status=failed"))["jobs"][0]
        assert (job["prompt_id"], job["error"]["type"]) == (prompt_id, "input_failed")
        assert _SECRET not in str((error, job))
        assert (await post(gateway.http, body))[0] == (202 if again else 400)
        runs = (await listed(gateway.http))["jobs"][0]["run"]
        assert runs == (2 if again else 1)
    assert executions(engine) == {}
    assert await asyncio.to_thread(files_of, tmp_path) == {}


async def test_a_new_run_fetches_its_url_again(engine: Engine, tmp_path: Path) -> None:
    port, prompt_id = free_port(), str(uuid4())
    async with running_gateway(engine.url, state_dir=tmp_path, input_url_timeout=0.3, **_ALLOW) as gateway:
        body = {**by_image(f"http://127.0.0.1:{port}/a.png"), "prompt_id": prompt_id}
        await taken(gateway.http, body)
        assert (await fetch(gateway.http, prompt_id))[0] == 400
        async with serve(give, port=port):
            await taken(gateway.http, body)
            assert await inverted(gateway.http, prompt_id) == _COLOR


async def test_a_url_with_a_private_address_fails_the_job(engine: Engine, inside_server: Server) -> None:
    async with running_gateway(engine.url) as gateway:
        prompt_id = await taken(gateway.http, by_image(inside_server.url()))
        status, error = await fetch(gateway.http, prompt_id)
        assert (status, error["type"]) == (400, "input_failed")
        assert "127.0.0.9" not in error["detail"]


async def test_a_job_that_waits_too_long_for_its_inputs_times_out(engine: Engine) -> None:
    settings = {"max_queued_seconds": 0.5, "input_url_timeout": 60, **_ALLOW}
    async with serve(hang) as server, running_gateway(engine.url, **settings) as gateway:
        prompt_id = await taken(gateway.http, by_image(server.url()))
        status, error = await fetch(gateway.http, prompt_id)
        assert (status, error["type"]) == (504, "timeout")
        assert "MAX_QUEUED_SECONDS" in error["detail"]


async def test_waiting_callers_get_the_error_of_a_failed_input(engine: Engine) -> None:
    come = asyncio.Event()

    async def late(_request: web.Request) -> web.Response:
        await come.wait()
        return web.Response(status=404)

    async with serve(late) as server, running_gateway(engine.url, **_ALLOW) as gateway:
        body = {**by_image(server.url()), "prompt_id": str(uuid4())}
        prompt_id = await taken(gateway.http, body)
        sync = asyncio.create_task(gateway.prompt_sync(body["prompt"], images=body["images"], prompt_id=prompt_id))
        attached = asyncio.create_task(fetch(gateway.http, prompt_id))
        await eventually(lambda: gateway.handler.waiting == 2)
        come.set()
        for status, error in (await sync, await attached):
            assert (status, error["type"], error["prompt_id"]) == (400, "input_failed", prompt_id)


async def test_after_a_kill_the_next_gateway_fetches_missing_inputs(engine: Engine, tmp_path: Path) -> None:
    settings = {"STATE_DIR": str(tmp_path), "SHUTDOWN_GRACE_SECONDS": "5", "INPUT_URL_ALLOW": "127.0.0.1"}
    come = asyncio.Event()

    async def first_hangs(request: web.Request) -> web.Response:
        await come.wait()
        return await give(request)

    async with serve(first_hangs) as server:
        async with gateway_process(engine.url, **settings) as gateway:
            prompt_id = await taken(gateway.http, by_image(server.url(f"/a.png?{_SECRET}")))
            failing = await taken(gateway.http, by_image("http://127.0.0.9:1/a.png"))
            assert (await fetch(gateway.http, failing))[1]["type"] == "input_failed"
            await has_asked(server)
            await gateway.kill()
            logged = str(gateway.lines)
        assert await asyncio.to_thread(files_of, tmp_path) == {}
        come.set()
        async with gateway_process(engine.url, **settings) as gateway:
            assert await inverted(gateway.http, prompt_id) == _COLOR
            assert (await look(gateway.http, failing))[1]["type"] == "input_failed"
            logged += str(gateway.lines)
    assert _SECRET not in logged
    assert executions(engine) == {prompt_id: 1}


async def test_a_url_waits_for_room_in_the_store(engine: Engine, tmp_path: Path) -> None:
    options = handler_options(queue=QueueOptions(ahead=1))
    settings: dict[str, Any] = {"state_dir": tmp_path, "max_stored_inputs_mb": len(picture(_COLOR)) / 1e6, **_ALLOW}
    async with serve(give) as server, running_gateway(engine.url, changed=options, **settings) as gateway:
        blocker = await submit(gateway.http, sleep_workflow(60))
        await status_is(gateway.http, blocker, "running")
        first = await taken(gateway.http, by_image(b64(picture((1, 1, 1)))))
        second = await taken(gateway.http, by_image(server.url()))
        await has_asked(server)
        assert (await look(gateway.http, second))[1]["status"] == "queued"
        for prompt_id in (first, blocker):
            async with gateway.http.delete(f"/prompt_sync/{prompt_id}") as response:
                assert response.status == 200
        assert await inverted(gateway.http, second) == _COLOR


async def test_an_input_fetched_before_a_restart_is_not_fetched_again(engine: Engine, tmp_path: Path) -> None:
    settings = {"STATE_DIR": str(tmp_path), "SHUTDOWN_GRACE_SECONDS": "5", "INPUT_URL_ALLOW": "127.0.0.1"}
    async with serve(give) as server:
        async with gateway_process(engine.url, **settings) as gateway:
            await blocked(gateway.http, 2)
            prompt_id = await taken(gateway.http, by_image(server.url()))
            await has_asked(server)

            async def stored() -> int:
                return len(await asyncio.to_thread(files_of, tmp_path))

            await until(stored, lambda count: count == 1)
            gateway.signal(signal.SIGTERM)
            await gateway.process.wait()
        async with gateway_process(engine.url, **settings) as gateway:
            assert await inverted(gateway.http, prompt_id) == _COLOR
        assert len(server.requests) == 1
    assert executions(engine)[prompt_id] == 1
