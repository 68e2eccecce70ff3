"""Files that prompts have made as inputs of the next workflow: `x.png [output]`, on any number of servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from comfyui.engine import Engine
from tests.support.face_files import color_of, only_file, query_of, reading, sync, three, view
from tests.support.faces import Face
from tests.support.keys import ALICE, BOB, ROOT, bearer
from tests.support.running import engines, requests, running_gateway
from tests.support.target import inverted, node


def path_of(file: dict[str, str]) -> str:
    return f"{file['subfolder']}/{file['filename']} [{file['type']}]"


async def run(face: Face, workflow: Any, key: str | None = None, **fields: Any) -> tuple[int, Any]:
    headers = face.headers if key is None else bearer(key)
    async with face.gateway.http.post("/prompt_sync", json={"prompt": workflow, **fields}, headers=headers) as response:
        return response.status, await response.json()


async def color_read(face: Face, name: str, key: str | None = None) -> int:
    status, answer = await run(face, reading(name), key)
    assert status == 200, answer
    (image,) = answer["images"]
    return color_of((await view(face, query_of(image), key))[1])


def made_by(servers: Iterable[Engine], filename: str) -> Engine:
    (found,) = (one for one in servers if (one.folders.output / filename).exists())
    return found


async def test_a_prompt_on_any_server_reads_files_that_another_prompt_made() -> None:
    async with engines(3) as servers:
        for number, one in enumerate(servers):
            # A file that no other server has decides where a prompt runs.
            Image.new("RGB", (8, 8)).save(one.folders.input / f"only {number}.png")
        async with running_gateway(*(one.url for one in servers)) as gateway:
            face = Face(gateway, servers, {})
            colors = [0x10_20_30 * (number + 1) for number in range(6)]
            made = await asyncio.gather(*(sync(face, color) for color in colors))
            names = [path_of(one["images"][0]) for one in made]
            assert len({name.partition("/")[2] for name in names}) < 6, "the servers must have files of the same names"
            for number in range(3):
                pin = {"8": node("LoadImage", image=f"only {number}.png"), "9": node("PreviewImage", images=["8", 0])}
                for name, color in zip(names, colors, strict=True):
                    status, answer = await run(face, {**reading(name), **pin})
                    assert status == 200, answer
                    assert color_of((await view(face, query_of(only_file(answer, "2"))))[1]) == color
            assert all(requests(one, "POST /upload/image") for one in servers)


async def test_a_users_prompts_read_files_of_the_same_users_prompts(keys_path: Path) -> None:
    async with three(keys_path) as face:
        colors = [0x10_20_30 * (number + 1) for number in range(6)]
        made = await asyncio.gather(*(sync(face, color, ALICE) for color in colors))
        names = [path_of(one["images"][0]) for one in made]
        assert await asyncio.gather(*(color_read(face, name, ALICE) for name in names)) == colors


async def test_a_file_is_not_uploaded_to_the_server_that_made_it(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        face = Face(gateway, [engine], {})
        (image,) = (await sync(face, 0x102030))["images"]
        assert await color_read(face, path_of(image)) == 0x102030
        assert requests(engine, "POST /upload/image") == 0


async def test_a_prompt_reads_a_preview_of_another_prompt() -> None:
    workflow = {"1": inverted("x", color=0x00FF00)["1"], "2": node("PreviewImage", images=["1", 0])}
    async with three() as face:
        _, answer = await run(face, workflow)
        preview = only_file(answer, "2")
        assert preview["type"] == "temp"
        found = await asyncio.gather(*(color_read(face, path_of(preview)) for _ in range(4)))
        assert found == [0xFF00FF] * 4


async def test_a_plain_name_means_the_callers_newest_file_of_that_name(keys_path: Path) -> None:
    async with three(keys_path) as face:
        first = await asyncio.gather(*(sync(face, color, ALICE) for color in (1, 2, 3)))
        name = first[0]["images"][0]["filename"]
        assert {one["images"][0]["filename"] for one in first} == {name}
        newest = await sync(face, 0x99, BOB)
        if newest["images"][0]["filename"] == name:
            assert await color_read(face, f"{name} [output]", BOB) == 0x99
        _, jobs = await face.get("/history", ALICE)
        last = list(jobs)[-1]
        wanted = next(number for number, one in zip((1, 2, 3), first, strict=True) if one["prompt_id"] == last)
        assert await color_read(face, f"{name} [output]", ALICE) == wanted


async def test_a_plain_name_that_no_prompt_made_is_read_from_the_first_server() -> None:
    async with three() as face:
        home = face.engines[0]
        Image.new("RGB", (8, 8), (0xFF, 0, 0)).save(home.folders.output / "from before.png")
        found = await asyncio.gather(*(color_read(face, "from before.png [output]") for _ in range(4)))
        assert found == [0x00FFFF] * 4
        status, answer = await run(face, reading("nowhere.png [output]"))
        assert (status, answer["type"]) == (400, "validation_failed")


async def test_a_user_reads_its_own_files_and_no_others(keys_path: Path) -> None:
    async with three(keys_path) as face:
        mine, theirs = await sync(face, 1, ALICE), await sync(face, 2, BOB)
        (own,), (other,) = mine["images"], theirs["images"]
        Image.new("RGB", (8, 8)).save(face.engines[0].folders.output / "home.png")
        assert await color_read(face, path_of(own), ALICE) == 1
        assert await color_read(face, path_of(other), ROOT) == 2
        _, unknown = await run(face, reading("5f0c0000-0000-4000-8000-000000000000/x.png [output]"), ALICE)
        refused = (unknown["type"], unknown["detail"], unknown["node_errors"])
        assert refused[0] == "validation_failed"
        name, own_id, other_id = other["filename"], mine["prompt_id"], theirs["prompt_id"]
        for text in (
            path_of(other),
            f"{other_id}/nothing.png [output]",
            f"{own_id}/../{other_id}/{name} [output]",
            f"{own_id}/../{name} [output]",
            f"{own_id}\\..\\..\\{other_id}\\{name} [output]",
            f"{own_id}/nothing.png [output]",
            f"{other_id}/{name} [temp]",
            f"{other_id}/{name}[output]",
            f"{other_id}/{name} [output] ",
            "home.png [output]",
            "../output/home.png [temp]",
            "/etc/passwd [output]",
            " [output]",
        ):
            status, answer = await run(face, reading(text), ALICE)
            assert status == 400, text
            assert (answer["type"], answer["detail"], answer["node_errors"]) == refused, text
            _, told = await _validated(face, text, ALICE)
            assert [problem["code"] for problem in told["problems"]] == ["file_not_own"], text
        _, told = await _validated(face, path_of(own), ALICE)
        assert told["valid"], told


async def _validated(face: Face, text: str, key: str) -> tuple[int, Any]:
    body = {"prompt": reading(text)}
    async with face.gateway.http.post("/validate", json=body, headers=bearer(key)) as response:
        return response.status, await response.json()


async def test_a_users_missing_file_is_not_replaced_by_another_of_the_same_name(keys_path: Path) -> None:
    async with three(keys_path) as face:
        (own,) = (await sync(face, 1, ALICE))["images"]
        for engine in face.engines:
            path = engine.folders.output / own["filename"]
            if path.exists():
                path.unlink()
            else:
                Image.new("RGB", (8, 8)).save(path)
        for text in (path_of(own), f"{own['filename']} [output]"):
            answers = await asyncio.gather(*(run(face, reading(text), ALICE) for _ in range(4)))
            assert [status for status, _ in answers] == [400] * 4, answers


async def test_a_made_file_that_is_too_large_is_refused_with_its_field() -> None:
    async with engines(2) as servers, running_gateway(*(one.url for one in servers), max_input_mb=0.0001) as gateway:
        face = Face(gateway, servers, {})
        (image,) = (await sync(face, 1))["images"]
        owner = made_by(servers, image["filename"])
        await owner.set_faults({"ws_refuse": {}, "ws_drop": {}})
        answers = await asyncio.gather(*(run(face, reading(path_of(image))) for _ in range(4)))
        refused = [answer for status, answer in answers if status == 400]
        assert refused, answers
        assert all(answer["detail"].startswith("prompt.1.inputs.image: larger than") for answer in refused)
        owner.faults.clear()


async def test_post_prompt_reads_files_of_earlier_prompts_too() -> None:
    async with three() as face:
        made = await asyncio.gather(*(sync(face, color) for color in (5, 6, 7)))

        async def read(file: dict[str, str]) -> int:
            async with face.gateway.http.post("/prompt", json={"prompt": reading(path_of(file))}) as response:
                assert response.status == 200, await response.text()
                prompt_id = (await response.json())["prompt_id"]
            entry = await face.ended(prompt_id)
            # The history shows the name that the client sent, not the name on the server that ran the prompt.
            assert entry["prompt"][2]["1"]["inputs"]["image"] == path_of(file)
            return color_of((await view(face, query_of(only_file(entry, "2"))))[1])

        assert await asyncio.gather(*(read(one["images"][0]) for one in made)) == [5, 6, 7]
        bad = {"prompt": reading(f"{made[0]['prompt_id']}/nothing.png [output]")}
        async with face.gateway.http.post("/prompt", json=bad) as response:
            assert response.status == 400
            assert "Invalid image file" in await response.text()


# Lists of files


async def listed(face: Face, folder: str, key: str | None = None) -> Any:
    headers = face.headers if key is None else bearer(key)
    async with face.gateway.http.get(f"/internal/files/{folder}", headers=headers) as response:
        return await response.json() if response.status == 200 else response.status


async def test_every_made_file_is_listed_once_and_is_read_by_the_listed_name() -> None:
    async with three() as face:
        colors = [0x10_20_30 * (number + 1) for number in range(6)]
        made = await asyncio.gather(*(sync(face, color) for color in colors))
        of_file = {
            f"{one['prompt_id']}/{one['images'][0]['filename']}": color for one, color in zip(made, colors, strict=True)
        }
        deep = await run(face, inverted("deep/er", color=7))
        assert deep[0] == 200
        names = await listed(face, "output")
        # Files in subfolders are not listed, as with one ComfyUI.
        assert sorted(names) == sorted(of_file)
        _, history = await face.get("/history")
        ended = [prompt_id for prompt_id in history if any(name.startswith(prompt_id) for name in names)]
        assert [name.partition("/")[0] for name in names] == ended[::-1]
        read = await asyncio.gather(*(color_read(face, f"{name} [output]") for name in names))
        assert read == [of_file[name] for name in names]


async def test_a_list_ends_with_the_other_files_of_the_first_server() -> None:
    async with three() as face:
        home, other, _ = face.engines
        for engine, name in ((home, "from before.png"), (other, "elsewhere.png")):
            Image.new("RGB", (8, 8)).save(engine.folders.output / name)
        made = await asyncio.gather(*(sync(face, color) for color in range(3)))
        wanted = {f"{one['prompt_id']}/{one['images'][0]['filename']}" for one in made}
        names = await listed(face, "output")
        assert set(names[:3]) == wanted
        assert names[3:] == ["from before.png"]
        await home.set_faults({"hang": {"route": "/internal/files/*"}})
        names = await listed(face, "output")
        home.faults.clear()
        assert set(names) == wanted
        assert await color_read(face, "from before.png [output]") == 0xFFFFFF


async def test_a_cached_file_of_two_prompts_is_listed_once(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        face = Face(gateway, [engine], {})
        first, last = [await sync(face, 5) for _ in range(2)]
        assert first["images"][0]["filename"] == last["images"][0]["filename"]
        assert await listed(face, "output") == [f"{last['prompt_id']}/{last['images'][0]['filename']}"]


async def test_a_user_lists_only_its_own_files(keys_path: Path) -> None:
    workflow = {"1": inverted("x", color=9)["1"], "2": node("PreviewImage", images=["1", 0])}
    async with three(keys_path) as face:
        Image.new("RGB", (8, 8)).save(face.engines[0].folders.output / "home.png")
        mine, theirs = await sync(face, 1, ALICE), await sync(face, 2, BOB)
        status, preview = await run(face, workflow, ALICE)
        assert status == 200
        own, other = [f"{one['prompt_id']}/{one['images'][0]['filename']}" for one in (mine, theirs)]
        assert await listed(face, "output", ALICE) == [own]
        assert await listed(face, "output", BOB) == [other]
        assert sorted(await listed(face, "output")) == sorted([own, other, "home.png"])
        shown = f"{preview['prompt_id']}/{only_file(preview, '2')['filename']}"
        assert [await listed(face, "temp", key) for key in (ALICE, BOB)] == [[shown], []]
        assert await color_read(face, f"{shown} [temp]", ALICE) == 0xFFFFFF ^ 9
        for key in (ALICE, ROOT):
            for odd in ("elsewhere", "..", "outputs"):
                assert await listed(face, odd, key) in {400, 403, 404}
