"""`JobPages`: many jobs one after the other, of which only a few are in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from comfyui.exceptions import ComfyUIError
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import KeptJob
from comfyui.offload import offloaded
from comfyui.web.comfyui.job_items import ShownJob, shown

# Jobs that are read at a time, and about how many bytes of their bodies and results.
_PAGE = 100
_PAGE_BYTES = 1_000_000

_T = TypeVar("_T")


class JobPages:
    """Reads jobs from the journal, or from the running jobs if the journal does not have them (yet)."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._journal = handler.journal
        self._standing = handler.standing
        self._pool = handler.pool
        self._known: tuple[Any, frozenset[str]] = (None, frozenset())

    async def each(
        self, prompt_ids: Sequence[str], made: Callable[[ShownJob], _T], *, results: bool = False
    ) -> AsyncIterator[list[_T]]:
        """Pages of what `made` makes of each job, which may take a thread. Jobs that are gone are left out.

        Raises `JournalError`.
        """
        done = 0
        outputs = await self._output_classes()
        while done < len(prompt_ids):
            page = prompt_ids[done : done + _PAGE]
            found = await self._journal.kept(page, _PAGE_BYTES, results=results)
            done += len(found)
            size = sum(len(one.body or b"") + len(one.result or b"") for one in found if one is not None)
            yield await offloaded(size, self._made, page, found, outputs, made)

    async def one(self, prompt_id: str, *, results: bool = False) -> ShownJob | None:
        """One job; None if it is unknown."""
        async for page in self.each([prompt_id], lambda job: job, results=results):
            return next(iter(page), None)
        return None

    async def _output_classes(self) -> frozenset[str]:
        """The classes of output nodes, from the first server that has told its nodes; if none has, one is asked."""
        definitions = next((found for one in self._pool.backends if (found := one.last_definitions)), None)
        if definitions is None and (ready := self._pool.ready):
            with contextlib.suppress(ComfyUIError, TimeoutError):
                async with ready[0].soon():
                    definitions = await ready[0].object_info()
        if definitions is not None and self._known[0] is not definitions:
            classes = (name for name, one in definitions.items() if isinstance(one, dict) and one.get("output_node"))
            self._known = definitions, frozenset(classes)
        return self._known[1]

    def _made(
        self,
        page: Sequence[str],
        found: Sequence[KeptJob | None],
        outputs: frozenset[str],
        made: Callable[[ShownJob], _T],
    ) -> list[_T]:
        jobs = (
            shown(kept, self._standing.job(prompt_id), prompt_id, outputs)
            for prompt_id, kept in zip(page, found, strict=False)
        )
        return [made(job) for job in jobs if job is not None]
