"""A RunPod job's input and reply, and what the worker does around a job; no SDK needed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from pydantic import SecretStr

from comfyui.engine import Engine
from comfyui.events import Event, Executing, ExecutionCached, Progress, Unknown
from comfyui.exceptions import (
    ComfyUIConnectionError,
    ComfyUIDeliveryError,
    ComfyUIInputError,
    ComfyUIInputUnavailableError,
    ComfyUITaskError,
    ComfyUIUndeliverableError,
    ComfyUIValidationError,
    ResultTooLargeError,
    SettingsError,
    StorageError,
    StorageRefusedError,
)
from comfyui.models import PromptRequest
from comfyui.outputs.files import OutputFiles, Patience
from comfyui.outputs.keys import local_path
from comfyui.outputs.stores.store import StoredObject
from comfyui.retrying import Backoff
from comfyui.settings import load
from comfyui.workers.base import ComfyUIWorker, prompt_id_for_job
from comfyui.workers.cleanup import FolderCleaner
from comfyui.workers.diagnostics import diagnostics, environment, error_text, models_found
from comfyui.workers.options import WorkerOptions
from comfyui.workers.postgres.settings import PostgresWorkerSettings
from comfyui.workers.progress import ProgressTracker
from comfyui.workers.results import saved_before
from comfyui.workers.runpod.job import JobInput, job_fields, max_reply_bytes, parse_input, reply
from comfyui.workers.runpod.settings import RunPodSettings
from comfyui.workers.settings import StoringWorkerSettings
from tests.support.job_inputs import b64
from tests.support.local_store import LocalStore
from tests.support.pictures import picture
from tests.support.ports import free_port
from tests.support.running import Workflow, invert_workflow, sleep_workflow

ID = UUID("7f000001-0000-4000-8000-000000000001")


def output_workflow(*sizes: int) -> Workflow:
    return {
        str(index): {
            "class_type": "SimulatedOutput",
            "inputs": {
                "count": 1,
                "size": size,
                "extension": "bin",
                "output_key": "images",
                "filename_prefix": f"o{index}",
            },
        }
        for index, size in enumerate(sizes)
    }


# Fields


def test_errors_name_fields_as_the_job_does() -> None:
    images = [{"name": "a.png", "image": "x"}]
    job = parse_input({"workflow": {}, "images": images, "reference_images": {"s/b.png": "x"}})
    fields = job_fields(job, job.request(ID))
    assert fields.name_of("images[0].image") == "images[0].image"
    assert fields.name_of("images[1].image") == "reference_images['s/b.png']"
    assert fields.name_of("prompt.3.inputs.image") == "workflow.3.inputs.image"


def test_null_optional_fields_count_as_absent() -> None:
    optional = JobInput.model_fields.keys() - {"workflow", "warnings"}
    assert parse_input({"workflow": {}, **dict.fromkeys(optional)}) == parse_input({"workflow": {}})


async def test_an_unreachable_input_is_reported_as_temporary_under_its_own_name(engine: Engine) -> None:
    options = WorkerOptions(engine.url, input_url_allow=("127.0.0.1",), input_url_timeout_s=0.2)
    url = f"http://127.0.0.1:{free_port()}/b.png"
    job = parse_input({"workflow": invert_workflow(), "reference_images": {"b.png": url}})
    async with ComfyUIWorker(options) as worker:
        with pytest.raises(ComfyUIInputUnavailableError) as failed:
            await worker.run(job.request(ID), fields=job_fields(job, job.request(ID)))
    assert failed.value.detail.startswith("reference_images['b.png']: the URL's server could not be reached")
    assert "The cause may pass" in error_text(failed.value)


# Ids


def test_a_job_always_has_the_same_prompt_id_and_shares_it_with_no_other() -> None:
    assert prompt_id_for_job("runpod", "a") == prompt_id_for_job("runpod", "a")
    others = {prompt_id_for_job(platform, job) for platform in ("runpod", "littlehorse") for job in ("a", "b")}
    assert len(others) == 4


# Input


def test_a_workflow_may_be_json_text_and_names_may_have_folders() -> None:
    job = parse_input(
        {
            "workflow": '{"1": {"class_type": "X", "inputs": {}}}',
            "images": [{"name": "a.png", "image": "QUJD"}],
            "reference_images": {"masks/m.png": "QUJD", "b.png": "QUJD"},
        }
    )
    request = job.request(ID)
    assert request.prompt == {"1": {"class_type": "X", "inputs": {}}}
    assert [(image.subfolder, image.name) for image in request.images] == [
        ("", "a.png"),
        ("masks", "m.png"),
        ("", "b.png"),
    ]
    assert (request.prompt_id, request.extra_data) == (ID, None)


def test_comfy_org_keys_go_into_extra_data_and_into_no_repr() -> None:
    job = parse_input({"workflow": {}, "comfy_org_api_key": "secret-key", "comfy_org_auth_token": "secret-key-2"})
    assert job.request(ID).extra_data == {"api_key_comfy_org": "secret-key", "auth_token_comfy_org": "secret-key-2"}
    assert "secret-key" not in repr(job)


@pytest.mark.parametrize(
    ("job_input", "message"),
    [
        (None, "input must be an object"),
        ("{", "input is a text that is not JSON"),
        ({"workflw": {}}, "workflow or workflow_name must be given, but not both; input.workflw is unknown"),
        ({}, "workflow or workflow_name must be given, but not both"),
        ({"workflow": "{"}, "workflow: is a text that is not JSON"),
        ({"workflow": "[]"}, "workflow: Input should be"),
        ({"workflow": {}, "images": [{"name": "a.png"}]}, "images.0.image: Field required"),
        ({"workflow": {}, "output": {"buckt": "x"}}, "output.buckt: Extra inputs"),
    ],
)
def test_an_invalid_field_is_named(job_input: object, message: str) -> None:
    with pytest.raises(ComfyUIInputError, match=message):
        parse_input(job_input)


@pytest.mark.parametrize(
    ("job_input", "warnings"),
    [
        ('{"workflow": {}}', ()),
        ('\ufeff{"workflow": {}}', ()),
        ({"workflow": {}, "images": None, "reference_images": None, "output": None, "extra_pnginfo": None}, ()),
        ({"workflow": {}, "return_base64": None, "comfy_org_api_key": None}, ()),
        ({"workflow": {}, "output": {"store": None, "bucket": None}}, ()),
        ({"workflow": {}, "seed": 1}, ("input.seed is unknown and was ignored",)),
        (
            {"workflow": {}, "images": [{"name": "a.png", "image": "aGk=", "type": "base64", "subfolder": "x"}]},
            (
                "input.images[0].type is unknown and was ignored",
                "input.images[0].subfolder is unknown and was ignored",
            ),
        ),
        ({"workflow": {}, "warnings": ["mine"]}, ("input.warnings is unknown and was ignored",)),
    ],
)
def test_inputs_of_worker_comfyui_are_accepted_with_a_warning_for_unknown_fields(
    job_input: object, warnings: tuple[str, ...]
) -> None:
    job = parse_input(job_input)
    assert (job.workflow, job.warnings) == ({}, warnings)
    assert job.reference_images == {}


def test_an_error_does_not_repeat_the_invalid_value() -> None:
    with pytest.raises(ComfyUIInputError) as caught:
        parse_input({"workflow": {}, "comfy_org_api_key": ["secret-key"], "images": "QUJDREVG"})
    assert "secret-key" not in caught.value.detail
    assert "QUJD" not in caught.value.detail


@pytest.mark.parametrize("path", ["../a.png", "/etc/passwd", "", "x/../../a.png", "x/"])
def test_a_reference_image_cannot_leave_the_input_folder(path: str) -> None:
    with pytest.raises(ComfyUIInputError, match="reference_images"):
        parse_input({"workflow": {}, "reference_images": {path: "QUJD"}}).request(ID)


# Reply


async def test_files_that_fit_are_in_the_reply(comfyui_worker: ComfyUIWorker) -> None:
    job = parse_input({"workflow": output_workflow(10, 20)})
    result = await comfyui_worker.run(job.request(ID))
    answer = await reply(comfyui_worker.output_files(None), result, job, max_bytes=100_000)
    assert [base64.b64decode(image["data"]) for image in answer["images"]] == [bytes(range(10)), bytes(range(20))]
    assert answer["prompt_id"] == str(ID)
    assert set(answer) >= {"status", "execution_time", "timings", "outputs", "node_errors"}


async def test_a_reply_that_is_too_large_is_stored_or_refused_with_advice(
    comfyui_worker: ComfyUIWorker, tmp_path: Path
) -> None:
    job = parse_input({"workflow": output_workflow(10, 9000), "return_base64": True})
    result = await comfyui_worker.run(job.request(ID))
    with pytest.raises(ResultTooLargeError, match="S3_BUCKET"):
        await reply(comfyui_worker.output_files(None), result, job, max_bytes=10_000)
    async with LocalStore(tmp_path, "https://files.example/x") as store:
        answer = await reply(comfyui_worker.output_files(store), result, job, max_bytes=10_000)
    assert [image["type"] for image in answer["images"]] == ["s3_url", "s3_url"]
    assert answer["images"][1]["data"].startswith(f"https://files.example/x/{ID}/1/o1_")
    assert answer["images"][1]["size"] == 9000
    [stored] = [path for path in tmp_path.rglob("o1_*") if path.is_file()]
    assert stored.stat().st_size == 9000


async def test_the_store_is_used_unless_base64_is_requested(comfyui_worker: ComfyUIWorker, tmp_path: Path) -> None:
    types = {}
    async with LocalStore(tmp_path, "https://files.example") as store:
        for wanted in (None, True, False):
            job = parse_input({"workflow": output_workflow(10), "return_base64": wanted})
            result = await comfyui_worker.run(job.request(ID))
            answer = await reply(comfyui_worker.output_files(store), result, job, max_bytes=10_000)
            types[wanted] = answer["images"][0]["type"]
        assert types == {None: "s3_url", True: "base64", False: "s3_url"}
    answer = await reply(comfyui_worker.output_files(None), result, job, max_bytes=10_000)
    assert answer["images"][0]["type"] == "file"
    assert "data" not in answer["images"][0]


async def test_a_job_may_choose_the_store_or_none(comfyui_worker: ComfyUIWorker, tmp_path: Path) -> None:
    wanted = parse_input(
        {"workflow": output_workflow(10), "return_base64": True, "output": {"store": "s3", "prefix": "p"}}
    )
    unwanted = parse_input({"workflow": output_workflow(10), "output": {"store": "none"}})
    with pytest.raises(StorageRefusedError, match="S3_BUCKET is not set"):
        wanted.check_placement(comfyui_worker.output_files(None))
    unwanted.check_placement(comfyui_worker.output_files(None))
    result = await comfyui_worker.run(wanted.request(ID))
    async with LocalStore(tmp_path, "https://files.example") as store:
        answers = [
            await reply(comfyui_worker.output_files(store), result, job, max_bytes=10_000) for job in (wanted, unwanted)
        ]
    assert [answer["images"][0]["type"] for answer in answers] == ["s3_url", "base64"]
    assert answers[0]["images"][0]["data"].startswith(f"https://files.example/p/{ID}/")


async def test_a_missing_file_makes_the_result_partial_and_the_others_are_delivered(
    engine: Engine, comfyui_worker: ComfyUIWorker
) -> None:
    job = parse_input({"workflow": output_workflow(10, 20)})
    result = await comfyui_worker.run(job.request(ID))
    async with comfyui_worker.pool.open_file(result, result.files[0]) as view:
        assert view.length == 10
    next(engine.folders.output.glob("o0_*")).unlink()
    answer = await reply(comfyui_worker.output_files(None), result, job, max_bytes=100_000)
    assert [image["type"] for image in answer["images"]] == ["error", "base64"]
    assert "has no file" in answer["images"][0]["error"]
    assert (answer["status"], answer["partial"]) == ("success", True)
    assert "error" in answer["files"][0]
    assert "error" not in answer["files"][1]


async def test_a_job_without_any_deliverable_file_fails(engine: Engine, comfyui_worker: ComfyUIWorker) -> None:
    """Regression: such a job was COMPLETED, with only errors in it."""
    job = parse_input({"workflow": output_workflow(10, 20)})
    result = await comfyui_worker.run(job.request(ID))
    for path in engine.folders.output.glob("o*"):
        path.unlink()
    with pytest.raises(ComfyUIUndeliverableError, match=r"none of its 2 files .*: o0_00001_\.bin: ") as failed:
        await reply(comfyui_worker.output_files(None), result, job, max_bytes=100_000)
    assert (failed.value.retryable, failed.value.prompt_id) == (False, str(ID))


class BrokenStore(LocalStore):
    """A store whose next `failures` writes fail."""

    failures = 0

    async def put(self, *arguments: Any, **named: Any) -> StoredObject:
        if self.failures:
            self.failures -= 1
            raise StorageError("the object store cannot be reached")
        return await super().put(*arguments, **named)


async def test_storing_is_retried_and_a_later_job_delivers_without_rendering_again(
    engine: Engine, comfyui_worker: ComfyUIWorker, tmp_path: Path
) -> None:
    job = parse_input({"workflow": output_workflow(10)})
    quick = Patience(retries=2, backoff=Backoff(0.01, 15.0))
    async with BrokenStore(tmp_path, "http://files.test") as store:
        store.failures = 2
        result = await comfyui_worker.run(job.request(ID))
        files = OutputFiles(comfyui_worker.pool.open_file, store, patience=quick)
        answer = await reply(files, result, job, max_bytes=100_000)
        assert answer["images"][0]["type"] == "s3_url"
        store.failures = 3
        with pytest.raises(ComfyUIDeliveryError, match="The result is kept") as failed:
            await reply(files, result, job, max_bytes=100_000)
        assert (failed.value.retryable, failed.value.prompt_id) == (True, str(ID))
        again = parse_input({"workflow": output_workflow(10), "prompt_id": str(ID)})
        assert again.prompt_id == ID
        result = await comfyui_worker.run(again.request(again.prompt_id))
        answer = await reply(files, result, again, max_bytes=100_000)
    assert answer["images"][0]["type"] == "s3_url"
    assert engine.stats.show()["executed"] == {str(ID): 1}


async def test_a_failed_job_still_delivers_the_files_that_other_nodes_saved(comfyui_worker: ComfyUIWorker) -> None:
    workflow = output_workflow(10)
    workflow["8"] = {"class_type": "SimulatedError", "inputs": {"exception_type": "RuntimeError", "message": "no"}}
    workflow["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}}
    job = parse_input({"workflow": workflow})
    with pytest.raises(ComfyUITaskError) as failed:
        await comfyui_worker.run(job.request(ID))
    saved = saved_before(failed.value)
    assert saved is not None
    answer = await reply(comfyui_worker.output_files(None), saved, job, max_bytes=100_000)
    assert [image["filename"] for image in answer["images"]] == ["o0_00001_.bin"]


@pytest.mark.parametrize(
    ("job_id", "set_to", "expected"),
    [("a1", None, 9_900_000), ("sync-a1", None, 19_900_000), ("sync-a1", 5.0, 5_000_000)],
)
def test_the_reply_limit_depends_on_how_the_job_was_submitted(job_id: str, set_to: float | None, expected: int) -> None:
    assert max_reply_bytes(job_id, set_to) == expected


async def test_the_reply_limit_counts_the_whole_reply(comfyui_worker: ComfyUIWorker, tmp_path: Path) -> None:
    """Regression: only the files' base64 was counted, so many names or long node outputs exceeded RunPod's limit."""
    workflow = output_workflow(10)
    workflow["0"]["inputs"]["count"] = 200
    workflow["8"] = {"class_type": "PrimitiveString", "inputs": {"value": "é" * 50_000}}
    workflow["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}}
    job = parse_input({"workflow": workflow})
    result = await comfyui_worker.run(job.request(ID))
    async with LocalStore(tmp_path, "http://files.test") as store:
        answer = await reply(comfyui_worker.output_files(store), result, job, max_bytes=200_000)
        assert answer["outputs"] == {}
        assert answer["warnings"] == [
            "outputs was left out of the reply, because RunPod does not take so large a reply"
        ]
        assert len(json.dumps(answer, ensure_ascii=False).encode()) <= 200_000
        with pytest.raises(ResultTooLargeError, match="lists 200 files"):
            await reply(comfyui_worker.output_files(store), result, job, max_bytes=30_000)


async def test_diagnostics_have_versions_memory_disk_and_models(comfyui_worker: ComfyUIWorker) -> None:
    await comfyui_worker.wait_until_ready()
    facts = await environment(comfyui_worker)
    assert facts["versions"]["comfyui"]
    assert facts["disk"]["temporary"]["total_mb"] > 0
    assert facts["memory"]["total_mb"] > 0
    assert facts["gpu"][0]["name"]
    assert facts["models"]["ckpt_name"]["count"] == 2
    assert "/" not in json.dumps(facts["disk"])


# Before the run


async def test_missing_models_and_inputs_are_listed_and_nothing_runs(
    engine: Engine, comfyui_worker: ComfyUIWorker
) -> None:
    workflow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "absent.safetensors"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "absent.png"}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "x"}},
    }
    with pytest.raises(ComfyUIValidationError) as caught:
        await comfyui_worker.run(PromptRequest(prompt=workflow))
    assert set(caught.value.node_errors) == {"1", "2"}
    text = error_text(caught.value)
    assert "node 1: Missing model file 'absent.safetensors'" in text
    assert "node 2: The file 'absent.png' is not in ComfyUI's input folder" in text
    assert not any(route.startswith("POST /prompt") for route in engine.stats.show()["requests"])


async def test_an_input_file_that_is_added_later_is_found(engine: Engine, comfyui_worker: ComfyUIWorker) -> None:
    await comfyui_worker.run(PromptRequest(prompt=invert_workflow()))
    with pytest.raises(ComfyUIValidationError):
        await comfyui_worker.run(PromptRequest(prompt=_load_image("late.png")))
    (engine.folders.input / "late.png").write_bytes(picture())
    assert (await comfyui_worker.run(PromptRequest(prompt=_load_image("late.png")))).files


async def test_an_input_from_the_job_itself_is_not_missing(comfyui_worker: ComfyUIWorker) -> None:
    content = b64(picture())
    job = parse_input({"workflow": _load_image("sub/brought.png"), "reference_images": {"sub/brought.png": content}})
    assert (await comfyui_worker.run(job.request(ID))).files


async def test_a_finished_render_is_delivered_although_its_input_is_gone(
    engine: Engine, comfyui_worker: ComfyUIWorker
) -> None:
    """Regression: a job delivered again failed, because its inputs were checked before its render was looked up."""
    (engine.folders.input / "once.png").write_bytes(picture())
    request = PromptRequest(prompt=_load_image("once.png"), prompt_id=ID)
    rendered = await comfyui_worker.run(request)
    (engine.folders.input / "once.png").unlink()
    async with ComfyUIWorker(comfyui_worker.options) as another:
        assert (await another.run(request)).files == rendered.files


def _load_image(name: str) -> Workflow:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }


# Diagnostics


async def test_diagnostics_name_the_state_and_the_models(comfyui_worker: ComfyUIWorker) -> None:
    await comfyui_worker.wait_until_ready()
    text = await diagnostics(comfyui_worker)
    assert text.startswith("ComfyUI: connected")
    assert "ckpt_name: " in text


async def test_diagnostics_say_when_comfyui_was_never_reached() -> None:
    async with ComfyUIWorker(WorkerOptions("127.0.0.1:9")) as worker:
        assert "not reached yet" in await diagnostics(worker)


def test_an_empty_model_folder_is_listed_as_empty() -> None:
    info = {
        "L": {"input": {"required": {"lora_name": [[]], "sampler_name": [["euler"]], "ckpt_name": [["a.safetensors"]]}}}
    }
    assert models_found(info) == {"lora_name": [], "ckpt_name": ["a.safetensors"]}


def test_the_error_text_has_the_nodes_and_the_traceback() -> None:
    error = ComfyUITaskError(
        "KSampler (node 3): RuntimeError: no", node_errors={"3": ["RuntimeError: no"]}, traceback_tail=['File "x.py"']
    )
    assert error_text(error).splitlines() == [
        "Task execution failed: KSampler (node 3): RuntimeError: no",
        "node 3: RuntimeError: no",
        "last lines of the node's traceback:",
        '  File "x.py"',
    ]


# Progress


def test_progress_never_goes_back_and_names_the_node() -> None:
    workflow = invert_workflow()
    workflow["2"]["_meta"] = {"title": "The inverter"}
    tracker = ProgressTracker(workflow)
    assert tracker.observe(ExecutionCached("p", ("1",))) is None
    assert tracker.observe(Unknown("x", {})) is None
    reports = [
        tracker.observe(event)
        for event in (
            Executing("p", "2"),
            Progress("p", "2", 1, 2),
            Progress("p", "2", 0, 2),
            Executing("p", "3"),
        )
    ]
    # Two steps of node 2 and one of node 3.
    assert [report and report.fraction for report in reports] == [0.0, 0.3333, 0.3333, 0.3333]
    assert reports[1] is not None
    assert reports[1].to_json()["message"] == "The inverter 1/2"
    assert tracker.observe(Executing("p", None)) is None


# Cleaning up


def write(path: Path, size: int, age_s: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))
    return path


def test_job_files_are_removed_by_age_and_size_and_other_files_stay(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "output", tmp_path / "elsewhere"
    ours_before = write(folder / "part_of_the_image.png", 1000, 9999)
    outside = write(elsewhere / "secret.txt", 10, 9999)
    cleaner = FolderCleaner(folder, max_age_s=100, max_bytes=500)
    aged = write(folder / "aged.png", 10, 200)
    large = write(folder / "deep" / "large.png", 400, 50)
    fresh = write(folder / "fresh.png", 300, 10)
    (folder / "link.txt").symlink_to(outside)
    (folder / "linked").symlink_to(elsewhere)
    assert cleaner.clean(now=1_000_000) == 2
    assert not aged.exists()
    assert not large.exists()
    assert all(path.exists() for path in (ours_before, outside, fresh, folder / "link.txt"))


def test_cleaning_a_missing_folder_does_nothing(tmp_path: Path) -> None:
    assert FolderCleaner(tmp_path / "none", max_age_s=0, max_bytes=0).clean() == 0


# Settings


def test_settings_come_from_the_environment_and_invalid_ones_give_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_COMMAND", "python 'my main.py' --port 8188")
    monkeypatch.setenv("S3_BUCKET", "pictures")
    monkeypatch.setenv("S3_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY", "very-secret")
    settings = load(RunPodSettings)
    assert settings.worker_options().command == ("python", "my main.py", "--port", "8188")
    assert settings.s3_secret_access_key == SecretStr("very-secret")
    assert "very-secret" not in repr(settings)
    assert settings.store() is not None
    monkeypatch.setenv("JOBS_AT_ONCE", "0")
    monkeypatch.setenv("COMFYUI_SERVER_ADDRESS", "ftp://x")
    with pytest.raises(SettingsError) as caught:
        load(RunPodSettings)
    assert "JOBS_AT_ONCE: Input should be greater than or equal to 1" in str(caught.value)
    assert "COMFYUI_SERVER_ADDRESS: 'ftp://x' must be host:port" in str(caught.value)


@pytest.mark.parametrize("settings", [RunPodSettings, PostgresWorkerSettings])
def test_an_invalid_bucket_name_is_reported_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, settings: type[StoringWorkerSettings]
) -> None:
    monkeypatch.setenv("S3_BUCKET", "a/b")
    with pytest.raises(SettingsError, match=r"^S3_BUCKET: "):
        load(settings)


async def test_output_paths_are_below_the_output_folder(comfyui_worker: ComfyUIWorker) -> None:
    result = await comfyui_worker.run(PromptRequest(prompt=invert_workflow(prefix="deep/er/x")))
    assert local_path("/data/output", result.files[0]) == "/data/output/deep/er/x_00001_.png"


# ComfyUI as a child


async def test_a_gpu_fault_fails_one_job_and_the_next_gets_a_new_comfyui() -> None:
    port = free_port()
    command = [sys.executable, "-m", "comfyui.engine", "--port", str(port)]
    async with ComfyUIWorker(WorkerOptions(f"127.0.0.1:{port}", command)) as worker:
        assert worker.process is not None
        with pytest.raises(ComfyUIConnectionError, match="not ready yet"):
            _ = worker.handler
        await worker.run(PromptRequest(prompt=invert_workflow(1)))
        first = worker.process.pid
        async with aiohttp.ClientSession() as http:
            await http.post(f"http://127.0.0.1:{port}/engine/faults", json={"cuda_fault": True})
        with pytest.raises(ComfyUITaskError, match="CUDA"):
            await worker.run(PromptRequest(prompt=invert_workflow(2)))
        result = await worker.run(PromptRequest(prompt=invert_workflow(3)))
        assert len(result.files) == 1
        assert worker.process.pid != first
        assert worker.process.crashes == 0


async def test_jobs_run_one_at_a_time_unless_set_otherwise(engine: Engine) -> None:
    for jobs_at_once in (1, 2):
        most = 0
        async with ComfyUIWorker(WorkerOptions(engine.url, jobs_at_once=jobs_at_once)) as worker:
            await worker.wait_until_ready()

            def note(_event: Event, worker: ComfyUIWorker = worker) -> None:
                nonlocal most
                most = max(most, worker.handler.waiting)

            await asyncio.gather(
                *(
                    worker.run(PromptRequest(prompt=sleep_workflow(0.05, tag=10 * jobs_at_once + tag)), listener=note)
                    for tag in range(3)
                )
            )
        assert most == jobs_at_once


async def test_a_cancelled_job_leaves_comfyuis_queue_and_frees_its_slot(engine: Engine) -> None:
    async with ComfyUIWorker(WorkerOptions(engine.url)) as worker:
        started = asyncio.Event()
        request = PromptRequest(prompt=sleep_workflow(60), prompt_id=ID)
        job = asyncio.create_task(worker.run(request, listener=lambda _event: started.set()))
        await started.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert (await worker.run(PromptRequest(prompt=invert_workflow()))).files
        assert await worker.pool.backends[0].client.get_queue() == {}
