"""What orchestrators ask: health, liveness, readiness, metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.request_state import state_of

router = APIRouter(tags=["health"])

try:
    VERSION = version("comfyui-gateway")
except PackageNotFoundError:
    VERSION = "0.1.0"


@router.get("/health", summary="The gateway and every ComfyUI server behind it")
async def health(request: Request) -> Response:
    """503 when no ComfyUI answers. The queue figures are ComfyUI's own, as it last told them.

    `simulation` is true when one of the servers is a simulation, such as the embedded engine.

    Where there are API keys, only who shows one is told of addresses and reasons.
    """
    handler = gateway_of(request).handler
    in_detail = state_of(request.scope).in_detail
    servers = await handler.health_check(in_detail=in_detail)
    remaining = sum(server["queue_remaining"] for server in servers)
    running = sum(1 for server in servers if server["queue_remaining"])
    connected = bool(handler.pool.ready)
    body = {
        "status": "healthy" if connected else "unhealthy",
        "comfyui_server": "connected" if connected else "disconnected",
        "queue_running": running,
        "queue_pending": remaining - running,
        "waiting_requests": handler.waiting,
        "simulation": any(server["simulation"] for server in servers),
        "servers": servers,
        "version": VERSION,
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if not connected:
        body["error"] = handler.pool.why_not_ready(in_detail=in_detail)
    return json_response(200 if connected else 503, body)


@router.get("/health/live", summary="200 while the process serves")
async def live() -> dict[str, str]:
    """Never asks ComfyUI: a restart of the gateway would not mend ComfyUI."""
    return {"status": "alive"}


@router.get("/health/ready", summary="200 when a prompt would be accepted now")
async def ready(request: Request) -> Response:
    """503 with the reason while ComfyUI starts, is down or cannot run prompts, or the gateway is full or draining."""
    reason = gateway_of(request).handler.why_not_ready(in_detail=state_of(request.scope).in_detail)
    if reason is None:
        return json_response(200, {"status": "ready"})
    return json_response(503, {"status": "not ready", "reason": reason})


@router.get("/metrics", summary="Prometheus text; docs/metrics.md says what each means")
async def metrics(request: Request) -> Response:
    """Needs a key where there are keys: Prometheus can send one (``authorization`` in its scrape configuration)."""
    return Response(generate_latest(gateway_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """A page to try the endpoints out. FastAPI's own one looks for /openapi.json at the root of the site."""
    return get_swagger_ui_html(openapi_url="openapi.json", title="comfyui-gateway")
