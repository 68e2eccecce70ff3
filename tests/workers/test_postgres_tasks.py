"""What a task's params mean, and how names get into the SQL."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID, uuid4

import pytest

from comfyui.exceptions import ComfyUIError, ComfyUITaskError, ComfyUIValidationError
from comfyui.models import OutputFile
from comfyui.outputs.keys import task_key
from comfyui.workers.postgres.runner import main_output, reason_of
from comfyui.workers.postgres.schema import TaskNames, migrations, quote_identifier
from comfyui.workers.postgres.settings import PostgresWorkerSettings
from comfyui.workers.postgres.tasks import ClaimedTask, job_fields, prompt_request
from comfyui.workers.postgres.worker import main

PROMPT_ID = UUID("01234567-89ab-5def-8123-456789abcdef")
WORKFLOW: dict[str, Any] = {
    "5": {"class_type": "VHS_LoadVideo", "inputs": {"video": "old.mp4"}},
    "6": {"class_type": "SaveVideo", "inputs": {"video": ["5", 0]}},
}


def task(run: int = 0, **params: Any) -> ClaimedTask:
    return ClaimedTask("7f", uuid4(), run, 1, params)


def test_a_task_accepts_the_fields_of_prompt_sync() -> None:
    image = {"name": "a.png", "image": "https://example.com/a.png"}
    request = prompt_request(task(workflow=WORKFLOW, images=[image], extra_data={"a": 1}, front=True), PROMPT_ID)
    assert request.prompt == WORKFLOW
    assert (request.prompt_id, request.front, request.extra_data) == (PROMPT_ID, True, {"a": 1})
    assert request.images[0].name == "a.png"


def test_a_workflow_may_be_json_text() -> None:
    assert prompt_request(task(workflow=json.dumps(WORKFLOW)), PROMPT_ID).prompt == WORKFLOW


@pytest.mark.parametrize(
    ("params", "node_id", "field"),
    [
        ({"video_node_id": "5"}, "5", "video"),
        ({"video_node_id": 5}, "5", "video"),
        ({"video_node_id": "6", "video_input_field": "clip"}, "6", "clip"),
        ({}, "5", "video"),
    ],
)
def test_a_video_becomes_an_input_of_its_node(params: dict[str, Any], node_id: str, field: str) -> None:
    url = "https://cdn.example.com/in/clip.WEBM?token=abc"
    request = prompt_request(task(workflow=WORKFLOW, video_url=url, **params), PROMPT_ID)
    assert request.prompt[node_id]["inputs"][field] == "task-7f.webm"
    assert [(image.name, image.image) for image in request.images] == [("task-7f.webm", url)]
    assert WORKFLOW["5"]["inputs"]["video"] == "old.mp4"


def test_the_core_video_node_gets_the_video_in_its_file_field() -> None:
    workflow = {"1": {"class_type": "LoadVideo", "inputs": {"file": "x.mp4"}}}
    request = prompt_request(task(workflow=workflow, video_url="https://example.com/v"), PROMPT_ID)
    assert request.prompt["1"]["inputs"] == {"file": "task-7f.mp4"}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "params.workflow must be a workflow"),
        ({"workflow": "{"}, "params.workflow is not JSON"),
        ({"workflow": []}, "params.workflow must be a workflow"),
        ({"workflow": WORKFLOW, "vidoe_url": "x"}, "params.vidoe_url: Extra inputs"),
        ({"workflow": WORKFLOW, "prompt_id": "x"}, "params.prompt_id must be left out"),
        ({"workflow": WORKFLOW, "images": [{"name": "../a", "image": "x"}]}, "params.images.0.name: "),
        ({"workflow": WORKFLOW, "video_url": "https://x/v.mp4", "video_node_id": "9"}, "the workflow has no node 9"),
        ({"workflow": {"1": {**WORKFLOW["6"], "inputs": {}}}, "video_url": "https://x/v.mp4"}, "no node loads one"),
        ({"workflow": {**WORKFLOW, "7": WORKFLOW["5"]}, "video_url": "https://x/v.mp4"}, "nodes 5, 7 load one"),
        ({"workflow": {"1": {}}, "video_url": "https://x/v.mp4"}, "see node 1"),
        ({"workflow": WORKFLOW, "video_url": 7}, "params.video_url: must be an http(s) URL"),
        ({"workflow": WORKFLOW, "video_url": " "}, "params.video_url: must be an http(s) URL"),
    ],
)
def test_invalid_params_are_refused_with_the_field(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ComfyUIError, match=re.escape(said)) as caught:
        prompt_request(task(**params), PROMPT_ID)
    assert not caught.value.retryable


def test_errors_name_fields_as_the_task_does() -> None:
    images = [{"name": "a.png", "image": "x"}]
    job = task(workflow=WORKFLOW, images=images, video_url="https://example.com/v.mp4")
    fields = job_fields(job, prompt_request(job, PROMPT_ID))
    assert fields.name_of("images[0].image") == "params.images[0].image"
    assert fields.name_of("images[1].image") == "params.video_url"
    assert fields.name_of("prompt.5.inputs.video") == "params.workflow.5.inputs.video"
    assert fields.target == ("params.video_input_field", "5", "video")
    job = task(workflow=WORKFLOW, images=images)
    assert job_fields(job, prompt_request(job, PROMPT_ID)).target is None


def test_all_attempts_of_a_run_share_one_job_id_and_another_run_has_its_own() -> None:
    assert task().job_id == task().job_id == "7f"
    assert task(run=1).job_id == "7f#1"


def output(node_id: str = "9", subfolder: str = "", kind: str = "output", name: str = "a.png") -> OutputFile:
    return OutputFile(node_id, "images", name, subfolder, kind)


def test_no_two_files_of_a_task_share_a_key() -> None:
    files = [output(), output("9:1"), output(subfolder="b"), output(kind="temp"), output(name="b.png")]
    keys = [task_key("7f", 0, file) for file in files] + [task_key("7f", 2, files[0])]
    assert len(set(keys)) == 6
    assert all(key.startswith("7f/") for key in keys)


def test_the_main_output_is_the_video_or_otherwise_the_first_saved_picture() -> None:
    listed = [{**file.to_json(), "url": file.filename} for file in (output(kind="temp", name="p.png"), output())]
    assert main_output(listed)["url"] == "a.png"
    assert main_output([*listed, {**output(name="v.mp4").to_json(), "url": "v.mp4"}])["url"] == "v.mp4"
    assert main_output(listed[:1])["url"] == "p.png"


def test_the_error_text_names_the_nodes_and_fits_its_column() -> None:
    refused = ComfyUIValidationError("Prompt outputs failed validation", node_errors={"3": ["Value not in list"]})
    assert reason_of(refused) == (
        "Workflow validation failed: Prompt outputs failed validation\nnode 3: Value not in list"
    )
    raised = ComfyUITaskError("KSampler (node 3): RuntimeError: a\0b", node_errors={"3": ["RuntimeError: a\0b"]})
    assert reason_of(raised) == "Task execution failed: KSampler (node 3): RuntimeError: ab"
    assert len(reason_of(ComfyUITaskError("x" * 10_000))) == 4000


def test_the_default_names_stand_unchanged_in_the_migrations() -> None:
    shipped = dict(migrations())
    assert list(shipped) == sorted(shipped)
    assert 'create table "tasks"' in shipped["0001_tables.sql"]
    assert "for update skip locked" in shipped["0002_functions.sql"]


@pytest.mark.parametrize("name", ["", "a$b", "a\0b", "a\\b", "a\nb", "x" * 64])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        quote_identifier(name)
    with pytest.raises(ValueError, match="name"):
        TaskNames(tasks=name)
    with pytest.raises(ValueError, match="name"):
        TaskNames(statuses={"queued": name})


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TASK_COLUMNS": "output=x"}, "there is no column output"),
        ({"TASK_COLUMNS": "output_url"}, "TASK_COLUMNS: must be pairs such as name=yours"),
        ({"WORKER_STATUSES": "busy=active"}, "there is no status of a worker busy"),
        ({"TASKS_PRESET": "other"}, "TASKS_PRESET: "),
        ({"TASK_STATUSES": "queued=complete"}, "two statuses must not have the same name"),
        ({"SUPABASE_URL": "https://x.supabase.co"}, "SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY must be set together"),
        ({"LEASE_SECONDS": "0"}, "LEASE_SECONDS: "),
        ({}, "set DATABASE_URL, or SUPABASE_URL"),
        ({"DATABASE_URL": "postgresql://u:s3cret-word@h/x"}, "output files have no store"),
    ],
)
def test_invalid_settings_stop_the_start_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "s3cret-word" not in complaint


def test_secrets_are_in_no_repr_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret-word@h/x")
    monkeypatch.setenv("SUPABASE_URL", "https://x.supabase.co")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "s3cret-word")
    monkeypatch.setenv("S3_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY", "s3cret-word")
    assert "s3cret-word" not in repr(PostgresWorkerSettings())


def test_the_sql_is_printed_with_the_configured_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TASK_STATUSES", "queued=Queued,in_progress=In Progress,complete=Complete,failed=Failed")
    monkeypatch.setenv("TASKS_TABLE", "studio.jobs")
    assert main(["--sql"]) == 0
    sql = capsys.readouterr().out
    assert 'update "studio"."jobs"' in sql
    assert "'In Progress'" in sql
    assert "'in_progress'" not in sql
