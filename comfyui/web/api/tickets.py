"""`POST /tickets`: the endpoint. `comfyui.web.front.tickets` makes and redeems tickets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comfyui.exceptions import ComfyUINotFoundError, RequestError
from comfyui.limits import Limits
from comfyui.web.api.bodies import JSON_ERRORS, json_object
from comfyui.web.front.errors import describe_validation, json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation
from comfyui.web.front.request_state import state_of
from comfyui.web.front.tickets import Ticket

router = APIRouter(default_response_class=Response)


class TicketRequest(BaseModel):
    """The address that the ticket opens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(max_length=4096, description="Path and query, as in `images[].url`; percent-encoded.")]
    websocket: bool = Field(
        default=False, description="Whether the address opens a websocket; such a ticket works once."
    )


@router.post(
    "/tickets",
    summary="Make an address that a browser may open without a key",
    openapi_extra=operation(
        "make_ticket",
        {200: Answer("The address, with its ticket.", json_of(Ticket))},
        (*JSON_ERRORS, ComfyUINotFoundError),
        body=json_of(TicketRequest),
        tag="tickets",
    ),
)
async def make_ticket(request: Request) -> Response:
    """Valid for five minutes: for one picture (or any other GET of this one address), or one websocket."""
    gateway = gateway_of(request)
    wanted = _wanted(await request.body(), gateway.options.limits)
    caller = state_of(request.scope).caller
    if caller is None:
        raise ComfyUINotFoundError(
            "no ticket is needed, because no keys are set (API_KEYS, KEYS_FILE); use the address as it is"
        )
    return json_response(
        200, gateway.tickets.make(caller, wanted.url, websocket=wanted.websocket), {"Cache-Control": "no-store"}
    )


def _wanted(body: bytes, limits: Limits) -> TicketRequest:
    """Read as the bodies of the other endpoints are, whatever its Content-Type says."""
    fields = json_object(body, "the body", limits, '{"url": "/view?…"}')
    try:
        return TicketRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestError(describe_validation(error.errors(include_url=False, include_input=False))) from None
