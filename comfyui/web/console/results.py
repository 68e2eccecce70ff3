"""`/console/results`: what jobs have made, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from comfyui.assets.outputs import JobOutput
from comfyui.exceptions import RequestError
from comfyui.jobs.journal.records import ENDS, JobFilter, JobRecord, State
from comfyui.labels import check_label
from comfyui.web.api.named_runs import seen_files
from comfyui.web.console.errors import ConsoleRoute
from comfyui.web.console.files import file_path, kind_of, thumbnail_path
from comfyui.web.console.pages import page
from comfyui.web.console.texts import TEXTS
from comfyui.web.console.viewer import Visitor, visitor_of
from comfyui.web.front.gateway_state import GatewayState, gateway_of

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, default_response_class=Response)

_JOBS = 48
# Of one job: how many of its outputs are shown, and how many characters of a text.
_MOST_TILES = 4
_LONGEST_TEXT = 600
_LONGEST_VALUE = 300
_PATH = "console/results"


@dataclass(frozen=True, slots=True)
class Asked:
    """The search of the page's form; "" does not narrow it."""

    state: str = ""
    workflow: str = ""
    label: str = ""
    owner: str = ""
    text: str = ""
    cursor: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Asked:
        """The search of a query; other names in it mean nothing."""
        return cls(**{one.name: query.get(one.name, "").strip()[:_LONGEST_VALUE] for one in fields(cls)})

    def link(self, cursor: str | None) -> str:
        """The query of another page of the same list; None: of its first page."""
        given = {one.name: value for one in fields(self) if (value := getattr(self, one.name)) and one.name != "cursor"}
        return urlencode(given | ({"cursor": cursor} if cursor else {}), errors="replace")

    @property
    def narrows(self) -> bool:
        """Whether the list has not all that the visitor may see."""
        return any(getattr(self, one.name) for one in fields(self) if one.name != "cursor")

    def narrowed(self, visitor: Visitor) -> JobFilter:
        """The filter for the search, within what the visitor may see. Raises `RequestError`, which names the field."""
        states = {state.value: state for state in ENDS}
        if self.state and self.state not in states:
            raise RequestError(TEXTS.results.no_state)
        narrowed = replace(
            visitor.seen,
            states=frozenset({states[self.state]}) if self.state else ENDS,
            workflow_name=self.workflow or None,
            labels=_labels(self.label),
            text=self.text or None,
        )
        if self.owner and visitor.sees_all:
            # The name of a key stands for all persons behind it.
            is_person = "/" in self.owner
            narrowed = replace(narrowed, owner=self.owner if is_person else None, key=None if is_person else self.owner)
        return narrowed


@dataclass(frozen=True, slots=True)
class Tile:
    """One output.

    Attributes:
        path: below the root.
        ending: of the file's name, for one that cannot be shown.
        thumbnail: the path of its small picture; "" where there is none.
        text: the beginning of a text that a node has told.
    """

    name: str
    kind: str
    path: str
    ending: str
    thumbnail: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A job that has ended, and the first of what it has made. `more`: how many others there are."""

    job: JobRecord
    tiles: Sequence[Tile]
    more: int


@router.get("/console/results")
async def show_results(request: Request) -> Response:
    """A page of the list."""
    visitor, gateway, asked = visitor_of(request), gateway_of(request), Asked.of(request.query_params)
    problem = None
    results: list[Result] = []
    older = searched_to = None
    try:
        found = await gateway.handler.journal.page(asked.narrowed(visitor), _JOBS, asked.cursor or None)
    except RequestError as error:
        problem = error.detail
    else:
        older, searched_to = found.next_cursor, found.searched_to
        made = await gateway.assets.outputs.of_each(found.records)
        pairs = zip(found.records, made, strict=True)
        results = [_result(gateway, job, outputs.outputs) for job, outputs in pairs]
    return page(
        request,
        "results.html",
        200 if problem is None else 400,
        asked=asked,
        problem=problem,
        results=results,
        states=[state.value for state in (State.SUCCEEDED, State.FAILED, State.CANCELED, State.LOST)],
        workflows=[one.name for one in seen_files(request)],
        shows_owners=visitor.sees_all and visitor.name is not None,
        here_link=asked.link(asked.cursor),
        first_link=asked.link(None),
        older_link=asked.link(older) if older else None,
        searched_to=searched_to,
        is_relayed=gateway.handler.made is None,
    )


def _labels(text: str) -> dict[str, str]:
    if not text:
        return {}
    key, equals, value = text.partition("=")
    if not equals:
        raise RequestError(TEXTS.results.no_label)
    try:
        check_label(key.strip(), value.strip())
    except ValueError as error:
        raise RequestError(f"{TEXTS.results.label}: {error}") from None
    return {key.strip(): value.strip()}


def _result(gateway: GatewayState, job: JobRecord, outputs: Sequence[JobOutput]) -> Result:
    shown = [_tile(gateway, job, index, output) for index, output in enumerate(outputs[:_MOST_TILES])]
    return Result(job, shown, len(outputs) - len(shown))


def _tile(gateway: GatewayState, job: JobRecord, index: int, output: JobOutput) -> Tile:
    return Tile(
        output.name,
        kind_of(output),
        file_path(job.prompt_id, index),
        output.name.rpartition(".")[2].upper()[:8] if "." in output.name else "",
        thumbnail_path(gateway, job.prompt_id, index, output),
        output.text[:_LONGEST_TEXT],
    )
