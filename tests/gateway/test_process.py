"""The gateway as a process: how it starts, what it logs, how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from comfyui.engine import Engine
from comfyui.fallback import fallback_engine
from server import main
from tests.support.forking import forked, serve_gateway
from tests.support.processes import gateway_process
from tests.support.running import (
    executions,
    invert_workflow,
    needs_ipv6,
    prompts_are_queued,
    queue_of,
    requests,
    sleep_workflow,
    until,
)

ROOT = Path(__file__).parents[2]


async def test_sigterm_lets_prompts_in_flight_finish(engine: Engine) -> None:
    async with gateway_process(engine.url) as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(0.7)))
        await prompts_are_queued(engine, 1)
        gateway.signal(signal.SIGTERM)
        await gateway.logged("shutdown.draining")
        status, body = await waiting
        assert status == 200
        assert body["images"]
        assert await gateway.exit_status() == 0


async def test_a_drain_refuses_new_prompts_on_open_and_new_connections(engine: Engine) -> None:
    async with gateway_process(engine.url) as gateway, aiohttp.ClientSession(gateway.http._base_url) as other:
        async with gateway.http.get("/health/live") as response:  # so that a connection is open
            assert response.status == 200
        waiting = asyncio.create_task(other.post("/prompt_sync", json={"prompt": sleep_workflow(3)}))
        await prompts_are_queued(engine, 1)
        gateway.signal(signal.SIGTERM)
        await gateway.logged("shutdown.draining")
        for fresh in (False, True):
            connector = aiohttp.TCPConnector(force_close=True)
            async with aiohttp.ClientSession(gateway.http._base_url, connector=connector) as new:
                http = new if fresh else gateway.http
                for path in ("/prompt_sync", "/prompt"):
                    async with http.post(path, json={"prompt": invert_workflow()}) as response:
                        assert response.status == 503
                        assert (await response.json())["type"] == "shutting_down"
                        assert int(response.headers["Retry-After"]) > 0
                async with http.get("/health/ready") as response:
                    assert (response.status, (await response.json())["reason"]) == (503, "shutting down")
                async with http.get("/health/live") as response:
                    assert response.status == 200
        async with await waiting as response:
            assert response.status == 200
        assert await gateway.exit_status() == 0
    assert len(executions(engine)) == 1


async def test_an_idle_gateway_stops_at_once(engine: Engine) -> None:
    async with gateway_process(engine.url, SHUTDOWN_GRACE_SECONDS="600") as gateway:
        async with gateway.http.get("/health/live") as response:
            assert response.status == 200
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_status() == 0


async def test_a_stop_does_not_log_lost_websockets(engine: Engine) -> None:
    async with gateway_process(engine.url) as gateway:
        await gateway.logged("websocket.connected")
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_status() == 0
    assert not [line for line in gateway.lines if line["event"] == "websocket.closed"]


@pytest.mark.parametrize("name", ["gpu-1=", ""])
async def test_the_first_line_of_the_log_has_the_names_of_the_servers(engine: Engine, name: str) -> None:
    async with gateway_process(f"{name}{engine.url}") as gateway:
        assert (await gateway.logged("gateway.starting"))["comfyui"] == [f"{name}{engine.url}"]


async def test_the_access_log_has_the_client_and_the_name_of_its_key(engine: Engine) -> None:
    keys = {"first-key-0123456789": "10.1.2.3", "second-key-0123456789": "2001:db8::7"}
    async with gateway_process(engine.url, API_KEYS=",".join(keys)) as gateway:
        names = (await gateway.logged("gateway.starting"))["keys"]
        for key, client in keys.items():
            headers = {"X-API-Key": key, "X-Forwarded-For": client, "X-Request-ID": client}
            async with gateway.http.get("/prompt_sync/x", headers=headers) as response:
                assert response.status == 422
        async with gateway.http.get("/prompt_sync/x", headers={"X-Request-ID": "nobody"}) as response:
            assert response.status == 401
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_status() == 0
    lines = {line["request_id"]: line for line in gateway.lines if line["event"] == "request"}
    shown = {client: (lines[client]["client"], lines[client]["key"]) for client in keys.values()}
    assert shown == {client: (client, name) for client, name in zip(keys.values(), names, strict=True)}
    assert len(set(names)) == 2
    assert all(re.fullmatch("key-[0-9a-f]{8}", name) for name in names)
    assert (lines["nobody"]["client"], lines["nobody"]["key"]) == ("127.0.0.1", None)
    assert not [key for key in keys if key in str(gateway.lines)]


async def test_prompts_left_after_the_grace_period_get_503_and_go_on_in_comfyui(engine: Engine) -> None:
    async with gateway_process(engine.url, SHUTDOWN_GRACE_SECONDS="0.2") as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(1.0)))
        await prompts_are_queued(engine, 1)
        gateway.signal(signal.SIGTERM)
        status, body = await waiting
        assert (status, body["type"]) == (503, "shutting_down")
        assert await gateway.exit_status() == 0
    running, _ = await queue_of(engine)
    assert running == [body["prompt_id"]]


async def test_a_shutdown_cancels_running_prompts_with_cancel_on_shutdown(engine: Engine) -> None:
    async with gateway_process(engine.url, SHUTDOWN_GRACE_SECONDS="0", CANCEL_ON_SHUTDOWN="true") as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(30)))
        await prompts_are_queued(engine, 1)
        gateway.signal(signal.SIGTERM)
        assert (await waiting)[0] == 503
        assert await gateway.exit_status() == 0
    await until(lambda: queue_of(engine), lambda queue: queue == ([], []))


async def test_a_second_sigterm_stops_at_once(engine: Engine) -> None:
    async with gateway_process(engine.url, SHUTDOWN_GRACE_SECONDS="60") as gateway:
        waiting = asyncio.create_task(gateway.prompt_sync(sleep_workflow(30)))
        await prompts_are_queued(engine, 1)
        gateway.signal(signal.SIGTERM)
        await gateway.logged("shutdown.draining")
        gateway.signal(signal.SIGTERM)
        status, body = await waiting
        assert (status, body["type"]) == (503, "shutting_down")
        assert await gateway.exit_status() == 0


async def test_a_new_gateway_attaches_to_the_prompt_of_a_killed_one(engine: Engine) -> None:
    prompt_id = "7d0b5c39-0000-4000-8000-00000000000a"
    async with gateway_process(engine.url) as gateway:
        body = {"prompt": sleep_workflow(1.0), "prompt_id": prompt_id}
        waiting = asyncio.create_task(gateway.http.post("/prompt_sync", json=body))
        await prompts_are_queued(engine, 1)
        gateway.signal(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await waiting
    async with gateway_process(engine.url) as gateway, gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
        assert response.status == 200
        assert (await response.json())["images"]
    assert executions(engine) == {prompt_id: 1}


@needs_ipv6
async def test_the_gateway_listens_on_ipv4_and_ipv6_addresses(engine: Engine) -> None:
    async with gateway_process(engine.url, SERVER_HOST="127.0.0.1,[::1]") as gateway:
        told = [line["event"].split()[3] for line in gateway.lines if "running on" in line["event"]]
        assert len(told) == 2
        assert told[1].startswith("http://[::1]:")
        for url in told:
            async with aiohttp.ClientSession() as http, http.get(f"{url}/health/live") as response:
                assert response.status == 200


async def test_the_error_of_a_port_in_use_names_setting_and_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "server.py"),
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "SERVER_HOST": "127.0.0.1", "SERVER_PORT": port},
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
    assert process.returncode == 2
    assert f"SERVER_PORT: cannot listen on 127.0.0.1:{port}: Address already in use" in said.decode()


async def test_every_line_of_a_request_has_its_ids_and_every_line_is_structured(engine: Engine) -> None:
    async with gateway_process(engine.url, LOG_LEVEL="debug") as gateway:
        body, headers = {"prompt": invert_workflow()}, {"X-Request-ID": "req-1"}
        async with gateway.http.post("/prompt_sync?node_id=hush", json=body, headers=headers) as response:
            prompt_id = (await response.json())["prompt_id"]
        async with gateway.http.post("/prompt_sync?token=hush", json=body) as response:
            assert response.status == 400
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_status() == 0
    of_request = [line for line in gateway.lines if line.get("request_id") == "req-1"]
    assert {line["event"] for line in of_request} >= {"prompt.done", "request"}
    assert {line["prompt_id"] for line in of_request} == {prompt_id}
    assert all({"timestamp", "level", "event"} <= set(line) for line in gateway.lines), "uvicorn's lines too"
    assert "hush" not in str(gateway.lines)


async def test_the_log_says_why_a_job_failed_though_no_caller_asks(engine: Engine) -> None:
    await engine.set_faults({"node_error": {"message": "no such style"}})
    async with gateway_process(engine.url) as gateway:
        body = {"prompt": invert_workflow()}
        async with gateway.http.post("/prompt_sync", json=body, headers={"Prefer": "respond-async"}) as response:
            assert response.status == 202
        line = await gateway.logged("prompt.done")
    assert line["outcome"] == "task_failed"
    assert "no such style" in line["detail"]


async def test_log_output_names_the_file_of_the_log(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "gateway.log"
    environ = {
        "PATH": os.environ["PATH"],
        "LOG_OUTPUT": str(path),
        "SERVER_PORT": "0",
        "SERVER_HOST": "127.0.0.1",
        "COMFYUI_SERVER_ADDRESS": engine.url,
        "STATE_DIR": str(tmp_path / "state"),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "server.py", cwd=ROOT, env=environ)
    async with asyncio.timeout(30):
        while not path.exists() or "Uvicorn running" not in path.read_text():
            await asyncio.sleep(0.02)
        process.terminate()
        assert await process.wait() == 0
    assert all(json.loads(line)["level"] for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SERVER_PORT", "70000", "SERVER_PORT: .*65535"),
        ("DEFAULT_TIMEOUT", "soon", "DEFAULT_TIMEOUT: .*number"),
        ("LOG_LEVEL", "LOUD", "LOG_LEVEL: .*'DEBUG', 'INFO'"),
        ("COMFYUI_SERVER_ADDRESS", "ftp://x", "COMFYUI_SERVER_ADDRESS: .*http"),
        ("COMFYUI_SERVER_ADRESS", "127.0.0.1:1", "COMFYUI_SERVER_ADRESS: .*did you mean COMFYUI_SERVER_ADDRESS"),
        ("MAX_TIMEOUT", "1", r"DEFAULT_TIMEOUT \(300\) must not be above MAX_TIMEOUT \(1\)"),
    ],
)
async def test_a_bad_setting_stops_the_start_with_its_name_and_reason(name: str, value: str, says: str) -> None:
    environ = {"PATH": os.environ["PATH"], name: value}
    async with forked(serve_gateway, environ=environ, descriptor=2) as process:
        text = (await process.output.read()).decode()
        assert await process.wait() == 2
    assert "Traceback" not in text
    assert re.search(says, text), text


def test_the_garbage_collector_is_on_after_the_modules_are_loaded() -> None:
    code = (
        "import gc, runpy, sys, server, uvicorn\n"
        "assert gc.isenabled()\n"
        "async def ended(self, sockets=None): print(gc.isenabled(), gc.get_threshold()[0])\n"
        "uvicorn.Server.serve = ended\n"
        "sys.argv = ['server.py']\n"
        "runpy.run_path('server.py', run_name='__main__')\n"
    )
    environment = os.environ | {"COMFYUI_SERVER_ADDRESS": "127.0.0.1:9"}
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.stdout == "True 10000\n", process.stderr


async def test_the_embedded_engine_runs_without_a_comfyui_and_ends_with_the_gateway() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # but does not listen
        nowhere = f"127.0.0.1:{silent.getsockname()[1]}"
    async with gateway_process(nowhere, "--fallback-engine") as gateway:
        told = await gateway.logged("engine.embedded")
        address = told["detail"].rpartition("http://")[2]
        status, body = await gateway.prompt_sync(invert_workflow())
        assert (status, body["simulation"]) == (200, True)
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_status() == 0
    host, _, port = address.partition(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_the_embedded_engine_starts_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with fallback_engine({}) as address, aiohttp.ClientSession(address) as http:
        assert (await http.get("/system_stats")).status == 200


async def test_the_embedded_engine_does_not_replace_a_comfyui_that_answers(engine: Engine) -> None:
    async with gateway_process(engine.url, "--fallback-engine") as gateway:
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200
    assert requests(engine, "POST /prompt") == 1
    assert not [line for line in gateway.lines if line["event"] == "engine.embedded"]


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        ((), "usage: comfyui-gateway [-h] [--fallback-engine]\n       comfyui-gateway keys {add,rotate} NAME ...\n"),
        (("keys",), "usage: comfyui-gateway keys [-h] {add,rotate} ...\n"),
        (("keys", "add"), "usage: comfyui-gateway keys add [-h] --role {"),
    ],
)
def test_the_help_shows_keys_as_an_optional_command(
    arguments: tuple[str, ...], usage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["server.py", *arguments, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(usage)
