"""Scripts about the files that prompts make: asked for as the history names them, and read by other workflows."""

from __future__ import annotations

import hashlib
import io
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from tests.support.same_answers import Answer, Caller, Instead, Step
from tests.support.target import Prompt, node

_KEPT = ("Content-Length", "Content-Range", "Accept-Ranges", "Content-Disposition", "Content-Type")
_PARTIAL = 206
_NOT_OWN = Instead("jobs contract section 4: a user is told of no file whether it is there", 400, "file")


def _asked(file: dict[str, str], **more: str) -> str:
    named = {name: file[name] for name in ("filename", "subfolder", "type")}
    return f"/view?{urlencode({**named, **more})}"


async def _viewed(who: Caller, name: str, target: str, method: str = "GET", **headers: str) -> None:
    """Keeps the answer as `name`. Of a picture its pixels are compared: it has the workflow in it, with other names."""
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


async def what_is_asked_of_a_file(who: Caller) -> None:
    file = await _made(who, "one", who.plain(0x336691))
    await _viewed(who, "whole", _asked(file))
    await _viewed(who, "head", _asked(file), "HEAD")
    await _viewed(who, "its beginning", _asked(file), Range="bytes=0-23")
    await _viewed(who, "its end", _asked(file), Range="bytes=-8")
    await _viewed(who, "beyond it", _asked(file), Range="bytes=99999999-")
    await _viewed(who, "a preview", _asked(file, preview="webp;80"))
    await _viewed(who, "without transparency", _asked(file, channel="rgb"))
    await _viewed(who, "its transparency", _asked(file, channel="a"))
    await _viewed(who, "not from a cache", _asked(file, rand="0.7"))


async def files_that_are_not_there(who: Caller) -> None:
    file = await _made(who, "one", who.plain(0x336692))
    await _viewed(who, "another name", _asked({**file, "filename": "nothing.png"}))
    await _viewed(who, "another folder", _asked({**file, "type": "temp"}))
    await _viewed(who, "a deeper folder", _asked({**file, "subfolder": f"{file['subfolder']}/no/such".lstrip("/")}))


async def several_prompts_at_once(who: Caller) -> None:
    """All are under way before the first is asked for."""
    colors = (0x112233, 0x445566, 0x778899, 0xAABBCC, 0xDDEEFF, 0x123456)
    ids = [await who.submit(f"colour {color}", who.plain(color)) for color in colors]
    await who.ended(*ids)
    for prompt_id, color in zip(ids, colors, strict=True):
        entry = (await who.get(f"/history/{prompt_id}")).body[prompt_id]
        await _viewed(who, f"colour {color}", _asked(_picture_of(entry)))


async def a_preview_s_picture(who: Caller) -> None:
    workflow = {"1": who.plain(0x334455)["1"], "3": node("PreviewImage", images=["1", 0])}
    file = await _made(who, "one", workflow)
    await _viewed(who, "preview", _asked(file))


async def a_file_as_the_input_of_another_workflow(who: Caller) -> None:
    file = await _made(who, "one", who.plain(0x336693))
    path = "/".join(part for part in (file["subfolder"], file["filename"]) if part)
    for name in ("read", "read again", "and once more"):
        prompt_id = await who.submit(name, {**who.plain(0), "1": node("LoadImage", image=f"{path} [output]")})
        await who.ended(prompt_id)
        # What it was asked has another name in it.
        async with who.http.get(f"{who.prefix}/history/{prompt_id}") as response:
            entry = (await response.json())[prompt_id]
        await _viewed(who, name, _asked(_picture_of(entry)))
    unknown = {**who.plain(0), "1": node("LoadImage", image="nothing.png [output]")}
    await who.post("/prompt", {"prompt": unknown}, user=_NOT_OWN)


CASES = (
    what_is_asked_of_a_file,
    files_that_are_not_there,
    several_prompts_at_once,
    a_preview_s_picture,
    a_file_as_the_input_of_another_workflow,
)
