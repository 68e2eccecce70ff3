"""`/console/usage`: what was used by each key, workflow or day, as a picture and as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from comfyui.exceptions import RequestError
from comfyui.jobs.journal.usage_records import UsageRow, day_of
from comfyui.owners import owner_of
from comfyui.web.api.parameters import read
from comfyui.web.api.usage import MOST_ROWS, UsageCall, rows_of
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.pages import HEADERS, page, seconds, size
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.usage_chart import Chart, chart_of
from comfyui.web.console.viewer import Visitor, visitor_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

# What the rows of each choice are told apart by.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "key": ("key",),
    "person": ("key", "person"),
    "workflow": ("workflow",),
    "day": ("day",),
}
_PRESETS = (7, 30, 90, 365)
# Rows of the table; the last row stands for all others.
_MOST_SHOWN = 200


class PageCall(UsageCall):
    """The query of the page."""

    by: str = ""
    show: Literal["time", "prompts", "bytes"] = "time"


@dataclass(frozen=True, slots=True)
class Used:
    """One row of the table, or several together.

    Attributes:
        name: as it is shown.
        succeeded, failed, canceled, lost: how many runs ended so.
        gpu_s: for how many seconds they kept a server.
        bytes: of answers to the key's callers.
        results: the query of the page of results that shows these jobs; "" where there is none.
    """

    name: str
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    lost: int = 0
    gpu_s: float = 0.0
    bytes: int = 0
    results: str = ""

    @property
    def prompts(self) -> int:
        return self.succeeded + self.failed + self.canceled + self.lost

    def measure(self, show: str) -> float:
        """The measure that the page shows."""
        return {"time": self.gpu_s, "prompts": self.prompts, "bytes": self.bytes}[show]


@router.get("/console/usage")
async def show_usage(request: Request) -> Response:
    """A user's key sees its own; a wrong day is told beside the fields."""
    if any(value == "" for value in request.query_params.values()):
        # A form sends its empty fields, too. The address that people see, and keep, is without them.
        given = [(name, value) for name, value in request.query_params.multi_items() if value != ""]
        return RedirectResponse(f"?{urlencode(given)}", 303, HEADERS)
    visitor = visitor_of(request)
    choices = choices_of(visitor)
    today = day_of(time.time())
    try:
        asked = read(PageCall, request)
        by = asked.by or choices[0]
        if by not in choices:
            raise RequestError(f"by: there is no column {by[:20]!r}; the columns are {', '.join(choices)}")
        since, until = asked.days(today)
        if asked.since is None:
            since = _days_before(until, _PRESETS[1] - 1)
    except RequestError as error:
        typed = {name: request.query_params.get(name, "")[:40] for name in ("since", "until")}
        shown = {"by": choices[0], "show": "time", "problem": error.detail, **typed}
        return page(request, "usage.html", error.status, choices=choices, presets=[], table=[], **shown)
    rows = await rows_of(request, _NAMES[by], since, until)
    used = sorted(map(used_of, rows), key=lambda one: one.measure(asked.show), reverse=True)
    each = rows if by == "day" else await rows_of(request, ("day", *_NAMES[by]), since, until)
    chart = None
    if any(one.measure(asked.show) for one in used) and len(each) <= MOST_ROWS:
        chart = _chart(each, used, by, asked.show, since, max(since, min(until, today)))
    table = sorted(used, key=lambda one: one.name, reverse=True) if by == "day" else used
    return page(
        request,
        "usage.html",
        problem=None,
        choices=choices,
        by=by,
        show=asked.show,
        since=since,
        until=until,
        presets=[_preset(days, today, since, until) for days in _PRESETS],
        query=lambda since, until: urlencode({"by": by, "show": asked.show, "since": since, "until": until}),
        as_json=urlencode({"by": ",".join(_NAMES[by]), "since": since, "until": until}),
        table=_shortened(table),
        total=_together(TEXTS.usage.total, used),
        is_cut=len(rows) > MOST_ROWS,
        is_too_much=len(each) > MOST_ROWS,
        chart=chart,
        shown_as=shown_as(asked.show),
    )


def choices_of(visitor: Visitor) -> list[str]:
    """The fields by which this visitor can group the rows."""
    rules = visitor.origin.rules
    if visitor.sees_all:
        return ["workflow", "day"] if visitor.name is None else list(_NAMES)
    is_shared = rules is not None and rules.user_header is not None and visitor.seen.key is not None
    return ["workflow", "day", "person"] if is_shared else ["workflow", "day"]


def shown_as(show: str) -> Any:
    """How a value of this measure is written."""
    return {"time": seconds, "prompts": count, "bytes": size}[show]


def count(value: float) -> str:
    """``12,345``."""
    return f"{value:,.0f}"


def used_of(row: UsageRow) -> Used:
    """A row of the journal, with the name that is shown."""
    counts = (row.succeeded, row.failed, row.canceled, row.lost)
    return Used(_name_of(row), *counts, gpu_s=row.gpu_s, bytes=row.bytes, results=_results_of(row))


def _results_of(row: UsageRow) -> str:
    if row.workflow:
        return urlencode({"workflow": row.workflow})
    return urlencode({"owner": owner_of(row.key, row.person or "")}) if row.key else ""


def _name_of(row: UsageRow) -> str:
    if row.workflow is not None:
        return row.workflow or TEXTS.usage.no_workflow
    if row.person is not None:
        return f"{row.key or TEXTS.usage.no_key} / {row.person or TEXTS.usage.no_person}"
    if row.key is not None:
        return row.key or TEXTS.usage.no_key
    return row.day or ""


def _chart(each: Sequence[UsageRow], used: Sequence[Used], by: str, show: str, since: str, until: str) -> Chart:
    # Each row here has its day; without it, the name is that of the table.
    found = [(row.day or "", used_of(row)) for row in each]
    order = [TEXTS.usage.all] if by == "day" else [one.name for one in used if one.measure(show)]
    values = [(day, TEXTS.usage.all if by == "day" else one.name, one.measure(show)) for day, one in found]
    return chart_of(values, order, since, until, others=TEXTS.usage.others)


def _shortened(table: Sequence[Used]) -> list[Used]:
    if len(table) <= _MOST_SHOWN:
        return list(table)
    rest = table[_MOST_SHOWN - 1 :]
    return [*table[: _MOST_SHOWN - 1], _together(TEXTS.usage.further.format(count=count(len(rest))), rest)]


def _together(name: str, rows: Sequence[Used]) -> Used:
    return Used(
        name,
        sum(one.succeeded for one in rows),
        sum(one.failed for one in rows),
        sum(one.canceled for one in rows),
        sum(one.lost for one in rows),
        sum(one.gpu_s for one in rows),
        sum(one.bytes for one in rows),
    )


def _preset(days: int, today: str, since: str, until: str) -> dict[str, Any]:
    first = _days_before(today, days - 1)
    return {"days": days, "since": first, "until": today, "here": (since, until) == (first, today)}


def _days_before(day: str, days: int) -> str:
    return date.fromordinal(max(1, date.fromisoformat(day).toordinal() - days)).isoformat()
