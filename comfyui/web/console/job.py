"""`/console/jobs/{id}`: one job, with all that is known of it, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from comfyui import jsonio
from comfyui.exceptions import ComfyUIConflictError, ComfyUINotFoundError, RequestError
from comfyui.offload import offloaded
from comfyui.outputs.history import cached_nodes
from comfyui.web.api.jobs import pending_job, webhooks_again
from comfyui.web.api.named_runs import may_run
from comfyui.web.api.streams import content_disposition
from comfyui.web.console.actions import Done, changes, fields_of
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.job_again import run_again
from comfyui.web.console.job_found import Found, found_job
from comfyui.web.console.job_graph import MOST_NODES, changed, has_seeds, nodes_of, with_new_seeds
from comfyui.web.console.job_made import made_by
from comfyui.web.console.node_names import plain_node_title
from comfyui.web.console.pages import HEADERS, page
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.viewer import Visitor, visitor_of
from comfyui.web.front.gateway_state import gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

# Nodes whose times are shown.
_MOST_NODES = 200
# Bytes of a node or so, as work.
_NODE_BYTES = 1000


@dataclass(frozen=True, slots=True)
class NodeTime:
    """How long one node ran. `share`: of the node that ran longest, from 0 to 100."""

    title: str
    node_id: str
    seconds: float
    share: float


@router.get("/console/jobs/{prompt_id}")
async def show_job(request: Request) -> Response:
    """The page."""
    visitor = visitor_of(request)
    found = await found_job(request, visitor)
    gateway, record = gateway_of(request), found.record
    journal = gateway.handler.journal
    ended = found.state.is_end
    return page(
        request,
        "job.html",
        found=found,
        record=record,
        state=found.state.value,
        now=None if ended else pending_job(gateway, found.look, in_detail=True),
        made=await made_by(request, found),
        nodes=await offloaded(len(found.prompt) * _NODE_BYTES, nodes_of, found.prompt),
        left_out=max(0, len(found.prompt) - MOST_NODES),
        times=_times(found),
        cached=len(cached_nodes(found.result.told.messages)) if found.result and found.result.told else 0,
        runs=await journal.runs(found.prompt_id) if record is not None and record.run > 1 else [],
        deliveries=await journal.deliveries(found.prompt_id) if record is not None else [],
        may_run_again=visitor.may_change and found.has_body and ended,
        may_cancel=visitor.may_change and not ended and (found.is_known or visitor.operates),
        may_move=visitor.may_change and record is not None and gateway.handler.queue.has_no_turn(found.prompt_id),
        may_change_graph=visitor.may_change and found.has_body and found.is_known and _may_send_graphs(visitor, found),
        may_open_form=record is not None and record.call is not None and may_run(request, record.call.name),
        has_seeds=has_seeds(found.prompt),
        has_frontend=bool(gateway.handler.pool.backends),
    )


@router.get("/console/jobs/{prompt_id}/workflow")
async def download_workflow(request: Request) -> Response:
    """The graph as a file in API format."""
    found = await found_job(request, visitor_of(request))
    return await _download(found, found.prompt, "api")


@router.get("/console/jobs/{prompt_id}/editor")
async def download_editor_workflow(request: Request) -> Response:
    """The workflow as ComfyUI's editor saves it, where one came with the job."""
    found = await found_job(request, visitor_of(request))
    return await _download(found, found.editor, "editor")


@router.post("/console/jobs/{prompt_id}/again")
@changes
async def again(request: Request, visitor: Visitor) -> Done:
    """A new job with the same request; with the field `seeds`, with other seeds."""
    found, fields = await found_job(request, visitor), await fields_of(request)
    change = (lambda prompt: with_new_seeds(prompt)[0]) if fields.get("seeds") else None
    return _begun(await run_again(request, visitor, found, change))


@router.post("/console/jobs/{prompt_id}/changed")
@changes
async def again_changed(request: Request, visitor: Visitor) -> Done:
    """A new job with the values of the form in its graph."""
    found, fields = await found_job(request, visitor), await fields_of(request)

    def change(prompt: Mapping[str, Any]) -> dict[str, Any]:
        made, count = changed(prompt, found.prompt, fields)
        if not count:
            raise RequestError(TEXTS.job.nothing_changed)
        return made

    return _begun(await run_again(request, visitor, found, change))


@router.post("/console/jobs/{prompt_id}/webhook")
@changes
async def send_webhook_again(request: Request, visitor: Visitor) -> Done:
    """Sends the webhooks of its present run again."""
    found = await found_job(request, visitor)
    if found.record is None:
        raise ComfyUIConflictError(TEXTS.job.no_webhook, prompt_id=found.prompt_id)
    await webhooks_again(request, found.prompt_id)
    return Done(TEXTS.job.webhook_sent, f"console/jobs/{found.prompt_id}", follow=True)


def _begun(prompt_id: str) -> Done:
    return Done(TEXTS.job.begun, f"console/jobs/{prompt_id}", follow=True)


def _may_send_graphs(visitor: Visitor, found: Found) -> bool:
    """Whether the graph may be changed here; what a named workflow made is changed in its own form."""
    rules = visitor.origin.rules
    is_named = found.record is not None and found.record.call is not None
    return not is_named and (rules is None or rules.workflows is None)


def _times(found: Found) -> list[NodeTime]:
    """In the order in which they ran; where very many did, the longest."""
    nodes = found.result.timings.nodes if found.result is not None else None
    if not nodes:
        return []
    longest = max(nodes.values()) or 1.0
    chosen = set(sorted(nodes, key=lambda one: -nodes[one])[:_MOST_NODES])
    return [
        NodeTime(plain_node_title(found.prompt, node_id), node_id, seconds, round(100 * seconds / longest, 2))
        for node_id, seconds in nodes.items()
        if node_id in chosen
    ]


async def _download(found: Found, workflow: Mapping[str, Any] | None, kind: str) -> Response:
    if not workflow:
        raise ComfyUINotFoundError(TEXTS.job.no_workflow)
    text = await offloaded(len(workflow) * _NODE_BYTES, jsonio.dumps, workflow, indent=True)
    disposition = content_disposition(f"{found.prompt_id[:8]}-{kind}.json")
    return Response(text, 200, {**HEADERS, "Content-Disposition": disposition}, media_type="application/json")
