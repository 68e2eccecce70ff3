"""The body that GET would answer for an ended run, for a receiver who did not ask, with links for that receiver."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from comfyui import jsonio
from comfyui.exceptions import error_body_of
from comfyui.jobs.stored import error_from_fields, result_from_bytes
from comfyui.offload import Turns, offloaded
from comfyui.outputs.delivery import Deliverer, Order
from comfyui.web.front.tickets import Tickets

MAX_OUTPUTS_BYTES = 256_000


class JobRenderer:
    """Makes the bodies of webhooks.

    Args:
        max_outputs_bytes: a result that is longer is told without ``outputs``, and says so in ``outputs_omitted``.
    """

    def __init__(self, deliverer: Deliverer, tickets: Tickets, *, max_outputs_bytes: int = MAX_OUTPUTS_BYTES) -> None:
        self._deliverer = deliverer
        self._tickets = tickets
        self._max_outputs_bytes = max_outputs_bytes

    async def succeeded(self, prompt_id: str, owner: str | None, kept: bytes) -> bytes:
        """JSON as GET answers it, except for the links: they are absolute, and newly signed.

        Args:
            owner: of the job; whose key signs the links.
            kept: the result, as `Journal.result_of` gives it.
        """
        whole = len(kept) <= self._max_outputs_bytes
        result = await offloaded(len(kept), result_from_bytes, prompt_id, kept, with_outputs=whole)
        entries = await self._deliverer.entries_to_tell(result, partial(self._tickets.link, owner))
        body, turns = bytearray(), Turns()
        async for piece in self._deliverer.json(result, entries, Order(), with_outputs=whole):
            body += piece
            await turns.handled(len(piece))
        return bytes(body)

    def failed(self, error: Mapping[str, Any]) -> bytes:
        """JSON as GET answers it, with the time of the failure.

        Args:
            error: of the run, as `JobRecord.error` and `RunRecord.error` have it.
        """
        return jsonio.dumps({**error_body_of(error_from_fields(error)), "timestamp": error["timestamp"]})
