"""ComfyUI's paths as a `user` key may see them: the gateway's answer, or what is asked of ComfyUI in the caller's name.

`RULES` has one rule for each row of the table of rights that says `OWN` on a path of ComfyUI; a test holds that. What
has no rule here is refused before it comes here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from comfyui import jsonio
from comfyui.exceptions import BodyTooLargeError, ComfyUIError, RequestError
from comfyui.executors.own_files import is_below, without_files
from comfyui.handler import ComfyUIHandler
from comfyui.jobs.origin import Origin
from comfyui.offload import in_thread
from comfyui.owners import KeyRules, folder_of, place_of
from comfyui.servers.pool import CHOICE_PATIENCE_S
from comfyui.web.comfyui.own_frames import OwnFrames
from comfyui.web.comfyui.own_jobs import OwnJobs
from comfyui.web.comfyui.own_userdata import OwnUserData
from comfyui.web.comfyui.upstreams import Upstreams
from comfyui.web.front.errors import error_response, json_response
from comfyui.web.front.paths import target_of
from comfyui.web.front.request_state import state_of
from comfyui.web.front.rights import row_of

# What is passed on of a query of /view, beside the file.
_OF_VIEW = ("preview", "channel")
_MOST_PAIRS = 20
# Seconds for which node definitions are shown again without asking ComfyUI.
_FRESH_S = 5.0

# Of a body that says which jobs are meant.
_LONGEST_BODY = 1_000_000

Rule = Callable[["Owned", Request, KeyRules], Awaitable[str | Response]]
"""Gives the target to ask ComfyUI for, or the answer."""


class Upload(Protocol):
    """Takes a file for a key's folder; `comfyui.web.api.uploads` does."""

    async def __call__(self, request: Request, rules: KeyRules) -> Response:
        """Raises `ComfyUIError` where it is not taken."""


class Owned:
    """Answers what only the owner may have."""

    def __init__(self, handler: ComfyUIHandler, upload: Upload, upstreams: Upstreams) -> None:
        self._userdata = OwnUserData(upstreams)
        self._journal = handler.journal
        self._pool = handler.pool
        self._upload = upload
        self._shown: tuple[Mapping[str, Any], dict[str, Any]] = ({}, {})
        """The definitions that a server gave last, and what users see of them."""
        self._jobs = OwnJobs(handler)

    async def target(self, scope: Scope, receive: Receive, send: Send, raw_path: str) -> str | None:
        """What to ask ComfyUI for in place of what the caller asks; None where it has been answered."""
        caller, row = state_of(scope).caller, row_of(scope["method"], raw_path)
        rule = None if row is None else RULES.get((row.method, row.path))
        found: str | Response = Response(status_code=403)
        if caller is not None and rule is not None:
            try:
                found = await rule(self, Request(scope, receive), caller.rules)
            except ComfyUIError as error:
                found = error_response(error, state_of(scope).request_id)
        if isinstance(found, str):
            return found
        await found(scope, receive, send)
        return None

    def frames(self, scope: Scope) -> OwnFrames:
        """What a websocket of the caller is told."""
        caller = state_of(scope).caller
        if caller is None:
            raise RuntimeError("a websocket of nobody's own")
        return OwnFrames(caller.rules, self._journal, self._jobs, _query(scope).get("clientId", ""))

    async def remaining(self, _request: Request, rules: KeyRules) -> str | Response:
        """How many of the key's jobs wait or run."""
        return json_response(200, {"exec_info": {"queue_remaining": await self._jobs.remaining(rules)}})

    async def queue(self, _request: Request, rules: KeyRules) -> str | Response:
        """The key's jobs that wait or run."""
        return json_response(200, await self._jobs.queue(rules))

    async def history(self, request: Request, rules: KeyRules) -> str | Response:
        """The key's jobs that have ended."""
        query = _query(request.scope)
        max_items, offset = (_integer(query.get(name)) for name in ("max_items", "offset"))
        return json_response(200, await self._jobs.history(rules, max_items, -1 if offset is None else offset))

    async def history_entry(self, request: Request, rules: KeyRules) -> str | Response:
        """One job that has ended."""
        prompt_id = request.scope["path"].rpartition("/")[2]
        return json_response(200, await self._jobs.history_of(rules, prompt_id))

    async def change_queue(self, request: Request, rules: KeyRules) -> str | Response:
        """Cancels jobs of the key that wait: all, or those that are named."""
        body, origin = await _body(request), _origin(request, rules)
        if body.get("clear"):
            await self._jobs.clear(origin)
        if isinstance(ids := body.get("delete"), list):
            await self._jobs.delete(origin, ids)
        return Response()

    async def interrupt(self, request: Request, rules: KeyRules) -> str | Response:
        """Cancels the jobs of the key that run, or the one that is named."""
        prompt_id = (await _body(request)).get("prompt_id")
        await self._jobs.interrupt(_origin(request, rules), prompt_id if isinstance(prompt_id, str) else None)
        return Response()

    async def definitions(self, _request: Request, _rules: KeyRules) -> str | Response:
        """All node definitions, without files that were uploaded."""
        return Response(await in_thread(jsonio.dumps, await self._definitions()), media_type="application/json")

    async def definition(self, request: Request, _rules: KeyRules) -> str | Response:
        """One node's."""
        class_type, known = request.scope["path"].rpartition("/")[2], await self._definitions()
        return json_response(200, {class_type: known[class_type]} if class_type in known else {})

    async def _definitions(self) -> dict[str, Any]:
        backend = await self._pool.choose(patience_s=CHOICE_PATIENCE_S)
        known = await backend.object_info(max_age_s=_FRESH_S)
        if self._shown[0] is not known:
            self._shown = known, await in_thread(without_files, known)
        return self._shown[1]

    async def upload(self, request: Request, rules: KeyRules) -> str | Response:
        """A file for the key's own folder."""
        return await self._upload(request, rules)

    async def users(self, _request: Request, _rules: KeyRules) -> str | Response:
        """As a ComfyUI says it that has one user."""
        return json_response(200, {"storage": "server", "migrated": True})

    async def settings(self, request: Request, rules: KeyRules) -> str | Response:
        """All settings of the key."""
        return json_response(200, await self._userdata.settings(request, rules))

    async def setting(self, request: Request, rules: KeyRules) -> str | Response:
        """One setting, or null."""
        found = (await self._userdata.settings(request, rules)).get(request.scope["path"].rpartition("/")[2])
        return Response(jsonio.dumps(found), media_type="application/json")

    async def change_settings(self, request: Request, rules: KeyRules) -> str | Response:
        """Settings of the key."""
        return await self._userdata.change_settings(request, rules, None)

    async def change_setting(self, request: Request, rules: KeyRules) -> str | Response:
        """One setting of the key."""
        return await self._userdata.change_settings(request, rules, request.scope["path"].rpartition("/")[2])

    async def list_userdata(self, request: Request, rules: KeyRules) -> str | Response:
        """Files of a folder of the key."""
        return await self._userdata.listing(rules, _query(request.scope))

    async def userdata(self, request: Request, rules: KeyRules) -> str | Response:
        """One file of the key, to be read or removed."""
        return self._userdata.file(rules, _raw_path(request.scope)) or Response(status_code=403)

    async def store_userdata(self, request: Request, rules: KeyRules) -> str | Response:
        """One file of the key, to be written or moved."""
        return await self._userdata.store(request, rules, _raw_path(request.scope), _query(request.scope))

    async def view(self, request: Request, rules: KeyRules) -> str | Response:
        """A file that a job of the key has made, or that the key has uploaded. All others are not there."""
        query = _query(request.scope)
        filename, subfolder = query.get("filename", ""), query.get("subfolder", "")
        folder_type = query.get("type", "output")
        uploaded = folder_type == "input" and is_below(folder_of(rules.name), f"{subfolder}/{filename}")
        # A suffix such as " [output]" would lead to another folder.
        if not filename or filename.rstrip().endswith("]"):
            return Response(status_code=404)
        if not uploaded and not await self._journal.has_made(rules.name, place_of(folder_type, subfolder, filename)):
            return Response(status_code=404)
        # Written anew: two servers may read the same query in two ways.
        kept = {"filename": filename, "subfolder": subfolder, "type": folder_type}
        kept |= {name: query[name] for name in _OF_VIEW if name in query}
        return f"/view?{urlencode(kept, errors='surrogatepass')}"


def _raw_path(scope: Scope) -> str:
    return target_of(scope["path"], scope.get("raw_path"), b"")


def _origin(request: Request, rules: KeyRules) -> Origin:
    caller = state_of(request.scope).caller
    return Origin("prompt", caller.owner if caller else rules.name, rules)


def _integer(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        raise RequestError("max_items, offset: whole numbers are wanted") from None


async def _body(request: Request) -> dict[str, Any]:
    """A small object; empty where there is no body, as ComfyUI takes it for ``/interrupt``."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _LONGEST_BODY:
            raise BodyTooLargeError(f"the body is larger than {_LONGEST_BODY / 1e6:g} MB")
    try:
        body = jsonio.loads(content) if content.strip() else {}
    except ValueError:
        raise RequestError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    return body


def _query(scope: Scope) -> dict[str, str]:
    """The first value of each name, as ComfyUI reads it; empty where there are too many."""
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("latin-1"),
            keep_blank_values=True,
            max_num_fields=_MOST_PAIRS,
            errors="surrogateescape",
        )
    except ValueError:
        return {}
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found


RULES: Mapping[tuple[str, str], Rule] = {
    ("GET", "/view"): Owned.view,
    ("GET", "/prompt"): Owned.remaining,
    ("GET", "/queue"): Owned.queue,
    ("POST", "/queue"): Owned.change_queue,
    ("GET", "/history"): Owned.history,
    ("GET", "/history/*"): Owned.history_entry,
    ("POST", "/interrupt"): Owned.interrupt,
    ("GET", "/object_info"): Owned.definitions,
    ("GET", "/object_info/*"): Owned.definition,
    ("POST", "/upload/image"): Owned.upload,
    ("GET", "/users"): Owned.users,
    ("GET", "/settings"): Owned.settings,
    ("GET", "/settings/*"): Owned.setting,
    ("POST", "/settings"): Owned.change_settings,
    ("POST", "/settings/*"): Owned.change_setting,
    ("GET", "/userdata"): Owned.list_userdata,
    ("GET", "/userdata/**"): Owned.userdata,
    ("DELETE", "/userdata/**"): Owned.userdata,
    ("POST", "/userdata/**"): Owned.store_userdata,
}
