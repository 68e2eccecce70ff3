"""ComfyUI's queue and history as the caller may see them, made of the jobs that the gateway has written down."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError, RequestError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import ENDS, JobRecord, State
from comfyui.jobs.stored import result_from_bytes
from comfyui.offload import offloaded
from comfyui.owners import client_id_without
from comfyui.web.comfyui.asked import last_part, query_of
from comfyui.web.comfyui.viewer import Viewer
from comfyui.web.front.errors import json_response
from comfyui.workflows.api_format import last_nodes

# Jobs in one answer, the newest; each has its whole workflow.
MOST_SHOWN = 200
_PAGE = 50
WAITING = frozenset({State.QUEUED})
RUNNING = frozenset({State.RUNNING, State.CANCELING})

Item = list[Any]
"""``[number, id, prompt, extra_data, outputs]``."""


class JobReads:
    """Answers from the journal, for whoever asks."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._handler = handler
        self._journal = handler.journal

    async def remaining(self, _request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /prompt``: how many jobs wait or run."""
        return json_response(200, {"exec_info": {"queue_remaining": await self.count(viewer)}})

    async def count(self, viewer: Viewer) -> int:
        """How many jobs wait or run, up to `MOST_SHOWN`."""
        return len(await self.records(viewer, WAITING | RUNNING, MOST_SHOWN))

    async def queue(self, _request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /queue``."""
        records = await self.records(viewer, WAITING | RUNNING, MOST_SHOWN)
        records.sort(key=lambda record: record.number)
        items = {record.prompt_id: await self._item(record) for record in records}
        runs = await self.running(records)
        running = [record.prompt_id for record in records if record.prompt_id in runs]
        pending = [prompt_id for prompt_id in items if prompt_id not in set(running)]
        shown = {
            "queue_running": [items[prompt_id] for prompt_id in running],
            "queue_pending": [items[prompt_id] for prompt_id in pending],
        }
        return json_response(200, shown)

    async def history(self, request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /history``: in the order of their ends. ``offset`` -1: the last ones."""
        query = query_of(request.scope)
        max_items, offset = _integer(query.get("max_items")), _integer(query.get("offset", "-1")) or 0
        wanted = MOST_SHOWN if max_items is None else max(0, min(max_items, MOST_SHOWN))
        records = await self.records(viewer, ENDS, MOST_SHOWN)
        records.sort(key=lambda record: record.end_number or 0)
        chosen = records[-wanted:] if offset < 0 else records[offset : offset + wanted]
        return json_response(200, {record.prompt_id: await self._entry(record) for record in chosen if wanted})

    async def history_entry(self, request: Request, viewer: Viewer) -> str | Response:
        """The answer of ``GET /history/{id}``: empty for what has not ended, and for another's."""
        record = await self._journal.get(last_part(request))
        if record is None or not viewer.origin.sees(record.owner) or not record.state.is_end:
            return json_response(200, {})
        return json_response(200, {record.prompt_id: await self._entry(record)})

    async def running(self, records: Sequence[JobRecord]) -> list[str]:
        """Ids of those that run. Of a prompt with a client's id we hear nothing: there ComfyUI's queue is asked."""
        found = [record.prompt_id for record in records if record.state in RUNNING]
        unsure = [record for record in records if record.state in WAITING and record.server is not None]
        for server in {record.server for record in unsure}:
            backend = self._handler.pool.named(server or "")
            with contextlib.suppress(ComfyUIError):  # a server that is away runs nothing that could be stopped
                queue = {} if backend is None else await backend.client.get_queue()
                found += [one.prompt_id for one in unsure if one.prompt_id in queue and queue[one.prompt_id].running]
        return found

    async def records(self, viewer: Viewer, states: frozenset[State], most: int) -> list[JobRecord]:
        """The newest of the key's jobs in these states."""
        found: list[JobRecord] = []
        narrowed, cursor = viewer.narrowed(states), None
        while len(found) < most:
            page = await self._journal.page(narrowed, min(_PAGE, most - len(found)), cursor)
            found += page.records
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def _item(self, record: JobRecord) -> Item:
        body = await self._journal.body_of(record.prompt_id)
        fields: Mapping[str, Any] = {}
        if body is not None:
            fields = await offloaded(len(body), jsonio.loads, body) or {}
        prompt = fields.get("prompt") or {}
        extra_data = dict(fields.get("extra_data") or {})
        if record.client_id is not None:
            extra_data["client_id"] = client_id_without(record.client_id)
        extra_data["create_time"] = int(record.created_at * 1000)
        targets = fields.get("partial_execution_targets")
        return [record.number, record.prompt_id, prompt, extra_data, targets or sorted(last_nodes(prompt))]

    async def _entry(self, record: JobRecord) -> dict[str, Any]:
        item = await self._item(record)
        item[0] = record.end_number
        outputs: Any = {}
        kept = await self._journal.result_of(record.prompt_id) if record.state is State.SUCCEEDED else None
        if kept is not None:
            outputs = (await offloaded(len(kept), result_from_bytes, record.prompt_id, kept)).outputs
        return {"prompt": item, "outputs": outputs, "status": _status(record), "meta": {}}


def _status(record: JobRecord) -> dict[str, Any]:
    """As ComfyUI words the end of a prompt."""
    messages: list[list[Any]] = []
    if record.started_at is not None:
        messages.append(["execution_start", _moment(record, record.started_at)])
    ended = _moment(record, record.ended_at or 0.0)
    succeeded = record.state is State.SUCCEEDED
    if succeeded:
        messages.append(["execution_success", ended])
    elif record.state is State.CANCELED:
        messages.append(["execution_interrupted", {**ended, "node_id": None, "node_type": None, "executed": []}])
    else:
        error = record.error or {}
        told: dict[str, Any] = {
            "exception_type": error.get("type"),
            "exception_message": error.get("detail"),
            "traceback": [],
        }
        messages.append(["execution_error", {**ended, "node_id": None, "node_type": None, "executed": [], **told}])
    return {"status_str": "success" if succeeded else "error", "completed": succeeded, "messages": messages}


def _moment(record: JobRecord, at: float) -> dict[str, Any]:
    return {"prompt_id": record.prompt_id, "timestamp": int(at * 1000)}


def _integer(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        raise RequestError("max_items, offset: whole numbers are wanted") from None
