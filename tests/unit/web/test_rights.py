"""The table of rights fails closed for each route, method, role and spelling."""

from __future__ import annotations

from itertools import product
from urllib.parse import quote

import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui.owners import KeyRules, Role
from comfyui.web.comfyui.face import FACE, For, face_row_of
from comfyui.web.front.paths import PROBES, normalised
from comfyui.web.front.rights import ALL, NO, OWN, TABLE, WEBSOCKET, row_of, verdict
from config import Settings
from server import create_app

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "PROPFIND", WEBSOCKET)
# Every route of ComfyUI 0.3.64 and 0.38 and of ComfyUI-Manager, and some routes of custom nodes.
COMFYUI_PATHS = [
    *("/", "/ws", "/embeddings", "/models", "/models/loras", "/extensions", "/extensions/pack/x.js", "/upload/image"),
    *("/upload/mask", "/view", "/view_metadata/loras", "/system_stats", "/features", "/prompt", "/object_info"),
    *("/object_info/KSampler", "/history", "/history/1", "/queue", "/interrupt", "/free", "/users", "/userdata"),
    *("/v2/userdata", "/userdata/a.json", "/userdata/a.json/move/b.json", "/settings", "/settings/x", "/i18n"),
    *("/experiment/models", "/experiment/models/loras", "/experiment/models/preview/loras/0/x.png", "/jobs", "/jobs/1"),
    *("/workflow_templates", "/internal/logs", "/internal/logs/raw", "/internal/logs/subscribe", "/jobs/1/cancel"),
    *("/internal/folder_paths", "/internal/files/output", "/jobs/cancel", "/assets", "/assets/1", "/tags"),
    *("/assets/x.js", "/scripts/app.js", "/docs/x.md", "/templates/x.json", "/manager/reboot", "/manager/queue/start"),
    *("/customnode/getlist", "/snapshot/save", "/pysssss/workflows", "/global_subgraphs", "/servers/gpu-1/free"),
    *("/servers/gpu-1/ws", "/v1/models", "/mcp", "/usage/x", "/metrics/x", "/prompt_sync/1/2"),
]
OUR_ROUTES = [
    (route.path or "/", route.methods or set()) for route in iter_route_contexts(create_app(Settings()).router.routes)
]
OUR_PATHS = sorted({path for path, _ in OUR_ROUTES})


def rules(role: Role, **fields: object) -> KeyRules:
    return KeyRules(name="alice", role=role, **fields)  # type: ignore[arg-type]


def spellings_of(path: str) -> st.SearchStrategy[str]:
    """The path in spellings that a server may read as the same path."""
    ways = [
        path,
        f"/api{path}",
        f"//{path[1:]}",
        f"{path}/",
        f"/.{path}",
        f"/x/..{path}",
        f"/%2e{path}",
        path.replace("/", "//"),
        path.replace("/", "\\"),
        path.replace("/", "%2F"),
        path.replace("/", "%5c"),
        f"/api/api{path}",
        f"/API{path}",
        path.upper(),
        f"{path}%00.png",
        f"{path}/..;/x",
        quote(quote(path, safe=""), safe="/"),
        "".join(f"%{ord(letter):02X}" if letter.isalpha() else letter for letter in path),
        "".join(f"%25{ord(letter):02X}" if letter.isalpha() else letter for letter in path),
    ]
    return st.sampled_from(ways)


PATHS = st.one_of(st.sampled_from(COMFYUI_PATHS + OUR_PATHS), st.text(min_size=1, max_size=20).map(lambda t: f"/{t}"))


@settings(max_examples=2000, deadline=None)
@given(path=PATHS.flatmap(spellings_of), method=st.sampled_from(METHODS), role=st.sampled_from(["user", "read"]))
def test_nothing_is_allowed_without_a_row_of_the_table(path: str, method: str, role: Role) -> None:
    found = verdict(rules(role), method, path)
    if found.refusal is None:
        row = found.row
        assert row is not None
        right = row.user if role == "user" else row.read
        assert found.right is right is not NO
        assert row.method == method or (row.method, method) == ("GET", "HEAD")
        # The row fits the path that a server sees, however often the server decodes it.
        meant = normalised(path)
        assert meant is not None
        parts, pattern = meant.split("/"), row.path.removeprefix("/api").split("/")
        assert len(parts) == len(pattern) or (pattern[-1] == "**" and len(parts) >= len(pattern))
        assert all(want in {"*", "**", part} for want, part in zip(pattern, parts, strict=False))
    else:
        assert found.right is NO


@settings(max_examples=500, deadline=None)
@given(path=PATHS.flatmap(spellings_of), method=st.sampled_from(METHODS))
def test_a_key_with_the_role_read_may_only_use_get(path: str, method: str) -> None:
    if verdict(rules("read"), method, path).refusal is None:
        assert method in {"GET", "HEAD"}


@settings(max_examples=300, deadline=None)
@given(path=PATHS.flatmap(spellings_of), method=st.sampled_from(METHODS))
def test_admins_and_callers_of_a_gateway_without_keys_may_do_everything(path: str, method: str) -> None:
    assert verdict(rules("admin"), method, path).right is ALL
    assert verdict(None, method, path).right is ALL


def test_users_may_not_use_routes_that_affect_or_reveal_others() -> None:
    for method, path in product(
        ("GET", "POST", "DELETE", "PATCH"),
        (
            *("/free", "/internal/logs", "/internal/folder_paths", "/manager/reboot", "/customnode/getlist"),
            *("/servers/gpu-1/queue", "/metrics", "/assets", "/pysssss/workflows"),
        ),
    ):
        assert verdict(rules("user"), method, path).right is NO, (method, path)
        assert verdict(rules("user"), method, f"/api{path}").right is NO, (method, path)


@pytest.mark.parametrize("path", ["/prompt_sync", "/validate", "/convert", "/api/v2/jobs"])
@pytest.mark.parametrize("role", ["user", "admin"])
def test_a_key_limited_to_named_workflows_may_not_send_its_own_graph(path: str, role: Role) -> None:
    found = verdict(rules(role, workflows=frozenset({"portrait"})), "POST", path)
    assert found.refusal is not None
    assert "named workflows only" in found.refusal


@pytest.mark.parametrize("path", [row.path for row in TABLE if row.graph and "*" not in row.path])
@pytest.mark.parametrize("spelling", ["/{0}", "/.{0}", "/x/..{0}", "/%2e{0}", "/api/{0}", "{0}/", "/%2F{0}", "{0}%00x"])
def test_no_spelling_lets_an_admin_with_workflows_send_a_graph(path: str, spelling: str) -> None:
    raw_path = spelling.format(path)
    found = verdict(rules("admin", workflows=frozenset({"portrait"})), "POST", raw_path)
    assert found.refusal is not None, raw_path
    assert "named workflows only" in found.refusal
    assert verdict(rules("admin", workflows=frozenset({"portrait"})), "GET", "/no/such//path").refusal is None


_HELD = (
    ("/queue", "pause"),
    ("/queue", "resume"),
    ("/servers/{name:path}", "drain"),
    ("/servers/{name:path}", "resume"),
    *(("/console/queue", what) for what in ("pause", "resume")),
    *(("/console/servers/{name:path}", what) for what in ("drain", "resume", "free")),
)


def test_each_of_our_own_routes_has_a_row() -> None:
    """A route without a row is for admins only, and is listed in `_HELD`."""
    admins_only = {("POST", f"{of}/{what}") for of, what in _HELD}
    assert set(OUR_PATHS) > {"/prompt_sync/{prompt_id}", "/metrics"}
    for path, methods in OUR_ROUTES:
        for method in methods - {"HEAD"} if path not in PROBES else ():
            found = row_of(method, path.replace("{prompt_id}", "1"))
            assert (found is None) == ((method, path) in admins_only), (method, path)


def test_each_row_for_a_users_own_data_is_answered_by_the_face() -> None:
    """POST /prompt has an endpoint of ours, in `comfyui.web.comfyui.prompt`; a websocket has `Face.frames`."""
    own = {(row.method, row.path) for row in TABLE if row.whose == "comfyui" and row.user is OWN}
    answered = {(row.method, row.path.removeprefix("/api")) for row in FACE if row.whom is not For.NOBODY}
    assert own <= answered
    # Rows for users only are about their own jobs. The other rows do the same for every caller.
    assert {(row.method, row.path) for row in FACE if row.whom is For.USERS} <= own
    ruled = {(row.method, row.path.removeprefix("/api")) for row in FACE if row.rule is not None}
    assert ruled == answered - {("POST", "/prompt"), (WEBSOCKET, "/ws")}


@settings(max_examples=500, deadline=None)
@given(path=PATHS.flatmap(spellings_of), method=st.sampled_from(METHODS))
def test_a_users_own_routes_have_the_same_row_in_both_tables(path: str, method: str) -> None:
    row = row_of(method, path)
    if row is not None and row.whose == "comfyui" and row.user is OWN:
        # ComfyUI has some routes below /api only. No row answers them without /api.
        found = face_row_of(method, path) or face_row_of(method, f"/api{path}")
        assert found is not None
        assert (found.method, found.path.removeprefix("/api")) == (row.method, row.path) or found.whom is For.NOBODY


def test_no_two_rows_have_the_same_method_and_path() -> None:
    keys = [(row.whose, row.method, row.path) for row in TABLE]
    assert len(keys) == len(set(keys))
    assert {right for row in TABLE for right in (row.user, row.read)} == {ALL, OWN, NO}
