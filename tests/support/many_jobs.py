"""A journal with more jobs than a test could run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def many_jobs(path: Path, count: int) -> None:
    """Copies the journal's one job until there are `count`, each with its result and a note with one of 26 letters."""
    names = "abcdefghijklmnopqrstuvwxyz"
    with closing(sqlite3.connect(path)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(jobs)")]
        other = {
            "seq": "seq + n",
            "prompt_id": "substr(prompt_id, 1, 24) || printf('%012x', n)",
            "number": "number + 2 * n",
            "end_number": "end_number + 2 * n",
            "note": f"'note ' || substr('{names}', 1 + n % 26, 1)",
        }
        selected = ", ".join(other.get(name, name) for name in columns)
        database.execute(
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count - 1})"  # noqa: S608
            f" INSERT INTO jobs ({', '.join(columns)}) SELECT {selected} FROM jobs, numbers"
        )
        database.execute("UPDATE counter SET value = value + ?", (2 * count,))
        database.commit()
