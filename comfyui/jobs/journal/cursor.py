"""The cursor of a list: after which job the next page begins, and of which list it is."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

from comfyui import jsonio
from comfyui.exceptions import QueryError
from comfyui.jobs.journal.records import JobFilter

_PLAIN = re.compile(rb"1\.([0-9]{1,18})\.([0-9a-f]{16})")


def cursor_of(seq: int, narrowed: JobFilter) -> str:
    """A cursor for the jobs after this one in the list that `narrowed` makes."""
    return base64.urlsafe_b64encode(f"1.{seq}.{_mark(narrowed)}".encode()).decode().rstrip("=")


def seq_of(cursor: str | None, narrowed: JobFilter) -> int | None:
    """After which job the page begins. Raises `QueryError` for a cursor that is not of this list."""
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        text = b""
    match = _PLAIN.fullmatch(text)
    if match is None:
        raise QueryError("cursor must be the unchanged next_cursor of the previous page, or be left out")
    if match[2].decode() != _mark(narrowed):
        raise QueryError(
            "cursor belongs to a list with other filters; send the filters of the previous page, or no cursor"
        )
    return int(match[1])


def _mark(narrowed: JobFilter) -> str:
    states = sorted(state.value for state in narrowed.states)
    parts: list[Any] = [narrowed.owner, states, narrowed.workflow_name, dict(narrowed.labels)]
    parts += [narrowed.key] if narrowed.key is not None else []
    parts += ["shown"] if narrowed.shown_only else []
    parts += [{"text": narrowed.text}] if narrowed.text else []
    return hashlib.sha256(jsonio.canonical(parts)).hexdigest()[:16]
