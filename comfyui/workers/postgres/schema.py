"""The SQL of the task table with a deployment's own names for tables, columns and statuses. Pure: no I/O but its files.

The migrations are valid SQL with the default names. Every configurable name is in double quotes and every status in
single quotes, so that one pass over the quoted tokens replaces them with the deployment's own, quoted again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Literal

SCHEMA_VERSION = 3
"""The answer of ``comfy_schema_version()`` in a database with the migrations of this package."""

COLUMNS = (
    *("id", "task_type", "status", "params", "priority", "worker_id", "attempts", "progress", "progress_note"),
    *("output_url", "outputs", "result", "error", "created_at", "started_at", "finished_at"),
)
STATUSES = ("queued", "in_progress", "complete", "failed", "cancelled")
WORKER_STATUSES = ("starting", "waiting", "idle", "working", "stopped", "dead", "terminating")

_QUOTED = re.compile(r"in \('comfy'\)|\"[^\"\n]*\"|'[^'\n]*'")
_LONGEST_NAME = 63


@dataclass(frozen=True, slots=True)
class TaskNames:
    """A deployment's names. A table may be ``schema.table``; a name that is not mapped keeps its default.

    ``worker_statuses["terminating"]`` may be several words with ``|`` between them: with these, an orchestrator tells a
    worker to claim no more tasks. A row without a type has the first of ``task_types``. ``id_type`` is the type of the
    ids of a task table that the migration creates.

    Raises:
        ValueError: a name that is empty, too long for Postgres, or has ``$`` or a NUL, or a key that does not exist.
    """

    tasks: str = "tasks"
    workers: str = "workers"
    task_types: Sequence[str] = ("comfy",)
    columns: Mapping[str, str] = field(default_factory=dict)
    statuses: Mapping[str, str] = field(default_factory=dict)
    worker_statuses: Mapping[str, str] = field(default_factory=dict)
    id_type: Literal["uuid", "text"] = "uuid"

    def __post_init__(self) -> None:
        for kind, mapping, known in (
            ("column", self.columns, COLUMNS),
            ("status", self.statuses, STATUSES),
            ("status of a worker", self.worker_statuses, WORKER_STATUSES),
        ):
            if unknown := set(mapping) - set(known):
                raise ValueError(f"there is no {kind} {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        _tokens(self)
        if len(set(self.status_names.values())) < len(STATUSES):
            raise ValueError("two statuses must not have the same name")

    @property
    def status_names(self) -> dict[str, str]:
        return {name: self.statuses.get(name, name) for name in STATUSES}


def migrations(names: TaskNames | None = None) -> Iterator[tuple[str, str]]:
    """File name and SQL of each migration, in order. Every one can be run again, alone and as a whole."""
    tokens = _tokens(names or TaskNames())
    folder = files("comfyui.workers.postgres").joinpath("migrations")
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".sql"):
            sql = file.read_text(encoding="utf-8")
            yield file.name, _QUOTED.sub(lambda match: tokens.get(match[0], match[0]), sql)


def quote_identifier(name: str) -> str:
    """``name`` as an SQL identifier, whatever it contains; raises ValueError for what cannot be one."""
    return '"' + _checked(name).replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """``text`` as an SQL string; raises ValueError for what cannot be one inside a function's body."""
    return "'" + _checked(text).replace("'", "''") + "'"


def _checked(name: str) -> str:
    # A dollar sign could end the dollar-quoted body of a function, a backslash begins an escape in an old setting.
    if not name or "\0" in name or "$" in name or "\\" in name or "\n" in name:
        raise ValueError(
            f"{name!r} cannot be a name: it must not be empty or have a dollar sign, backslash or line break"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"the name {name!r} is longer than the {_LONGEST_NAME} bytes that Postgres allows")
    return name


def _tokens(names: TaskNames) -> dict[str, str]:
    tokens = {
        '"tasks"': ".".join(quote_identifier(part) for part in names.tasks.split(".")),
        '"workers"': ".".join(quote_identifier(part) for part in names.workers.split(".")),
        "'comfy'": quote_literal(names.task_types[0]),
        "in ('comfy')": f"in ({', '.join(map(quote_literal, names.task_types))})",
        '"uuid"': quote_identifier(names.id_type),
    }
    tokens |= {f'"{column}"': quote_identifier(names.columns.get(column, column)) for column in COLUMNS}
    tokens |= {f"'{status}'": quote_literal(name) for status, name in names.status_names.items()}
    tokens |= {f"'{status}'": quote_literal(names.worker_statuses.get(status, status)) for status in WORKER_STATUSES}
    return tokens


WAN2GP = TaskNames(
    columns={"id": "task_id", "finished_at": "completed_at"},
    # Its orchestrator looks for workers that are active, and judges them by their last heartbeat.
    worker_statuses={
        **dict.fromkeys(("starting", "waiting", "idle", "working", "dead"), "active"),
        "stopped": "inactive",
        "terminating": "terminating|terminated|error",
    },
    id_type="text",
)
"""The names in the documentation of the ComfyUI worker of Headless-Wan2GP."""
