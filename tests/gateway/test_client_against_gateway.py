"""client.py against the gateway itself, with the embedded engine behind it; the command line as its own process."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from PIL import Image

from comfyui.engine import Engine
from comfyui.sdk import Finished, GatewayClient, Reconnecting
from comfyui.sdk.command_line import Exit
from tests.support import command_line
from tests.support.command_line import Ran, finish
from tests.support.links import Link
from tests.support.running import RunningGateway, sleep_workflow

ROOT = Path(__file__).parents[2]
TXT2IMG = str(ROOT / "examples/txt2img.json")
INVERT = str(ROOT / "examples/invert.json")
PATIENCE_S = 20.0


async def until_running(engine: Engine, prompt_id: str, *, running: bool = True) -> None:
    """Polls the queue of ComfyUI until the prompt runs, or no longer runs."""
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession(engine.url) as http:
        while True:
            async with http.get("/queue") as response:
                queue = await response.json()
            if (prompt_id in [item[1] for item in queue["queue_running"]]) is running:
                return
            await asyncio.sleep(0.01)


async def start(gateway: RunningGateway, *arguments: str) -> asyncio.subprocess.Process:
    return await command_line.start(*arguments, "--server", gateway.url)


async def cli(gateway: RunningGateway, *arguments: str) -> Ran:
    return await finish(await start(gateway, *arguments))


async def cli_here(capsys: pytest.CaptureFixture[str], url: str, *arguments: str) -> Ran:
    """Runs the command in this process, which starts faster; its output also has the log of the gateway."""
    return await command_line.cli_here(capsys, *arguments, "--server", url)


async def test_run_saves_the_picture_that_the_workflow_makes(gateway: RunningGateway, tmp_path: Path) -> None:
    ran = await cli(gateway, "run", INVERT, "--output", str(tmp_path))
    assert ran.code == Exit.OK, ran.out + ran.err
    [path] = tmp_path.iterdir()
    assert str(path) in ran.out
    with Image.open(path) as picture:
        assert picture.size == (256, 256)
        assert picture.convert("RGB").getcolors() == [(256 * 256, (0xFF - 0x33, 0xFF - 0x66, 0xFF - 0x99))]


async def test_the_txt2img_example_runs_with_changed_inputs(gateway: RunningGateway, tmp_path: Path) -> None:
    ran = await cli(gateway, "run", TXT2IMG, "--set", "6.text=a red fox", "--output", str(tmp_path), "--json")
    assert ran.code == Exit.OK, ran.out + ran.err
    [file] = ran.json()["images"]
    with Image.open(file["path"]) as picture:
        assert picture.size == (512, 512)
        assert json.loads(picture.info["prompt"])["6"]["inputs"]["text"] == "a red fox"


async def test_run_sends_files_that_the_workflow_loads(gateway: RunningGateway, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(source)
    workflow = tmp_path / "workflow.json"
    load = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "sent"}}
    workflow.write_text(json.dumps({"1": load, "2": save}))
    output = ("--output", str(tmp_path / "out"), "--json")
    ran = await cli(gateway, "run", str(workflow), "--input", f"photo.png={source}", *output)
    assert ran.code == Exit.OK, ran.out + ran.err
    [file] = ran.json()["images"]
    with Image.open(file["path"]) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (1, 2, 3)


async def test_the_error_of_a_refused_workflow_names_its_nodes(gateway: RunningGateway, tmp_path: Path) -> None:
    arguments = ("--set", "3.sampler_name=nope", "--output", str(tmp_path), "--json")
    ran = await cli(gateway, "run", TXT2IMG, *arguments)
    assert ran.code == Exit.REFUSED
    assert "sampler_name" in ran.json()["node_errors"]["3"][0]


async def test_ctrl_c_stops_the_prompt_in_comfyui(
    gateway: RunningGateway, engine: Engine, endless_file: str, tmp_path: Path
) -> None:
    prompt_id = str(uuid4())
    process = await start(gateway, "run", endless_file, "--prompt-id", prompt_id, "--output", str(tmp_path))
    await until_running(engine, prompt_id)
    process.send_signal(signal.SIGINT)
    assert (await finish(process)).code == Exit.INTERRUPTED
    await until_running(engine, prompt_id, running=False)


async def test_status_does_not_disturb_a_prompt_and_cancel_ends_it(
    gateway: RunningGateway, engine: Engine, endless_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt_id = str(uuid4())
    process = await start(gateway, "run", endless_file, "--prompt-id", prompt_id, "--output", str(tmp_path))
    await until_running(engine, prompt_id)
    status = await cli(gateway, "status", prompt_id, "--timeout", "0.2", "--json")
    assert status.code == Exit.OK
    assert status.json()["status"] in {"waiting", "executing"}
    await until_running(engine, prompt_id)
    assert (await cli_here(capsys, gateway.url, "cancel", prompt_id)).code == Exit.OK
    ran = await finish(process)
    assert ran.code == Exit.FAILED
    assert "cancelled" in ran.err


async def test_status_and_cancel_of_an_unknown_prompt_are_refused(
    gateway: RunningGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "cancel"):
        ran = await cli_here(capsys, gateway.url, command, str(uuid4()))
        assert ran.code == Exit.REFUSED
        assert "Not found" in ran.err


async def test_a_run_over_its_timeout_exits_with_the_code_timed_out(
    gateway: RunningGateway, endless_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = await cli_here(capsys, gateway.url, "run", endless_file, "--timeout", "0.3", "--output", str(tmp_path))
    assert ran.code == Exit.TIMED_OUT


async def test_the_client_recognizes_comfyui_without_a_gateway(
    engine: Engine, endless_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["health"], ["run", endless_file, "--output", str(tmp_path)]):
        ran = await cli_here(capsys, engine.url, *command)
        assert ran.code == Exit.UNEXPECTED
        assert "is ComfyUI itself, not the gateway" in ran.err


async def test_a_stream_gets_its_result_although_its_connection_was_cut(
    gateway: RunningGateway, engine: Engine
) -> None:
    prompt_id, events = str(uuid4()), []
    port = int(gateway.url.rpartition(":")[2])
    async with Link(port) as link, GatewayClient(link.url, timeout_s=PATIENCE_S) as client:

        async def collect() -> None:
            async for event in client.stream(sleep_workflow(0.5), prompt_id=prompt_id):
                events.append(event)  # noqa: PERF401 (the test reads events later)

        collecting = asyncio.create_task(collect())
        await until_running(engine, prompt_id)
        await link.cut()
        await link.mend()
        await collecting
    assert any(isinstance(event, Reconnecting) for event in events)
    assert isinstance(events[-1], Finished)
    assert [file.node_id for file in events[-1].result.files] == ["3"]
