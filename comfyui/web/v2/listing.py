"""The query of `GET /api/v2/jobs`: which jobs a list is to have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from comfyui.exceptions import Breach, ContractError
from comfyui.jobs.journal.records import JobFilter, State
from comfyui.labels import check_label
from comfyui.web.v2.shapes import STATUSES

_LIMIT: Final = 50
_MOST: Final = 100
_MOST_LABELS: Final = 3
_MOST_PAIRS: Final = 100
_LABEL = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_STATES = {word: state for state, word in STATUSES.items()}


@dataclass(frozen=True, slots=True)
class Listing:
    """One requested page."""

    narrowed: JobFilter
    limit: int
    cursor: str | None


def listing_of(request: Request) -> Listing:
    """The page that the query asks for. Names outside the contract are ignored.

    Raises:
        ContractError: a value cannot be used, or a label is named twice.
    """
    try:
        text = request.scope["query_string"].decode("latin-1")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_PAIRS)
    except ValueError:
        raise ContractError(Breach.NOT_READABLE, f"the query has more than {_MOST_PAIRS} parameters") from None
    values: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name, value in pairs:
        if (match := _LABEL.fullmatch(name)) is not None:
            _add_label(labels, match[1], value)
        else:
            values[name] = value
    states = _states(values["status"]) if values.get("status") else frozenset()
    return Listing(JobFilter(states=states, labels=labels), _limit(values.get("limit")), values.get("cursor") or None)


def _add_label(labels: dict[str, str], key: str, value: str) -> None:
    if key in labels:
        raise ContractError(Breach.INVALID_METADATA_FILTER, f"metadata[{key[:60]}] must not be given twice")
    if len(labels) >= _MOST_LABELS:
        raise ContractError(Breach.INVALID_METADATA_FILTER, f"metadata may be given for at most {_MOST_LABELS} labels")
    try:
        check_label(key, value)
    except ValueError as error:
        raise ContractError(Breach.INVALID_METADATA_FILTER, f"metadata[{key[:60]}]: {error}") from None
    labels[key] = value


def _limit(text: str | None) -> int:
    if text is None:
        return _LIMIT
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= _MOST:
        raise ContractError(Breach.NOT_READABLE, f"limit must be a whole number from 1 to {_MOST}")
    return int(text)


def _states(text: str) -> frozenset[State]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in _STATES:
            raise ContractError(
                Breach.NOT_READABLE, f"status: there is no status {word[:20]!r}; the statuses are {', '.join(_STATES)}"
            )
    return frozenset(_STATES[word] for word in words)
