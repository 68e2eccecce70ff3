"""The command line's output for a person: progress and messages on standard error, tables on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import rich.filesize
import rich.progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from comfyui.sdk.events import Event, Executing, Finished, Preview, Progress, Queued, Reconnecting
from comfyui.sdk.jobs import ListedJob
from comfyui.sdk.workflow_files import node_title

_SHOWN_ERROR = 100  # characters of an error in a list


STDERR = Console(stderr=True, highlight=False, soft_wrap=True)


class Display:
    """Shows events on standard error: a live bar on a terminal, a line for each change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("waiting", total=None)
        self._doing = "waiting"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        match event:
            case Queued(position=position):
                self._change("queued" if position is None else f"queued, position {position}")
            case Executing(node=node, title=title):
                self._change(f"{title} (node {node})")
            case Progress(value=value, max=maximum, overall=overall):
                steps = f"{self._doing}  {value:g}/{maximum:g}"
                self._bar.update(self._task, description=plain(steps), completed=overall, total=1.0)
            case Reconnecting(attempt=attempt, reason=reason):
                self._change(f"{reason}; attaching again, attempt {attempt}")
            case Preview() | Finished():
                pass

    def _change(self, doing: str) -> None:
        if doing == self._doing:
            return
        self._doing = doing
        self._bar.update(self._task, description=plain(doing))
        if not self._console.is_terminal:
            self._console.print(Text(plain(doing)))


def plain(text: object) -> str:
    """Text that came over the network, without what would steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in str(text))


def file_table(saved: Sequence[Mapping[str, Any]], workflow: Mapping[str, Any]) -> Table:
    table = Table("file", "node", "size", "type")
    for entry in saved:
        node = f"{entry['node_id']} {node_title(workflow.get(entry['node_id']))}".strip()
        if "error" in entry:
            name, size = Text(plain(f"{entry['filename']}: {entry['error']}"), style="red", overflow="fold"), "-"
        else:
            name, size = Text(plain(entry["path"]), overflow="fold"), rich.filesize.decimal(entry["size"])
        table.add_row(name, Text(plain(node)), size, Text(plain(entry["content_type"])))
    return table


def job_table(jobs: Sequence[ListedJob]) -> Table:
    """A row for each job, without borders, so that awk reads it too; times are of this machine's zone."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("prompt_id", "status", "submitted", "ran"):
        table.add_column(name, no_wrap=True)
    for name in ("labels", "error"):
        table.add_column(name, overflow="fold")
    for job in jobs:
        labels = " ".join(f"{key}={value}" for key, value in job.labels.items())
        error = "" if job.error is None else " ".join(f"{job.error.type}: {job.error.detail}".split())
        error = error if len(error) <= _SHOWN_ERROR else f"{error[:_SHOWN_ERROR]}…"
        submitted = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(*(Text(plain(cell)) for cell in (job.prompt_id, job.status, submitted, _ran(job), labels, error)))
    return table


def _ran(job: ListedJob) -> str:
    """How long it has run, in seconds; nothing before it began."""
    if job.started_at is None:
        return ""
    return f"{((job.ended_at or datetime.now(UTC)) - job.started_at).total_seconds():.1f} s"
