"""Jobs of RunPod and tasks of Postgres that name a workflow and its parameters."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from comfyui.exceptions import ComfyUIError, ComfyUIInputError, NamedWorkflowNotFoundError, ParametersError
from comfyui.workers.base import ComfyUIWorker
from comfyui.workers.postgres.queue import migrate
from comfyui.workers.postgres.runner import TaskRunner, TaskRunnerOptions
from comfyui.workers.postgres.schema import TaskNames
from comfyui.workers.postgres.settings import PostgresWorkerSettings
from comfyui.workers.postgres.tasks import ClaimedTask
from comfyui.workers.runpod.job import job_fields, parse_input, reply
from tests.support.job_inputs import data_uri
from tests.support.pictures import picture
from tests.support.postgres_server import PostgresServer
from tests.support.tables import Tables, new_database
from tests.support.watched_store import WatchedStore

ID = UUID("5f0c1a2e-7d0b-4c39-9a36-0e3b6f0f8a11")


async def test_a_runpod_job_can_name_its_workflow(naming_worker: ComfyUIWorker) -> None:
    job = parse_input({"workflow_name": "flat", "parameters": {"width": "24"}})
    request = await job.named_request(ID, naming_worker.named)
    result = await naming_worker.run(request, fields=job_fields(job, request))
    answer = await reply(naming_worker.output_files(None), result, job, max_bytes=1_000_000)
    told = answer["workflow"]
    assert (told["name"], told["parameters"]["width"]) == ("flat", 24)
    assert [image["node_id"] for image in answer["images"]] == ["2"]  # the preview beside it has no name


async def test_a_job_delivered_again_has_the_same_seed(naming_worker: ComfyUIWorker) -> None:
    job = parse_input({"workflow_name": "flat"})
    first, again = [await job.named_request(ID, naming_worker.named) for _ in range(2)]
    assert first.prompt == again.prompt
    assert first.fingerprint() == again.fingerprint()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "workflow or workflow_name must be given, but not both"),
        ({"workflow": {}, "workflow_name": "flat"}, "workflow or workflow_name must be given, but not both"),
        ({"workflow": {}, "parameters": {"width": 8}}, "must be given together with workflow_name"),
        ({"workflow_name": 5}, "workflow_name"),
        ({"workflow_name": "flat", "parameters": [1]}, "parameters"),
    ],
)
def test_an_input_without_exactly_one_workflow_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ComfyUIInputError, match=said):
        parse_input(given)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"workflow_name": "nope"}, NamedWorkflowNotFoundError, "there is no workflow"),
        ({"workflow_name": "broken"}, ComfyUIError, "77"),
        ({"workflow_name": "flat", "parameters": {"width": 65}}, ParametersError, "width"),
        ({"workflow_name": "flat", "parameters": {"widht": 8}}, ParametersError, "width"),
        ({"workflow_name": "flat", "images": [{"name": "a.png", "image": "aaaa"}]}, ComfyUIInputError, "parameters"),
    ],
)
async def test_an_unusable_named_job_is_refused_with_the_reason(
    naming_worker: ComfyUIWorker, given: dict[str, Any], kind: type[ComfyUIError], said: str
) -> None:
    with pytest.raises(kind) as refused:
        await parse_input(given).named_request(ID, naming_worker.named)
    assert said in refused.value.detail


async def test_a_file_that_cannot_be_fetched_is_reported_under_its_parameter(naming_worker: ComfyUIWorker) -> None:
    job = parse_input({"workflow_name": "inverted", "parameters": {"image": "http://127.0.0.1:9/a.png"}})
    request = await job.named_request(ID, naming_worker.named)
    with pytest.raises(ComfyUIError, match=r"^image: "):
        await naming_worker.run(request, fields=job_fields(job, request))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((), "one type"),
        (("a", "a:flat"), "twice"),
        (("a:",), "name of a named workflow"),
        ((":flat",), "TYPE"),
        (("a:../b",), "name of a named workflow"),
    ],
)
def test_invalid_task_types_are_refused(entries: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PostgresWorkerSettings(task_types=entries)


async def test_a_task_names_its_workflow_by_itself_or_by_its_type(
    postgres: PostgresServer, naming_worker: ComfyUIWorker, watched_store: WatchedStore
) -> None:
    settings = PostgresWorkerSettings(task_types=("comfy", "flat-picture:flat", "negative:inverted"))
    options = TaskRunnerOptions(poll_interval_s=0.2, heartbeat_s=0.1, workflows=settings.workflows())
    stop = asyncio.Event()
    async with new_database(postgres, settings.names()) as tables, watched_store, tables.queue() as queue:
        running = asyncio.create_task(TaskRunner("w", queue, naming_worker, watched_store, options).run(stop))
        try:
            named = await tables.add({"workflow_name": "flat", "parameters": {"width": 9}})
            typed = await tables.add({"width": 11}, task_type="flat-picture")
            filed = await tables.add({"image": data_uri(picture("white"))}, task_type="negative")
            wrong = await tables.add({"width": 0}, task_type="flat-picture")
            other = await tables.add({"width": 9}, task_type="training")
            for task_id, width in ((named, 9), (typed, 11)):
                row = await tables.until_status(task_id, "complete", "failed")
                assert row["status"] == "complete", row["error"]
                told = row["result"]["workflow"]
                assert (told["name"], told["parameters"]["width"]) == ("flat", width)
                assert row["output_url"]
            assert (await tables.until_status(filed, "complete", "failed"))["status"] == "complete"
            row = await tables.until_status(wrong, "complete", "failed")
            assert (row["status"], "width" in row["error"]) == ("failed", True)
            assert (await tables.row(other))["status"] == "queued"
        finally:
            stop.set()
            async with asyncio.timeout(30):
                await running


async def test_migrating_an_older_database_adds_the_task_type_to_claims(tables: Tables) -> None:
    await tables.sql.execute(
        "drop function comfy_claim_task(text, uuid, double precision, integer);"
        "create function comfy_claim_task(text, uuid, double precision, integer)"
        " returns table (task_id text, run integer, attempt integer, task_params jsonb)"
        " language sql as $$ select '', 0, 0, '{}'::jsonb $$"
    )
    await migrate(SecretStr(tables.url), TaskNames())
    await tables.add({})
    async with tables.queue() as queue:
        task = await queue.claim("w", ID)
    assert isinstance(task, ClaimedTask)
    assert task.type == "comfy"
