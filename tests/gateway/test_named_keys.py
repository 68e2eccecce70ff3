"""A key with `workflows` runs and sees only these workflows, and cannot send a graph to any endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.jobs import ASYNC
from tests.support.keys import ALICE, ROOT, bearer
from tests.support.named_folder import FLAT, run
from tests.support.running import RunningGateway

LIMITED = bearer(ALICE)
_GRAPH = {"prompt": FLAT}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/prompt_sync", _GRAPH),
        ("/prompt", _GRAPH),
        ("/api/prompt", _GRAPH),
        ("/validate", _GRAPH),
        ("/convert", {"workflow": {"nodes": [], "links": []}}),
        ("/api/v2/jobs", {"workflow": FLAT}),
        ("/prompt_sync?prefer=respond-async", _GRAPH),
        ("/api//prompt", _GRAPH),
        ("/servers/gpu-1/prompt", _GRAPH),
    ],
)
async def test_a_key_limited_to_workflows_cannot_send_a_graph_to_any_endpoint(
    limited: RunningGateway, path: str, body: Any
) -> None:
    async with limited.http.post(path, json=body, headers=LIMITED) as response:
        assert response.status == 403, await response.text()


async def test_a_key_runs_and_sees_only_its_own_workflows(limited: RunningGateway) -> None:
    status, result = await run(limited.http, "flat", {"width": 4}, headers=LIMITED)
    assert (status, result["workflow"]["name"]) == (200, "flat")
    async with limited.http.get(result["images"][0]["url"], headers=LIMITED) as response:
        assert response.status == 200
    for name in ("inverted", "broken", "nowhere"):
        status, refused = await run(limited.http, name, {}, headers=LIMITED)
        assert (status, refused["type"]) == (403, "forbidden"), name
        async with limited.http.get(f"/workflows/{name}", headers=LIMITED) as response:
            assert response.status == 403
    async with limited.http.get("/workflows", headers=LIMITED) as response:
        assert [one["name"] for one in (await response.json())["workflows"]] == ["flat"]
    async with limited.http.get("/workflows", headers=bearer(ROOT)) as response:
        assert [one["name"] for one in (await response.json())["workflows"]] == ["broken", "flat", "inverted"]


async def test_the_document_has_only_the_paths_that_the_key_may_use(limited: RunningGateway) -> None:
    found = {}
    for key in (ALICE, ROOT):
        async with limited.http.get("/openapi.json", headers=bearer(key)) as response:
            found[key] = {path for path in (await response.json())["paths"] if path.startswith("/workflows/")}
    assert found == {
        ALICE: {"/workflows/{name}", "/workflows/flat"},
        ROOT: {"/workflows/{name}", "/workflows/flat", "/workflows/inverted"},
    }


async def test_usage_is_counted_by_workflow(limited: RunningGateway) -> None:
    async with limited.http.post("/workflows/flat", json={}, headers={**LIMITED, **ASYNC}) as response:
        prompt_id = (await response.json())["prompt_id"]
    async with limited.http.get(f"/prompt_sync/{prompt_id}?timeout=30", headers=LIMITED) as response:
        assert response.status == 200
    async with limited.http.get("/usage?by=key,workflow", headers=LIMITED) as response:
        rows = {
            row["workflow"]: row for row in (await response.json())["usage"]
        }  # bytes are counted without a workflow
    assert (rows["flat"]["key"], rows["flat"]["prompts"]["succeeded"]) == ("alice", 1)
