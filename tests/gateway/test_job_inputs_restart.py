"""The inputs of async jobs survive a kill of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from comfyui.engine import Engine
from tests.support.job_inputs import (
    Color,
    b64,
    blocked,
    by_image,
    data_uri,
    files_of,
    form_of,
    inverted,
    journal_has,
    loading,
    picture,
    taken,
)
from tests.support.jobs import state_of
from tests.support.processes import GatewayProcess, gateway_process
from tests.support.running import executions, until

_COLOR = (10, 200, 30)
_DATA = picture(_COLOR)


async def store_is(state: Path, names: set[str]) -> None:
    async def found() -> set[str]:
        return set(await asyncio.to_thread(files_of, state))

    await until(found, lambda there: there == names, timeout_s=20)


@pytest.mark.parametrize(
    "body",
    [
        by_image(b64(_DATA)),
        by_image(data_uri(_DATA)),
        {"prompt": loading(data_uri(_DATA))},
        "form",
    ],
    ids=["base64", "data URI", "in the workflow", "form"],
)
async def test_a_waiting_job_still_has_its_input_after_a_kill(tmp_path: Path, engine: Engine, body: Any) -> None:
    digest = hashlib.sha256(_DATA).hexdigest()
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        await blocked(gateway.http)
        posted = form_of(loading(), {"photo.png": _DATA}) if body == "form" else body
        prompt_id = await taken(gateway.http, posted)
        assert await asyncio.to_thread(files_of, tmp_path) == {digest: _DATA}
        await gateway.kill()
    assert not journal_has(tmp_path, b64(_DATA))
    assert journal_has(tmp_path, digest) is (body != "form")
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        assert await inverted(gateway.http, prompt_id) == _COLOR
        await store_is(tmp_path, set())
        assert b64(_DATA) not in str(gateway.lines)
    assert executions(engine)[prompt_id] == 1


async def test_each_job_accepted_before_a_kill_runs_once_with_its_own_input(tmp_path: Path, engine: Engine) -> None:
    """The kill may hit any step of a submission: jobs with a 202 run, and the others leave no files."""
    colors: dict[str, Color] = {}

    async def submit_until_killed(gateway: GatewayProcess, first: int) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            for number in range(first, 1000, 4):
                color = (first, number % 256, number // 256)
                data = picture(color)
                form = number % 3 == 0
                body = form_of(loading(), {"photo.png": data}) if form else by_image(b64(data))
                colors[await taken(gateway.http, body)] = color

    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        await blocked(gateway.http, 2)
        submitting = [asyncio.create_task(submit_until_killed(gateway, first)) for first in range(4)]
        await until(lambda: count_of(colors), lambda count: count >= 30)
        await gateway.kill()
        await asyncio.gather(*submitting)
    # A kill may leave a half-written file, or a complete one whose submission got no answer.
    (tmp_path / "inputs" / "new-half").write_bytes(b"half")
    (tmp_path / "inputs" / hashlib.sha256(b"orphan").hexdigest()).write_bytes(b"orphan")
    async with gateway_process(engine.url, **state_of(tmp_path)) as gateway:
        for prompt_id, color in colors.items():
            assert await inverted(gateway.http, prompt_id) == color
        await store_is(tmp_path, set())
    ran = executions(engine)
    assert {ran[prompt_id] for prompt_id in colors} == {1}


async def count_of(found: Collection[Any]) -> int:
    return len(found)
