"""The files that prompts have made, and their places."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from comfyui import jsonio


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFilter:
    """A filter of files; a field that is None does not filter.

    Attributes:
        key: the name of the key whose prompts made them; "" for those of no key.
        place: of the file: see `comfyui.owners.place_of`. Prompts may have made files of one name on several servers,
            and on one server after the first of them was gone.
        folder: ``output``, ``input`` or ``temp``: files in that folder itself, and not below it.
        prompt_id: with this go files of which the prompt is not known.
    """

    key: str | None = None
    place: str | None = None
    folder: str | None = None
    server: str | None = None
    prompt_id: str | None = None

    def __post_init__(self) -> None:
        if self.place is not None:
            object.__setattr__(self, "place", jsonio.without_surrogates(self.place))

    def fits(self, key: str, made: Made) -> bool:
        return (
            self.key in {None, key}
            and self.place in {None, made.place}
            and (self.folder is None or made.place.startswith(f"{self.folder}//"))
            and self.server in {None, made.server}
            and (self.prompt_id is None or made.prompt_id in {"", self.prompt_id})
        )


class Made(NamedTuple):
    """A file that a prompt has made. `prompt_id`: "" if it is not known; `at`: when the prompt ended."""

    place: str
    server: str
    prompt_id: str
    at: float

    @property
    def name(self) -> str:
        """The name without its folders."""
        return self.place.rpartition("/")[2]

    @property
    def merged_name(self) -> str:
        """The clients' name for a file that is directly in one of ComfyUI's folders: see `comfyui.merged_files`."""
        return f"{self.prompt_id}/{self.name}" if self.prompt_id else self.name


def made(database: sqlite3.Connection, narrowed: MadeFilter, limit: int) -> list[Made]:
    """See `Journal.made`. Runs on the journal's own thread."""
    conditions, values = [], list[str]()
    if narrowed.place is not None:
        conditions.append("place = ?")
        values.append(narrowed.place)
    if narrowed.folder is not None:
        # "0" comes after "/".
        conditions.append("place >= ? AND place < ?")
        values += [f"{narrowed.folder}//", f"{narrowed.folder}/0"]
    if narrowed.server is not None:
        conditions.append("server = ?")
        values.append(narrowed.server)
    if narrowed.prompt_id is not None:
        conditions.append("prompt_id IN (?, '')")
        values.append(narrowed.prompt_id)
    keys: Iterator[str | None] = iter([narrowed.key])
    if narrowed.key is None and narrowed.place is None:
        keys = _keys(database)  # the newest of each are found by an index, and those of all are not
    lists = (_of_key(database, key, conditions, values, limit) for key in keys)
    return heapq.nlargest(limit, (one for some in lists for one in some), key=lambda one: one.at)


def _of_key(
    database: sqlite3.Connection, key: str | None, conditions: list[str], values: list[str], limit: int
) -> list[Made]:
    if key is not None:
        conditions, values = [*conditions, "key = ?"], [*values, key]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    query = f"SELECT place, server, prompt_id, at FROM made{where} ORDER BY at DESC LIMIT {limit:d}"  # noqa: S608
    return [Made(*row) for row in database.execute(query, values)]


def _keys(database: sqlite3.Connection) -> Iterator[str]:
    row = database.execute("SELECT MIN(key) FROM made").fetchone()
    while row[0] is not None:
        yield row[0]
        row = database.execute("SELECT MIN(key) FROM made WHERE key > ?", row).fetchone()
