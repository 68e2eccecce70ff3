"""`GET /usage`: what each key used, and who may see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine
from tests.support.keys import ALICE, BOB, KEY, ROOT, WATCHER, bearer
from tests.support.relaying import fetch
from tests.support.running import RunningGateway, invert_workflow, running_gateway


async def _usage(gateway: RunningGateway, key: str, query: str = "", headers: dict[str, str] | None = None) -> Any:
    async with gateway.http.get(f"/usage{query}", headers=bearer(key) | (headers or {})) as response:
        return response.status, await response.json()


def _counts(row: dict[str, Any]) -> tuple[int, int]:
    return row["prompts"]["succeeded"], row["prompts"]["failed"]


@pytest.mark.parametrize("key", [ROOT, WATCHER, KEY])
async def test_admins_and_readers_see_the_usage_of_all_keys(gateway_with_usage: RunningGateway, key: str) -> None:
    status, answer = await _usage(gateway_with_usage, key)
    assert status == 200
    rows = {row["key"]: row for row in answer["usage"]}
    assert (_counts(rows["alice"]), _counts(rows["bob"])) == ((2, 1), (1, 0))
    assert 0.2 < rows["bob"]["gpu_seconds"] < 60
    assert rows["alice"]["gpu_seconds"] > rows["bob"]["gpu_seconds"]
    assert rows["bob"]["bytes"] > 100


async def test_users_see_only_their_own_usage(gateway_with_usage: RunningGateway) -> None:
    for query in ("", "?by=key", "?by=day,key,person,workflow", "?by=workflow"):
        _, answer = await _usage(gateway_with_usage, BOB, query)
        assert {row.get("key", "bob") for row in answer["usage"]} == {"bob"}
        assert sum(row["prompts"]["succeeded"] for row in answer["usage"]) == 1
    _, answer = await _usage(gateway_with_usage, ALICE, "?by=person")
    assert {row["person"]: _counts(row) for row in answer["usage"]} == {"": (1, 1), "eve": (1, 0)}
    _, answer = await _usage(gateway_with_usage, ALICE, "?by=key", {"X-User": "eve"})
    assert [_counts(row) for row in answer["usage"]] == [(1, 0)]


async def test_days_limit_the_answer_and_invalid_queries_are_named(gateway_with_usage: RunningGateway) -> None:
    assert (await _usage(gateway_with_usage, ROOT, "?since=2001-01-01&until=2001-01-02"))[1]["usage"] == []
    for until, since in (("2001-01-31", "2001-01-01"), ("0001-01-02", "0001-01-01")):
        assert await _usage(gateway_with_usage, ROOT, f"?until={until}") == (
            200,
            {"since": since, "until": until, "usage": []},
        )
    for query, detail in (
        ("?by=colour", "by: there is no column 'colour'; the columns are day, key, person, workflow"),
        ("?since=yesterday", "since: must be a day, such as 2026-11-01"),
        ("?until=2026-02-30", "until: must be a day, such as 2026-11-01"),
        ("?until=20260201", "until: must be a day, such as 2026-11-01"),
        ("?since=2026-11-01%0A", "since: must be a day, such as 2026-11-01"),
        ("?since=2026-11-02&until=2026-11-01", "since: 2026-11-02 is after until, 2026-11-01"),
        ("?since=9999-01-01", "since: 9999-01-01 is after today, "),
        ("?form=2001-01-01", "form: there is no such query parameter"),
    ):
        status, body = await _usage(gateway_with_usage, ROOT, query)
        assert status in {400, 422}
        assert detail in body["detail"]


async def test_each_key_has_its_own_series_in_the_metrics(gateway_with_usage: RunningGateway) -> None:
    text = (await fetch(gateway_with_usage, "/metrics", headers=bearer(ROOT))).body.decode()
    assert 'comfyui_gateway_key_prompts_total{key="alice",outcome="success"} 2.0' in text
    assert 'comfyui_gateway_key_prompts_total{key="bob",outcome="success"} 1.0' in text


async def test_usage_survives_a_restart_and_has_one_row_without_keys(engine: Engine, tmp_path: Path) -> None:
    async with running_gateway(engine.url, state_dir=tmp_path / "state") as gateway:
        assert (await gateway.prompt_sync(invert_workflow()))[0] == 200
    async with (
        running_gateway(engine.url, state_dir=tmp_path / "state") as gateway,
        gateway.http.get("/usage") as answer,
    ):
        (row,) = (await answer.json())["usage"]
        assert (row["key"], _counts(row)) == ("", (1, 0))
