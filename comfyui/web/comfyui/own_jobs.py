"""ComfyUI's queue and history as one key may see them, made of the jobs that the gateway has written down."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from comfyui import jsonio
from comfyui.exceptions import ComfyUIError, ComfyUINotFoundError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import ENDS, JobFilter, JobRecord, State
from comfyui.jobs.origin import Origin
from comfyui.jobs.stored import result_from_bytes
from comfyui.offload import offloaded
from comfyui.owners import KeyRules, client_id_without
from comfyui.workflows.api_format import last_nodes

# Jobs in one answer, the newest; each has its whole workflow.
MOST_SHOWN = 200
_PAGE = 50
_WAITING = frozenset({State.QUEUED})
_RUNNING = frozenset({State.RUNNING, State.CANCELING})

Item = list[Any]
"""``[number, id, prompt, extra_data, outputs]``."""


class OwnJobs:
    """Asks the journal for the jobs of a key, and cancels them."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._handler = handler
        self._journal = handler.journal

    async def remaining(self, rules: KeyRules) -> int:
        """How many jobs wait or run, up to `MOST_SHOWN`."""
        return len(await self._records(rules, _WAITING | _RUNNING, MOST_SHOWN))

    async def queue(self, rules: KeyRules) -> dict[str, list[Item]]:
        """The answer of ``GET /queue``."""
        records = await self._records(rules, _WAITING | _RUNNING, MOST_SHOWN)
        records.sort(key=lambda record: record.number)
        items = {record.prompt_id: await self._item(record) for record in records}
        runs = await self._running(records)
        running = [record.prompt_id for record in records if record.prompt_id in runs]
        pending = [prompt_id for prompt_id in items if prompt_id not in set(running)]
        return {
            "queue_running": [items[prompt_id] for prompt_id in running],
            "queue_pending": [items[prompt_id] for prompt_id in pending],
        }

    async def history(self, rules: KeyRules, max_items: int | None, offset: int) -> dict[str, Any]:
        """The answer of ``GET /history``: in the order of their ends. `offset` -1: the last ones."""
        wanted = MOST_SHOWN if max_items is None else max(0, min(max_items, MOST_SHOWN))
        records = await self._records(rules, ENDS, MOST_SHOWN)
        records.sort(key=lambda record: record.end_number or 0)
        chosen = records[-wanted:] if offset < 0 else records[offset : offset + wanted]
        return {record.prompt_id: await self._entry(record) for record in chosen if wanted}

    async def history_of(self, rules: KeyRules, prompt_id: str) -> dict[str, Any]:
        """The answer of ``GET /history/{id}``: empty for what has not ended, and for another's."""
        record = await self._journal.get(prompt_id)
        if record is None or not rules.sees(record.owner) or not record.state.is_end:
            return {}
        return {prompt_id: await self._entry(record)}

    async def clear(self, origin: Origin) -> None:
        """Cancel all that waits."""
        if origin.rules is not None:
            for record in await self._records(origin.rules, _WAITING, MOST_SHOWN):
                await self._cancel_waiting(record.prompt_id, origin)

    async def delete(self, origin: Origin, prompt_ids: Sequence[Any]) -> None:
        """Cancel those that wait; of others nothing is said."""
        for prompt_id in prompt_ids:
            if isinstance(prompt_id, str):
                await self._cancel_waiting(prompt_id, origin)

    async def interrupt(self, origin: Origin, prompt_id: str | None) -> None:
        """Cancel this job if it runs, or all that run."""
        if origin.rules is None:
            return
        records = await self._records(origin.rules, _WAITING | _RUNNING, MOST_SHOWN)
        for running in await self._running(records):
            if prompt_id in {None, running}:
                await self._cancel(running, origin)

    async def _running(self, records: Sequence[JobRecord]) -> list[str]:
        """Ids of those that run. Of a prompt with a client's id we hear nothing: there ComfyUI's queue is asked."""
        found = [record.prompt_id for record in records if record.state in _RUNNING]
        unsure = [record for record in records if record.state in _WAITING and record.server is not None]
        for server in {record.server for record in unsure}:
            backend = self._handler.pool.named(server or "")
            with contextlib.suppress(ComfyUIError):  # a server that is away runs nothing that could be stopped
                queue = {} if backend is None else await backend.client.get_queue()
                found += [one.prompt_id for one in unsure if one.prompt_id in queue and queue[one.prompt_id].running]
        return found

    async def _cancel_waiting(self, prompt_id: str, origin: Origin) -> None:
        record = await self._journal.get(prompt_id)
        waits = record is not None and origin.sees(record.owner) and record.state in _WAITING
        if record is not None and waits and not await self._running([record]):
            await self._cancel(prompt_id, origin)

    async def _cancel(self, prompt_id: str, origin: Origin) -> None:
        with contextlib.suppress(ComfyUINotFoundError):  # it has ended meanwhile
            await self._handler.cancel(prompt_id, origin)

    async def _records(self, rules: KeyRules, states: frozenset[State], most: int) -> list[JobRecord]:
        """The newest of the key's jobs in these states."""
        found: list[JobRecord] = []
        narrowed, cursor = JobFilter(key=rules.name, states=states), None
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


def refusal_of(error: ComfyUIError) -> dict[str, Any]:
    """ComfyUI's answer to a workflow that is refused, with what we say of it."""
    node_errors = {
        node_id: {
            "errors": [
                {"type": error.code, "message": message, "details": "", "extra_info": {}} for message in messages
            ],
            "dependent_outputs": [],
            "class_type": "",
        }
        for node_id, messages in error.node_errors.items()
    }
    whole = {"type": error.code, "message": error.detail, "details": "", "extra_info": {}}
    return {"error": whole, "node_errors": node_errors}
