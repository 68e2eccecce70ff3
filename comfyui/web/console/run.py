"""`/console/run`: the named workflows, and for each a form that runs it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import structlog
from fastapi import APIRouter, Request, Response

from comfyui.exceptions import BadParameter, ComfyUIError, ComfyUINotFoundError, ParametersError
from comfyui.jobs.journal.records import JobRecord
from comfyui.limits import Limits
from comfyui.merged_files import is_prompt_id
from comfyui.named.parameters import RANDOM, NamedWorkflow
from comfyui.web.api.bodies import plain_text
from comfyui.web.api.named_bodies import form_submission
from comfyui.web.api.named_runs import know_nodes, named_of, seen_files
from comfyui.web.console.actions import Done, all_fields_of, changes, wants_json
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.pages import HEADERS, fragment, page, render, root_of
from comfyui.web.console.run_code import NamedRun, as_curl, as_javascript, as_python
from comfyui.web.console.run_fields import fields_of
from comfyui.web.console.run_kept import FilesOfStore, KeptFiles, kept_files
from comfyui.web.console.run_result import ShownRun, shown_run
from comfyui.web.console.run_values import (
    BASE,
    FROM,
    KEPT,
    defaults_of,
    lists_of,
    most_parts,
    shown_again,
    values_and_files,
    values_of,
    values_of_pairs,
)
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.viewer import Visitor, visitor_of
from comfyui.web.front.forwarded import prefix_of
from comfyui.web.front.gateway_state import gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

_RECENT = 8
# Bytes of a form whose call is shown as programs: they have each value three times, with all that it takes to quote it.
_MOST_OF_CODE = 200_000
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]{1,300}(/[A-Za-z0-9._~%/-]{0,500})?")
_HTML = "text/html; charset=utf-8"


@router.get("/console/run")
async def show_list(request: Request) -> Response:
    """The workflows that the visitor may run, also those that cannot be used, with the reason."""
    await know_nodes(gateway_of(request))
    return page(request, "run_list.html", workflows=seen_files(request))


@router.get("/console/run/{name}")
async def show_form(request: Request) -> Response:
    """The form of one; filled in as the job of the query's `from` was, beside the run of its `job`."""
    workflow = await _workflow(request)
    record = await _record_of(request, workflow, request.query_params.get("from", ""))
    given = record.call.used if record is not None and record.call is not None else {}
    return await _form(request, workflow, given, record)


@router.post("/console/run/{name}")
async def run(request: Request) -> Response:
    """Runs it as `POST /workflows/{name}` does with `Prefer: respond-async`. What is wrong stands at its field."""
    posted = _Posted()
    try:
        return await changes(posted.submit)(request)
    except ComfyUIError as error:
        if wants_json(request) or posted.workflow is None:
            raise
        record = await _record_of(request, posted.workflow, posted.from_id)
        return await _form(request, posted.workflow, posted.given, record, error)


@router.post("/console/run/{name}/code")
async def show_code(request: Request) -> Response:
    """The call with these values as programs. Nothing is changed, and no file is sent: its field has its name."""
    workflow = await _workflow(request)
    pairs = await all_fields_of(request, _MOST_OF_CODE)
    values = values_of_pairs(pairs, workflow, gateway_of(request).options.limits)
    code = _code_of(request, workflow, values, base=dict(pairs).get(BASE, ""))
    return Response(fragment(request, "_run_code.html", code=code), 200, HEADERS, media_type=_HTML)


@router.get("/console/run/{name}/jobs/{prompt_id}")
async def show_run(request: Request) -> Response:
    """The part of a page that shows one run of it."""
    workflow = await _workflow(request)
    shown = await _run_of(request, request.path_params["prompt_id"])
    # The page that takes it in is two levels above.
    root = root_of(request).removeprefix("../../")
    part = render("_run_result.html", root=root, run=shown, workflow=workflow, visitor=visitor_of(request))
    return Response(part, 200, HEADERS, media_type=_HTML)


@dataclass(slots=True)
class _Posted:
    """A form that was sent.

    Attributes:
        workflow: None before it is known.
        given: what the fields had, also those that were left empty.
        from_id: of the job whose values the form began with, "" where it began with none.
        kept: the files of that job that are used, held until the form is answered.
    """

    workflow: NamedWorkflow | None = None
    given: dict[str, Any] = field(default_factory=dict)
    from_id: str = ""
    kept: KeptFiles | None = None

    async def submit(self, request: Request, visitor: Visitor) -> Done:
        """Raises what `POST /workflows/{name}` raises."""
        gateway = gateway_of(request)
        gateway.handler.refuse_when_draining()
        workflow = self.workflow = await _workflow(request)
        lists = lists_of(workflow)
        names: Mapping[str, str] = {}

        def read(texts: Mapping[str, bytes | bytearray], workflow: NamedWorkflow, limits: Limits, /) -> dict[str, Any]:
            plain = {name: plain_text(name, text) for name, text in texts.items()}
            several = {name: [plain_text(name, one) for one in found] for name, found in lists.items()}
            values = values_of(plain, several, workflow, limits)
            self.given, self.from_id = {**plain, **values}, plain.get(FROM, "")
            return values

        async def kept(given: Collection[str], /) -> Mapping[str, str]:
            nonlocal names
            wanted = {plain_text(KEPT, one) for one in lists[KEPT]} - {*given}
            names = await self._keep(request, workflow, wanted)
            return names

        more = most_parts(workflow)
        try:
            submitted = await form_submission(request, workflow, read, lists=lists, more_parts=more, kept=kept)
            if self.kept is not None:
                used = {names[name]: self.kept.contents[name] for name in names}
                submitted = replace(submitted, files=FilesOfStore(self.kept.stored, used, submitted.files))
            with submitted:
                prompt_id = str(uuid4())
                structlog.contextvars.bind_contextvars(prompt_id=prompt_id)
                look = await gateway.handler.submit_async(
                    submitted.request, submitted.files, fresh_id=prompt_id, origin=visitor.origin, wait_s=0
                )
        finally:
            if self.kept is not None:
                self.kept.stored.release()
        return Done(TEXTS.run.taken, f"console/jobs/{look.prompt_id}")

    async def _keep(self, request: Request, workflow: NamedWorkflow, wanted: Collection[str]) -> Mapping[str, str]:
        """Holds the files of these parameters; by parameter their names. Raises `ParametersError`, `JournalError`."""
        if not wanted:
            return {}
        record = await _record_of(request, workflow, self.from_id)
        found = None if record is None else await kept_files(gateway_of(request), record, workflow)
        if found is None:
            raise ParametersError({name: {"message": TEXTS.run.gone} for name in wanted})
        names = found.names(wanted)
        found.stored.hold()
        self.kept = found
        return names


async def _workflow(request: Request) -> NamedWorkflow:
    """The workflow of the path. Raises what `named_of` raises."""
    await know_nodes(gateway_of(request))
    return named_of(request, request.path_params["name"])


async def _record_of(request: Request, workflow: NamedWorkflow, prompt_id: str) -> JobRecord | None:
    """The job of this id, where it is a run of this workflow that the visitor may see. Raises `JournalError`."""
    if not is_prompt_id(prompt_id):
        return None
    record = await gateway_of(request).handler.journal.get(prompt_id)
    if record is None or record.call is None or record.call.name != workflow.name:
        return None
    return record if visitor_of(request).sees(record.owner) else None


async def _run_of(request: Request, prompt_id: str) -> ShownRun:
    """Raises `ComfyUINotFoundError`, `JournalError`."""
    gateway, visitor = gateway_of(request), visitor_of(request)
    if not is_prompt_id(prompt_id):
        raise ComfyUINotFoundError(TEXTS.run.no_run)
    look = await gateway.handler.look(prompt_id, visitor.origin)
    # The handler knows keys; a person behind a shared key sees its own runs only.
    known = look.record or gateway.handler.standing.job(prompt_id)
    if not visitor.sees(None if known is None else known.owner):
        raise ComfyUINotFoundError(TEXTS.run.no_run)
    return await shown_run(gateway, look)


async def _form(
    request: Request,
    workflow: NamedWorkflow,
    given: Mapping[str, Any],
    begun_with: JobRecord | None,
    error: ComfyUIError | None = None,
) -> Response:
    """The page. `begun_with`: the job whose values the form began with."""
    visitor, gateway, given = visitor_of(request), gateway_of(request), shown_again(given)
    errors: Mapping[str, BadParameter] = error.parameters if isinstance(error, ParametersError) else {}
    kept = None if begun_with is None else await kept_files(gateway, begun_with, workflow)
    contents = {} if kept is None else kept.contents
    fields = fields_of(workflow, given, errors, contents)
    wrong = [one for one in fields if one.error]
    problem = ""
    if error is not None:
        problem = TEXTS.run.wrong if wrong and len(wrong) == len(errors) else error.detail
    recent = await gateway.handler.journal.page(replace(visitor.seen, workflow_name=workflow.name), _RECENT, None)
    shown = None
    if (job := request.query_params.get("job", "")) and error is None:
        shown = await _run_of(request, job)
    return page(
        request,
        "run.html",
        200 if error is None else error.status,
        workflow=workflow,
        random=RANDOM,
        fields=[one for one in fields if not one.advanced],
        advanced=[one for one in fields if one.advanced],
        is_open=any(one.advanced for one in wrong),
        first_wrong=wrong[0].id if wrong else "",
        problem=problem,
        from_id=begun_with.prompt_id if begun_with is not None else "",
        has_gone=any(one.control == "file" and one.name in given and not one.kept for one in fields),
        run=shown,
        recent=recent.records,
        code=_code_of(request, workflow, {**defaults_of(workflow), **given}),
    )


def _code_of(
    request: Request, workflow: NamedWorkflow, values: Mapping[str, Any], base: str = ""
) -> Sequence[tuple[str, str]]:
    """Names of languages, and the call in each. `base`: where the browser says that the gateway is."""
    if not _ADDRESS.fullmatch(base):
        host = f"{request.url.scheme}://{request.url.netloc}{prefix_of(request.scope)}"
        base = gateway_of(request).options.public_url or host
    named, files = values_and_files(workflow, values)
    with_key = visitor_of(request).name is not None
    called = NamedRun(base.rstrip("/"), workflow.name, named, files, with_key)
    return [("curl", as_curl(called)), ("Python", as_python(called)), ("JavaScript", as_javascript(called))]
