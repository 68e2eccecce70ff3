"""`Payloads`: makes the body of a webhook from the journal's records of a job."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from comfyui import jsonio
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import Delivery, JobRecord, RunRecord, State
from comfyui.jobs.webhooks.announcements import STARTED


class EndedJson(Protocol):
    """Makes the JSON of a run that has ended, as GET answers it, outside of any request. Links in it are absolute."""

    async def succeeded(self, prompt_id: str, owner: str | None, kept: bytes, /) -> bytes:
        """`owner`: of the job. `kept`: as `Journal.result_of` gives it. A long result is told without ``outputs``."""

    def failed(self, error: Mapping[str, Any]) -> bytes:
        """`error`: as the records of the journal have it."""


class Payloads:
    """`Render` of the outbox: `type`, `timestamp` of the event, and `data`."""

    def __init__(self, journal: Journal, ended: EndedJson) -> None:
        self._journal = journal
        self._ended = ended

    async def __call__(self, delivery: Delivery) -> bytes:
        """The body as JSON.

        Raises:
            JournalError: the journal cannot be read.
            LookupError: the journal no longer has the webhook's subject.
        """
        record = await self._journal.get(delivery.prompt_id)
        run = record if record is None or record.run == delivery.run else await self._earlier(delivery)
        if record is None or run is None:
            raise LookupError("the journal does not have the run that a webhook is about")
        if delivery.event == STARTED:
            at, data = run.started_at, jsonio.dumps(_started(record, run))
        elif run.state is State.SUCCEEDED:
            kept = await self._journal.result_of(delivery.prompt_id)
            if kept is None:
                raise LookupError("the journal does not have the result that a webhook is about")
            at, data = run.ended_at, await self._ended.succeeded(record.prompt_id, record.owner, kept)
        elif run.error is not None:
            at, data = run.ended_at, self._ended.failed(run.error)
        else:
            raise LookupError("the journal does not have the error that a webhook is about")
        head = jsonio.dumps({"type": delivery.event, "timestamp": _time(at)})
        return head[:-1] + b',"data":' + data + b"}"

    async def _earlier(self, delivery: Delivery) -> RunRecord | None:
        runs = await self._journal.runs(delivery.prompt_id)
        return next((run for run in runs if run.run == delivery.run), None)


def _started(record: JobRecord, run: JobRecord | RunRecord) -> dict[str, Any]:
    """A short form of the 202 of a running job."""
    started = {
        "prompt_id": record.prompt_id,
        "status": State.RUNNING.value,
        "created_at": _time(record.created_at),
        "started_at": _time(run.started_at),
    }
    return started if record.call is None else {**started, "workflow": record.call.to_json()}


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
