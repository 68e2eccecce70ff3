"""A client of the gateway's HTTP API, for Python programs: typed, asynchronous, and by itself.

::

    async with GatewayClient("http://127.0.0.1:18188") as gateway:
        result = await gateway.run(workflow)
        for file in result.files:
            print(await gateway.save(file, Path("out")))

It shares no code with the server: it knows only the gateway's HTTP contract.
"""

from comfyui.sdk.client import GatewayClient
from comfyui.sdk.errors import (
    GatewayCancelledError,
    GatewayConnectionError,
    GatewayError,
    GatewayNotFinishedError,
    GatewayOverloadedError,
    GatewayProtocolError,
    GatewayRefusedError,
    GatewayTaskError,
    GatewayTimeoutError,
    JobStatus,
)
from comfyui.sdk.events import Event, Executing, Finished, Preview, Progress, Queued, Reconnecting
from comfyui.sdk.files import safe_folder, safe_name
from comfyui.sdk.jobs import Job, JobProgress, ListedJob, Webhook, WebhookEvent
from comfyui.sdk.models import Health, InputFile, OutputFile, PromptResult, Timings
from comfyui.sdk.named import NamedWorkflows, WorkflowDetails, WorkflowSummary

__all__ = [
    "Event",
    "Executing",
    "Finished",
    "GatewayCancelledError",
    "GatewayClient",
    "GatewayConnectionError",
    "GatewayError",
    "GatewayNotFinishedError",
    "GatewayOverloadedError",
    "GatewayProtocolError",
    "GatewayRefusedError",
    "GatewayTaskError",
    "GatewayTimeoutError",
    "Health",
    "InputFile",
    "Job",
    "JobProgress",
    "JobStatus",
    "ListedJob",
    "NamedWorkflows",
    "OutputFile",
    "Preview",
    "Progress",
    "PromptResult",
    "Queued",
    "Reconnecting",
    "Timings",
    "Webhook",
    "WebhookEvent",
    "WorkflowDetails",
    "WorkflowSummary",
    "safe_folder",
    "safe_name",
]
