"""`Submission`: queues a prompt in ComfyUI exactly once, even if the reply is lost.

ComfyUI does not check ids: the same prompt sent twice runs twice. So after a lost reply, the prompt is first looked
for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import structlog

from comfyui.exceptions import (
    ComfyUIConflictError,
    ComfyUIConnectionError,
    ComfyUICredentialsError,
    ComfyUIError,
    ComfyUIPromptLostError,
    ComfyUIServerError,
    ComfyUISubmissionError,
    ComfyUIUnreadableError,
)
from comfyui.executors.assignment import Assignment
from comfyui.metrics import Metrics
from comfyui.models import PromptRequest
from comfyui.replies import JSON, HistoryEntry, QueueItem
from comfyui.retrying import Backoff
from comfyui.servers.backend import Backend
from comfyui.servers.watcher import Watch

_log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 0.5
_VANISHED_AFTER_S = 15.0
_BACKOFF = Backoff(start_s=0.4, max_s=2.0)
# Our entry in extra_data, for later gateways; see `comfyui.jobs.job.Job.mark`.
_MARK = "comfyui_gateway"


class Submission:
    """Sends prompts. `retries`: how often a prompt is sent again after a lost reply."""

    def __init__(self, retries: int, metrics: Metrics) -> None:
        self._retries = retries
        self._metrics = metrics

    async def send(
        self, backend: Backend, job: Assignment, watch: Watch, request: PromptRequest, prompt: Mapping[str, Any]
    ) -> tuple[float, Mapping[str, Any]]:
        """Queues `prompt`, which is the request's workflow with its inputs placed.

        Returns:
            The prompt's number in ComfyUI's order, and ComfyUI's `node_errors` of outputs that are left out.

        Raises:
            ComfyUIPromptLostError: ComfyUI may have run the prompt and forgotten it.
            ComfyUISubmissionError: the reply was lost each time.
            ComfyUIError: nothing was sent, or ComfyUI refused the prompt.
        """
        reason: ComfyUIError
        deaths, epoch = backend.deaths, backend.watcher.epoch
        body = _body(job, request, prompt, watch.client_id)
        backend.watcher.submitted(watch)
        for attempt in range(self._retries + 1):
            try:
                queued = await backend.client.queue_prompt(body, size=request.size)
            except ComfyUIConnectionError as error:
                if not error.sent:
                    raise
                reason = error
            except ComfyUIServerError as error:
                if 400 <= error.upstream_status < 500:
                    raise  # an answer that refuses: no reply was lost
                reason = error
            else:
                return queued.number, queued.node_errors
            _log.warning("submission.reply_lost", prompt_id=job.prompt_id, detail=reason.detail, tries=attempt + 1)
            found = await self._look_for(backend, job.prompt_id, deaths)
            if found is not None:
                return found.number, {}
            if watch.heard:
                raise ComfyUIPromptLostError("ComfyUI ran the prompt and forgot it", prompt_id=job.prompt_id)
            if backend.watcher.epoch != epoch:
                detail = "the connection to ComfyUI broke during the submission, and ComfyUI does not know the prompt"
                raise ComfyUIPromptLostError(detail, prompt_id=job.prompt_id)
            self._metrics.resubmissions.labels("reply_lost").inc()
        raise ComfyUISubmissionError(
            f"ComfyUI's reply to the submission was lost {self._retries + 1} times: {reason.detail}",
            prompt_id=job.prompt_id,
        )

    async def _look_for(self, backend: Backend, prompt_id: str, deaths: int) -> HistoryEntry | QueueItem | None:
        """Looks twice, a moment apart: a submission whose reply was lost may still be on its way through ComfyUI.

        Raises:
            ComfyUIPromptLostError: the server no longer answers, so this cannot be found out; or it ended more than
                `deaths` times, or was away, so that it may have run the prompt and forgotten it.
        """
        deadline = time.monotonic() + _VANISHED_AFTER_S
        looks = failures = 0
        away = False
        while True:
            if backend.deaths != deaths:
                raise ComfyUIPromptLostError("ComfyUI's process ended during the submission", prompt_id=prompt_id)
            try:
                found = await backend.find(prompt_id)
            except ComfyUIError as error:
                failures += 1
                away = away or (isinstance(error, ComfyUIConnectionError) and not error.sent)
                if time.monotonic() > deadline:
                    detail = f"ComfyUI stopped answering during the submission: {error.detail}"
                    raise ComfyUIPromptLostError(detail, prompt_id=prompt_id) from error
                await asyncio.sleep(_BACKOFF.delay_s(failures))
                continue
            looks += 1
            if found is None and away:
                detail = "ComfyUI was restarted during the submission"
                raise ComfyUIPromptLostError(detail, prompt_id=prompt_id)
            if found is not None or looks == 2:
                return found
            await asyncio.sleep(_LOOK_AGAIN_S)


def check_same(job: Assignment, found: HistoryEntry | QueueItem) -> None:
    """Refuses another request's prompt. A job that only watches gets the fingerprint, for requests that join later.

    Raises:
        ComfyUIConflictError: ComfyUI has the prompt from a request with another body.
    """
    fingerprint = _marked(found, "fingerprint")
    if fingerprint is None:
        return
    if job.fingerprint is None:
        job.identified(fingerprint)
    elif fingerprint != job.fingerprint:
        raise ComfyUIConflictError(
            "this prompt_id or Idempotency-Key was already used with a different body; use another one",
            prompt_id=job.prompt_id,
        )


def journal_of(found: QueueItem) -> str | None:
    """The identity of the journal of the gateway that sent the prompt."""
    return _marked(found, "journal")


def attempt_of(found: QueueItem) -> str | None:
    """The attempt of its job that the prompt is: see `comfyui.jobs.journal.records.Fence.mark`."""
    return _marked(found, "attempt")


def is_callers(found: QueueItem) -> bool:
    """Whether a gateway's caller chose the id of the prompt, and so may ask for it again."""
    return _marked(found, "id") == "chosen"


def _marked(found: HistoryEntry | QueueItem, name: str) -> str | None:
    mark = found.extra_data.get(_MARK)
    value = mark.get(name) if isinstance(mark, Mapping) else None
    return value if isinstance(value, str) else None


def _body(job: Assignment, request: PromptRequest, prompt: Mapping[str, Any], client_id: str) -> JSON:
    """The body for ComfyUI's ``POST /prompt``."""
    extra_data = dict(request.extra_data or {})
    if mark := job.mark:
        extra_data[_MARK] = mark
    body: JSON = {"prompt": prompt, "prompt_id": job.prompt_id, "client_id": client_id}
    if extra_data:
        body["extra_data"] = extra_data
    if request.front:
        body["front"] = True
    if request.number is not None:
        body["number"] = request.number
    if request.partial_execution_targets is not None:
        body["partial_execution_targets"] = request.partial_execution_targets
    return body


def may_go_elsewhere(error: ComfyUIServerError | ComfyUIConnectionError, job: Assignment) -> bool:
    """Whether another server may do better: this one could not be asked, or failed before the prompt was sent."""
    if isinstance(error, ComfyUICredentialsError | ComfyUIConnectionError):
        return True
    was_sent = job.watch is not None and job.watch.open and job.watch.sent
    return error.upstream_status >= 500 and not isinstance(error, ComfyUIUnreadableError) and not was_sent
