"""Scripts about what ComfyUI stores for its web frontend: settings, user files and users."""

from __future__ import annotations

import json
import uuid
from typing import Any

from tests.support.same_answers import Caller, Instead

_BAD_BODY = Instead(
    "product contract section 6: an invalid body gets its reason; ComfyUI's code fails",
    422,
    '"type": "invalid_request"',
)
_ONE_USER = Instead(
    "jobs contract section 4: the keys are the users, so `/users` makes none", 403, '"type": "forbidden"'
)
_NO_FILE = Instead("keys.md: a path outside the key's own files is 403 for a `user`", 403)


def _new(who: Caller) -> str:
    return who.named(f"same-{uuid.uuid4().hex}", "folder")


async def settings(who: Caller) -> None:
    name = _new(who)
    await who.get(f"/settings/{name}")
    values: tuple[Any, ...] = (1, "text", None, {"a": [1, 2.5, True]}, [])
    for value in values:
        await who.post(f"/settings/{name}", json.dumps(value).encode())
        await who.get(f"/settings/{name}")
    await who.post("/settings", {f"{name}.a": 1, f"{name}.b": {"c": None}})
    await who.get(f"/settings/{name}.b")
    await who.post("/settings", {})
    await who.get(f"/settings/{name}.a")
    await who.ask("HEAD", f"/settings/{name}.a")
    await who.ask("HEAD", "/settings")


async def invalid_settings(who: Caller) -> None:
    name = _new(who)
    for body in (b"", b"{", b"\xff"):
        await who.post("/settings", body, user=_BAD_BODY)
        await who.post(f"/settings/{name}", body, user=_BAD_BODY)
    await who.post("/settings", [1], user=_BAD_BODY)
    await who.get(f"/settings/{name}")


async def user_files(who: Caller) -> None:
    folder = _new(who)
    one = f"/userdata/{folder}%2Fone.json"
    await who.get(one)
    await who.post(one, b'{"a": 1}')
    await who.get(one)
    await who.ask("HEAD", one)
    await who.get(one, headers={"Range": "bytes=0-3"})
    await who.post(one, b'{"a": 2}')
    await who.post(f"{one}?overwrite=false", b"{}")
    await who.post(f"{one}?overwrite=true&full_info=true", b'{"a": 3}')
    await who.get(one)
    await who.post(f"/userdata/{folder}%2Fdeep%2Fer%20two.json", b"{}")
    await who.post(f"/userdata/{folder}%2Fempty.txt", b"")
    await who.post(f"/userdata/{folder}%2F%C3%A4%F0%9F%98%80.json", b"{}")
    await who.get(f"/userdata/{folder}%2Fempty.txt")
    await who.post(f"{one}/move/{folder}%2Fthree.json")
    await who.get(one)
    await who.get(f"/userdata/{folder}%2Fthree.json")
    await who.post(f"{one}/move/{folder}%2Ffour.json")
    await who.post(f"/userdata/{folder}%2Fthree.json/move/{folder}%2Fempty.txt?overwrite=false")
    await who.post(f"/userdata/{folder}%2Fthree.json/move/{folder}%2Fempty.txt?full_info=true")
    await who.ask("DELETE", f"/userdata/{folder}%2Fempty.txt")
    await who.ask("DELETE", f"/userdata/{folder}%2Fempty.txt")
    await who.get(f"/userdata/{folder}%2Fempty.txt")


async def lists_of_user_files(who: Caller) -> None:
    folder = _new(who)
    for name in ("a.json", "b%20c.json", "deep%2Fd.json", "deep%2Fer%2Fe.json"):
        await who.post(f"/userdata/{folder}%2F{name}", b"{}")
    for query in (
        f"dir={folder}/deep",
        f"dir={folder}/deep/",
        f"dir={folder}/deep&full_info=true",
        f"dir={folder}/deep&split=true",
        f"dir={folder}/deep/er&recurse=TRUE&split=true&full_info=false",
        f"dir={folder}%2Fdeep%2Fer",
        f"dir={folder}/none",
        f"dir={folder}/a.json",
        "dir=",
        "",
        "dir=..",
        "dir=../..",
        "dir=/etc",
        "dir=%252e%252e/..",
    ):
        await who.get(f"/userdata?{query}")
    for query in (
        f"path={folder}",
        f"path={folder}/",
        f"path={folder}/deep/er",
        f"path={folder}%252Fdeep",
        f"path={folder}/a.json",
        f"path={folder}/none",
        "path=..",
        "path=/etc",
        "path=%252e%252e",
    ):
        await who.get(f"/v2/userdata?{query}")
    await who.ask("HEAD", f"/userdata?dir={folder}")
    await who.ask("HEAD", f"/v2/userdata?path={folder}")


async def names_outside_the_users_folder(who: Caller) -> None:
    for name in ("..%2Fa.json", "..%2F..%2Fa.json", "%2Fetc%2Fpasswd", "x%2F..%2F..%2Fa.json", "%252e%252e%252fa.json"):
        await who.get(f"/userdata/{name}", user=_NO_FILE)
        await who.post(f"/userdata/{name}", b"{}", user=_NO_FILE)
        await who.ask("DELETE", f"/userdata/{name}", user=_NO_FILE)
    await who.get("/userdata/a/b", user=_NO_FILE)


async def users(who: Caller) -> None:
    await who.get("/users")
    await who.post("/users", {"username": "default"}, user=_ONE_USER)


CASES = (
    settings,
    invalid_settings,
    user_files,
    lists_of_user_files,
    names_outside_the_users_folder,
    users,
)
