"""Scripts about the web frontend's files, and about paths that ComfyUI does not have."""

from __future__ import annotations

from tests.support.same_answers import Caller, Instead

_NO_ROW = Instead("issue 19: a request outside the table of rights is 403 for a `user`", 403, '"type": "forbidden"')
_DENIED = Instead("drop-in.md, `PROXY_DENY`: details of the server are not for clients", 403)


async def static_files(who: Caller) -> None:
    for path in (
        "/",
        "/extensions",
        "/i18n",
        "/workflow_templates",
        "/docs/KSampler/en.md",
        "/extensions/nothing/x.js",
        "/assets/nothing.js",
        "/templates/nothing.json",
        "/workflow_templates/nothing/x.json",
        "/scripts/nothing.js",
        "/favicon.ico",
        "/user.css",
    ):
        await who.get(path)
        await who.ask("HEAD", path)


async def unknown_paths(who: Caller) -> None:
    for path in (
        "/nothing",
        "/queue/",
        "/QUEUE",
        "/queue/x",
        "/history/a/b",
        "/prompt/x",
        "/object_info/",
        "/models/a/b",
    ):
        await who.get(path, user=_NO_ROW)
    for path in ("/nothing", "/view", "/object_info", "/system_stats", "/models"):
        await who.post(path, {}, user=_NO_ROW)
    await who.get("/queue%2F", user=_NO_ROW)
    for path in ("/%71ueue", "/./queue", "/x/../queue"):
        await who.get(path)


async def internal_paths(who: Caller) -> None:
    for path in ("/internal/logs", "/internal/logs/raw", "/internal/folder_paths"):
        await who.get(path, gateway=_DENIED)


async def the_websocket_path_over_plain_http(who: Caller) -> None:
    await who.get("/ws", user=_NO_ROW)
    await who.ask("HEAD", "/ws", user=Instead(_NO_ROW.why, 403))
    await who.post("/ws", {}, user=_NO_ROW)


CASES = (static_files, unknown_paths, internal_paths, the_websocket_path_over_plain_http)
