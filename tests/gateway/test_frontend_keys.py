"""ComfyUI's own web frontend in Chromium for two customers, who each work as if alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyui.engine import Engine, EngineOptions
from tests.support.browsing import (
    FRONTEND_IS_CONNECTED,
    SAVED_PICTURE_WIDTH,
    TAB_ICON,
    browser,
    chromium,
    frontend_root,
)
from tests.support.keys import ALICE, BOB
from tests.support.running import executions, invert_workflow, queue_of, running_gateway, sleep_workflow, until

pytestmark = pytest.mark.timeout(240)

_ENDED = "async () => Object.keys(await (await window.app.api.fetchApi('/history')).json()).length"
_RUNNING = "async () => (await (await window.app.api.fetchApi('/queue')).json()).queue_running.length"
# Requests that a user key may not make; the frontend works without them.
_REFUSED = frozenset({"403 /internal/logs", "403 /internal/folder_paths", "403 /api/global_subgraphs"})


async def _open(running: Any, address: str, key: str, failed: set[str]) -> Any:
    page = await (await running.new_context()).new_page()

    def note(answer: Any) -> None:
        if answer.status in {401, 403} or answer.status >= 500:
            failed.add(f"{answer.status} {answer.url.replace(address, '').partition('?')[0]}")

    await page.goto(f"{address}/")
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    page.on("response", note)
    await page.wait_for_function(FRONTEND_IS_CONNECTED, timeout=120_000)
    await page.wait_for_load_state("networkidle")
    return page


async def _queue(page: Any, workflow: Any) -> None:
    await page.evaluate("workflow => window.app.loadApiJson(workflow, 'test.json')", workflow)
    await page.evaluate("window.app.queuePrompt(0)")


async def test_neither_of_two_customers_sees_or_stops_the_work_of_the_other(keys_path: Path) -> None:
    chromium()
    failed: set[str] = set()
    async with (
        Engine(EngineOptions(step_seconds=0.002, front_end_root=frontend_root())) as engine,
        running_gateway(engine.url, keys_file=keys_path) as gateway,
        browser() as running,
    ):
        alice = await _open(running, gateway.url, ALICE, failed)
        bob = await _open(running, gateway.url, BOB, failed)
        await _queue(alice, invert_workflow(1, width=96, height=64))
        await alice.wait_for_function(SAVED_PICTURE_WIDTH, timeout=60_000)
        assert await alice.evaluate(SAVED_PICTURE_WIDTH) == 96
        assert await bob.evaluate(_ENDED) == 0
        assert await alice.evaluate(_ENDED) == 1

        await _queue(alice, sleep_workflow(600))
        await until(lambda: queue_of(engine), lambda queue: bool(queue[0]))
        running_now = (await queue_of(engine))[0]
        assert await bob.evaluate(_RUNNING) == 0
        await bob.evaluate("window.app.api.interrupt()")
        await bob.evaluate("window.app.api.clearItems('queue')")
        assert (await queue_of(engine))[0] == running_now
        await alice.evaluate("window.app.api.interrupt()")
        await until(lambda: queue_of(engine), lambda queue: queue == ([], []))

        await _queue(bob, invert_workflow(2, width=48, height=64))
        await bob.wait_for_function(SAVED_PICTURE_WIDTH, timeout=60_000)
        assert await bob.evaluate(SAVED_PICTURE_WIDTH) == 48
        # The settings of one customer do not change those of the other.
        await alice.evaluate("window.app.api.storeSetting('test.mine', 'alice')")
        assert await bob.evaluate("window.app.api.getSetting('test.mine')") is None
        assert await alice.evaluate("window.app.api.getSetting('test.mine')") == "alice"
    assert {one for one in failed if TAB_ICON not in one} <= _REFUSED
    assert len(executions(engine)) == 3
