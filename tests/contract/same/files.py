"""Scripts about output files: requests by the names in the history, and workflows that read them."""

from __future__ import annotations

import hashlib
import io
import uuid
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from tests.support.same_answers import Answer, Caller, Instead, Step
from tests.support.target import Prompt, node

_KEPT = ("Content-Length", "Content-Range", "Accept-Ranges", "Content-Disposition", "Content-Type")
_PARTIAL = 206
_NONE = Instead("drop-in.md, names of output files: other paths get the same 404 for a `user` as missing files", 404)
_NOT_OWN = Instead("jobs contract section 4: a `user` cannot find out whether a file of others exists", 400, "file")
_DENIED = Instead("drop-in.md, `PROXY_DENY`: only the three lists of `/internal` are relayed", 403)


def _asked(file: dict[str, str], **more: str) -> str:
    named = {name: file[name] for name in ("filename", "subfolder", "type")}
    return f"/view?{urlencode({**named, **more})}"


async def viewed(who: Caller, name: str, target: str, method: str = "GET", **headers: str) -> None:
    """Records the answer as `name`; pictures by their pixels, since the workflow in their metadata has other names."""
    async with who.http.request(method, f"{who.prefix}{target}", headers=headers) as response:
        body = await response.read()
        told: dict[str, Any] = {one: response.headers.get(one) for one in _KEPT}
    whole = response.status == 200 and method == "GET"
    if whole and body:
        with Image.open(io.BytesIO(body)) as picture:
            seen: tuple[Any, ...] = (
                picture.format,
                picture.size,
                picture.mode,
                hashlib.sha256(picture.tobytes()).hexdigest(),
            )
        told["Content-Length"] = int(told["Content-Length"]) == len(body)
    else:
        seen = (body.hex(),)
        if response.status == 416:
            del told["Content-Length"]  # there is no file in the answer
        else:
            told["Content-Length"] = told["Content-Length"] is not None
    if response.status == _PARTIAL:
        told["Content-Range"] = str(told["Content-Range"]).partition("/")[0]
    told["Content-Disposition"] = who.without_names(told["Content-Disposition"] or "")
    who.steps.append(Step(f"{method} {name}", Answer(response.status, "", {"headers": told, "body": seen}), None))


async def _made(who: Caller, name: str, workflow: Prompt) -> dict[str, str]:
    prompt_id = await who.submit(name, workflow)
    await who.ended(prompt_id)
    entry = (await who.get(f"/history/{prompt_id}")).body[prompt_id]
    return _picture_of(entry)


def _picture_of(entry: dict[str, Any]) -> dict[str, str]:
    file: dict[str, str] = entry["outputs"]["3"]["images"][0]
    return file


async def requests_for_one_file(who: Caller) -> None:
    file = await _made(who, "one", who.plain(0x336691))
    await viewed(who, "whole", _asked(file))
    await viewed(who, "head", _asked(file), "HEAD")
    await viewed(who, "its beginning", _asked(file), Range="bytes=0-23")
    await viewed(who, "its end", _asked(file), Range="bytes=-8")
    await viewed(who, "beyond it", _asked(file), Range="bytes=99999999-")
    await viewed(who, "a preview", _asked(file, preview="webp;80"))
    await viewed(who, "without transparency", _asked(file, channel="rgb"))
    await viewed(who, "its transparency", _asked(file, channel="a"))
    await viewed(who, "not from a cache", _asked(file, rand="0.7"))


async def missing_files(who: Caller) -> None:
    file = await _made(who, "one", who.plain(0x336692))
    await viewed(who, "another name", _asked({**file, "filename": "nothing.png"}))
    await viewed(who, "another folder", _asked({**file, "type": "temp"}))
    await viewed(who, "a deeper folder", _asked({**file, "subfolder": f"{file['subfolder']}/no/such".lstrip("/")}))


async def invalid_file_names(who: Caller) -> None:
    for query in (
        "",
        "filename=.",
        "filename=a.png%20[odd]",
        "filename=a.png%20[output]",
        "filename=a.png%20[temp]&type=input",
        "filename=a%00.png",
        "filename=a.png&subfolder=b%00",
        "filename=%FF.png",
        f"filename={'a' * 300}.png",
        "subfolder=a",
    ):
        await who.get(f"/view?{query}")
        await who.ask("HEAD", f"/view?{query}")


async def names_outside_the_folders(who: Caller) -> None:
    for query in (
        "filename=",
        "filename=..",
        "filename=../a.png",
        "filename=a/../../b.png",
        "filename=/etc/passwd",
        "filename=a.png&subfolder=..",
        "filename=a.png&subfolder=../..",
        "filename=a.png&subfolder=/etc",
        "filename=a.png&type=odd",
        "filename=a.png&type=",
    ):
        await who.get(f"/view?{query}", user=_NONE)
        await who.ask("HEAD", f"/view?{query}", user=_NONE)


async def previews_channels_and_ranges(who: Caller) -> None:
    file = await _made(who, "one", who.plain(0x336694))
    for number, more in enumerate(
        (
            {"preview": "jpeg"},
            {"preview": "jpeg;50"},
            {"preview": "webp"},
            {"preview": "webp;1"},
            {"preview": "png"},
            {"preview": "odd;3"},
            {"preview": ""},
            {"channel": "rgba"},
            {"channel": "odd"},
            {"channel": ""},
            {"channel": "rgb", "preview": "webp;90"},
        )
    ):
        await viewed(who, f"{number}: {more}", _asked(file, **more))
    for asked in ("bytes=4-4", "bytes=8-4", "bytes=0-1,4-5", "odd=0-1", "bytes=x-y", "bytes=-", ""):
        await viewed(who, f"range {asked}", _asked(file), Range=asked)
    await viewed(who, "if modified", _asked(file), **{"If-Modified-Since": "Wed, 01 Jan 2020 00:00:00 GMT"})
    await viewed(who, "if never modified", _asked(file), **{"If-Modified-Since": "Wed, 01 Jan 2098 00:00:00 GMT"})


async def lists_of_files(who: Caller) -> None:
    """Compares only the files that the script made, because the folders have others."""
    upload = f"{who.named(f'same-{uuid.uuid4().hex}', 'upload')}.png"
    await who.upload(upload, b"x")
    await who.upload(f"2-{upload}", b"y", subfolder="deep")
    await who.upload(f"3-{upload}", b"z", type="temp")
    prefixes = []
    for name in ("one", "two"):
        workflow = who.quick(batch_size=2)
        prefixes.append(workflow["3"]["inputs"]["filename_prefix"])
        await who.ended(await who.submit(name, workflow))
    for folder in ("input", "output", "temp"):
        async with who.http.get(f"{who.prefix}/internal/files/{folder}") as response:
            names = [name for name in await response.json() if any(one in name for one in (upload, *prefixes))]
        # fleet contract: the name of an output file begins with its prompt's id.
        told = [who.without_names(name.rpartition("/")[2] if folder == "output" else name) for name in names]
        # Files of the same moment come in any order.
        who.steps.append(Step(f"GET /internal/files/{folder}", Answer(response.status, "", sorted(told)), None))
    await who.get("/internal/files/models", gateway=_DENIED)
    await who.ask("HEAD", "/internal/files/input")


async def several_prompts_at_once(who: Caller) -> None:
    """All prompts are submitted before the first file is requested."""
    colors = (0x112233, 0x445566, 0x778899, 0xAABBCC, 0xDDEEFF, 0x123456)
    ids = [await who.submit(f"colour {color}", who.plain(color)) for color in colors]
    await who.ended(*ids)
    for prompt_id, color in zip(ids, colors, strict=True):
        entry = (await who.get(f"/history/{prompt_id}")).body[prompt_id]
        await viewed(who, f"colour {color}", _asked(_picture_of(entry)))


async def the_file_of_a_preview(who: Caller) -> None:
    workflow = {"1": who.plain(0x334455)["1"], "3": node("PreviewImage", images=["1", 0])}
    file = await _made(who, "one", workflow)
    await viewed(who, "preview", _asked(file))


async def a_file_as_the_input_of_another_workflow(who: Caller) -> None:
    file = await _made(who, "one", who.plain(0x336693))
    path = "/".join(part for part in (file["subfolder"], file["filename"]) if part)
    for name in ("read", "read again", "and once more"):
        prompt_id = await who.submit(name, {**who.plain(0), "1": node("LoadImage", image=f"{path} [output]")})
        await who.ended(prompt_id)
        # The entry is not compared, because the prompt in it has another file name.
        async with who.http.get(f"{who.prefix}/history/{prompt_id}") as response:
            entry = (await response.json())[prompt_id]
        await viewed(who, name, _asked(_picture_of(entry)))
    unknown = {**who.plain(0), "1": node("LoadImage", image="nothing.png [output]")}
    await who.post("/prompt", {"prompt": unknown}, user=_NOT_OWN)


CASES = (
    requests_for_one_file,
    missing_files,
    invalid_file_names,
    names_outside_the_folders,
    previews_channels_and_ranges,
    lists_of_files,
    several_prompts_at_once,
    the_file_of_a_preview,
    a_file_as_the_input_of_another_workflow,
)
