"""Calls a running gateway with the client that openapi-python-client generates from its document.

`tests/contract/test_openapi_clients.py` runs it beside the generated package and checks both with mypy.
"""

from __future__ import annotations

import base64
import importlib
import json
import pkgutil
import sys
from datetime import datetime
from io import BytesIO
from uuid import UUID

import gateway_client
from gateway_client import AuthenticatedClient
from gateway_client.api.health import health, health_ready
from gateway_client.api.named_workflows import run_flat, run_inverted
from gateway_client.api.prompts import attach, cancel, list_jobs, prompt_sync
from gateway_client.api.tickets import make_ticket
from gateway_client.api.workflows import validate
from gateway_client.models import (
    Cancelled,
    ErrorBody,
    ErrorBodyParameters,
    Health,
    JobList,
    ListJobsLabels,
    PendingJob,
    PendingJobStatus,
    PromptAnswer,
    PromptRequest,
    PromptRequestLabels,
    PromptRequestPrompt,
    Readiness,
    RunFlat,
    RunInvertedForm,
    RunOptions,
    Ticket,
    TicketRequest,
    Validation,
    WorkflowEntry,
)
from gateway_client.models.prompt_sync_files_body import PromptSyncFilesBody
from gateway_client.types import File


def workflow(class_type: str = "EmptyImage") -> PromptRequestPrompt:
    image = {"width": 16, "height": 16, "batch_size": 1, "color": 255}
    return PromptRequestPrompt.from_dict(
        {
            "1": {"class_type": class_type, "inputs": image},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "generated"}},
        }
    )


def main(url: str, key: str) -> None:
    modules = [module.name for module in pkgutil.walk_packages(gateway_client.__path__, "gateway_client.")]
    for module in modules:
        importlib.import_module(module)

    client = AuthenticatedClient(base_url=url, token=key)
    answer = prompt_sync.sync(
        client=client, body=PromptRequest(prompt=workflow(), return_image_base64=True), timeout=20.0
    )
    assert isinstance(answer, PromptAnswer), answer
    (file,) = answer.images
    assert file.content_type == "image/png"
    assert isinstance(file.base64, str)
    assert answer.timings.executing >= 0

    labels = {"made-by": "generated"}
    labelled = PromptRequest(prompt=workflow(), labels=PromptRequestLabels.from_dict(labels), priority=3)
    taken = prompt_sync.sync(client=client, body=labelled, prefer_header="respond-async")
    assert isinstance(taken, PendingJob), taken
    assert taken.status in {PendingJobStatus.QUEUED, PendingJobStatus.RUNNING}
    assert isinstance(taken.created_at, datetime)
    waited = attach.sync(prompt_id=taken.prompt_id, client=client, timeout=20.0)
    assert isinstance(waited, PromptAnswer), waited
    asked = ListJobsLabels.from_dict({f"label.{key}": value for key, value in labels.items()})
    page = list_jobs.sync(client=client, status="succeeded,failed", limit=1, labels=asked)
    assert isinstance(page, JobList), page
    (job,) = page.jobs
    assert (job.prompt_id, job.labels.additional_properties, job.priority) == (taken.prompt_id, labels, 3)
    assert isinstance(job.ended_at, datetime)

    form = PromptSyncFilesBody(
        workflow='{"1": {"class_type": "NoSuchNode"}}', images=[File(BytesIO(b"x"), "a.txt")], front=True
    )
    for body in (PromptRequest(prompt=workflow("NoSuchNode")), form):
        refused = prompt_sync.sync(client=client, body=body)
        assert isinstance(refused, ErrorBody), refused
        assert refused.type_ == "validation_failed", refused
    unknown = attach.sync(prompt_id=UUID(int=4), client=client)
    assert isinstance(unknown, ErrorBody)
    assert unknown.type_ == "not_found"
    assert not isinstance(cancel.sync(prompt_id=answer.prompt_id, client=client), Cancelled)

    checked = validate.sync(client=client, body=PromptRequest(prompt=workflow("EmptyImag")))
    assert isinstance(checked, Validation)
    assert not checked.valid
    assert "EmptyImage" in checked.problems[0].closest

    wrong = run_flat.sync(client=client, body=RunFlat(width=65))
    assert isinstance(wrong, ErrorBody)
    assert isinstance(wrong.parameters, ErrorBodyParameters)
    assert "64" in wrong.parameters["width"].message
    picture = File(BytesIO(base64.b64decode(file.base64)), "a.png")
    inverted = run_inverted.sync(client=client, body=RunInvertedForm(image=picture))
    assert isinstance(inverted, PromptAnswer), inverted
    flat = run_flat.sync(
        client=client, body=RunFlat(width=9, seed=1234, prompt="named", options=RunOptions(return_image_base64=True))
    )
    assert isinstance(flat, PromptAnswer), flat
    assert isinstance(flat.workflow, WorkflowEntry)
    assert flat.workflow.name == "flat"
    print(json.dumps(flat.to_dict()))

    ticket = make_ticket.sync(client=client, body=TicketRequest(url=file.url))
    assert isinstance(ticket, Ticket)
    state = health.sync(client=client)
    assert isinstance(state, Health)
    assert state.servers[0].state == "connected"
    assert isinstance(health_ready.sync(client=client), Readiness)
    stranger = AuthenticatedClient(base_url=url, token="not a key")
    unauthorized = validate.sync(client=stranger, body=PromptRequest(prompt=workflow()))
    assert isinstance(unauthorized, ErrorBody)
    assert unauthorized.type_ == "unauthorized"
    print(f"{len(modules)} modules imported, {file.filename} made")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
