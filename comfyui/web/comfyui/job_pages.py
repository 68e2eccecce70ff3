"""`JobPages`: many jobs one after the other, of which only a few are in memory at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from comfyui.handler import ComfyUIHandler
from comfyui.jobs.journal.records import KeptJob
from comfyui.offload import offloaded
from comfyui.web.comfyui.job_items import ShownJob, shown

# Jobs that are read at a time, and about how many bytes of their bodies and results.
_PAGE = 100
_PAGE_BYTES = 1_000_000

_T = TypeVar("_T")


class JobPages:
    """Reads jobs from the journal, and where it does not know them, or not yet, from those in hand."""

    def __init__(self, handler: ComfyUIHandler) -> None:
        self._journal = handler.journal
        self._standing = handler.standing

    async def each(
        self, prompt_ids: Sequence[str], made: Callable[[ShownJob], _T], *, results: bool = False
    ) -> AsyncIterator[list[_T]]:
        """Pages of what `made` makes of each job, which may take a thread. Jobs that are gone are left out.

        Raises `JournalError`.
        """
        done = 0
        while done < len(prompt_ids):
            page = prompt_ids[done : done + _PAGE]
            found = await self._journal.kept(page, _PAGE_BYTES, results=results)
            done += len(found)
            size = sum(len(one.body or b"") + len(one.result or b"") for one in found if one is not None)
            yield await offloaded(size, self._made, page, found, made)

    async def one(self, prompt_id: str, *, results: bool = False) -> ShownJob | None:
        """One job; None where nobody knows it."""
        async for page in self.each([prompt_id], lambda job: job, results=results):
            return next(iter(page), None)
        return None

    def _made(self, page: Sequence[str], found: Sequence[KeptJob | None], made: Callable[[ShownJob], _T]) -> list[_T]:
        jobs = (
            shown(kept, self._standing.job(prompt_id), prompt_id) for prompt_id, kept in zip(page, found, strict=False)
        )
        return [made(job) for job in jobs if job is not None]
