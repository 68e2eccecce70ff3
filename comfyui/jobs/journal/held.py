"""The journal's records of an operator's commands: the queue is paused, or servers get no more prompts."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

from comfyui.jobs.journal.writes import Drain, Pause

Appliers = dict[type, Callable[[Any], int]]


class Held(NamedTuple):
    """What is held back. `drained`: names of servers."""

    paused: bool
    drained: frozenset[str]


def held_appliers(database: sqlite3.Connection) -> Appliers:
    """The effect of each write about it."""
    return {Pause: functools.partial(_pause, database), Drain: functools.partial(_drain, database)}


def held(database: sqlite3.Connection) -> Held:
    """See `Journal.held`."""
    paused = database.execute("SELECT paused FROM queue").fetchone()[0]
    return Held(bool(paused), frozenset(name for (name,) in database.execute("SELECT server FROM drained")))


def _pause(database: sqlite3.Connection, write: Pause) -> bool:
    pause = "UPDATE queue SET paused = ? WHERE paused <> ?"
    return database.execute(pause, (write.paused, write.paused)).rowcount > 0


def _drain(database: sqlite3.Connection, write: Drain) -> bool:
    drain = "INSERT OR IGNORE INTO drained VALUES (?)" if write.drained else "DELETE FROM drained WHERE server = ?"
    return database.execute(drain, (write.server,)).rowcount > 0


class MemoryHeld:
    """The same in memory."""

    def __init__(self) -> None:
        self.held = Held(False, frozenset())
        self.appliers: Appliers = {Pause: self._pause, Drain: self._drain}

    def _pause(self, write: Pause) -> bool:
        return self._changed(self.held._replace(paused=write.paused))

    def _drain(self, write: Drain) -> bool:
        named = frozenset({write.server})
        return self._changed(
            self.held._replace(drained=self.held.drained | named if write.drained else self.held.drained - named)
        )

    def _changed(self, held: Held) -> bool:
        changes, self.held = held != self.held, held
        return changes
