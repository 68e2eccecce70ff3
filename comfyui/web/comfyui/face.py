"""The merged face of ComfyUI: one ComfyUI out of many servers, and of one what each caller may see.

`FACE` says for each of ComfyUI's paths how it is answered if prompts wait in the gateway (QUEUE=gateway: several
servers, or a KEYS_FILE): by our own tables for everybody, or from the caller's own data for a key of role `user`. Other
requests are relayed to the first server that is ready. With one server and ComfyUI's own queue, everything is relayed
unchanged.

Another table says who may call a path at all: `comfyui.web.front.rights`.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comfyui.exceptions import ComfyUIError
from comfyui.handler import ComfyUIHandler
from comfyui.web.comfyui.asked import Asked
from comfyui.web.comfyui.home import Home
from comfyui.web.comfyui.home_copy import HomeCopy
from comfyui.web.comfyui.job_changes import JobChanges
from comfyui.web.comfyui.job_list import JobList
from comfyui.web.comfyui.job_reads import JobReads
from comfyui.web.comfyui.merged_reads import MergedReads
from comfyui.web.comfyui.own_routes import OwnRoutes
from comfyui.web.comfyui.uploads import Forms, UploadRoutes
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.comfyui.viewer import Viewer, viewer_of
from comfyui.web.comfyui.views import Views
from comfyui.web.front.errors import error_response
from comfyui.web.front.paths import normalised
from comfyui.web.front.request_state import state_of
from comfyui.web.front.rights import WEBSOCKET, Right, fits, row_of
from comfyui.web.front.short_cache import short_cache

Rule = Callable[[Request, Viewer], Awaitable[str | Asked | Response]]
"""Gives the answer, or the target to ask ComfyUI for."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that answer."""

    reads: JobReads
    list: JobList
    changes: JobChanges
    merged: MergedReads
    own: OwnRoutes
    home: Home
    uploads: UploadRoutes

    def of(self, rule: Rule) -> Rule:
        """`rule` for a key of role `user`, and home for all others."""

        async def answer(request: Request, viewer: Viewer) -> str | Asked | Response:
            return await (self.home.as_asked if viewer.key is None else rule)(request, viewer)

        return answer


class For(enum.Enum):
    """The callers that a row answers; other callers' requests are relayed."""

    ALL = "all"
    """Everybody: a key of role `user` sees its own data, all others see everything."""
    USERS = "users"
    """Keys of role `user`."""
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class FaceRow:
    """How one path is answered.

    Attributes:
        method: GET stands for HEAD, too.
        path: without ``/api``, unless ComfyUI has it below ``/api`` only; ``*`` and ``**`` as in the table of rights.
        how: in words.
        rule: answers it; None if an endpoint of ours does, or if it is relayed.
    """

    method: str
    path: str
    whom: For
    how: str
    rule: Callable[[Parts], Rule] | None = None


FACE: tuple[FaceRow, ...] = (
    # The queue and history: our own tables
    FaceRow("POST", "/prompt", For.ALL, "a job: `comfyui.web.comfyui.prompt`"),
    FaceRow("GET", "/prompt", For.ALL, "how many jobs wait or run", lambda on: on.reads.remaining),
    FaceRow("GET", "/queue", For.ALL, "the jobs that wait or run, in turn", lambda on: on.reads.queue),
    FaceRow("GET", "/history", For.ALL, "the jobs that have ended, in order of end", lambda on: on.reads.history),
    FaceRow("GET", "/history/*", For.ALL, "one job that has ended", lambda on: on.reads.history_entry),
    FaceRow("GET", "/api/jobs", For.ALL, "all jobs, sorted and in pages", lambda on: on.list.jobs),
    FaceRow("GET", "/api/jobs/*", For.ALL, "one job, however far it is", lambda on: on.list.job),
    FaceRow("POST", "/queue", For.ALL, "cancels waiting jobs: all, or by id", lambda on: on.changes.change_queue),
    FaceRow("POST", "/history", For.ALL, "hides ended jobs: all, or by id", lambda on: on.changes.change_history),
    FaceRow("POST", "/interrupt", For.ALL, "cancels running jobs: all, or by id", lambda on: on.changes.interrupt),
    FaceRow("POST", "/api/jobs/*/cancel", For.ALL, "cancels waiting or running jobs", lambda on: on.changes.cancel),
    FaceRow("POST", "/api/jobs/cancel", For.ALL, "cancels several of them", lambda on: on.changes.cancel_many),
    FaceRow(WEBSOCKET, "/ws", For.ALL, "the frames of the client's prompts: `comfyui.web.comfyui.hub`"),
    FaceRow("POST", "/free", For.ALL, "all servers free their memory", lambda on: on.changes.free),
    # Files
    FaceRow("GET", "/view", For.ALL, "uploads; otherwise the server where the prompt ran", lambda on: on.uploads.view),
    FaceRow("POST", "/upload/image", For.ALL, "into the catalogue of uploads", lambda on: on.uploads.image),
    FaceRow("POST", "/upload/mask", For.ALL, "a server makes it, for the catalogue", lambda on: on.uploads.mask),
    FaceRow("GET", "/internal/files/*", For.ALL, "uploads, and what prompts made", lambda on: on.uploads.files),
    # Definitions, models, the server: of all servers
    FaceRow("GET", "/object_info", For.ALL, "a union; for users no uploaded files", lambda on: on.merged.definitions),
    FaceRow("GET", "/object_info/*", For.ALL, "one class of that", lambda on: on.merged.definition),
    FaceRow("GET", "/models", For.ALL, "a union", lambda on: on.merged.names),
    FaceRow("GET", "/models/*", For.ALL, "a union", lambda on: on.merged.names),
    FaceRow("GET", "/experiment/models", For.ALL, "a union", lambda on: on.merged.folders),
    FaceRow("GET", "/experiment/models/*", For.ALL, "a union", lambda on: on.merged.files),
    FaceRow("GET", "/experiment/models/**", For.ALL, "of a server that has it", lambda on: on.merged.one_that_has),
    FaceRow("GET", "/embeddings", For.ALL, "a union", lambda on: on.merged.names),
    FaceRow("GET", "/view_metadata/*", For.ALL, "of a server that has the file", lambda on: on.merged.one_that_has),
    FaceRow("GET", "/system_stats", For.ALL, "the first server's, and all devices", lambda on: on.merged.stats),
    FaceRow("GET", "/features", For.ALL, "what all servers can do", lambda on: on.merged.features),
    # Settings and user data: home's, for each user in a folder there; while home is down a copy is read
    FaceRow("GET", "/users", For.ALL, "home's; for users one user", lambda on: on.of(on.own.users)),
    FaceRow("GET", "/settings", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.settings)),
    FaceRow("GET", "/settings/*", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.setting)),
    FaceRow("POST", "/settings", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.change_settings)),
    FaceRow("POST", "/settings/*", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.change_setting)),
    FaceRow("GET", "/userdata", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.list_userdata)),
    FaceRow("GET", "/v2/userdata", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.walk_userdata)),
    FaceRow("GET", "/userdata/**", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.userdata)),
    FaceRow("DELETE", "/userdata/**", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.userdata)),
    FaceRow("POST", "/userdata/**", For.ALL, "home's, or the key's own", lambda on: on.of(on.own.store_userdata)),
    # All else: static files of the web frontend, and what custom nodes bring
    FaceRow("GET", "/**", For.NOBODY, "home's; of static files another server's while home is down: `Face.only`"),
)


class Face:
    """Answers ComfyUI's paths that are not relayed unchanged."""

    def __init__(
        self, handler: ComfyUIHandler, forms: Forms, upstreams: Upstreams, home_folder: Path | None = None
    ) -> None:
        """`home_folder` gets the copy of home's data for the web frontend; None: the copy is in memory."""
        home = Home(upstreams, HomeCopy(home_folder))
        reads, merged, own = JobReads(handler), MergedReads(handler, upstreams), OwnRoutes(home)
        uploads = UploadRoutes(handler, forms, Views(handler))
        self._parts = Parts(reads, JobList(handler), JobChanges(handler), merged, own, home, uploads)
        self._home = upstreams.home.backend.name if upstreams.several else None
        self.is_merged = handler.queue.are_all_here
        """Whether prompts wait in the gateway, so that this table counts for everybody."""

    def answers(self, scope: Scope, raw_path: str) -> bool:
        """Whether the request is answered here; if not, it is relayed unchanged."""
        if state_of(scope).right is Right.OWN:
            return True
        if not self.is_merged:
            return False
        row = face_row_of(scope["method"], raw_path)
        return row is not None and row.whom is For.ALL and row.rule is not None

    async def target(self, scope: Scope, receive: Receive, send: Send, raw_path: str) -> Asked | None:
        """The request for ComfyUI in place of the caller's; None if it has been answered."""
        row = face_row_of(scope["method"], raw_path)
        # A path that a `user` may call and nothing answers: ComfyUI does not have it.
        found: str | Asked | Response = Response(status_code=404)
        if row is not None and row.rule is not None:
            try:
                found = await row.rule(self._parts)(Request(scope, receive), viewer_of(scope))
            except ComfyUIError as error:
                found = error_response(error, scope)
        if isinstance(found, str | Asked):
            return Asked(found) if isinstance(found, str) else found
        await found(scope, receive, send)
        return None

    def only(self, scope: Scope, raw_path: str) -> str | None:
        """The only server that may answer a relayed request: home; None: any, for static files."""
        row = row_of(scope["method"], raw_path)
        is_static = row is not None and row.user is Right.ALL
        return self._home if self.is_merged and not is_static else None

    def has_websocket(self, raw_path: str) -> bool:
        """Whether a websocket is ours, not a server's."""
        row = face_row_of(WEBSOCKET, raw_path)
        return self.is_merged and row is not None and row.whom is For.ALL


@short_cache(4096)
def face_row_of(method: str, raw_path: str) -> FaceRow | None:
    """The row for a request; None if there is none: a path that is not spelled plainly has none."""
    path, decoded = normalised(raw_path), unquote(raw_path, errors="replace")
    if path is None or decoded not in {path, f"/api{path}"}:
        return None
    method = "GET" if method == "HEAD" else method
    ways = {decoded, path}
    return next((row for row in FACE if row.method == method and any(fits(row.path, way) for way in ways)), None)
