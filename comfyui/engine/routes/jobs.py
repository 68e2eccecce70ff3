"""`/api/jobs`: what ComfyUI has since 0.38, one view on queue and history and a cancel that is atomic."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from comfyui.engine.queue import PromptQueue, QueuedPrompt
from comfyui.engine.routes.prompts import is_canonical_uuid

Job = dict[str, Any]

_STATUSES = ["pending", "in_progress", "completed", "failed", "cancelled"]
_PREVIEWABLE = frozenset({"images", "video", "audio", "3d", "text"})
_END_EVENTS = frozenset({"execution_success", "execution_error", "execution_interrupted"})


class JobRoutes:
    def __init__(self, queue: PromptQueue) -> None:
        self._queue = queue

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/jobs", self.list_jobs),
            web.get("/api/jobs/{job_id}", self.get),
            web.post("/api/jobs/{job_id}/cancel", self.cancel),
            web.post("/api/jobs/cancel", self.cancel_many),
        ]

    async def list_jobs(self, request: web.Request) -> web.Response:
        try:
            wanted, key, descending, limit, offset = _list_query(request)
        except ValueError as error:
            return _bad_request(str(error))
        history, running, pending = self._queue.all()
        jobs = [
            *(_finished_job(entry) for entry in history.values()),
            *(_queued_job(item, "in_progress") for item in running),
            *(_queued_job(item, "pending") for item in pending),
        ]
        workflow_id = request.query.get("workflow_id")
        jobs = [job for job in jobs if not wanted or job["status"] in wanted]
        jobs = [job for job in jobs if not workflow_id or job.get("workflow_id") == workflow_id]
        jobs.sort(key=_duration if key == "execution_duration" else _create_time, reverse=descending)
        page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
        pagination = {"offset": offset, "limit": limit, "total": len(jobs), "has_more": offset + len(page) < len(jobs)}
        return web.json_response({"jobs": page, "pagination": pagination})

    async def get(self, request: web.Request) -> web.Response:
        job_id = request.match_info["job_id"]
        entry, running, pending = self._queue.find(job_id)
        if entry is not None:
            outputs = {"outputs": entry["outputs"], "execution_status": entry["status"]}
            return web.json_response({**_finished_job(entry), **outputs, "workflow": _workflow(entry["prompt"])})
        if running is not None:
            return web.json_response(_described(running, "in_progress"))
        if pending is not None:
            return web.json_response(_described(pending, "pending"))
        return web.json_response({"error": "Job not found"}, status=404)

    async def cancel(self, request: web.Request) -> web.Response:
        return web.json_response({"cancelled": self._queue.cancel(request.match_info["job_id"])})

    async def cancel_many(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except json.JSONDecodeError:
            return _bad_request("Request body must be valid JSON")
        job_ids = body.get("job_ids") if isinstance(body, dict) else None
        if not isinstance(job_ids, list):
            return _bad_request("job_ids must be a list")
        invalid = [one if isinstance(one, str) else repr(one) for one in job_ids if not is_canonical_uuid(one)]
        if invalid:
            error = {"error": "job_ids contains invalid id(s)", "invalid_ids": invalid}
            return web.json_response(error, status=400)
        cancelled = [self._queue.cancel(job_id) for job_id in job_ids]
        return web.json_response({"cancelled": any(cancelled)})


def _bad_request(message: str) -> web.Response:
    return web.json_response({"error": message}, status=400)


def _list_query(request: web.Request) -> tuple[frozenset[str], str, bool, int | None, int]:
    """Statuses, sort key, descending, limit, offset; ValueError with ComfyUI's text for a fault."""
    query = request.query
    wanted = [part.strip().lower() for part in query.get("status", "").split(",") if part.strip()]
    unknown = [status for status in wanted if status not in _STATUSES]
    if unknown:
        raise ValueError(f"Invalid status value(s): {', '.join(unknown)}. Valid values: {', '.join(_STATUSES)}")
    key, order = query.get("sort_by", "created_at").lower(), query.get("sort_order", "desc").lower()
    if key not in ("created_at", "execution_duration"):
        raise ValueError("sort_by must be 'created_at' or 'execution_duration'")
    if order not in ("asc", "desc"):
        raise ValueError("sort_order must be 'asc' or 'desc'")
    limit = _integer(query, "limit")
    if limit is not None and limit <= 0:
        raise ValueError("limit must be a positive integer")
    return frozenset(wanted), key, order == "desc", limit, max(0, _integer(query, "offset") or 0)


def _integer(query: Any, name: str) -> int | None:
    try:
        return int(query[name]) if name in query else None
    except ValueError:
        raise ValueError(f"{name} must be an integer") from None


def _queued_job(item: QueuedPrompt, status: str) -> Job:
    return {
        **_pruned(
            id=item.prompt_id,
            status=status,
            priority=item.number,
            create_time=item.extra_data.get("create_time"),
            workflow_id=_workflow_id(item.extra_data),
        ),
        "outputs_count": 0,
        "previewable_outputs_count": 0,
    }


def _described(item: QueuedPrompt, status: str) -> Job:
    return {**_queued_job(item, status), "workflow": _workflow(item.as_item(with_secrets=False))}


def _workflow(item: list[Any]) -> dict[str, Any]:
    return {"prompt": item[2], "extra_data": item[3]}


def _workflow_id(extra_data: dict[str, Any]) -> str | None:
    workflow_id: str | None = extra_data.get("extra_pnginfo", {}).get("workflow", {}).get("id")
    return workflow_id


def _finished_job(entry: dict[str, Any]) -> Job:
    number, prompt_id, _, extra_data, _ = entry["prompt"]
    events = dict(entry["status"]["messages"])
    end = next((data["timestamp"] for event, data in events.items() if event in _END_EVENTS), None)
    if entry["status"]["status_str"] == "success":
        status = "completed"
    else:
        status = "cancelled" if "execution_interrupted" in events else "failed"
    files = [
        {**item, "nodeId": node_id, "mediaType": key}
        for node_id, output in entry["outputs"].items()
        for key, items in output.items()
        for item in items
        if isinstance(item, dict)
    ]
    previewable = [file for file in files if file["mediaType"] in _PREVIEWABLE]
    saved = [file for file in previewable if file.get("type") == "output"]
    return {
        **_pruned(
            id=prompt_id,
            status=status,
            priority=number,
            create_time=extra_data.get("create_time"),
            execution_start_time=events.get("execution_start", {}).get("timestamp"),
            execution_end_time=end,
            execution_error=events.get("execution_error"),
            preview_output=next(iter(saved or previewable), None),
            workflow_id=_workflow_id(extra_data),
        ),
        "outputs_count": len(files),
        "previewable_outputs_count": len(previewable),
    }


def _pruned(**values: Any) -> Job:
    return {name: value for name, value in values.items() if value is not None}


def _create_time(job: Job) -> float:
    return float(job.get("create_time", 0))


def _duration(job: Job) -> float:
    start, end = job.get("execution_start_time", 0), job.get("execution_end_time", 0)
    return float(end - start) if start and end else 0.0
