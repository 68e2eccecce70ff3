"""Searches jobs for a text: newest first, and a limited number for each page.

There is no index of texts: it would cost each written job, and few are ever searched for. So the jobs are read in small
groups. Only the reading happens on the journal's thread, a millisecond or two of work: the journal's file is locked for
its one connection, and writes get their turn in between. Texts are unpacked and compared in another thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from comfyui import jsonio
from comfyui.jobs.journal.cursor import cursor_of
from comfyui.jobs.journal.listing import page_of
from comfyui.jobs.journal.records import JobFilter, JobRecord, Page
from comfyui.jobs.journal.rows import beginning_of, job_of
from comfyui.offload import in_thread

MOST_LOOKED_AT = 2000
"""Jobs that are looked at for one page."""
MOST_TEXT = 50_000_000
"""About how many bytes of text are searched for one page."""
LONGEST_TEXT = 1_000_000
"""How many bytes of a body are searched: its beginning, if it is longer."""
# Limits of one group: how many jobs, and about how many bytes of their bodies.
_TOGETHER = 100
_BYTES_TOGETHER = 1_000_000


class Candidate(NamedTuple):
    """A job that may have the text. `record` takes a while to make; `body` is as it is kept, or its beginning."""

    seq: int
    created_at: float
    record: Callable[[], JobRecord]
    body: bytes | None


Candidates = Callable[[int | None, int], Awaitable[Sequence[Candidate]]]
"""Gives the next jobs that match the rest of the filter, newest first, from before a `seq` on: a limited number, but at
least one if there is one.
"""


async def search(candidates: Candidates, narrowed: JobFilter, limit: int, before: int | None) -> Page:
    """A page of the jobs with `narrowed.text`: it ends with `limit` of them, or when enough jobs were looked at."""
    words = _forms_of(narrowed.text or "")
    found: list[JobRecord] = []
    looked_at = looked_through = 0
    while True:
        some = await candidates(before, min(_TOGETHER, MOST_LOOKED_AT - looked_at))
        if not some:
            return Page(tuple(found), None)
        looked = await in_thread(_looked, some, words, limit - len(found), MOST_TEXT - looked_through)
        found += looked.found
        if len(found) == limit:
            return Page(tuple(found), cursor_of(found[-1].seq, narrowed))
        looked_at += looked.jobs
        looked_through += looked.text
        last = some[looked.jobs - 1]
        before = last.seq
        if looked_at >= MOST_LOOKED_AT or looked_through >= MOST_TEXT:
            return Page(tuple(found), cursor_of(before, narrowed), last.created_at)


def candidates_in(database: sqlite3.Connection, narrowed: JobFilter, before: int | None, limit: int) -> list[Candidate]:
    """See `Candidates`; on the journal's own thread."""
    rows = page_of(database, narrowed, before, limit, ", jobs.seq, jobs.created_at, body_id")
    return some_of(
        Candidate(seq, created_at, partial(job_of, tuple(row)), _beginning(database, body_id) if body_id else None)
        for *row, seq, created_at, body_id in rows
    )


def some_of(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first of them: as many as have about the bytes of one group."""
    found: list[Candidate] = []
    size = 0
    for one in candidates:
        found.append(one)
        size += len(one.body or b"")
        if size >= _BYTES_TOGETHER:
            break
    return found


def _beginning(database: sqlite3.Connection, body_id: int) -> bytes:
    """The part of a body that unpacks to its first `LONGEST_TEXT` bytes; no more is read from the file."""
    with database.blobopen("bodies", "data", body_id, readonly=True) as blob:
        return blob.read(LONGEST_TEXT)


class _Looked(NamedTuple):
    """At how many jobs, through how much text, and which of them have all the words."""

    jobs: int
    text: int
    found: list[JobRecord]


def _looked(some: Sequence[Candidate], words: Sequence[frozenset[str]], limit: int, most_text: int) -> _Looked:
    """At the first of them: until `limit` were found, or `most_text` was looked through."""
    found: list[JobRecord] = []
    jobs = through = 0
    for one in some:
        record = one.record()
        text = "\n".join(_texts_of(record, one.body)).casefold()
        jobs += 1
        through += len(text)
        if all(any(form in text for form in forms) for forms in words):
            found.append(record)
        if len(found) == limit or through >= most_text:
            break
    return _Looked(jobs, through, found)


def _forms_of(text: str) -> list[frozenset[str]]:
    """Each word as it may stand in a text, or in JSON."""
    words = dict.fromkeys(jsonio.without_surrogates(text).casefold().split())
    return [frozenset({word, jsonio.dumps(word)[1:-1].decode()}) for word in words]


def _texts_of(record: JobRecord, body: bytes | None) -> Iterable[str]:
    yield record.prompt_id
    yield record.workflow_name or ""
    yield record.note or ""
    for key, value in record.labels.items():
        yield f"{key}={value}"
    if record.error is not None:
        yield jsonio.dumps(record.error).decode()
    if record.call is not None:
        yield jsonio.dumps([record.call.parameters, record.call.used]).decode()
    if body is not None:
        yield beginning_of(body, LONGEST_TEXT).decode("utf-8", "replace")
