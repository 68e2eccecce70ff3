"""The task queue over HTTPS alone, for places from which Supabase's Postgres cannot be reached.

It calls the functions of the migrations through PostgREST (``/rest/v1/rpc``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self
from uuid import UUID

import aiohttp

from comfyui import jsonio
from comfyui.exceptions import QueueError, QueueSetupError
from comfyui.outputs.stores.supabase import TRANSIENT, SupabaseApi, parsed
from comfyui.workers.postgres.schema import SCHEMA_VERSION
from comfyui.workers.postgres.tasks import ClaimedTask, Heard, Lease, WorkerState

_RPC_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=10)


class SupabaseQueue:
    """The queue by remote procedure calls. It has no notifications: it is as quick as `POLL_INTERVAL`.

    The arguments are those of `PostgresQueue`; `api` belongs to its opener.
    """

    def __init__(self, api: SupabaseApi, *, lease_s: float, max_attempts: int, retry_delay_s: float) -> None:
        self._api = api
        self._lease_s = lease_s
        self._max_attempts = max_attempts
        self._retry_delay_s = retry_delay_s

    async def __aenter__(self) -> Self:
        version = await self._call("comfy_schema_version")
        if version != SCHEMA_VERSION:
            raise QueueSetupError(
                f"the project has version {version} of the functions, but this worker needs version {SCHEMA_VERSION}"
            )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass

    async def claim(self, worker_id: str, token: UUID) -> ClaimedTask | None:
        rows = await self._call(
            "comfy_claim_task",
            p_worker_id=worker_id,
            p_lease_token=str(token),
            p_lease_seconds=self._lease_s,
            p_max_attempts=self._max_attempts,
        )
        if not rows:
            return None
        row = rows[0]
        return ClaimedTask.of_row(row, token)

    async def renew(self, task: ClaimedTask, progress: float | None = None, note: str = "") -> Lease:
        answer = await self._call(
            "comfy_renew_lease",
            p_task_id=task.id,
            p_lease_token=str(task.token),
            p_lease_seconds=self._lease_s,
            p_progress=progress,
            p_note=note or None,
        )
        return Lease(answer)

    async def seen(self, worker_id: str, state: WorkerState, task: ClaimedTask | None = None) -> bool:
        answer = await self._call(
            "comfy_worker_seen",
            p_worker_id=worker_id,
            p_state=int(state),
            p_task_id=task and task.id,
            p_alive_seconds=self._lease_s,
        )
        return bool(answer)

    async def complete(
        self,
        task: ClaimedTask,
        output_url: str,
        outputs: Sequence[Mapping[str, Any]],
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        return bool(
            await self._call(
                "comfy_complete_task",
                p_task_id=task.id,
                p_lease_token=str(task.token),
                p_output_url=output_url,
                p_outputs=list(outputs),
                p_result=result,
            )
        )

    async def fail(
        self,
        task: ClaimedTask,
        error: str,
        *,
        retry: bool,
        outputs: Sequence[Mapping[str, Any]] = (),
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        saved = {"p_outputs": list(outputs)} if outputs else {}
        return bool(
            await self._call(
                "comfy_fail_task",
                p_task_id=task.id,
                p_lease_token=str(task.token),
                p_error=error,
                p_retry=retry,
                p_max_attempts=self._max_attempts,
                p_delay_seconds=self._retry_delay_s,
                p_result=result,
                **saved,
            )
        )

    def listen(self, heard: Heard) -> None:
        """HTTPS has no notifications."""

    async def _call(self, function: str, **arguments: Any) -> Any:
        try:
            async with self._api.post(
                f"/rest/v1/rpc/{function}",
                data=jsonio.dumps(arguments),
                headers={"Content-Type": "application/json"},
                timeout=_RPC_TIMEOUT,
            ) as response:
                answer = parsed(await response.read())
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise QueueError(f"Supabase cannot be reached: {type(error).__name__}") from None
        if status == 200:
            return answer
        message = str(answer.get("message") or "")[:500] if isinstance(answer, dict) else ""
        text = f"Supabase answered HTTP {status} to {function}: {message or 'no reason given'}"
        if status >= 500 or status in TRANSIENT:
            raise QueueError(text)
        raise QueueSetupError(f"{text}; check that the migrations were run and that the key is the service-role key")
