"""Input files of workflows while the servers that hold them die, return or lose their folders."""

from __future__ import annotations

import asyncio
import io
import itertools
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from PIL import Image

from tests.gateway.test_fleet import has_state, impatient
from tests.support.face_files import reading
from tests.support.fleet import Member, fleet
from tests.support.jobs import fetch, look, submit
from tests.support.running import RunningGateway, running_gateway, until
from tests.support.target import inverted, node


async def made_by(gateway: RunningGateway, members: list[Member]) -> tuple[str, Member]:
    """Renders a picture; returns its name for workflows and the server that has it."""
    status, result = await gateway.prompt_sync(inverted("made", color=0xFF0000))
    assert status == 200, result
    (image,) = result["images"]
    (owner,) = [one for one in members if result["prompt_id"] in one.executions()]
    return f"{image['subfolder']}/{image['filename']} [output]", owner


async def color_of(gateway: RunningGateway, result: dict[str, Any]) -> tuple[int, ...]:
    (image,) = result["images"]
    query = urlencode({name: image[name] for name in ("filename", "subfolder", "type")})
    async with gateway.http.get(f"/view?{query}") as response:
        assert response.status == 200, await response.text()
        with Image.open(io.BytesIO(await response.read())) as picture:
            return tuple(picture.convert("RGB").getpixel((0, 0)))  # type: ignore[arg-type]


async def waits_for(gateway: RunningGateway, prompt_id: str, member: Member) -> None:
    _, told = await until(lambda: look(gateway.http, prompt_id), lambda found: found[1].get("waits_for"), timeout_s=30)
    assert (told["status"], told["waits_for"]) == ("queued", [member.name])


async def test_a_job_waits_for_the_server_that_has_its_input(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        name, owner = await made_by(gateway, members)
        await owner.kill()
        await has_state(gateway, owner, "unreachable")
        waiting = [await submit(gateway.http, reading(name))]
        async with gateway.http.post("/prompt", json={"prompt": reading(name)}) as response:
            assert response.status == 200, await response.text()
            waiting.append((await response.json())["prompt_id"])
        for prompt_id in waiting:
            await waits_for(gateway, prompt_id, owner)
        # Other prompts run meanwhile.
        status, result = await gateway.prompt_sync(inverted("other", color=1))
        assert status == 200, result
        await owner.start()
        for prompt_id in waiting:
            status, result = await fetch(gateway.http, prompt_id)
            assert status == 200, result
            assert await color_of(gateway, result) == (0x00, 0xFF, 0xFF)


async def test_a_file_of_a_server_that_is_no_longer_configured_is_refused_at_once(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3) as members:
        state = tmp_path / "state"
        async with running_gateway(*(m.url for m in members), changed=impatient, state_dir=state) as gateway:
            name, owner = await made_by(gateway, members)
        left = [member for member in members if member is not owner]
        async with running_gateway(*(m.url for m in left), changed=impatient, state_dir=state) as gateway:
            status, answer = await gateway.prompt_sync(reading(name))
    assert (status, answer["type"]) == (400, "input_failed"), answer
    assert answer["detail"] == "prompt.1.inputs.image: the server that made it is no longer configured"


async def test_a_job_waits_for_the_first_server_if_only_that_may_have_its_file(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        home = members[0]
        path = home.output("from before.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "blue").save(path)
        await home.kill()
        await has_state(gateway, home, "unreachable")
        prompt_id = await submit(gateway.http, reading("from before.png [output]"))
        await waits_for(gateway, prompt_id, home)
        await home.start()
        status, result = await fetch(gateway.http, prompt_id)
        assert status == 200, result
        assert await color_of(gateway, result) == (0, 0, 0xFF)


async def test_a_server_that_cannot_send_its_file_runs_the_job_itself(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        name, owner = await made_by(gateway, members)
        await owner.fault(cut={"route": "/view"})
        results = [await fetch(gateway.http, await submit(gateway.http, reading(name))) for _ in range(3)]
        assert [status for status, _ in results] == [200] * 3, results
        await owner.well()


async def uploaded(gateway: RunningGateway, name: str, color: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(picture, "PNG")
    form = aiohttp.FormData()
    form.add_field("image", picture.getvalue(), filename=name, content_type="image/png")
    async with gateway.http.post("/upload/image", data=form) as response:
        assert response.status == 200, await response.text()


def saving(name: str) -> dict[str, Any]:
    """Returns a workflow that no cache can answer."""
    return {
        "1": node("LoadImage", image=name),
        "2": node("SaveImage", images=["1", 0], filename_prefix=f"read_{next(_numbers)}"),
    }


_numbers = itertools.count()


@pytest.mark.parametrize("websockets", [True, False])
async def test_a_server_that_returns_with_an_empty_input_folder_gets_the_uploads_again(
    tmp_path: Path, websockets: bool
) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        for member in members:
            await member.fault(**({} if websockets else {"ws_drop": {}, "ws_refuse": {}}))
        await uploaded(gateway, "a.png", "red")
        await until(lambda: _are_placed(gateway, members), bool, timeout_s=30)
        for member in members:
            await member.stop()
            shutil.rmtree(member.input(""))
            await member.start()
            await member.fault(**({} if websockets else {"ws_refuse": {}}))
        answers = await asyncio.gather(*(gateway.prompt_sync(saving("a.png"), timeout=50) for _ in range(6)))
        assert [status for status, _ in answers] == [200] * 6, answers
        for _, result in answers:
            assert await color_of(gateway, result) == (0xFF, 0, 0)


async def _are_placed(gateway: RunningGateway, members: list[Member]) -> bool:
    """Runs prompts that read the upload; tells whether each server has it now."""
    answers = await asyncio.gather(*(gateway.prompt_sync(saving("a.png")) for _ in members))
    assert {status for status, _ in answers} == {200}, answers
    return all(member.input("a.png").exists() for member in members)


async def test_an_upload_that_was_deleted_on_the_servers_is_sent_again(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        await uploaded(gateway, "a.png", "red")
        await until(lambda: _are_placed(gateway, members), bool, timeout_s=30)
        for member in members:
            member.input("a.png").unlink()
        for _ in range(4):
            status, result = await gateway.prompt_sync(saving("a.png"))
            assert status == 200, result
        # A file that no server has and no client uploaded is refused as before.
        status, result = await gateway.prompt_sync(saving("nothing.png"))
        assert (status, result["type"]) == (400, "validation_failed"), result
