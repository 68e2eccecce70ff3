"""`GET /usage`: what each key used, by day and workflow."""

from __future__ import annotations

import re
import time
from datetime import date
from typing import Annotated, NotRequired

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field, WithJsonSchema
from typing_extensions import TypedDict

from comfyui.exceptions import JournalError, RequestError
from comfyui.jobs.journal.usage_records import UsageQuery, UsageRow, day_of
from comfyui.web.api.parameters import Parameters, described, read
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.openapi import Answer, json_of, operation
from comfyui.web.front.request_state import state_of

router = APIRouter(default_response_class=Response)

_NAMES = ("day", "key", "person", "workflow")
_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_DAYS_SHOWN = 30
MOST_ROWS = 10_000
"""This number is read at most; one more shows that there are others."""


def _a_day(value: str) -> str:
    try:
        date.fromisoformat(value)
    except ValueError:
        is_day = False
    else:
        is_day = re.fullmatch(_DAY, value) is not None  # other spellings of a day exist, too
    if not is_day:
        raise ValueError("must be a day, such as 2026-11-01")
    return value


_Day = Annotated[
    str,
    AfterValidator(_a_day),
    WithJsonSchema({"type": "string", "format": "date", "pattern": f"^{_DAY}$"}),
]


class UsageCall(Parameters):
    """The filters of a usage report."""

    by: str = Field(
        default="key", max_length=64, description="The columns that rows are split by: key, person, workflow, day."
    )
    since: _Day | None = Field(
        default=None, description="The first day, in UTC; 30 days before the last one if not given."
    )
    until: _Day | None = Field(default=None, description="The last day, in UTC; today if not given.")

    def names(self) -> tuple[str, ...]:
        """Raises `RequestError` for what rows cannot be told apart by."""
        names = [name.strip() for name in self.by.split(",")]
        for name in names:
            if name not in _NAMES:
                raise RequestError(f"by: there is no column {name[:20]!r}; the columns are {', '.join(_NAMES)}")
        return tuple(dict.fromkeys(names))

    def days(self, today: str) -> tuple[str, str]:
        """The first and the last day. Raises `RequestError` if the first one is later."""
        until = self.until or today
        if self.since is None:
            first = max(date.min.toordinal(), date.fromisoformat(until).toordinal() - _DAYS_SHOWN)
            return date.fromordinal(first).isoformat(), until
        if self.since > until:
            last = f"until, {until}" if self.until else f"today, {today}, which is the last day if until is not given"
            raise RequestError(f"since: {self.since} is after {last}; give an earlier day")
        return self.since, until


class PromptCounts(TypedDict):
    """Runs by how they ended."""

    succeeded: int
    failed: int
    canceled: int
    lost: int


class UsageEntry(TypedDict):
    """The usage of one row. Only the columns in `by` are present; "" if there is no value."""

    day: NotRequired[Annotated[str, Field(json_schema_extra={"format": "date"})]]
    key: NotRequired[str]
    person: NotRequired[str]
    workflow: NotRequired[str]
    prompts: PromptCounts
    gpu_seconds: Annotated[float, Field(description="Seconds for which the runs occupied a server.")]
    bytes: Annotated[
        int, Field(description="Bytes that were sent to the key's callers; they are not split by workflow.")
    ]


class UsageReport(TypedDict):
    """The usage in these days."""

    since: Annotated[str, Field(json_schema_extra={"format": "date"})]
    until: Annotated[str, Field(json_schema_extra={"format": "date"})]
    usage: list[UsageEntry]
    more: NotRequired[Annotated[bool, Field(description="There are further rows: ask for fewer days.")]]


async def rows_of(request: Request, by: tuple[str, ...], since: str, until: str) -> list[UsageRow]:
    """The usage from day to day, as far as the caller may see it: up to `MOST_ROWS` rows and one more.

    Raises `JournalError`.
    """
    gateway = gateway_of(request)
    caller = state_of(request.scope).caller
    own = caller is not None and caller.rules.role == "user"
    query = UsageQuery(
        by=by,
        since=since,
        until=until,
        key=caller.rules.name if caller is not None and own else None,
        person=(caller.person or None) if caller is not None and own else None,
        limit=MOST_ROWS + 1,
    )
    gateway.sent.write()
    return await gateway.handler.journal.usage(query)


@router.get(
    "/usage",
    summary="The usage of each key",
    openapi_extra=operation(
        "usage",
        {200: Answer("The usage, sorted by the columns in `by`.", json_of(UsageReport))},
        (RequestError, JournalError),
        parameters=described(UsageCall),
        tag="jobs",
    ),
)
async def usage(request: Request) -> Response:
    """Prompts by outcome, seconds on the GPU and bytes, summed by key, workflow or day. A user's key sees its own."""
    asked = read(UsageCall, request)
    since, until = asked.days(day_of(time.time()))
    rows = await rows_of(request, asked.names(), since, until)
    answer = UsageReport(since=since, until=until, usage=[_entry(row) for row in rows[:MOST_ROWS]])
    if len(rows) > MOST_ROWS:
        answer["more"] = True
    return json_response(200, answer, {"Cache-Control": "no-store"})


def _entry(row: UsageRow) -> UsageEntry:
    counts = PromptCounts(succeeded=row.succeeded, failed=row.failed, canceled=row.canceled, lost=row.lost)
    entry = UsageEntry(prompts=counts, gpu_seconds=round(row.gpu_s, 3), bytes=row.bytes)
    for name in _NAMES:
        if (value := getattr(row, name)) is not None:
            entry[name] = value  # type: ignore[literal-required] # one of the four
    return entry
