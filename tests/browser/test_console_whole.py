"""The console as a whole: every page on a phone, and one way through all of them with the keyboard alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from tests.support.console import PHONE, Console, accessible, fits, open_console
from tests.support.jobs import ASYNC
from tests.support.keys import ALICE, ROOT, bearer
from tests.support.named_folder import named_folder, run
from tests.support.running import invert_workflow, sleep_workflow, until

pytestmark = pytest.mark.timeout(300)


async def _submit(console: Console, workflow: object, key: str) -> str:
    http, body = console.gateway.http, {"prompt": workflow, "labels": {"order": "4711"}}
    async with http.post("/prompt_sync", json=body, headers=bearer(key) | ASYNC) as answer:
        assert answer.status == 202, await answer.text()
        return str((await answer.json())["prompt_id"])


async def _ended(console: Console, prompt_id: str) -> None:
    async def has_ended() -> bool:
        record = await console.gateway.handler.journal.get(prompt_id)
        return record is not None and record.state.is_end

    await until(has_ended, bool)


async def _jobs(console: Console) -> tuple[str, str]:
    """A job that made a picture, and one that failed; then four that run or wait."""
    made = await _submit(console, invert_workflow(1), ALICE)
    await _ended(console, made)
    assert (await run(console.gateway.http, "flat", {"seed": 1}, headers=bearer(ALICE)))[0] == 200
    for engine in console.engines:
        await engine.set_faults({"node_error": {"message": "Out of memory, and a_long_name" * 4, "times": 1}})
    failed = await _submit(console, invert_workflow(2), ALICE)
    await _ended(console, failed)
    for engine in console.engines:
        engine.faults.clear()
    for tag in range(4):
        await _submit(console, sleep_workflow(600, tag=tag), ALICE)
    standing = console.gateway.handler.standing

    async def running() -> int:
        return len(standing.now(lambda _owner: True).running)

    await until(running, lambda found: found == 3)
    return made, failed


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_fits_a_phone_and_can_be_used_by_all(
    keys_path: Path, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    workflows = named_folder(tmp_path / "workflows")
    async with open_console(size=PHONE, scheme=scheme, keys_file=keys_path, workflows_dir=workflows) as console:
        made, failed = await _jobs(console)
        await console.sign_in(ROOT)
        console.allowed.append("status of 404")
        wrong = []
        for path in (
            "",
            "/queue",
            "/results",
            f"/jobs/{made}",
            f"/jobs/{failed}",
            "/run",
            "/run/flat",
            "/run/inverted",
            "/usage",
            "/keys",
            "/no-such-page",
        ):
            await console.open(f"/console{path}")
            for held in (fits, accessible):
                try:
                    await held(console.page)
                except AssertionError as error:
                    wrong.append(f"/console{path}: {error}")
        assert wrong == [], "\n".join(wrong)
