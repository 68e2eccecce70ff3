"""The journal's records of servers that died: the workflows that ran, and the runs that may have caused it."""

from __future__ import annotations

import sqlite3

from comfyui.jobs.journal.writes import Died, Forgive, Suspect

# However many there were.
_MOST = 1000

Death = tuple[str, float]
"""The hash of a workflow, and when ComfyUI ended under it."""


def suspect(database: sqlite3.Connection, write: Suspect) -> bool:
    """See `comfyui.jobs.journal.writes.Suspect`."""
    changed = database.execute(
        "UPDATE jobs SET alone = 1, begun = begun OR ?, attempt = ? WHERE prompt_id = ? AND run = ? AND attempt <= ?"
        " AND state IN ('queued', 'running') AND server IS NOT NULL",
        (write.begun, write.fence.attempt, *write.fence),
    )
    return changed.rowcount > 0


def died(database: sqlite3.Connection, write: Died) -> bool:
    """See `comfyui.jobs.journal.writes.Died`."""
    database.execute("DELETE FROM deaths WHERE at < ?", (write.before,))
    database.execute("INSERT INTO deaths (workflow, at) VALUES (?, ?)", (write.workflow, write.at))
    database.execute("DELETE FROM deaths WHERE number <= (SELECT MAX(number) FROM deaths) - ?", (_MOST,))
    return True


def forgive(database: sqlite3.Connection, write: Forgive) -> bool:
    """See `comfyui.jobs.journal.writes.Forgive`."""
    return database.execute("DELETE FROM deaths WHERE workflow = ?", (write.workflow,)).rowcount > 0


def deaths(database: sqlite3.Connection, since: float) -> list[Death]:
    """See `Journal.deaths`."""
    return database.execute("SELECT workflow, at FROM deaths WHERE at >= ? ORDER BY at, number", (since,)).fetchall()


class MemoryDeaths:
    """The same for `MemoryJournal`."""

    def __init__(self) -> None:
        self._deaths: list[Death] = []

    def died(self, write: Died) -> bool:
        kept = [death for death in self._deaths if death[1] >= write.before]
        self._deaths = [*kept, (write.workflow, write.at)][-_MOST:]
        return True

    def forgive(self, write: Forgive) -> bool:
        kept = [death for death in self._deaths if death[0] != write.workflow]
        changes, self._deaths = len(kept) < len(self._deaths), kept
        return changes

    def since(self, since: float) -> list[Death]:
        return sorted((death for death in self._deaths if death[1] >= since), key=lambda death: death[1])
