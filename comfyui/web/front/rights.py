"""The table of rights: the requests that a key of each role may make, by method and path. docs/keys.md shows it.

An admin may do everything. For the other roles, requests outside the table are refused: an unforeseen route of the
gateway, of a newer ComfyUI or of a custom node is only for admins. A row with `OWN` is answered with the caller's own
data; the code behind the row ensures that. `comfyui.web.front.auth.Guard` asks before anything else does.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from comfyui.owners import KeyRules
from comfyui.web.front.paths import normalised
from comfyui.web.front.short_cache import short_cache

WEBSOCKET = "WEBSOCKET"
"""Stands for the method of a websocket's handshake."""


class Right(enum.Enum):
    """The right of a role in a row."""

    NO = "no"
    OWN = "own"
    """Only the caller's own data, as if nothing else existed."""
    ALL = "all"


NO, OWN, ALL = Right.NO, Right.OWN, Right.ALL
Whose = Literal["gateway", "comfyui"]


@dataclass(frozen=True, slots=True)
class Row:
    """Paths with the same rights.

    Attributes:
        whose: the gateway's own paths are compared as they are; ComfyUI's as ComfyUI may read them, without ``/api``.
        method: GET stands for HEAD, too.
        path: ``*`` is one part of a path, ``**`` at the end is one or more.
        graph: the body has a workflow: not for a key that may run named workflows only.
        counted: it is a submission: `per_minute` counts it.
    """

    whose: Whose
    method: str
    path: str
    user: Right
    read: Right
    graph: bool = False
    counted: bool = False


def _rows(whose: Whose, method: str, paths: str, user: Right, read: Right) -> Iterable[Row]:
    return (Row(whose, method, path, user, read) for path in paths.split())


TABLE: tuple[Row, ...] = (
    # Jobs
    Row("gateway", "POST", "/prompt_sync", OWN, NO, graph=True, counted=True),
    *_rows("gateway", "GET", "/prompt_sync /prompt_sync/*", OWN, ALL),
    *_rows("gateway", "DELETE", "/prompt_sync/*", OWN, NO),
    *_rows("gateway", "POST", "/prompt_sync/*/webhook", OWN, NO),
    Row("gateway", "POST", "/api/v2/jobs", OWN, NO, graph=True, counted=True),
    *_rows("gateway", "GET", "/api/v2/jobs /api/v2/jobs/* /api/v2/jobs/*/workflow", OWN, ALL),
    *_rows("gateway", "GET", "/api/v2/jobs/*/events /api/v2/jobs/*/logs", OWN, ALL),
    *_rows("gateway", "POST", "/api/v2/jobs/*/cancel", OWN, NO),
    *_rows("gateway", "POST", "/api/v2/assets /api/v2/assets/from-hash", OWN, NO),
    *_rows("gateway", "GET", "/api/v2/assets/by-hash/* /api/v2/assets/* /api/v2/assets/*/content", OWN, ALL),
    *_rows("gateway", "DELETE", "/api/v2/assets/*", OWN, NO),
    *_rows("gateway", "GET", "/usage", OWN, ALL),
    # OpenAI's image API over named workflows
    Row("gateway", "POST", "/v1/images/generations", OWN, NO, counted=True),
    Row("gateway", "POST", "/v1/images/edits", OWN, NO, counted=True),
    *_rows("gateway", "GET", "/v1/images/*/* /v1/models /v1/models/*", OWN, ALL),
    # Workflows
    Row("gateway", "POST", "/validate", OWN, NO, graph=True),
    Row("gateway", "POST", "/convert", ALL, NO, graph=True),
    # The key's `workflows` say which of them it may run: see `comfyui.web.api.named_runs`.
    *_rows("gateway", "GET", "/workflows /workflows/*", OWN, ALL),
    Row("gateway", "POST", "/workflows/*", OWN, NO, counted=True),
    # A tool asks this table again for its own rights. Without MCP, a key that is not an admin's finds nothing there.
    *_rows("gateway", "POST", "/mcp", OWN, OWN),
    *_rows("gateway", "GET", "/mcp", OWN, OWN),
    *_rows("gateway", "DELETE", "/mcp", OWN, OWN),
    # The console: its pages show only data that the visitor may see.
    *_rows("gateway", "GET", "/console /console/**", OWN, ALL),
    *_rows("gateway", "GET", "/console/keys", NO, ALL),
    Row("gateway", "POST", "/console/jobs/*/again", OWN, NO, counted=True),
    Row("gateway", "POST", "/console/jobs/*/changed", OWN, NO, graph=True, counted=True),
    *_rows("gateway", "POST", "/console/jobs/*/webhook", OWN, NO),
    Row("gateway", "POST", "/console/run/*", OWN, NO, counted=True),
    *_rows("gateway", "POST", "/console/run/*/code", OWN, ALL),
    *_rows("gateway", "POST", "/console/jobs/*/cancel /console/jobs/*/first /console/jobs/*/priority", OWN, NO),
    *_rows("gateway", "POST", "/console/queue/cancel", OWN, NO),
    # About the gateway. A ticket opens for its bearer what its maker may open.
    *_rows("gateway", "POST", "/tickets", ALL, NO),
    *_rows("gateway", "GET", "/openapi.json /docs", ALL, ALL),
    *_rows("gateway", "GET", "/metrics /queue/pause", NO, ALL),
    # ComfyUI's web frontend and what nodes bring for it: static files
    *_rows("comfyui", "GET", "/ /index.html /favicon.ico /user.css /materialdesignicons.min.css", ALL, ALL),
    *_rows("comfyui", "GET", "/assets/** /scripts/** /lib/** /fonts/** /cursor/** /images/** /docs/**", ALL, ALL),
    *_rows("comfyui", "GET", "/extensions /extensions/** /i18n /workflow_templates /workflow_templates/**", ALL, ALL),
    *_rows("comfyui", "GET", "/templates/**", ALL, ALL),
    # Models, definitions, the server
    *_rows("comfyui", "GET", "/models /models/* /embeddings /view_metadata/*", ALL, ALL),
    *_rows("comfyui", "GET", "/object_info /object_info/*", OWN, ALL),
    *_rows("comfyui", "GET", "/experiment/models /experiment/models/* /experiment/models/preview/**", ALL, ALL),
    *_rows("comfyui", "GET", "/system_stats /features", ALL, ALL),
    # Files that the key's jobs have made, and that it has uploaded
    *_rows("comfyui", "GET", "/view /internal/files/*", OWN, ALL),
    *_rows("comfyui", "POST", "/upload/image /upload/mask", OWN, NO),
    # Queue and history
    Row("comfyui", "POST", "/prompt", OWN, NO, graph=True, counted=True),
    *_rows("comfyui", "GET", "/prompt /queue /history /history/* /jobs /jobs/*", OWN, ALL),
    *_rows("comfyui", "POST", "/queue /history /interrupt /jobs/*/cancel /jobs/cancel", OWN, NO),
    Row("comfyui", WEBSOCKET, "/ws", OWN, NO),
    # Settings and user data: a folder for each key
    *_rows("comfyui", "GET", "/users /settings /settings/* /userdata /userdata/** /v2/userdata", OWN, NO),
    *_rows("comfyui", "POST", "/settings /settings/* /userdata/**", OWN, NO),
    *_rows("comfyui", "DELETE", "/userdata/**", OWN, NO),
    # Answers that do not tell owners apart yet
    *_rows("comfyui", "GET", "/history_v2 /history_v2/*", NO, ALL),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The right of a key for one request.

    Attributes:
        right: never `NO` if the request may go on.
        refusal: why it may not, for the caller; None if it may.
        row: the row that was found.
    """

    right: Right
    refusal: str | None = None
    row: Row | None = None


_ALL = Verdict(ALL)


def verdict(rules: KeyRules | None, method: str, raw_path: str) -> Verdict:
    """The right that `rules` give; everything if no keys are required.

    Args:
        method: `WEBSOCKET` for a websocket.
        raw_path: as it came, percent-encoded and without the query.
    """
    if rules is None:
        return _ALL
    if rules.role == "admin" and rules.workflows is None and rules.per_minute is None:
        return _ALL
    row = row_of(method, raw_path)
    if rules.workflows is not None and _takes_graph(row, method, raw_path):
        return Verdict(
            NO,
            f"the key {rules.name!r} may run named workflows only, not workflows that its callers send",
            row,
        )
    if rules.role == "admin":
        return Verdict(ALL, None, row)
    right = NO if row is None else row.user if rules.role == "user" else row.read
    if right is NO:
        return Verdict(
            NO, f"the key {rules.name!r} has the role {rules.role!r}, which does not allow this request", row
        )
    return Verdict(right, None, row)


@short_cache(4096)
def row_of(method: str, raw_path: str) -> Row | None:
    """The row for a request; None if there is none.

    A path must be spelt plainly: one that servers could read in two ways has no row.
    """
    path = normalised(raw_path)
    decoded = unquote(raw_path, errors="replace")
    if path is None or decoded not in {path, f"/api{path}"}:
        return None
    method = "GET" if method == "HEAD" else method
    own = _find("gateway", method, decoded)
    return own or _find("comfyui", method, path)


def _takes_graph(row: Row | None, method: str, raw_path: str) -> bool:
    """Whether a server may read the request as one with a workflow in its body, however the path is spelt."""
    if row is not None:
        return row.graph
    # An admin's path needs no row. A proxy before ComfyUI may fold doubled slashes and dots.
    path = normalised(raw_path)
    if path is None:
        return True
    spellings: tuple[tuple[Whose, str], ...] = (("gateway", path), ("gateway", f"/api{path}"), ("comfyui", path))
    return any(found.graph for whose, spelling in spellings if (found := _find(whose, method, spelling)) is not None)


def _find(whose: Whose, method: str, path: str) -> Row | None:
    if (exact := _EXACT.get((whose, method, path))) is not None:
        return exact
    rows = (row for row in _PATTERNS if (row.whose, row.method) == (whose, method))
    return next((row for row in rows if fits(row.path, path)), None)


def fits(pattern: str, path: str) -> bool:
    """Whether a table's path matches this one: ``*`` is one part of it, ``**`` at the end is one or more."""
    wanted, parts = pattern.split("/"), path.split("/")
    if wanted[-1] == "**":
        head = wanted[:-1]
        return len(parts) > len(head) and parts[: len(head)] == head
    return len(parts) == len(wanted) and all(want in {"*", part} for want, part in zip(wanted, parts, strict=True))


_EXACT = {(row.whose, row.method, row.path): row for row in TABLE if "*" not in row.path}
_PATTERNS = [row for row in TABLE if "*" in row.path]
