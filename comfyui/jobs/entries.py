"""`Entries`: makes the writers of jobs."""

from __future__ import annotations

import time

from comfyui.jobs.entry import Clock, Entry
from comfyui.jobs.journal.memory import MemoryJournal
from comfyui.jobs.journal.protocol import Journal
from comfyui.jobs.journal.records import JobRecord, Kind
from comfyui.jobs.origin import Origin
from comfyui.jobs.webhooks.announcements import Announcements


class Entries:
    """Makes the writers of jobs: one of these for each journal.

    Attributes:
        journal: open; belongs to its opener. In memory when not given.
        announcements: say whom the start and the end of a job are told.
        keep_files: which files a run has made is written down, too.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        announcements: Announcements | None = None,
        *,
        keep_files: bool = False,
        clock: Clock = time.time,
    ) -> None:
        self.journal = journal or MemoryJournal()
        self.keep_files = keep_files
        self._clock = clock
        self.announcements = announcements or Announcements()

    def new(self, prompt_id: str, origin: Origin, *, kind: Kind, callers_id: bool) -> Entry:
        """The writer of a job that is not in the journal yet."""
        return Entry(
            self.journal,
            prompt_id,
            origin,
            kind=kind,
            callers_id=callers_id,
            announcements=self.announcements,
            keep_files=self.keep_files,
            clock=self._clock,
        )

    def of(self, record: JobRecord) -> Entry:
        """The writer of a run that is in the journal already."""
        entry = self.new(
            record.prompt_id, Origin(record.face, record.owner), kind=record.kind, callers_id=record.callers_id
        )
        entry.take_up(record)
        return entry
