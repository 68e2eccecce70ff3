"""The tools of a key, and the work of each call.

A tool may do what the same key may do by HTTP: the table of rights decides, by the corresponding endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import structlog
from fastapi import Request
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    Tool,
    ToolAnnotations,
)

from comfyui.exceptions import ComfyUIError, RequestError, TooManySubmissionsError
from comfyui.jobs.admission import Look
from comfyui.models import PromptRequest, PromptResult
from comfyui.named.parameters import NamedWorkflow
from comfyui.offload import offloaded
from comfyui.outputs.delivery import Order
from comfyui.owners import KeyRules
from comfyui.web.api.bodies import Submission, request_of
from comfyui.web.api.jobs import ListCall, listed_job, origin_of, page_of_jobs, pending_job
from comfyui.web.api.named_runs import know_nodes, named_of, prepared
from comfyui.web.api.workflows import validation_of
from comfyui.web.front.gateway_state import GatewayState, gateway_of
from comfyui.web.front.request_state import state_of
from comfyui.web.front.rights import verdict
from comfyui.web.mcp.arguments import JobArguments, RunNamed, RunWorkflow, WorkflowArguments, read, schema_of
from comfyui.web.mcp.catalogue import Catalogues
from comfyui.web.mcp.options import McpOptions
from comfyui.web.mcp.posted import posted_in
from comfyui.web.mcp.results import Results, answered, failed, refused
from comfyui.web.mcp.telling import Telling
from comfyui.web.mcp.waiting import run_within, wait_for

_log = structlog.get_logger(__name__)
Context = ServerRequestContext[Any, Any]

_LONGEST_CURSOR = 9
_GO_ON = 'the job goes on; call the tool job with the action "wait" and this prompt_id, and do not run the job again'
RUN_WORKFLOW = Tool(
    name="run_workflow",
    title="Run a workflow",
    description="Runs a ComfyUI workflow and returns the files that it makes: JSON, then small pictures of its"
    " pictures. A job that takes longer returns timed_out and its prompt_id, and goes on.",
    input_schema=schema_of(RunWorkflow),
    annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True),
)
RUN_NAMED = Tool(
    name="run_named",
    title="Run a named workflow",
    description="Runs a workflow of this gateway by its name, also one without a tool of its own. Without a name, it"
    " lists the workflows; without parameters, it describes them. It answers like run_workflow.",
    input_schema=schema_of(RunNamed),
    annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True),
)
VALIDATE_WORKFLOW = Tool(
    name="validate_workflow",
    title="Check a workflow",
    description="Checks a ComfyUI workflow and lists its problems by node and input, with the allowed values."
    " Nothing runs.",
    input_schema=schema_of(WorkflowArguments),
    annotations=ToolAnnotations(read_only_hint=True),
)
JOB = Tool(
    name="job",
    title="Jobs",
    description="Manages jobs that were started earlier: status, wait, result, cancel, list.",
    input_schema=schema_of(JobArguments),
    annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False),
)
_JOB_RIGHTS = {
    "status": ("GET", "/prompt_sync/id"),
    "wait": ("GET", "/prompt_sync/id"),
    "result": ("GET", "/prompt_sync/id"),
    "cancel": ("DELETE", "/prompt_sync/id"),
    "list": ("GET", "/prompt_sync"),
}
# The endpoint that does the same, by whose row of the table of rights a tool is there for a key.
_OWN = (
    (RUN_WORKFLOW, ("POST", "/prompt_sync")),
    (VALIDATE_WORKFLOW, ("POST", "/validate")),
    (JOB, ("GET", "/prompt_sync")),
)
# The right to run any workflow; `named_of` checks its name.
_RUN_NAMED_RIGHT = ("POST", "/workflows/name")
_OWN_NAMES = frozenset({RUN_NAMED.name, *(tool.name for tool, _ in _OWN)})


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool. `size`: bytes of its body. `began`: in the loop's time."""

    context: Context
    request: Request
    gateway: GatewayState
    arguments: Mapping[str, Any]
    size: int
    began: float

    @property
    def rules(self) -> KeyRules | None:
        """The rules of the key; None if none is needed."""
        return _rules_of(self.request)


class Tools:
    """Lists and calls them. One for each application."""

    def __init__(self, options: McpOptions) -> None:
        self._options = options
        self._catalogues = Catalogues(options.max_tools, _OWN_NAMES)
        self._calls: Mapping[str, Callable[[Call], Awaitable[CallToolResult]]] = {
            RUN_NAMED.name: self._run_named,
            RUN_WORKFLOW.name: self._run_workflow,
            VALIDATE_WORKFLOW.name: self._validate_workflow,
            JOB.name: self._job,
        }

    async def list(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """The tools that the caller's key may use, our own first. Raises `MCPError` for an unknown page."""
        request = _request_of(context)
        rules = _rules_of(request)
        tools = [tool for tool, same in _OWN if verdict(rules, *same).refusal is None]
        if verdict(rules, *_RUN_NAMED_RIGHT).refusal is None:
            await know_nodes(gateway_of(request))
            found = self._catalogues.of(request)
            tools = [*([RUN_NAMED] if found.seen else []), *tools, *found.tools]
        cursor = (params.cursor if params is not None else None) or "0"
        if not cursor.isascii() or not cursor.isdigit() or len(cursor) > _LONGEST_CURSOR or int(cursor) > len(tools):
            raise MCPError(INVALID_PARAMS, "cursor is not a page of the tools; begin without a cursor")
        first, end = int(cursor), int(cursor) + self._options.page
        return ListToolsResult(tools=tools[first:end], next_cursor=str(end) if end < len(tools) else None)

    async def call(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """An error of ours is a result, which the model sees. Raises `MCPError` for an unknown tool."""
        request = _request_of(context)
        posted = posted_in(request.scope)
        call = Call(
            context, request, gateway_of(request), posted.arguments, posted.size, asyncio.get_running_loop().time()
        )
        work = self._calls.get(params.name)
        if work is None or params.name == RUN_NAMED.name:
            await know_nodes(call.gateway)
        if work is None and (workflow := self._catalogues.of(request).workflows.get(params.name)) is not None:
            work = partial(self._run_tool, workflow)
        if work is None:
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name[:64]}")
        with structlog.contextvars.bound_contextvars(request_id=state_of(request.scope).request_id):
            try:
                return await work(call)
            except ComfyUIError as error:
                level = 40 if error.status >= 500 else 20
                known = {"type": error.code, "status": error.status, "detail": error.detail}
                _log.log(level, "request.failed", tool=params.name, prompt_id=error.prompt_id, **known)
                return failed(error, request)
            except MCPError:
                raise
            except Exception:
                # Its text is for the log: the package would send it on.
                _log.exception("request.crashed", tool=params.name)
                return failed(ComfyUIError("the gateway failed; its log has the reason with this request_id"), request)

    # The tools

    async def _run_tool(self, name: str, call: Call) -> CallToolResult:
        """A named workflow that is a tool: its arguments are the parameters, and null means not given."""
        values = {argument: value for argument, value in call.arguments.items() if value is not None}
        return await self._run_by_name(call, name, values, {}, None)

    async def _run_named(self, call: Call) -> CallToolResult:
        asked = read(RunNamed, call.arguments)
        if asked.name is None:
            if (refusal := verdict(call.rules, "GET", "/workflows").refusal) is not None:
                return refused(refusal, call.request)
            seen = self._catalogues.of(call.request).seen
            listed = [{"name": one.name, "title": one.title, "description": one.description} for one in seen]
            return answered({"workflows": listed})
        if asked.parameters is None:
            if (refusal := verdict(call.rules, "GET", "/workflows/name").refusal) is not None:
                return refused(refusal, call.request)
            return answered(_described(named_of(call.request, asked.name)))
        options: dict[str, Any] = {"labels": asked.labels}
        if asked.prompt_id is not None:
            options["prompt_id"] = str(asked.prompt_id)
        return await self._run_by_name(call, asked.name, asked.parameters, options, asked.wait)

    async def _run_by_name(
        self,
        call: Call,
        name: str,
        values: Mapping[str, Any],
        options: Mapping[str, Any],
        wait_s: float | None,
    ) -> CallToolResult:
        if (refusal := verdict(call.rules, *_RUN_NAMED_RIGHT).refusal) is not None:
            return refused(refusal, call.request)
        workflow = named_of(call.request, name)
        request = await prepared(call.gateway, workflow, values, options, size=call.size)
        return await self._run(call, request, wait_s)

    async def _run_workflow(self, call: Call) -> CallToolResult:
        if (refusal := verdict(call.rules, "POST", "/prompt_sync").refusal) is not None:
            return refused(refusal, call.request)
        asked = read(RunWorkflow, call.arguments)
        fields: dict[str, Any] = {"prompt": asked.workflow, "images": asked.images, "labels": asked.labels}
        if asked.prompt_id is not None:
            fields["prompt_id"] = str(asked.prompt_id)
        request = await offloaded(call.size, request_of, fields, call.size, call.gateway.options.limits)
        return await self._run(call, request, asked.wait)

    async def _run(self, call: Call, request: PromptRequest, wait_s: float | None) -> CallToolResult:
        """Runs it, as long as a call waits."""
        gateway, origin = call.gateway, origin_of(call.request)
        gateway.handler.refuse_when_full()
        _count(gateway, call.rules)
        order = Order.of(request)
        gateway.deliverer.check(order)
        prompt_id = str(request.prompt_id or uuid4())
        structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
        async with _progress(call, prompt_id) as listener:
            result = await run_within(
                gateway.handler,
                request,
                prompt_id,
                self._wait_s(wait_s),
                gateway.options.max_timeout_s,
                listener,
                origin,
            )
        if result is None:
            return await self._timed_out(call, prompt_id)
        return await self._finished(call, result, order)

    async def _validate_workflow(self, call: Call) -> CallToolResult:
        if (refusal := verdict(call.rules, "POST", "/validate").refusal) is not None:
            return refused(refusal, call.request)
        asked = read(WorkflowArguments, call.arguments)
        fields = {"prompt": asked.workflow, "images": asked.images}
        request = await offloaded(call.size, request_of, fields, call.size, call.gateway.options.limits)
        return answered(await validation_of(call.request, Submission(request)))

    async def _job(self, call: Call) -> CallToolResult:
        asked = read(JobArguments, call.arguments)
        if (refusal := verdict(call.rules, *_JOB_RIGHTS[asked.action]).refusal) is not None:
            return refused(refusal, call.request)
        if asked.action == "list":
            listed = ListCall(status=asked.status, limit=asked.limit, cursor=asked.cursor)
            return answered(await page_of_jobs(call.request, listed))
        if asked.prompt_id is None:
            raise RequestError(f"prompt_id must be given for the action {asked.action}")
        prompt_id, origin = str(asked.prompt_id), origin_of(call.request)
        structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
        handler = call.gateway.handler
        if asked.action == "cancel":
            await handler.cancel(prompt_id, origin)
            return answered({"prompt_id": prompt_id, "status": "cancelled"})
        look = await handler.look(prompt_id, origin)
        if asked.action == "status" or (asked.action == "result" and not look.state.is_end):
            return answered(_shown(call.gateway, look))
        async with _progress(call, prompt_id) as listener:
            result = await wait_for(handler, prompt_id, self._wait_s(asked.wait), listener, origin)
        if result is None:
            return await self._timed_out(call, prompt_id)
        return await self._finished(call, result, Order())

    async def _finished(self, call: Call, result: PromptResult, order: Order) -> CallToolResult:
        deadline = call.began + self._options.wait_s + self._options.pictures_s
        return await Results(call.gateway, call.request, self._options).finished(result, order, deadline)

    async def _timed_out(self, call: Call, prompt_id: str) -> CallToolResult:
        look = await call.gateway.handler.look(prompt_id, origin_of(call.request))
        return answered({"timed_out": True, **_shown(call.gateway, look), "next": _GO_ON})

    def _wait_s(self, asked: float | None) -> float:
        return self._options.wait_s if asked is None else min(asked, self._options.wait_s)


@asynccontextmanager
async def _progress(call: Call, prompt_id: str) -> AsyncIterator[Telling | None]:
    """Sends a job's progress to the client; None if it has not asked for it."""
    if (call.context.meta or {}).get("progress_token") is None:
        yield None
        return
    telling = Telling(partial(call.gateway.handler.standing.workflow_of, prompt_id))
    async with telling.to(call.context.session):
        yield telling


def _described(workflow: NamedWorkflow) -> Mapping[str, Any]:
    """The description of a workflow by `run_named`."""
    return {
        "name": workflow.name,
        "title": workflow.title,
        "description": workflow.description,
        "version": workflow.version,
        "parameters": workflow.schema,
        "outputs": [output.name for output in workflow.outputs],
        "example": workflow.example,
    }


def _count(gateway: GatewayState, rules: KeyRules | None) -> None:
    """Raises `TooManySubmissionsError` if the key has submitted as often as it may."""
    if rules is not None and (wait_s := gateway.rates.take(rules)):
        gateway.metrics.rejected.labels("key_limit").inc()
        raise TooManySubmissionsError(
            f"the key {rules.name!r} may submit only {rules.per_minute} times a minute (per_minute)",
            retry_after_s=wait_s,
        )


def _shown(gateway: GatewayState, look: Look) -> Mapping[str, Any]:
    """How a job is now."""
    if not look.state.is_end:
        return pending_job(gateway, look, in_detail=True)
    if look.record is not None:
        return listed_job(look.record)
    return {"prompt_id": look.prompt_id, "status": look.state.value}


def _request_of(context: Context) -> Request:
    request = context.request
    if not isinstance(request, Request):
        raise TypeError("the call must come over HTTP")
    return request


def _rules_of(request: Request) -> KeyRules | None:
    caller = state_of(request.scope).caller
    return None if caller is None else caller.rules
