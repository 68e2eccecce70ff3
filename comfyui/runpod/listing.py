"""``/api/jobs``, which ComfyUI has since 0.38: one view on queue and history, and a cancel that needs no guessing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from comfyui import jsonio
from comfyui.runpod.job import Job
from comfyui.runpod.jobs import JobQueue
from comfyui.runpod.journal import Journal
from comfyui.runpod.narrator import described
from comfyui.runpod.prompts import is_canonical_uuid, json_answer, json_object

_STATUSES = ("pending", "in_progress", "completed", "failed", "cancelled")

Described = dict[str, Any]


class ListingRoutes:
    """Only below ``/api``, as in ComfyUI."""

    def __init__(self, queue: JobQueue, journal: Journal) -> None:
        self._queue = queue
        self._journal = journal

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/jobs", self.list_jobs),
            web.get("/api/jobs/{job_id}", self.get),
            web.post("/api/jobs/{job_id}/cancel", self.cancel),
            web.post("/api/jobs/cancel", self.cancel_many),
        ]

    async def list_jobs(self, request: web.Request) -> web.Response:
        try:
            wanted = _statuses(request.query.get("status", ""))
            limit, offset = _whole(request.query, "limit"), _whole(request.query, "offset") or 0
            key, descending = _order(request.query)
        except ValueError as error:
            return json_answer({"error": str(error)}, status=400)
        jobs: list[Described] = [
            *await self._journal.listed(),
            *(_queued(job, "in_progress") for job in self._queue.running()),
            *(_queued(job, "pending") for job in self._queue.pending()),
        ]
        jobs = [job for job in jobs if not wanted or job["status"] in wanted]
        jobs.sort(key=_duration if key == "execution_duration" else _created, reverse=descending)
        page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
        pagination = {"offset": offset, "limit": limit, "total": len(jobs), "has_more": offset + len(page) < len(jobs)}
        return json_answer({"jobs": page, "pagination": pagination})

    async def get(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        if (job := self._queue.find(job_id)) is not None:
            found = _queued(job, "in_progress" if job.running else "pending")
            found["workflow"] = {"prompt": job.prompt, "extra_data": job.extra_data}
            return json_answer(found)
        text = await self._journal.entry(job_id)
        if text is None:
            return json_answer({"error": "Job not found"}, status=404)
        entry = jsonio.loads(text)
        workflow = {"prompt": entry["prompt"][2], "extra_data": entry["prompt"][3]}
        more = {"outputs": entry["outputs"], "execution_status": entry["status"], "workflow": workflow}
        return json_answer({**described(entry), **more})

    async def cancel(self, request: web.Request) -> web.Response:
        return json_answer({"cancelled": await self._queue.cancel(request.match_info["job_id"])})

    async def cancel_many(self, request: web.Request) -> web.Response:
        job_ids = (await json_object(request)).get("job_ids")
        if not isinstance(job_ids, list) or not all(is_canonical_uuid(one) for one in job_ids):
            return json_answer({"error": "job_ids must be a list of ids"}, status=400)
        cancelled = [await self._queue.cancel(job_id) for job_id in job_ids]
        return json_answer({"cancelled": any(cancelled)})


def _statuses(text: str) -> frozenset[str]:
    wanted = frozenset(part.strip().lower() for part in text.split(",") if part.strip())
    if unknown := wanted.difference(_STATUSES):
        raise ValueError(f"status: {', '.join(sorted(unknown))} is none of {', '.join(_STATUSES)}")
    return wanted


def _order(query: Mapping[str, str]) -> tuple[str, bool]:
    """By what, and whether from the largest on."""
    key, order = query.get("sort_by", "created_at").lower(), query.get("sort_order", "desc").lower()
    if key not in {"created_at", "execution_duration"} or order not in {"asc", "desc"}:
        raise ValueError("sort_by: created_at or execution_duration; sort_order: asc or desc")
    return key, order == "desc"


def _whole(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{name}: a whole number is wanted")
    return min(int(text), sys.maxsize)  # larger ones cannot be answered as JSON


def _queued(job: Job, status: str) -> Described:
    return {
        "id": job.prompt_id,
        "status": status,
        "priority": job.number,
        "create_time": job.extra_data.get("create_time"),
        "outputs_count": 0,
        "previewable_outputs_count": 0,
    }


def _created(job: Described) -> float:
    return float(job.get("create_time") or 0)


def _duration(job: Described) -> float:
    return float(job.get("execution_end_time", 0) - job.get("execution_start_time", 0))
