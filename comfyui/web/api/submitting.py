"""A submitted workflow of any kind: the parameters of the call besides its body, and its answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self
from uuid import UUID, uuid4, uuid5

import structlog
from fastapi import Request, Response
from pydantic import Field

from comfyui.exceptions import ComfyUIError, RequestError
from comfyui.inputs.content import SpooledFiles
from comfyui.jobs.admission import Look
from comfyui.jobs.journal.records import State
from comfyui.jobs.origin import Origin
from comfyui.models import PromptRequest
from comfyui.outputs.delivery import Order
from comfyui.web.api.accept import accepted_by
from comfyui.web.api.answers import Call, answer
from comfyui.web.api.bodies import Submission
from comfyui.web.api.jobs import origin_of, pending
from comfyui.web.api.parameters import IN_HEADER, IN_HEADER_LIST, Parameters
from comfyui.web.api.preferences import Preferences, preferences
from comfyui.web.front.errors import answer_error
from comfyui.web.front.gateway_state import GatewayState, WebOptions, gateway_of
from comfyui.web.front.openapi import PROMPT_STATUS
from comfyui.web.front.request_state import state_of

# For callers without API keys. It is only ours, so that no other UUIDv5 scheme can collide with it.
_KEY_NAMESPACE = UUID("5f0c1a2e-7d0b-5c39-9a36-0e3b6f0f8a11")


class WaitingCall(Parameters):
    """The parameters of every call that waits for an answer."""

    timeout: float | None = Field(default=None, gt=0, description="Seconds to wait; DEFAULT_TIMEOUT if it is left out.")
    node_id: str | None = Field(
        default=None,
        max_length=256,
        description="The id of the node whose file is sent, if the answer is the bytes of one file.",
    )
    previews: bool = Field(default=False, description="Whether the events include pictures of the work in progress.")


class Preferring(WaitingCall):
    """The ways to ask for an answer without waiting."""

    prefer: str | None = Field(
        default=None,
        max_length=256,
        description="The same as the header `Prefer`, for tools that cannot set it.",
        examples=["respond-async"],
    )
    prefer_header: str | None = Field(
        default=None,
        alias="Prefer",
        max_length=1024,
        description="`respond-async`: answer 202 at once; `respond-async, wait=20`: after these seconds, at most"
        " `timeout` (RFC 7240). Other preferences are ignored.",
        examples=["respond-async", "respond-async, wait=20"],
        json_schema_extra=IN_HEADER_LIST,
    )

    def preferred(self, options: WebOptions) -> Preferences:
        return preferences(self.prefer_header, self.prefer, options.max_timeout_s).within(self.timeout)


class SubmitCall(Preferring):
    """The parameters of a POST, besides its body."""

    idempotency_key: str | None = Field(
        default=None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="A key of your choice, which makes the call idempotent.",
        json_schema_extra=IN_HEADER,
    )


@dataclass(frozen=True, slots=True)
class Submitting:
    """One POST of a workflow.

    Attributes:
        timeout_s: how long the caller waits, if it waits.
        key_id: the prompt's id, if the caller has sent an Idempotency-Key.
    """

    request: Request
    gateway: GatewayState
    asked: SubmitCall
    timeout_s: float
    preferred: Preferences
    key_id: UUID | None

    @classmethod
    def of(cls, request: Request, asked: SubmitCall) -> Self:
        """Raises `RequestError` for a value that cannot be used."""
        gateway = gateway_of(request)
        timeout_s = timeout_of(asked.timeout, gateway.options)
        key_id = None
        if asked.idempotency_key is not None:
            caller = state_of(request.scope).caller
            key_id = prompt_id_for_key(asked.idempotency_key, None if caller is None else caller.namespace)
        return cls(request, gateway, asked, timeout_s, asked.preferred(gateway.options), key_id)

    @property
    def waits(self) -> bool:
        """Whether the caller waits for the end."""
        return not self.preferred.respond_async

    async def answer(self, submitted: Submission) -> Response:
        """Runs the submission, and answers in the form that the caller accepts. Raises `ComfyUIError`."""
        request, gateway, body = self.request, self.gateway, submitted.request
        origin = origin_of(request)
        if body.webhook is not None:
            gateway.options.webhooks.check(body.webhook.url, origin.rules)
        if self.key_id is not None:
            if body.prompt_id is not None:
                raise RequestError("give either prompt_id or the Idempotency-Key header, not both")
            body = body.model_copy(update={"prompt_id": self.key_id})
        prompt_id = str(body.prompt_id or uuid4())
        structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
        call = call_of(request, gateway, self.asked, prompt_id, Order.of(body), self.timeout_s)
        if self.preferred.respond_async:
            return await _in_the_background(request, gateway, call, body, submitted.files, origin, self.preferred)
        return await answer(
            request,
            gateway.deliverer,
            call,
            lambda listener: gateway.handler.submit_prompt_sync(
                body,
                timeout_s=self.timeout_s,
                files=submitted.files,
                fresh_id=prompt_id,
                listener=listener,
                origin=origin,
                returns_s=None if listener is None else 0.0,  # events begin with the id
            ),
        )


async def _in_the_background(
    request: Request,
    gateway: GatewayState,
    call: Call,
    body: PromptRequest,
    files: SpooledFiles | None,
    origin: Origin,
    preferred: Preferences,
) -> Response:
    gateway.deliverer.check(call.order)
    look = await gateway.handler.submit_async(
        body, files, fresh_id=call.prompt_id, origin=origin, wait_s=preferred.wait_s
    )
    if not look.state.is_end:
        return pending(request, look, preferred)
    return await ended(request, gateway, call, look, origin)


async def ended(request: Request, gateway: GatewayState, call: Call, look: Look, origin: Origin) -> Response:
    """The result of a job that has ended, or the error that it ended with: `X-Prompt-Status` tells it from others."""
    try:
        response = await answer(
            request,
            gateway.deliverer,
            call,
            lambda listener: gateway.handler.attach(
                call.prompt_id, timeout_s=gateway.options.default_timeout_s, listener=listener, origin=origin
            ),
        )
    except ComfyUIError as error:
        record = look.record
        if record is None or not record.state.is_end:
            record = (await gateway.handler.look(call.prompt_id, origin)).record
        if record is None or record.error is None or record.error["detail"] != error.detail:
            raise
        response = await answer_error(request, error)
        response.headers[PROMPT_STATUS] = record.state.value
    else:
        response.headers[PROMPT_STATUS] = State.SUCCEEDED.value
    return response


def prompt_id_for_key(key: str, namespace: UUID | None) -> UUID:
    """The same Idempotency-Key of the same caller gives the same id, in any process and after any restart.

    `namespace`: of the caller's API key, so that no caller meets another's prompt by chance; None if no key is needed.
    """
    return uuid5(namespace or _KEY_NAMESPACE, key)


def call_of(
    request: Request, gateway: GatewayState, asked: WaitingCall, prompt_id: str, order: Order, timeout_s: float
) -> Call:
    return Call(
        prompt_id,
        accepted_by(request),
        order,
        asked.node_id,
        asked.previews,
        lambda: gateway.handler.standing.workflow_of(prompt_id),
        asyncio.get_running_loop().time() + timeout_s,
    )


def timeout_of(timeout: float | None, options: WebOptions) -> float:
    if timeout is None:
        return options.default_timeout_s
    if timeout > options.max_timeout_s:
        raise RequestError(f"timeout must be at most {options.max_timeout_s:g} seconds (MAX_TIMEOUT)")
    return timeout
