"""ComfyUI's own `POST /prompt`: what ComfyUI's clients queue through us, without a wait."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from comfyui.offload import offloaded
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.headers import submission_headers

router = APIRouter()


@router.post("/prompt", summary="ComfyUI's own endpoint, unchanged")
@router.post("/api/prompt", include_in_schema=False)
async def prompt(request: Request) -> Response:
    """The body goes to ComfyUI as it came, and the reply comes back as it came."""
    pieces = [chunk async for chunk in request.stream()]
    body = await offloaded(sum(map(len, pieces)), b"".join, pieces)
    gateway = gateway_of(request)
    server = await gateway.sockets.backend_for(body)
    reply = await gateway.handler.queue_prompt_compatible(body, submission_headers(request.scope), server=server)
    return Response(reply.body, reply.status, {"Content-Type": reply.content_type})
