"""Settings and user data of users: each key has its own, as if it were alone on ComfyUI."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui.engine import Engine
from tests.support.calls import Calls
from tests.support.keys import ALICE, BOB, ROOT, WATCHER, bearer
from tests.support.relaying import fetch, raw_request


async def _ask(calls: Calls, key: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    answer = await fetch(
        calls.gateway, path, method, data=None if body is None else json.dumps(body), headers=bearer(key)
    )
    try:
        return answer.status, json.loads(answer.body)
    except ValueError:
        return answer.status, answer.body


async def _raw(calls: Calls, key: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Sends the path without any change."""
    head = f"{method} {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    answer = await raw_request(calls.gateway.url, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split(b" ", 2)[1]), content


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_each_key_has_its_own_settings(calls: Calls, prefix: str) -> None:
    assert await _ask(calls, ALICE, "GET", f"{prefix}/settings") == (200, {})
    assert (await _ask(calls, ALICE, "POST", f"{prefix}/settings", {"Comfy.A": 1, "Comfy.B": "x"}))[0] == 200
    assert (await _ask(calls, ALICE, "POST", f"{prefix}/settings/Comfy.A", [2]))[0] == 200
    assert await _ask(calls, ALICE, "GET", f"{prefix}/settings") == (200, {"Comfy.A": [2], "Comfy.B": "x"})
    assert await _ask(calls, ALICE, "GET", f"{prefix}/settings/Comfy.A") == (200, [2])
    assert await _ask(calls, ALICE, "GET", f"{prefix}/settings/none") == (200, None)
    assert await _ask(calls, BOB, "GET", f"{prefix}/settings") == (200, {})
    assert await _ask(calls, ROOT, "GET", f"{prefix}/settings") == (200, {})
    assert (await _ask(calls, WATCHER, "GET", f"{prefix}/settings"))[0] == 403
    for body in (b"{", b"[1]"):
        assert (await _raw(calls, ALICE, "POST", f"{prefix}/settings", body))[0] == 422


async def test_each_key_has_its_own_files(calls: Calls, engine: Engine) -> None:
    stored = await _ask(calls, ALICE, "POST", "/api/userdata/workflows%2Fa.json?full_info=true", {"a": 1})
    assert stored[0] == 200
    assert stored[1]["path"] == "workflows/a.json"
    assert (await _ask(calls, ALICE, "POST", "/api/userdata/workflows%2Fb%2525.json", {}))[0] == 403  # encoded twice
    assert await _ask(calls, ALICE, "POST", "/userdata/workflows%2Fb.json", {"b": 1}) == (200, "workflows/b.json")
    assert await _ask(calls, ALICE, "GET", "/userdata/workflows%2Fa.json") == (200, {"a": 1})
    assert (await _ask(calls, ALICE, "POST", "/userdata/workflows%2Fa.json?overwrite=false", {}))[0] == 409
    listed = await _ask(calls, ALICE, "GET", "/userdata?dir=workflows&recurse=true&split=false&full_info=true")
    assert sorted(file["path"] for file in listed[1]) == ["a.json", "b.json"]
    assert await _ask(calls, ALICE, "POST", "/userdata/workflows%2Fb.json/move/workflows%2Fc.json?overwrite=true") == (
        200,
        "workflows/c.json",
    )
    assert (await _ask(calls, ALICE, "DELETE", "/userdata/workflows%2Fc.json"))[0] == 204
    assert (await _ask(calls, BOB, "GET", "/userdata/workflows%2Fa.json"))[0] == 404
    assert (await _ask(calls, BOB, "GET", "/userdata?dir=workflows"))[0] == 404
    assert await _ask(calls, ALICE, "GET", "/users") == (200, {"storage": "server", "migrated": True})
    assert (engine.folders.user / "default/keys/alice/workflows/a.json").is_file()
    # An admin's file stays in ComfyUI's usual folder.
    assert (await _ask(calls, ROOT, "POST", "/userdata/workflows%2Fa.json", {"root": 1}))[0] == 200
    assert (engine.folders.user / "default/workflows/a.json").is_file()


@pytest.mark.parametrize(
    "path",
    [
        *("/userdata/..%2Fbob%2Fa.json", "/userdata/keys%2Fbob%2Fa.json", "/userdata/..%2F..%2Fa.json"),
        *("/userdata/%2e%2e%2fbob%2fa.json", "/userdata/..%5Cbob%5Ca.json", "/userdata/x%2F..%2F..%2Fbob%2Fa.json"),
        *("/userdata/%252e%252e%252fbob%252fa.json", "/userdata/a.json%00", "/userdata/", "/userdata/a/b/c/d"),
        *("/userdata/x/move/..%2Fbob%2Fa.json", "/userdata/..%2Fbob%2Fa.json/move/x.json", "/userdata/%2Fetc%2Fpasswd"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_file_name_leads_to_another_keys_files(calls: Calls, engine: Engine, path: str, method: str) -> None:
    for key in (BOB, ROOT):
        await _ask(calls, key, "POST", "/userdata/a.json", {"of": key})
    home = engine.folders.user / "default"
    before = {path: path.read_bytes() for path in (home / "a.json", home / "keys/bob/a.json")}
    status, content = await _raw(calls, ALICE, method, path, b'{"evil": 1}')
    assert status in {200, 403, 404}  # 200: a folder of that name among her own
    assert b"of" not in content or b"role" in content
    assert {path: path.read_bytes() for path in before} == before
    assert (await _ask(calls, ALICE, "GET", "/userdata?dir=%ff"))[0] == 404
    for query in ("dir=../bob", "dir=..", "dir=/etc", "dir=.", "dir=", "dir=x/../../bob", "dir=..%5Cbob"):
        assert (await _ask(calls, ALICE, "GET", f"/userdata?{query}"))[0] in {400, 403, 404}, query


@pytest.mark.parametrize(
    "name",
    ["../bob", "%2e%2e/bob", "%252e%252e/bob", "%25252e%25252e/bob", "..%2Fbob", "%2e%2e%2fbob", "x/%2e%2e/../bob"],
)
async def test_no_folder_name_lists_another_keys_files(calls: Calls, name: str) -> None:
    """ComfyUI decodes these names one more time than the query was encoded."""
    assert (await _ask(calls, BOB, "POST", "/userdata/secret.json", {}))[0] == 200
    assert (await _ask(calls, ALICE, "POST", "/userdata/mine.json", {}))[0] == 200
    for asked in (f"/userdata?recurse=true&dir={name}", f"/v2/userdata?path={name}"):
        query = asked
        for _ in range(3):
            status, content = await _raw(calls, ALICE, "GET", query)
            assert status in {400, 403, 404}, query
            assert b"secret" not in content
            query = query.replace("%", "%25")


async def test_each_key_lists_only_its_own_folders(calls: Calls) -> None:
    assert await _ask(calls, ALICE, "GET", "/api/v2/userdata") == (200, [])
    for name in ("b.json", "workflows%2Fa%20b.json", "workflows%2F50%25%2Fc.json"):
        assert (await _ask(calls, ALICE, "POST", f"/userdata/{name}", {}))[0] == 200
    assert (await _ask(calls, BOB, "POST", "/userdata/of-bob.json", {}))[0] == 200

    status, listed = await _ask(calls, ALICE, "GET", "/v2/userdata?path=")
    assert status == 200
    assert [(entry["type"], entry["path"]) for entry in listed] == [
        ("directory", "workflows/50%"),
        ("directory", "workflows"),
        ("file", "workflows/a b.json"),
        ("file", "b.json"),
        ("file", "workflows/50%/c.json"),
    ]
    assert listed[2]["size"] == 2
    for path in ("workflows/50%25", "workflows/50%2525", "workflows%2F50%252525/"):
        status, listed = await _ask(calls, ALICE, "GET", f"/v2/userdata?path={path}")
        assert (status, [entry["path"] for entry in listed]) == (200, ["workflows/50%/c.json"])
    assert (await _ask(calls, ALICE, "GET", "/userdata?dir=workflows/50%25")) == (200, ["c.json"])
    assert (await _ask(calls, ALICE, "GET", "/v2/userdata?path=nothing"))[0] == 404
    assert (await _ask(calls, ALICE, "GET", "/v2/userdata?path=b.json"))[0] == 400
    assert (await _ask(calls, WATCHER, "GET", "/v2/userdata"))[0] == 403
    everything = await _ask(calls, ROOT, "GET", "/v2/userdata")
    assert {entry["path"] for entry in everything[1]} >= {"keys/alice/b.json", "keys/bob/of-bob.json"}
