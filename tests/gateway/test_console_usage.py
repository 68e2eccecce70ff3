"""`/console/usage`, `/console/keys` and the login page: their content, and what each key sees."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from comfyui.engine import Engine
from comfyui.web.console.static_files import static_folder
from tests.support.calls import Calls
from tests.support.jobs import ASYNC
from tests.support.keys import ALICE, BOB, CAROL, KEY, ROOT, WATCHER, bearer, table, write_keys
from tests.support.named_folder import run
from tests.support.receivers import SECRET
from tests.support.relaying import fetch
from tests.support.running import RunningGateway, invert_workflow, running_gateway, sleep_workflow, until

_BROWSER = {"Accept": "text/html,*/*", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}


async def _page(gateway: RunningGateway, path: str, key: str | None, status: int = 200) -> str:
    answer = await fetch(gateway, path, headers=(bearer(key) if key else {}) | _BROWSER)
    assert answer.status == status, answer.body
    return answer.body.decode()


def _rows(text: str) -> list[list[str]]:
    """Returns the texts in each row of the only table."""
    body = re.search(r"<tbody>(.*)</tbody>", text, re.DOTALL)
    assert body is not None
    cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in body[1].split("</tr>")[:-1])
    return [[unescape(" ".join(re.sub("<[^>]*>", " ", cell).split())) for cell in row] for row in cells]


@pytest.mark.parametrize("key", [ROOT, WATCHER, KEY])
async def test_a_key_with_full_view_sees_the_runs_of_each_key(gateway_with_usage: RunningGateway, key: str) -> None:
    rows = {row[0]: row[2:6] for row in _rows(await _page(gateway_with_usage, "/console/usage?show=prompts", key))}
    assert rows["alice"] == ["2", "1", "0", "0"]
    assert rows["bob"] == ["1", "0", "0", "0"]


async def test_a_user_sees_only_its_own_usage(gateway_with_usage: RunningGateway) -> None:
    for query in ("", "?by=workflow", "?by=day"):
        text = await _page(gateway_with_usage, f"/console/usage{query}", BOB)
        (row,) = _rows(text)
        assert row[2:6] == ["1", "0", "0", "0"]
        assert "alice" not in text
        assert 'value="key"' not in text
    text = await _page(gateway_with_usage, "/console/usage?by=key", BOB, 422)
    assert "there is no column &#39;key&#39;; the columns are workflow, day" in text


async def test_persons_behind_a_shared_key_have_separate_rows(gateway_with_usage: RunningGateway) -> None:
    rows = {
        row[0]: row[2] for row in _rows(await _page(gateway_with_usage, "/console/usage?by=person&show=prompts", ALICE))
    }
    assert rows == {"alice / (no person named)": "1", "alice / eve": "1"}
    answer = await fetch(gateway_with_usage, "/console/usage", headers=bearer(ALICE) | {"X-User": "eve"})
    (row,) = _rows(answer.body.decode())
    assert row[2:4] == ["1", "0"]
    assert 'value="person"' not in answer.body.decode()


async def test_rows_are_sorted_by_the_shown_figure(gateway_with_usage: RunningGateway) -> None:
    text = await _page(gateway_with_usage, "/console/usage?show=prompts", ROOT)
    assert [row[0] for row in _rows(text)][:2] == ["alice", "bob"]
    assert 'href="../console/results?owner=alice"' in text
    # Alice has 3 of 4 prompts; the chart has a part for each of the two keys.
    assert _rows(text)[0][-1] == "75%"
    assert len(re.findall(r'<rect class="series-[01]" x=', text)) == 2
    assert re.search(r"<title>20\d\d-\d\d-\d\d: alice 3, bob 1</title>", text)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("since=yesterday", "since: must be a day, such as 2026-11-01"),
        ("since=2026-11-02&until=2026-11-01", "since: 2026-11-02 is after until, 2026-11-01"),
        ("by=colour", "by: there is no column &#39;colour&#39;; the columns are key, person, workflow, day"),
        ("show=%3Cb%3E", "show: "),
        ("from=2026-11-01", "from: there is no such query parameter"),
    ],
)
async def test_an_invalid_query_is_explained_on_the_page(
    gateway_with_usage: RunningGateway, query: str, told: str
) -> None:
    answer = await fetch(gateway_with_usage, f"/console/usage?{query}", headers=bearer(ROOT))
    assert answer.status in {400, 422}
    text = answer.body.decode()
    assert told in text
    assert "<b>" not in text
    assert '<form class="filters"' in text


async def test_empty_fields_are_dropped_and_days_without_usage_say_so(gateway_with_usage: RunningGateway) -> None:
    sent = await fetch(gateway_with_usage, "/console/usage?since=&until=2026-11-30&by=&show=time", headers=bearer(ROOT))
    assert (sent.status, sent.headers["Location"]) == (303, "?until=2026-11-30&show=time")
    text = await _page(gateway_with_usage, "/console/usage?since=2001-01-01&until=2001-01-31", ROOT)
    assert "Nothing was used in these days." in text


async def test_without_keys_usage_is_shown_by_workflow_without_a_link_to_keys(named: RunningGateway) -> None:
    assert (await run(named.http, "flat", {"seed": 1}))[0] == 200
    await named.prompt_sync(invert_workflow())
    text = await _page(named, "/console/usage", None)
    assert {row[0] for row in _rows(text)} == {"flat", "(unnamed workflow)"}
    assert re.findall(r"console/results\?([^\"]+)", text) == ["workflow=flat"]
    assert "console/keys" not in text
    assert "requires no keys" in await _page(named, "/console/keys", None)


async def test_keys_are_shown_with_their_limits_and_current_use(engine: Engine, tmp_path: Path) -> None:
    keys = (
        table("alice", ALICE, max_queued=5, max_running=1, per_minute=10, workflows=["portrait"], weight=2.0)
        + table("carol", CAROL, user_header="X-User", webhook_secret=SECRET)
        + table("watcher", WATCHER, "read")
        + table("bob", BOB, max_queued=5, max_running=1, per_minute=10)
    )
    path = write_keys(tmp_path / "keys.toml", keys)
    async with running_gateway(engine.url, keys_file=path, api_keys=KEY) as gateway:
        calls = Calls(gateway)
        await calls.submit(BOB, sleep_workflow(600), ASYNC)
        await calls.submit(BOB, sleep_workflow(600, tag=1), ASYNC)
        await until(
            lambda: _page(gateway, "/console/keys", WATCHER),
            lambda text: {row[0]: row[2:5] for row in _rows(text)}["bob"] == ["1 of 5", "1 of 1", "2 of 10"],
        )
        text = await _page(gateway, "/console/keys", WATCHER)
        rows = {row[0]: row[1:] for row in _rows(text)}
        assert rows["alice"] == ["user", "0 of 5", "0 of 1", "0 of 10", "0", "2", "may run only: portrait"]
        assert rows["carol"][-1] == "the header x-user names the person has its own webhook secret"
        assert rows["watcher"] == ["read", "0", "0", "not counted", "any", "1", ""]
        (of_settings,) = (row for name, row in rows.items() if name.startswith("key-"))
        assert of_settings[-1] == "set in API_KEYS"
        for secret in (ALICE, SECRET, *re.findall(r'sha256 = \'?"?([0-9a-f]{64})', keys)):
            assert secret not in text
        # The key is removed while it still has jobs.
        write_keys(path, keys.replace("[keys.bob]", "[keys.robert]"))
        await until(lambda: _page(gateway, "/console/keys", WATCHER), lambda text: "robert" in text)
        assert "The key bob no longer exists." in await _page(gateway, "/console/keys", WATCHER)


async def test_a_user_cannot_see_the_page_of_keys(gateway_with_usage: RunningGateway) -> None:
    assert "console/keys" not in await _page(gateway_with_usage, "/console", ALICE)
    assert (await fetch(gateway_with_usage, "/console/keys", headers=bearer(ALICE))).status == 403
    assert "console/keys" in await _page(gateway_with_usage, "/console", WATCHER)


async def test_the_page_of_keys_reports_an_invalid_keys_file(
    gateway_with_usage: RunningGateway, tmp_path: Path
) -> None:
    write_keys(tmp_path / "keys.toml", "[keys.alice]\nrole = 'king'\n")
    text = await until(lambda: _page(gateway_with_usage, "/console/keys", ROOT), lambda text: 'role="alert"' in text)
    assert "king" not in text
    assert "alice" in text


async def test_the_login_page_loads_the_style_of_the_console_without_a_key(locked: RunningGateway) -> None:
    page = await fetch(locked, "/login", headers=_BROWSER)
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "script" not in policy
    files = re.findall(r'href="([^"]+)"', page.body.decode())
    assert sorted(path.rpartition("/")[2] for path in files) == ["console.css", "icon.svg"]
    for path in files:
        assert (await fetch(locked, f"/{path}")).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "console.css"),
        ("POST", "console.css"),
        ("GET", "console.mjs"),
        ("GET", "none.css"),
        ("GET", "../../queue"),
        ("GET", "%2e%2e/%2e%2e/%2e%2e/queue"),
        ("GET", "..%2f..%2f..%2fqueue/console.css"),
        ("GET", "console.css/../../../queue"),
        ("GET", "/console.css"),
    ],
)
async def test_without_a_key_only_the_files_of_the_login_page_are_served(
    locked: RunningGateway, method: str, path: str
) -> None:
    """A path that only resembles one of these files would be relayed to ComfyUI without a key."""
    answer = await fetch(locked, f"/{static_folder()}{path}", method)
    assert answer.status == 401
