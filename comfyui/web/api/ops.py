"""Endpoints for orchestrators: health, liveness, readiness, metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from typing_extensions import TypedDict

from comfyui.jobs.measures import measure_jobs
from comfyui.servers.server import ServerReport
from comfyui.web.api.named_runs import know_nodes
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.openapi import TEXT, Answer, json_of, operation
from comfyui.web.front.request_state import state_of

router = APIRouter(default_response_class=Response)
_TAG = "health"
_METRICS = CONTENT_TYPE_LATEST.partition(";")[0]
# Swagger UI replaces the contents of its element. If the browser cannot load it, the text stays.
_SWAGGER_PLACE = b'<div id="swagger-ui">'
_WITHOUT_SWAGGER = (
    b"<p>This page loads Swagger UI from cdn.jsdelivr.net. If this text stays, the browser cannot reach that site. "
    b'<a href="openapi.json">openapi.json</a> describes the same endpoints.</p>'
)

try:
    VERSION = version("comfyui-gateway")
except PackageNotFoundError:
    VERSION = "0.1.0"


Degraded = Annotated[
    str, Field(description="Why async jobs are refused and no job is kept, while sync calls are still answered.")
]


class GatewayQueue(TypedDict):
    """Jobs that wait in the gateway, and are on no server yet."""

    paused: Annotated[
        bool, Field(description="Whether the queue is paused: no job leaves it until `POST /queue/resume`.")
    ]
    waiting: Annotated[int, Field(description="The jobs and sync calls that wait in the gateway.")]


class Health(TypedDict):
    """The gateway and every ComfyUI server behind it."""

    status: Literal["healthy", "unhealthy"]
    comfyui_server: Literal["connected", "disconnected"]
    queue_running: Annotated[int, Field(description="The number of servers whose ComfyUI has prompts.")]
    queue_pending: Annotated[
        int,
        Field(
            description="The prompts that wait in ComfyUI's own queues; `queue` counts those that wait in the gateway."
        ),
    ]
    queue: NotRequired[
        Annotated[GatewayQueue, Field(description="The addresses of ComfyUI, only for callers who may see them.")]
    ]
    waiting_requests: Annotated[int, Field(description="The requests that wait for a prompt now.")]
    simulation: Annotated[
        bool, Field(description="Whether one of the servers is a simulation, such as the embedded engine.")
    ]
    servers: list[ServerReport]
    version: str
    timestamp: Annotated[
        str,
        Field(description="The time of the answer in UTC, to the second.", json_schema_extra={"format": "date-time"}),
    ]
    error: NotRequired[Annotated[str | None, Field(description="Why no server accepts prompts.")]]
    degraded: NotRequired[Degraded]


class Liveness(TypedDict):
    """The process serves."""

    status: Literal["alive"]


class Readiness(TypedDict):
    """Whether a prompt would be accepted now."""

    status: Literal["ready", "not ready"]
    reason: NotRequired[str]
    degraded: NotRequired[Degraded]


def _degraded(gateway: GatewayState, *, in_detail: bool) -> str | None:
    problems = []
    if (problem := gateway.handler.journal.problem) is not None:
        problems.append(problem if in_detail else "STATE_DIR: the journal cannot be written")
    if gateway.keys_file is not None and (problem := gateway.keys_file.problem) is not None:
        problems.append(problem if in_detail else "KEYS_FILE was changed but cannot be used")
    return "; ".join(problems) or None


def timestamp() -> str:
    """Now, as `Health` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unhealthy(error: str) -> Health:
    """The health of a gateway that knows nothing about its servers yet."""
    return {
        "status": "unhealthy",
        "comfyui_server": "disconnected",
        "queue_running": 0,
        "queue_pending": 0,
        "waiting_requests": 0,
        "simulation": False,
        "servers": [],
        "version": VERSION,
        "timestamp": timestamp(),
        "error": error,
    }


@router.get(
    "/health",
    summary="The gateway and every ComfyUI server behind it",
    openapi_extra=operation(
        "health",
        {
            200: Answer("At least one ComfyUI server accepts prompts.", json_of(Health)),
            503: Answer("None does.", json_of(Health)),
        },
        is_probe=True,
        tag=_TAG,
    ),
)
async def health(request: Request) -> Response:
    """503 when no ComfyUI answers. `queue_running` and `queue_pending` are ComfyUI's own, as it last told them.

    `queue` has the jobs that wait in the gateway, and whether it is paused. A server with other node definitions than
    the first one has `definitions`.

    `simulation` is true when one of the servers is a simulation, such as the embedded engine.

    If there are API keys, only callers with a key get addresses and reasons.
    """
    handler = gateway_of(request).handler
    in_detail = state_of(request.scope).in_detail
    handler.pool.look_again()
    servers = handler.pool.report(in_detail=in_detail)
    if in_detail and len(servers) > 1:
        differing = await handler.fleet.differences()
        for server in servers:
            if (how := differing.get(server["server"])) is not None:
                server["definitions"] = how
    remaining = sum(server["queue_remaining"] for server in servers)
    running = sum(1 for server in servers if server["queue_remaining"])
    connected = bool(handler.pool.ready_servers)
    body: Health = {
        "status": "healthy" if connected else "unhealthy",
        "comfyui_server": "connected" if connected else "disconnected",
        "queue_running": running,
        "queue_pending": remaining - running,
        "waiting_requests": handler.waiting,
        "simulation": any(server["simulation"] for server in servers),
        "servers": servers,
        "version": VERSION,
        "timestamp": timestamp(),
    }
    if (degraded := _degraded(gateway_of(request), in_detail=in_detail)) is not None:
        body["degraded"] = degraded
    if in_detail:
        body["queue"] = GatewayQueue(paused=handler.queue.paused, waiting=handler.queue.waiting)
    if not connected:
        body["error"] = handler.pool.why_not_ready(in_detail=in_detail)
    return json_response(200 if connected else 503, body)


@router.get(
    "/health/live",
    summary="Whether the process serves requests (200)",
    openapi_extra=operation("health_live", {200: Answer("It serves.", json_of(Liveness))}, is_probe=True, tag=_TAG),
)
async def live() -> Response:
    """Never asks ComfyUI: a restart of the gateway would not mend ComfyUI."""
    return json_response(200, Liveness(status="alive"))


@router.get(
    "/health/ready",
    summary="Whether a prompt would be accepted now (200)",
    openapi_extra=operation(
        "health_ready",
        {
            200: Answer("A prompt would be accepted.", json_of(Readiness)),
            503: Answer("A prompt would not be accepted.", json_of(Readiness)),
        },
        is_probe=True,
        tag=_TAG,
    ),
)
async def ready(request: Request) -> Response:
    """503 with the reason while ComfyUI starts, is down or cannot run prompts, or the gateway is full or draining.

    Still 200, with `degraded`, while the journal of jobs cannot be written (sync calls go on), or a changed KEYS_FILE
    cannot be used (the keys before hold).
    """
    gateway = gateway_of(request)
    in_detail = state_of(request.scope).in_detail
    reason = gateway.handler.why_not_ready(in_detail=in_detail)
    body = Readiness(status="ready") if reason is None else Readiness(status="not ready", reason=reason)
    if (degraded := _degraded(gateway, in_detail=in_detail)) is not None:
        body["degraded"] = degraded
    return json_response(200 if reason is None else 503, body)


@router.get(
    "/metrics",
    summary="The metrics as Prometheus text; docs/metrics.md describes each",
    openapi_extra=operation("metrics", {200: Answer("All metrics.", {_METRICS: TEXT})}, tag=_TAG),
)
async def metrics(request: Request) -> Response:
    """Needs a key if there are keys: Prometheus can send one (``authorization`` in its scrape configuration)."""
    gateway = gateway_of(request)
    gateway.metrics.queue_paused.set(gateway.handler.queue.paused)
    await measure_jobs(gateway.handler.journal, gateway.metrics)
    return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.api_route("/openapi.json", methods=["GET", "HEAD"], include_in_schema=False)
async def openapi(request: Request) -> Response:
    """The description of all endpoints, with a path for each named workflow that the caller may run."""
    gateway, caller = gateway_of(request), state_of(request.scope).caller
    await know_nodes(gateway)
    allowed = None if caller is None else caller.rules.workflows
    made = await gateway.documents.of(request.app.openapi, gateway.named, allowed)
    return Response(made, media_type="application/json")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """A page to try the endpoints out. FastAPI's own one looks for /openapi.json at the root of the site."""
    page = get_swagger_ui_html(openapi_url="openapi.json", title="comfyui-gateway")
    return HTMLResponse(bytes(page.body).replace(_SWAGGER_PLACE, _SWAGGER_PLACE + _WITHOUT_SWAGGER, 1))
