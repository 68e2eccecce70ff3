"""`/view` before three servers with folders of their own: each name opens the file of its own prompt."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from comfyui.engine import Engine
from comfyui.merged_files import from_merged
from tests.support.face_files import color_of, only_file, query_of, sync, three, view
from tests.support.faces import Face
from tests.support.keys import ALICE, BOB, ROOT, bearer
from tests.support.running import engines, running_gateway
from tests.support.target import inverted, node

UNKNOWN = "5f0c0000-0000-4000-8000-000000000000"


COLORS = [0x10_20_30 * (number + 1) for number in range(8)]


async def test_eight_concurrent_callers_each_get_their_own_picture_by_the_link() -> None:
    """Each server counts its files by itself, so that all of them have a ComfyUI_00001_.png."""
    async with three() as face:
        answers = await asyncio.gather(*(sync(face, color) for color in COLORS))
        names = [answer["images"][0]["filename"] for answer in answers]
        assert len(set(names)) < len(names), "the servers must have files of the same names"
        pictures = await asyncio.gather(*(view(face, one["images"][0]["url"].partition("?")[2]) for one in answers))
        assert [status for status, _ in pictures] == [200] * 8
        assert [color_of(picture) for _, picture in pictures] == COLORS


async def test_eight_concurrent_callers_each_get_their_own_picture_by_the_history() -> None:
    async with three() as face:

        async def picture(color: int) -> tuple[int, ...]:
            body = {"prompt": inverted("ComfyUI", color=color)}
            async with face.gateway.http.post("/prompt", json=body) as response:
                prompt_id = (await response.json())["prompt_id"]
            entry = await face.ended(prompt_id)
            _, job = await face.get(f"/api/jobs/{prompt_id}")
            _, jobs = await face.get("/api/jobs")
            (listed,) = (one for one in jobs["jobs"] if one["id"] == prompt_id)
            seen = []
            for file in (only_file(entry), only_file(job), job["preview_output"], listed["preview_output"]):
                assert file["subfolder"] == prompt_id
                seen.append(color_of((await view(face, query_of(file)))[1]))
            return tuple(seen)

        assert await asyncio.gather(*(picture(color) for color in COLORS)) == [(color,) * 4 for color in COLORS]


async def test_prompt_sync_and_history_give_a_file_the_same_name() -> None:
    async with three() as face:
        answer = await sync(face, 0x112233)
        prompt_id = answer["prompt_id"]
        (image,) = answer["images"]
        assert (image["subfolder"], only_file(answer)["subfolder"]) == (prompt_id, prompt_id)
        assert image["url"] == f"/view?{query_of(image)}"
        async with face.gateway.http.get(f"/prompt_sync/{prompt_id}") as response:
            again = await response.json()
        assert (again["images"], again["outputs"]) == (answer["images"], answer["outputs"])
        assert only_file((await face.get(f"/history/{prompt_id}"))[1][prompt_id]) == only_file(answer)


async def test_one_server_without_keys_keeps_comfyuis_file_names(engine: Engine) -> None:
    async with running_gateway(engine.url) as gateway:
        _, answer = await gateway.prompt_sync(inverted("ComfyUI"))
        assert (answer["images"][0]["subfolder"], only_file(answer)["subfolder"]) == ("", "")
        async with gateway.http.get(f"/history/{answer['prompt_id']}") as response:
            assert only_file((await response.json())[answer["prompt_id"]])["subfolder"] == ""


async def test_view_answers_for_a_file_as_a_single_comfyui_does() -> None:
    workflow = {
        **inverted("deep/er/ComfyUI", color=0x123456),
        "4": node("PreviewImage", images=["1", 0]),
    }
    # A job keeps its workflow with sorted names, and its pictures contain the workflow.
    workflow = json.loads(json.dumps(workflow, sort_keys=True))
    async with three() as face, Engine() as alone, aiohttp.ClientSession(alone.url) as http:
        prompt_id = await face.submit(workflow)
        entry = await face.ended(prompt_id)
        async with http.post("/prompt", json={"prompt": workflow, "prompt_id": prompt_id}) as response:
            assert response.status == 200
        theirs: dict[str, Any] = {}
        async with asyncio.timeout(30):
            while prompt_id not in theirs:
                async with http.get(f"/history/{prompt_id}") as response:
                    theirs = await response.json()
        for node_id in ("3", "4"):
            our_file, their_file = only_file(entry, node_id), only_file(theirs[prompt_id], node_id)
            assert from_merged(our_file["subfolder"]) == (prompt_id, their_file["subfolder"])
            for method, more, headers in (
                ("GET", {}, {}),
                ("HEAD", {}, {}),
                ("GET", {}, {"Range": "bytes=0-99"}),
                ("GET", {}, {"Range": "bytes=-7"}),
                ("GET", {}, {"Range": "bytes=99999999-"}),
                ("GET", {"preview": "webp;50"}, {}),
                ("GET", {"preview": "jpeg"}, {}),
                ("GET", {"channel": "rgb"}, {}),
                ("GET", {"channel": "a"}, {}),
                ("GET", {"rand": "0.5"}, {}),
            ):
                ours, wanted = [
                    await _answered(session, method, query_of(file, **more), headers)
                    for session, file in ((face.gateway.http, our_file), (http, their_file))
                ]
                assert ours == wanted, (method, more, headers)


async def _answered(http: aiohttp.ClientSession, method: str, query: str, headers: dict[str, str]) -> Any:
    async with http.request(method, f"/view?{query}", headers=headers) as response:
        told = {name: response.headers.get(name) for name in ("Content-Type", "Content-Length", "Content-Range")}
        body = await response.read()
        # A server chooses a random prefix for its temporary files when it starts, so the names differ.
        return response.status, told, body, "Content-Disposition" in response.headers


# Queries for a single ComfyUI. With several servers, its subfolder `a` is `<prompt_id>/a`.
_NOT_THERE: tuple[dict[str, str], ...] = (
    {},
    {"filename": ""},
    {"subfolder": ""},
    {"filename": "nothing.png", "subfolder": ""},
    {"filename": "nothing.png", "subfolder": "no/such"},
    {"filename": "/etc/passwd", "subfolder": ""},
    {"filename": "../main.py", "subfolder": ""},
    {"filename": "<name>", "subfolder": "../.."},
    {"filename": "<name>", "subfolder": "/etc"},
    {"filename": "<name>", "subfolder": "\0"},
    {"filename": "<name>\0", "subfolder": ""},
    {"filename": "<name>", "subfolder": "", "type": "elsewhere"},
    {"filename": "<name>", "subfolder": "", "type": "input"},
    {"filename": "<name>", "subfolder": "", "type": "temp"},
    {"filename": "<name> [temp]", "subfolder": ""},
)


async def test_view_refuses_missing_or_foreign_files_as_a_single_comfyui_does() -> None:
    async with three() as face, Engine() as alone, aiohttp.ClientSession(alone.url) as http:
        answer = await sync(face, 1)
        (image,) = answer["images"]
        (alone.folders.output / image["filename"]).write_bytes(b"a picture")
        for asked in _NOT_THERE:
            named = {name: value.replace("<name>", image["filename"]) for name, value in asked.items()}
            theirs = await _answered(http, "GET", urlencode(named), {})
            if "subfolder" in named:
                named["subfolder"] = f"{answer['prompt_id']}/{named['subfolder']}".rstrip("/")
            ours = await _answered(face.gateway.http, "GET", urlencode(named), {})
            assert (ours[0], ours[2]) == (theirs[0], theirs[2]), asked
            assert ours[0] >= 400
        for odd in (f"./{answer['prompt_id']}", f"{answer['prompt_id']}\\", f"{answer['prompt_id']}/"):
            query = urlencode({"filename": image["filename"], "subfolder": odd})
            assert (await view(face, query))[0] == 404


async def test_a_file_without_a_prompt_is_read_from_the_first_server_else_from_another() -> None:
    async with three() as face:
        home, _, last = face.engines
        for folder in (UNKNOWN, "plain", ""):
            for engine, content in ((home, b"home"), (last, b"last")):
                path = engine.folders.output / folder
                path.mkdir(exist_ok=True)
                (path / "there.png").write_bytes(content)
                (path / f"{content.decode()}.png").write_bytes(content)
            for name, wanted in (("there.png", (200, b"home")), ("last.png", (200, b"last")), ("no.png", (404, b""))):
                assert await view(face, urlencode({"filename": name, "subfolder": folder})) == wanted


async def test_a_prompts_missing_file_is_not_read_from_another_server(keys_path: Path) -> None:
    async with three(keys_path) as face:
        answer = await sync(face, 0x445566, ALICE)
        (image,) = answer["images"]
        for engine in face.engines:
            path = engine.folders.output / image["filename"]
            if path.exists():
                path.unlink()
            else:
                path.write_bytes(b"another's")
        for key in (ALICE, ROOT, BOB):
            assert await view(face, query_of(image), key) == (404, b"")


async def test_a_link_to_a_deleted_file_never_opens_a_later_file_of_the_same_name(engine: Engine) -> None:
    async with running_gateway(engine.url, queue="gateway") as gateway:
        face = Face(gateway, [engine], {})
        (first,) = (await sync(face, 1))["images"]
        (engine.folders.output / first["filename"]).unlink()
        (second,) = (await sync(face, 2))["images"]
        assert first["filename"] == second["filename"]
        assert await view(face, query_of(first)) == (404, b"")
        assert color_of((await view(face, query_of(second)))[1]) == 2


# Owners


async def test_a_user_opens_its_own_files_and_learns_nothing_of_others(keys_path: Path) -> None:
    async with three(keys_path) as face:
        mine, theirs = await sync(face, 1, ALICE), await sync(face, 2, BOB)
        (own,), (other,) = mine["images"], theirs["images"]
        assert color_of((await view(face, query_of(own), ALICE))[1]) == 1
        assert color_of((await view(face, query_of(other), ROOT))[1]) == 2
        name = other["filename"]
        wanted = await _answer_to_alice(face, urlencode({"filename": name, "subfolder": UNKNOWN}))
        assert wanted[0] == 404
        for subfolder in (
            theirs["prompt_id"],
            f"{theirs['prompt_id']}/",
            f"{theirs['prompt_id']}/.",
            f"{mine['prompt_id']}/../{theirs['prompt_id']}",
            f"{mine['prompt_id']}/..",
            f"{mine['prompt_id']}/../output",
            f"{mine['prompt_id']}\\..\\{theirs['prompt_id']}",
            f"{theirs['prompt_id']}\0",
            f"{mine['prompt_id']}/\0",
            theirs["prompt_id"].upper(),
            "./",
        ):
            for folder_type in ("output", "temp", "input", "elsewhere"):
                query = urlencode({"filename": name, "subfolder": subfolder, "type": folder_type})
                assert await _answer_to_alice(face, query) == wanted, (subfolder, folder_type)
        for odd in ("nothing.png", f"{name} [output]", f"x/{name}", f"../output/{name}", "/etc/passwd"):
            assert (
                await _answer_to_alice(face, urlencode({"filename": odd, "subfolder": mine["prompt_id"]})) == wanted
            ), odd
        # If a parameter is given twice, the same value is checked and sent to ComfyUI.
        twice = f"{query_of(own)}&subfolder={theirs['prompt_id']}&filename=x"
        assert color_of((await view(face, twice, ALICE))[1]) == 1
        double = quote(quote(mine["prompt_id"]), safe="").replace("-", "%252D")
        assert await _answer_to_alice(face, f"filename={name}&subfolder={double}") == wanted


async def _answer_to_alice(face: Face, query: str) -> tuple[int, dict[str, str], bytes]:
    """Alice's answer, without the headers that always differ."""
    async with face.gateway.http.get(f"/view?{query}", headers=bearer(ALICE)) as response:
        kept = {name: value for name, value in response.headers.items() if name not in {"X-Request-ID", "Date"}}
        return response.status, kept, await response.read()


async def test_only_the_prompts_user_and_an_admin_open_its_preview(keys_path: Path) -> None:
    workflow = {"1": inverted("x", color=7)["1"], "2": node("PreviewImage", images=["1", 0])}
    async with three(keys_path) as face:
        prompt_id = await face.submit(workflow, ALICE)
        file = only_file(await face.ended(prompt_id), "2")
        assert (file["type"], file["subfolder"]) == ("temp", prompt_id)
        assert [(await view(face, query_of(file), key))[0] for key in (ALICE, BOB, ROOT)] == [200, 404, 200]


async def test_a_user_opens_files_of_its_prompt_while_the_prompt_still_runs(keys_path: Path) -> None:
    """A web page loads a picture when its `executed` event arrives, which is before the prompt ends."""
    workflow = {
        **inverted("ComfyUI", color=0x123456),
        "8": node("SimulatedSleep", value=["2", 0], seconds=600, steps=1),
        "9": node("PreviewImage", images=["8", 0]),
    }
    async with (
        three(keys_path) as face,
        face.gateway.http.ws_connect("/ws?clientId=tab", headers=bearer(ALICE)) as websocket,
    ):
        body = {"prompt": workflow, "client_id": "tab"}
        async with face.gateway.http.post("/prompt", json=body, headers=bearer(ALICE)) as response:
            prompt_id = (await response.json())["prompt_id"]
        async with asyncio.timeout(30):
            while True:
                message = await websocket.receive_json()
                if message["type"] == "executed" and message["data"]["node"] == "3":
                    break
        (file,) = message["data"]["output"]["images"]
        assert file["subfolder"] == prompt_id
        seen = [await view(face, query_of(file), key) for key in (ALICE, BOB, ROOT)]
        assert [status for status, _ in seen] == [200, 404, 200]
        assert color_of(seen[0][1]) == 0x123456
        other = query_of({**file, "filename": "ComfyUI_00009_.png"})
        assert await view(face, other, ALICE) == (404, b"")


# Servers that are gone


async def test_a_file_of_a_server_removed_from_the_settings_gets_404_with_the_reason(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with engines(2) as servers:
        async with running_gateway(*(one.url for one in servers), state_dir=state) as gateway:
            (image,) = (await sync(Face(gateway, servers, {}), 9))["images"]
        (owner,) = (one for one in servers if (one.folders.output / image["filename"]).exists())
        (other,) = (one for one in servers if one is not owner)
        (other.folders.output / image["filename"]).write_bytes(b"another's")
        async with running_gateway(other.url, state_dir=state, queue="gateway") as gateway:
            status, body = await view(Face(gateway, [other], {}), query_of(image))
    assert status == 404
    assert b"is no longer in COMFYUI_SERVER_ADDRESS" in body
    assert owner.url.encode() not in body


async def test_a_file_whose_server_is_down_is_not_read_from_another_server() -> None:
    async with three() as face:
        answer = await sync(face, 9)
        (image,) = answer["images"]
        (owner,) = (one for one in face.engines if (one.folders.output / image["filename"]).exists())
        for other in face.engines:
            if other is not owner:
                (other.folders.output / image["filename"]).write_bytes(b"another's")
        await owner.__aexit__(None, None, None)
        status, body = await view(face, query_of(image))
        assert status == 503
        assert b"connection_failed" in body
