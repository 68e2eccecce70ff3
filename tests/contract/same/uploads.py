"""Scripts about files that clients upload: their names, what is read back, masks, and prompts that name them."""

from __future__ import annotations

import io
import json
import uuid

from PIL import Image

from tests.support.same_answers import Caller, Instead
from tests.support.target import Prompt, node

_TOLD = "drop-in.md, uploads: the gateway says what is wrong; ComfyUI has no words for it"
_BAD_NAME = Instead(_TOLD, 400, "folder below ComfyUI's own")
_NO_FILE = Instead(_TOLD, 400, "image: ")
_NO_TYPE = Instead(
    "drop-in.md, uploads: an unknown type is the client's mistake; ComfyUI fails", 400, "input, output or temp"
)
_NO_ORIGINAL = Instead("fleet contract: unknown original: 400, never 200 without a file", 400, "original_ref")
_NOT_OWN = Instead("jobs contract section 4: a file that is not the key's own", 400, "has uploaded none of this name")


def _picture(red: int, alpha: int = 255) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 6), (red, 0, 0, alpha)).save(buffer, "PNG")
    return buffer.getvalue()


def _new(who: Caller) -> str:
    return who.named(f"same-{uuid.uuid4().hex}", "file")


def _load(name: str, prefix: str) -> Prompt:
    return {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix=prefix)}


async def names_of_uploads(who: Caller) -> None:
    name = f"{_new(who)}.a.png"
    for content in (b"first", b"second", b"first", b"second", b"third"):
        await who.upload(name, content)
    await who.upload(name, b"fourth", overwrite="true")
    await who.upload(name, b"second", overwrite="false")
    await who.upload(name, b"fifth", subfolder="a/b")
    await who.upload(name, b"fifth", subfolder="a/./b/")
    await who.upload(name, b"fifth", type="temp")
    await who.upload(name, b"fifth", type="input", subfolder="c")
    stem = name.removesuffix(".png")
    for query in (
        f"filename={name}&type=input",
        f"filename={stem}%20(1).png&type=input",
        f"filename={name}&type=input&subfolder=a/b",
        f"filename={name}%20[temp]",
        f"filename=b/{name}&type=input&subfolder=c",
        f"filename={stem}%20(9).png&type=input",
    ):
        await who.get(f"/view?{query}")
        await who.ask("HEAD", f"/view?{query}")


async def uploads_that_are_refused(who: Caller) -> None:
    name = f"{_new(who)}.png"
    await who.upload(f"../{name}", b"x", instead=_BAD_NAME)
    await who.upload(name, b"x", instead=_BAD_NAME, subfolder="../x")
    await who.upload(name, b"x", instead=_BAD_NAME, subfolder="/etc")
    await who.upload(name, b"x", instead=_NO_TYPE, type="models")
    await who.upload(name, b"x", instead=_NO_FILE, field="other")
    await who.upload("", b"x", instead=_NO_FILE)


async def masks(who: Caller) -> None:
    name = _new(who)
    original, mask = f"{name}.png", f"{name}-mask.png"
    await who.upload(original, _picture(200), subfolder="clipspace")
    ref = {"filename": original, "subfolder": "clipspace", "type": "input"}
    for alpha, overwrite in ((7, ""), (7, ""), (9, "true")):
        told, folder = json.dumps(ref), "clipspace"
        content, path = _picture(0, alpha), "/upload/mask"
        await who.upload(mask, content, path=path, original_ref=told, subfolder=folder, overwrite=overwrite)
    for query in (f"filename={mask}", f"filename={name}-mask%20(1).png", f"filename={mask}&channel=a"):
        await who.get(f"/view?{query}&type=input&subfolder=clipspace")
    ref["filename"] = f"{name}-unknown.png"
    told = json.dumps(ref)
    await who.upload(f"{name}-2.png", _picture(0, 7), path="/upload/mask", original_ref=told, instead=_NO_ORIGINAL)
    await who.get(f"/view?filename={name}-2.png&type=input")


async def a_prompt_that_names_an_upload(who: Caller) -> None:
    name = f"{_new(who)}.png"
    await who.upload(name, _picture(100))
    await who.upload(name, _picture(150), subfolder="a")
    # Of another picture: for a `user` both texts become one name, so that ComfyUI would have it in its cache.
    await who.upload(f"2-{name}", _picture(160))
    for number, text in enumerate((name, f"2-{name} [input]", f"a/{name}")):
        prompt_id = await who.submit(f"prompt {number}", _load(text, _new(who)))
        await who.ended(prompt_id)
        await who.get(f"/history/{prompt_id}")
    await who.post("/prompt", {"prompt": _load(f"b/{name}", "x")}, user=_NOT_OWN)


CASES = (names_of_uploads, uploads_that_are_refused, masks, a_prompt_that_names_an_upload)
