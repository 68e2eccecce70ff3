"""``GET /api/jobs`` and ``/api/jobs/{id}``, which newer ComfyUIs have: here they are there whatever servers have."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.exceptions import RequestError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.lines import Standing
from comfyui.json_pieces import is_large, pieces
from comfyui.web.comfyui.asked import last_part, query_of, raw_path
from comfyui.web.comfyui.externals import Externals
from comfyui.web.comfyui.job_items import JSON, STATUSES, ShownJob, ended_job, standing_job
from comfyui.web.comfyui.job_pages import JobPages
from comfyui.web.comfyui.job_reads import MAXIMUM_HISTORY_SIZE
from comfyui.web.comfyui.json_stream import JSONStream
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.front.errors import json_response

_PENDING, _RUNNING = "pending", "in_progress"
_VALID = (_PENDING, _RUNNING, "completed", "failed", "cancelled")
_NONE_SUCH = {"error": "Job not found"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """The filters of a list. `limit`: None for all."""

    statuses: frozenset[str]
    workflow_id: str | None
    by_duration: bool
    descending: bool
    limit: int | None
    offset: int


class _Row(NamedTuple):
    """One job, for sorting. `external`: a prompt of another client; `created_at` and `duration` are in ms."""

    prompt_id: str
    status: str
    created_at: int
    duration: int = 0
    external: ShownJob | None = None


class JobList:
    """Answers every caller."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._journal = handler.journal
        self._standing = handler.standing
        self._pages = JobPages(handler)
        self._externals = Externals(handler)

    async def jobs(self, request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /api/jobs``."""
        try:
            asked = _asked(query_of(request.scope))
        except RequestError as error:
            return json_response(400, {"error": error.detail})
        rows = await self._rows(viewer, asked.statuses)
        if asked.workflow_id:
            rows = await self._of_workflow(rows, asked.workflow_id)
        rows.sort(key=_duration if asked.by_duration else _created_at, reverse=asked.descending)
        page = rows[asked.offset :] if asked.limit is None else rows[asked.offset : asked.offset + asked.limit]
        pagination = {
            "offset": asked.offset,
            "limit": asked.limit,
            "total": len(rows),
            "has_more": asked.offset + len(page) < len(rows),
        }
        return await JSONStream(self._pieces(page, pagination, with_owner=viewer.key is None)).begin()

    async def job(self, request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /api/jobs/{id}``. A job that the journal does not know is looked for on the servers."""
        job = await self._pages.one(last_part(request), results=True)
        if job is None and viewer.key is None:
            return raw_path(request.scope)
        if job is None or not viewer.sees(job.owner) or (job.record is not None and job.record.hidden):
            return json_response(404, _NONE_SUCH)
        item = job.item(with_owner=viewer.key is None)
        found: JSON = {"workflow": {"prompt": item[2], "extra_data": item[3]}}
        if job.record is not None and job.record.state.is_end:
            found |= ended_job(job, job.record, with_owner=viewer.key is None, in_detail=True)
        else:
            runs = any(one.prompt_id == job.prompt_id for one in self._standing.now(viewer.sees).running)
            found |= standing_job(job, _RUNNING if runs else _PENDING)
        return await JSONStream(_in_pieces(found)).begin()

    async def _rows(self, viewer: Viewer, statuses: frozenset[str]) -> list[_Row]:
        """Running, waiting, then ended, as ComfyUI lists them before it sorts."""
        rows: list[_Row] = []
        if statuses & {_PENDING, _RUNNING}:
            now, since = self._standing.now(viewer.sees), await self._journal.queued_since(viewer.key)
            running, pending = ([], []) if viewer.key is not None else await self._externals.all()
            for status, ours, others in ((_RUNNING, now.running, running), (_PENDING, now.pending, pending)):
                if status in statuses:
                    rows += [_Row(one.prompt_id, status, self._created_at(one, since)) for one in ours]
                    rows += [_Row(one.prompt_id, status, _ms(one.queued_at), 0, one) for one in others]
        if statuses - {_PENDING, _RUNNING}:
            for ended in await self._journal.ended(viewer.key, MAXIMUM_HISTORY_SIZE):
                if (status := STATUSES[ended.state]) in statuses:
                    took = 0 if ended.started_at is None else _ms(ended.ended_at) - _ms(ended.started_at)
                    rows.append(_Row(ended.prompt_id, status, _ms(ended.queued_at), took))
        return rows

    def _created_at(self, one: Standing, since: Mapping[str, float]) -> int:
        if (at := since.get(one.prompt_id)) is not None:
            return _ms(at)
        job = self._standing.job(one.prompt_id)
        return 0 if job is None or job.entry is None else _ms(job.entry.queued_at)

    async def _of_workflow(self, rows: list[_Row], workflow_id: str) -> list[_Row]:
        """Only the requests say which workflow it is."""
        found = {row.prompt_id for row in rows if row.external is not None and row.external.workflow_id == workflow_id}
        ours = [row.prompt_id for row in rows if row.external is None]
        async for page in self._pages.each(ours, lambda job: job.prompt_id if job.workflow_id == workflow_id else ""):
            found.update(page)
        return [row for row in rows if row.prompt_id in found]

    async def _pieces(self, rows: list[_Row], pagination: JSON, *, with_owner: bool) -> AsyncGenerator[bytes, None]:
        statuses = {row.prompt_id: row.status for row in rows}

        def made(job: ShownJob) -> bytes:
            record = job.record
            if record is not None and record.state.is_end:
                return jsonio.dumps(ended_job(job, record, with_owner=with_owner))
            # A job that was restarted since it was listed waits.
            status = statuses[job.prompt_id]
            return jsonio.dumps(standing_job(job, status if status in {_PENDING, _RUNNING} else _PENDING))

        yield b'{"jobs": ['
        lead = b""
        for others, ours in _groups(rows):
            for job, status in others:
                yield lead + jsonio.dumps(standing_job(job, status))
                lead = b", "
            async for page in self._pages.each(ours, made, results=True):
                if page:
                    yield lead + b", ".join(page)
                    lead = b", "
        yield b'], "pagination": ' + jsonio.dumps(pagination) + b"}"


def _groups(rows: list[_Row]) -> Iterator[tuple[list[tuple[ShownJob, str]], list[str]]]:
    """The rows in their order: each time some that are others', with their statuses, and then ids of ours."""
    for is_external, group in groupby(rows, lambda row: row.external is not None):
        if is_external:
            yield [(row.external, row.status) for row in group if row.external is not None], []
        else:
            yield [], [row.prompt_id for row in group]


async def _in_pieces(found: JSON) -> AsyncGenerator[bytes, None]:
    for piece in pieces(found) if is_large(found) else (jsonio.dumps(found),):
        yield piece


def _asked(query: Mapping[str, str]) -> _Asked:
    """Raises `RequestError` with ComfyUI's words for the fault."""
    wanted = [part.strip().lower() for part in query.get("status", "").split(",") if part.strip()]
    if unknown := [status for status in wanted if status not in _VALID]:
        raise RequestError(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {', '.join(_VALID)}")
    by, order = query.get("sort_by", "created_at").lower(), query.get("sort_order", "desc").lower()
    if by not in {"created_at", "execution_duration"}:
        raise RequestError("sort_by must be 'created_at' or 'execution_duration'")
    if order not in {"asc", "desc"}:
        raise RequestError("sort_order must be 'asc' or 'desc'")
    limit = _integer(query, "limit")
    if limit is not None and limit <= 0:
        raise RequestError("limit must be a positive integer")
    offset = max(0, _integer(query, "offset") or 0)
    statuses = frozenset(wanted or _VALID)
    return _Asked(statuses, query.get("workflow_id"), by == "execution_duration", order == "desc", limit, offset)


def _integer(query: Mapping[str, str], name: str) -> int | None:
    try:
        return int(query[name]) if name in query else None
    except ValueError:
        raise RequestError(f"{name} must be an integer") from None


def _ms(at: float) -> int:
    return int(at * 1000)


def _created_at(row: _Row) -> int:
    return row.created_at


def _duration(row: _Row) -> int:
    return row.duration
