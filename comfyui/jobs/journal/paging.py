"""All jobs that one question of the journal gives, read a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from comfyui.jobs.journal.records import JobRecord

_PAGE = 500

Read = Callable[[int, int], Awaitable[list[JobRecord]]]
"""As `Journal.waiting`: a number of jobs after a given number."""


async def pages(read: Read) -> AsyncIterator[JobRecord]:
    """Each of the jobs, by `number`."""
    after = 0
    while page := await read(after, _PAGE):
        for record in page:
            yield record
        after = page[-1].number
