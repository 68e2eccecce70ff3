"""`/console/queue`: all that waits, in its order."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from pydantic import Field

from comfyui.handler import ComfyUIHandler
from comfyui.web.api.parameters import Parameters, read
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.pages import page, root_of
from comfyui.web.console.queue_rows import priorities_of, queue_part
from comfyui.web.console.viewer import Visitor, visitor_of
from comfyui.web.front.gateway_state import gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

PER_PAGE = 50
# Owners that the filter offers: those with the most jobs.
_MOST_OWNERS = 100


class QueueCall(Parameters):
    """The query: which part of the queue is shown."""

    page: int = Field(default=1, ge=1, le=1_000_000)
    owner: str | None = Field(default=None, max_length=512)


@router.get("/console/queue")
async def show_queue(request: Request) -> Response:
    """One page of the queue, of one owner where that is asked for."""
    call, visitor, handler = read(QueueCall, request), visitor_of(request), gateway_of(request).handler
    owner = call.owner or None
    part = await queue_part(handler, visitor, (call.page - 1) * PER_PAGE, PER_PAGE, owner)
    lowest, highest = priorities_of(visitor)
    return page(
        request,
        "queue.html",
        part=part,
        number=call.page,
        pages=max(1, -(-part.total // PER_PAGE)),
        owner=owner,
        owners=_owners(handler, visitor, owner),
        address=_address(call.page, owner),
        previous=f"{root_of(request)}console/queue{_address(call.page - 1, owner)}",
        next=f"{root_of(request)}console/queue{_address(call.page + 1, owner)}",
        paused=handler.queue.paused,
        can_pause=visitor.operates and handler.queue.are_all_here,
        lowest=lowest,
        highest=highest,
    )


def _address(number: int, owner: str | None) -> str:
    """The query of a page."""
    wanted = ({} if number <= 1 else {"page": str(number)}) | ({} if owner is None else {"owner": owner})
    return f"?{urlencode(wanted)}" if wanted else ""


def _owners(handler: ComfyUIHandler, visitor: Visitor, chosen: str | None) -> list[str]:
    """The owners that the visitor can choose from; none where there is nothing to choose."""
    waiting = handler.standing.owners()
    named = sorted((-count, name) for name, count in waiting.items() if name is not None and visitor.sees(name))
    owners = [name for _, name in named[:_MOST_OWNERS]]
    if chosen is not None and chosen not in owners:
        owners.append(chosen)
    return sorted(owners) if len(owners) > 1 or chosen is not None else []
