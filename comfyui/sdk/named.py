"""Named workflows: what there is, what each takes, and their runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui.sdk.calls import named_job_submission, named_submission, workflow_path
from comfyui.sdk.connection import Connection
from comfyui.sdk.errors import GatewayProtocolError
from comfyui.sdk.events import Event
from comfyui.sdk.jobs import Job, Webhook
from comfyui.sdk.models import PromptResult
from comfyui.sdk.waiting import GRACE_S, result_of, run_events, taken

_NO_PARAMETERS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class WorkflowSummary:
    """A named workflow in the list. `problem`: why it cannot be called; None if it can."""

    name: str
    title: str
    description: str
    version: str
    parameters: tuple[str, ...]
    outputs: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """A named workflow with all that it takes.

    Attributes:
        version: SHA-256 of its files.
        parameters: JSON Schema of them, by whose ``properties`` each is described.
        outputs: names of its outputs; empty if an answer has the files of all output nodes.
        example: parameters that it takes.
        missing: for each server, what it lacks for the workflow, in words; a server that lacks nothing has no entry.
        body: the reply as it came.
    """

    name: str
    title: str
    description: str
    version: str
    parameters: Mapping[str, Any]
    outputs: tuple[str, ...]
    example: Mapping[str, Any]
    missing: Mapping[str, tuple[str, ...]]
    body: Mapping[str, Any] = field(repr=False)


class NamedWorkflows:
    """The named workflows of one gateway, as `GatewayClient.named`.

    In all parameters, a value of bytes is a file; a text for a file is a URL, a data URI or base64.
    """

    def __init__(self, connection: Connection, timeout_s: float, reconnect_delays_s: Sequence[float]) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._reconnect_delays_s = reconnect_delays_s

    async def list(self) -> list[WorkflowSummary]:
        """All that this key may run, by name, also those whose files cannot be used. Raises GatewayError."""
        body = await self._get("/workflows")
        try:
            return [
                WorkflowSummary(
                    name=one["name"],
                    title=one["title"],
                    description=one["description"],
                    version=one["version"],
                    parameters=tuple(one["parameters"]),
                    outputs=tuple(one["outputs"]),
                    problem=one["problem"],
                )
                for one in body["workflows"]
            ]
        except (KeyError, TypeError) as error:
            raise _no_workflow(error) from error

    async def show(self, name: str) -> WorkflowDetails:
        """The description of one workflow.

        Raises:
            GatewayRefusedError: no workflow has this name, or the key may not run it.
            GatewayError: its file cannot be used, or nothing answers.
        """
        body = await self._get(workflow_path(name))
        try:
            return WorkflowDetails(
                name=body["name"],
                title=body["title"],
                description=body["description"],
                version=body["version"],
                parameters=body["parameters"],
                outputs=tuple(output["name"] for output in body["outputs"]),
                example=body["example"],
                missing={
                    server["server"]: tuple(one["message"] for one in server["problems"] if one["severity"] == "error")
                    for server in body["servers"]
                },
                body=body,
            )
        except (KeyError, TypeError) as error:
            raise _no_workflow(error) from error

    async def run(
        self,
        name: str,
        parameters: Mapping[str, Any] = _NO_PARAMETERS,
        *,
        timeout_s: float | None = None,
        prompt_id: str | None = None,
        return_base64: bool = False,
    ) -> PromptResult:
        """Runs a workflow until it is done, as `GatewayClient.run` runs a graph. Raises GatewayError."""
        call = named_submission(name, parameters, prompt_id, return_base64)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await result_of(run_events(self._connection, call, timeout_s, self._reconnect_delays_s, stream=False))

    def stream(
        self,
        name: str,
        parameters: Mapping[str, Any] = _NO_PARAMETERS,
        *,
        timeout_s: float | None = None,
        prompt_id: str | None = None,
        return_base64: bool = False,
        previews: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """The same as `run`, with the events on the way; the last event is `Finished`."""
        call = named_submission(name, parameters, prompt_id, return_base64, previews)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return run_events(self._connection, call, timeout_s, self._reconnect_delays_s, stream=True)

    async def submit(
        self,
        name: str,
        parameters: Mapping[str, Any] = _NO_PARAMETERS,
        *,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        webhook: Webhook | str | None = None,
        prompt_id: str | None = None,
        idempotency_key: str | None = None,
        wait_s: float = 0.0,
    ) -> Job:
        """Hands a run in as a job, as `GatewayClient.submit` does with a graph. Raises as that one."""
        told = Webhook(webhook) if isinstance(webhook, str) else webhook
        more = {"labels": dict(labels or {}), "priority": priority, "webhook": told and told.to_json()}
        call = named_job_submission(name, parameters, prompt_id, idempotency_key, wait_s, more)
        return await taken(self._connection, call, wait_s, self._reconnect_delays_s)

    async def _get(self, path: str) -> dict[str, Any]:
        async with self._connection.request("GET", path, quiet_s=GRACE_S) as response:
            return await self._connection.json_of(response)


def _no_workflow(error: Exception) -> GatewayProtocolError:
    return GatewayProtocolError(
        f"The answer is JSON but not a workflow of the gateway ({error!r}); check the address",
        title="Not the gateway",
        code="not_a_gateway",
    )
