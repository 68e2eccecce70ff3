"""The worker's process on the real SDK, over real sockets, in front of the embedded engine."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.client import ComfyUIClient
from comfyui.engine import Engine
from comfyui.workers.base import prompt_id_for_job
from tests.chaos import workers as chaos
from tests.support.littlehorse_process import Fake, Trio, Worker, running_fake, running_worker
from tests.support.ports import free_port
from tests.support.running import executions, invert_workflow, sleep_workflow, until_running

if importlib.util.find_spec("littlehorse") is None:
    pytest.skip("LittleHorse's SDK is in .venv-littlehorse: make test runs these there", allow_module_level=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 4 << 20


def prompt_id_of(guid: str) -> str:
    return str(prompt_id_for_job("littlehorse", f"wf-1/{guid}"))


async def test_a_task_returns_the_output_paths_and_a_short_log(littlehorse_shared: Trio) -> None:
    assert littlehorse_shared.definition["name"] == "execute-comfyui-workflow"
    assert [variable["name"] for variable in littlehorse_shared.definition["inputVars"]] == ["workflow"]
    workflow = invert_workflow(prefix="sub/a")
    littlehorse_shared.fake.schedule(workflow, "ok")
    report = await littlehorse_shared.fake.report("ok")
    assert report["status"] == "TASK_SUCCESS"
    output = json.loads(report["output"]["jsonObj"])
    assert output["prompt_id"] == prompt_id_of("ok")
    assert output["outputs"] == ["/data/output/sub/a_00001_.png"]
    assert (output["status"], output["node_errors"]) == ("success", {})
    assert [(file["node_id"], file["filename"]) for file in output["files"]] == [("3", "a_00001_.png")]
    assert set(output["timings"]) == {"staging", "queued", "executing", "collecting", "nodes"}
    lines = [line.partition("] ")[2] for line in report["logOutput"]["str"].splitlines()]
    assert lines[0] == f"prompt {prompt_id_of('ok')}"
    assert "running" in lines
    assert lines[-2] == "collecting 1 file"
    assert lines[-1].startswith("done in ")
    assert len(lines) < 12


async def test_a_task_may_name_its_workflow_and_parameters(littlehorse_shared: Trio) -> None:
    littlehorse_shared.fake.schedule({"workflow_name": "flat", "parameters": {"width": 20}}, "named")
    report = await littlehorse_shared.fake.report("named")
    assert report["status"] == "TASK_SUCCESS", report
    output = json.loads(report["output"]["jsonObj"])
    assert (output["workflow"]["name"], output["workflow"]["parameters"]["width"]) == ("flat", 20)
    assert [file["node_id"] for file in output["files"]] == ["2"]


@pytest.mark.parametrize(
    ("workflow", "name", "said"),
    [
        ({"1": {"class_type": "NoSuchNode", "inputs": {}}}, "invalid-workflow", "NoSuchNode"),
        ({}, "invalid-workflow", "empty"),
        (None, "invalid-workflow", "workflow"),
        ({"nodes": []}, "invalid-workflow", "UI-format"),
        ({"workflow_name": "flat", "parameters": {"width": "wide"}}, "invalid-workflow", "width"),
        ({"workflow_name": "flat", "1": {}}, "invalid-workflow", "workflow.1"),
        (
            {
                "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "gone.safetensors"}},
                "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a"}},
                "3": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
                "4": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["1", 2]}},
                "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
                "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "x"}},
            },
            "missing-model",
            "gone.safetensors",
        ),
    ],
)
async def test_a_failure_that_no_retry_can_fix_is_a_named_exception(
    littlehorse_shared: Trio, workflow: Any, name: str, said: str
) -> None:
    guid = f"{name} {said}"  # the worker repeats its refusal for a task that it knows
    littlehorse_shared.fake.schedule(workflow, guid)
    report = await littlehorse_shared.fake.report(guid)
    assert (report["status"], report["exception"]["name"]) == ("TASK_EXCEPTION", name)
    assert said in report["exception"]["message"]
    assert "failed: " in report["logOutput"]["str"]


async def test_a_node_error_is_an_exception_that_names_the_node(littlehorse_shared: Trio) -> None:
    fault = {"class_type": "ImageInvert", "message": "too dark", "times": 1}
    async with ComfyUIClient(littlehorse_shared.engine.url) as client:
        await client._post("/engine/faults", {"node_error": fault})
    workflow = invert_workflow(77)
    workflow["8"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "other"}}
    littlehorse_shared.fake.schedule(workflow, "node")
    report = await littlehorse_shared.fake.report("node")
    assert (report["status"], report["exception"]["name"]) == ("TASK_EXCEPTION", "node-error")
    assert "ImageInvert (node 2): RuntimeError: too dark" in report["exception"]["message"]
    content = json.loads(report["exception"]["content"]["jsonObj"])
    assert (content["prompt_id"], content["error_type"]) == (prompt_id_of("node"), "task_failed")
    assert content["node_errors"] == {"2": ["RuntimeError: too dark"]}
    assert content["diagnostics"]["versions"]["comfyui"]


async def test_a_workflow_without_saved_outputs_fails_with_the_reason(littlehorse_shared: Trio) -> None:
    workflow = invert_workflow()
    workflow["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    littlehorse_shared.fake.schedule(workflow, "preview")
    report = await littlehorse_shared.fake.report("preview")
    assert (report["status"], report["exception"]["name"]) == ("TASK_EXCEPTION", "no-outputs")
    assert "1 preview" in report["exception"]["message"]


async def test_a_timeout_fails_the_task_and_removes_the_prompt_from_comfyui(
    littlehorse_fake: Fake, littlehorse_engine: Engine
) -> None:
    async with running_worker(littlehorse_fake.ports[0], littlehorse_engine.url, comfyui_history_timeout_sec=0.5):
        littlehorse_fake.schedule(sleep_workflow(60), "slow")
        report = await littlehorse_fake.report("slow")
        assert report["status"] == "TASK_FAILED"
        said = report["error"]["message"].splitlines()
        assert said == [
            "TaskFailedError: Timed out: the job did not finish within 0.5 s",
            f"prompt_id: {prompt_id_of('slow')}",
        ]
        littlehorse_fake.schedule(invert_workflow(), "next")
        assert (await littlehorse_fake.report("next"))["status"] == "TASK_SUCCESS"


async def test_an_input_that_cannot_be_fetched_fails_the_task_for_a_retry(
    littlehorse_fake: Fake, littlehorse_engine: Engine
) -> None:
    """LittleHorse retries such a failure; the error names the field as the task does."""
    workflow = invert_workflow()
    async with running_worker(
        littlehorse_fake.ports[0], littlehorse_engine.url, input_url_allow="127.0.0.1", input_url_timeout=2
    ):
        url = f"http://127.0.0.1:{free_port()}/a.png"
        workflow["1"] = {"class_type": "LoadImage", "inputs": {"image": url}}
        littlehorse_fake.schedule(workflow, "unreachable")
        report = await littlehorse_fake.report("unreachable")
        assert report["status"] == "TASK_FAILED"
        said = "Input could not be fetched: workflow.1.inputs.image: the URL's server could not be reached"
        assert said in report["error"]["message"]


async def test_a_retry_attaches_to_the_render_of_the_first_attempt(littlehorse_shared: Trio) -> None:
    """LittleHorse has timed out the first attempt and gives the second one to another worker."""
    littlehorse_shared.fake.schedule(sleep_workflow(0.8), "again")
    await until_running(littlehorse_shared.engine, prompt_id_of("again"))
    async with running_fake() as other, running_worker(other.ports[0], littlehorse_shared.engine.url):
        other.schedule(sleep_workflow(0.8), "again", attempt=1)
        second = await other.report("again")
    first = await littlehorse_shared.fake.report("again")
    assert (first["status"], second["status"]) == ("TASK_SUCCESS", "TASK_SUCCESS")
    assert (first.get("attemptNumber", 0), second["attemptNumber"]) == (0, 1)
    outputs = [json.loads(report["output"]["jsonObj"]) for report in (first, second)]
    for name in ("prompt_id", "status", "outputs", "files"):
        assert outputs[0][name] == outputs[1][name]
    assert executions(littlehorse_shared.engine)[prompt_id_of("again")] == 1


async def test_tasks_run_one_at_a_time_over_several_hosts_and_none_is_claimed_early(littlehorse_engine: Engine) -> None:
    async with running_fake(hosts=2) as fake, running_worker(fake.ports[0], littlehorse_engine.url):
        for host in (0, 1):
            await fake.until("asked", host=host)
        for number in range(3):
            fake.schedule(sleep_workflow(0.3, tag=number), f"a{number}", host=0)
        await fake.until("given", host=0)
        await until_running(littlehorse_engine, prompt_id_of("a0"))
        assert not [event for event in fake.events if event["event"] == "asked" and event["host"] == 0]
        for number in range(3):
            assert (await fake.report(f"a{number}"))["status"] == "TASK_SUCCESS"
        fake.schedule(invert_workflow(9), "b", host=1)
        assert (await fake.report("b"))["status"] == "TASK_SUCCESS"


async def test_two_simultaneous_tasks_from_two_hosts_run_one_after_the_other(littlehorse_engine: Engine) -> None:
    async with running_fake(hosts=2) as fake, running_worker(fake.ports[0], littlehorse_engine.url):
        for host in (0, 1):
            await fake.until("asked", host=host)
        for host in (0, 1):
            fake.schedule(sleep_workflow(0.4, tag=host), f"t{host}", host=host)
        for host in (0, 1):
            await fake.until("given", host=host)
        async with ComfyUIClient(littlehorse_engine.url) as client:
            most = 0
            reports = asyncio.gather(*[asyncio.create_task(_both(fake))])
            while not reports.done():
                most = max(most, len(await client.get_queue()))
                await asyncio.sleep(0.01)
        assert [report["status"] for report in reports.result()[0]] == ["TASK_SUCCESS", "TASK_SUCCESS"]
        assert most == 1


async def _both(fake: Fake) -> list[dict[str, Any]]:
    return [await fake.report("t0"), await fake.report("t1")]


async def test_two_threads_run_two_tasks_and_the_log_shows_the_queue_position(
    littlehorse_fake: Fake, littlehorse_engine: Engine
) -> None:
    async with running_worker(littlehorse_fake.ports[0], littlehorse_engine.url, lhw_num_worker_threads=2):
        littlehorse_fake.schedule(sleep_workflow(0.8, tag=1), "first")
        await until_running(littlehorse_engine, prompt_id_of("first"))
        littlehorse_fake.schedule(invert_workflow(2), "second")
        report = await littlehorse_fake.report("second")
    lines = [line.partition("] ")[2] for line in report["logOutput"]["str"].splitlines()]
    assert lines.index("queued, 1 before it") < lines.index("running")


async def test_sigterm_finishes_and_reports_the_running_task_and_takes_no_other(
    littlehorse_fake: Fake, littlehorse_engine: Engine, littlehorse_worker: Worker
) -> None:
    """The server refuses the first report, as it does during its restart."""
    littlehorse_fake.do(fail_reports=1)
    littlehorse_fake.schedule(sleep_workflow(1.0), "last")
    await until_running(littlehorse_engine, prompt_id_of("last"))
    littlehorse_fake.schedule(invert_workflow(), "too late")
    assert await littlehorse_worker.stop() == 0
    assert (await littlehorse_fake.report("last"))["status"] == "TASK_SUCCESS"
    assert not [event for event in littlehorse_fake.events if event["event"] == "given"][1:]


async def test_a_broken_connection_is_opened_again(littlehorse_fake: Fake, littlehorse_worker: Worker) -> None:
    await littlehorse_fake.until("asked")
    littlehorse_fake.do(cut=0)
    await littlehorse_fake.until("PollTask")
    await littlehorse_fake.until("PollTask")
    littlehorse_fake.schedule(invert_workflow(), "after")
    assert (await littlehorse_fake.report("after"))["status"] == "TASK_SUCCESS"


async def test_the_report_of_a_huge_refusal_stays_below_the_message_limit(littlehorse_shared: Trio) -> None:
    workflow = {str(number): {"class_type": "X" * 900, "inputs": {}} for number in range(4000)}
    littlehorse_shared.fake.schedule(workflow, "huge")
    report = await littlehorse_shared.fake.report("huge")
    assert report["exception"]["name"] == "invalid-workflow"
    assert report["size"] < LIMIT / 4


async def test_no_task_is_requested_without_comfyui(littlehorse_fake: Fake) -> None:
    async with Engine() as engine:
        pass
    async with running_worker(littlehorse_fake.ports[0], engine.url) as process:
        await littlehorse_fake.until("PollTask")
        littlehorse_fake.schedule(invert_workflow(), "waiting")
        assert await process.stop() == 0
    assert not [event for event in littlehorse_fake.events if event["event"] == "asked"]


async def test_a_refused_task_definition_ends_the_worker_with_the_reason(
    littlehorse_fake: Fake, littlehorse_engine: Engine
) -> None:
    littlehorse_fake.do(refuse_definition=True)
    async with running_worker(littlehorse_fake.ports[0], littlehorse_engine.url) as refused:
        assert await refused.ended() == 1
        await refused.until_logged("LittleHorse refused the worker: ALREADY_EXISTS")


async def test_the_worker_waits_for_a_server_that_does_not_answer_yet(littlehorse_engine: Engine) -> None:
    port = free_port()
    async with running_worker(port, littlehorse_engine.url) as worker:
        await worker.until_logged("littlehorse.unavailable")
        async with running_fake(port=port) as fake:
            await fake.until("asked")


async def test_health_shows_littlehorse_and_comfyui_and_an_idle_worker_stops_at_once(
    littlehorse_fake: Fake, littlehorse_engine: Engine
) -> None:
    port = free_port()
    async with (
        running_worker(littlehorse_fake.ports[0], littlehorse_engine.url, health_port=port) as idle,
        aiohttp.ClientSession() as http,
    ):
        await littlehorse_fake.until("asked")
        async with http.get(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 200
            assert await response.json() == {"status": "healthy", "littlehorse": "HEALTHY", "comfyui": "connected"}
        async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert "comfyui_gateway_server_up" in await response.text()
        assert await idle.stop() == 0


@pytest.mark.parametrize(("stage", "crashes"), [("starting", 2), ("queued", 2), ("running", 3), ("collecting", 6)])
async def test_repeated_crashes_neither_hang_nor_lose_a_job_of_this_platform(stage: str, crashes: int) -> None:
    """The short form of ``python -m tests.chaos.workers --platform littlehorse``."""
    ended = await chaos.one("littlehorse", stage, crashes)
    assert ended.is_right, ended


async def test_the_worker_reads_the_env_file_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from comfyui.workers.littlehorse.worker import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LHW_NUM_WORKER_THREADS=none\n")
    assert main() == 2
    assert "LHW_NUM_WORKER_THREADS: " in capsys.readouterr().err
