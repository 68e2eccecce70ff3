"""Files that a workflow reads, and the servers that have them, or had them: which die, come back and are emptied."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from tests.gateway.test_fleet import has_state, impatient
from tests.support.fleet import Member, fleet
from tests.support.jobs import fetch, look, submit
from tests.support.running import RunningGateway, running_gateway, until
from tests.support.target import inverted, node


def reading(name: str) -> dict[str, Any]:
    return {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix="read")}


async def made_by(gateway: RunningGateway, members: list[Member]) -> tuple[str, Member]:
    """A picture that a prompt has made, as a workflow names it, and its server."""
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
        # Others are not held up meanwhile.
        status, result = await gateway.prompt_sync(inverted("other", color=1))
        assert status == 200, result
        await owner.start()
        for prompt_id in waiting:
            status, result = await fetch(gateway.http, prompt_id)
            assert status == 200, result
            assert await color_of(gateway, result) == (0x00, 0xFF, 0xFF)


async def test_a_file_of_a_server_that_is_not_configured_any_more_is_refused_at_once(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3) as members:
        state = tmp_path / "state"
        async with running_gateway(*(m.url for m in members), changed=impatient, state_dir=state) as gateway:
            name, owner = await made_by(gateway, members)
        left = [member for member in members if member is not owner]
        async with running_gateway(*(m.url for m in left), changed=impatient, state_dir=state) as gateway:
            status, answer = await gateway.prompt_sync(reading(name))
    assert (status, answer["type"]) == (400, "input_failed"), answer
    assert answer["detail"] == "prompt.1.inputs.image: the server that made it is not configured any more"


async def test_a_file_that_only_the_first_server_may_have_waits_for_it(tmp_path: Path) -> None:
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


async def test_a_server_that_answers_and_does_not_give_its_file_runs_the_job_itself(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as members, running_gateway(*(m.url for m in members), changed=impatient) as gateway:
        name, owner = await made_by(gateway, members)
        await owner.fault(cut={"route": "/view"})
        results = [await fetch(gateway.http, await submit(gateway.http, reading(name))) for _ in range(3)]
        assert [status for status, _ in results] == [200] * 3, results
        await owner.well()
