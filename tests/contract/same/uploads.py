"""Scripts about uploads: their names, how they are read back, masks, and prompts that name them."""

from __future__ import annotations

import io
import json
import uuid
from urllib.parse import urlencode

from PIL import Image

from tests.contract.same.files import viewed
from tests.support.same_answers import Caller, Instead
from tests.support.target import Prompt, node

_TOLD = "drop-in.md, uploads: the gateway gives the reason of a refusal; ComfyUI gives none"
_BAD_NAME = Instead(_TOLD, 400, "folder below ComfyUI's own")
_NO_FILE = Instead(_TOLD, 400, "image")
_NO_TYPE = Instead(
    "drop-in.md, uploads: an unknown type is a client's error; ComfyUI's code fails", 400, "input, output or temp"
)
_NO_ORIGINAL = Instead("fleet contract: an unknown original is 400, never 200 without a file", 400, "original_ref")
_NO_FORM = Instead(_TOLD, 400, "")
_BAD_REF = Instead(_TOLD, 400, "original_ref must ")
_NO_MASK = Instead(_TOLD, 400, "")
_NOT_OWN = Instead(
    "jobs contract section 4: a prompt may name only files that its own key uploaded",
    400,
    "has uploaded no file with this name",
)


def _picture(red: int, alpha: int = 255, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, (red, 0, 0, alpha)).save(buffer, "PNG")
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


async def refused_uploads(who: Caller) -> None:
    name = f"{_new(who)}.png"
    await who.upload(f"../{name}", b"x", instead=_BAD_NAME)
    await who.upload(name, b"x", instead=_BAD_NAME, subfolder="../x")
    await who.upload(name, b"x", instead=_BAD_NAME, subfolder="/etc")
    await who.upload(name, b"x", instead=_NO_TYPE, type="models")
    await who.upload(name, b"x", instead=_NO_FILE, field="other")
    await who.upload("", b"x", instead=_NO_FILE)


async def odd_uploads(who: Caller) -> None:
    stem = _new(who)
    for name in (
        f"{stem} with spaces.png",
        f"{stem}-ä😀.png",
        f"{stem}",
        f".{stem}",
        f"{stem}.tar.gz",
        f"{stem}'q.png",
    ):
        await who.upload(name, b"one")
        await who.upload(name, b"other")
        await who.get(f"/view?{urlencode({'filename': name, 'type': 'input'})}")
    await who.upload(f"{stem}-empty.png", b"")
    await who.get(f"/view?filename={stem}-empty.png&type=input")
    for kind in ("output", "temp", "input"):
        await who.upload(f"{stem}-{kind}.txt", b"text", type=kind)
        await who.get(f"/view?filename={stem}-{kind}.txt&type={kind}")
    for overwrite in ("1", "yes", "True", ""):
        await who.upload(f"{stem}-over.txt", overwrite.encode(), overwrite=overwrite)
    await who.upload(f"{stem}.html", b"<b>text</b>")
    await who.get(f"/view?filename={stem}.html&type=input")


async def requests_for_an_upload(who: Caller) -> None:
    name = f"{_new(who)}.png"
    await who.upload(name, _picture(90, 60), subfolder="clipspace")
    base = f"/view?filename={name}&type=input&subfolder=clipspace"
    for more in ("", "&preview=webp;80", "&preview=jpeg", "&channel=rgb", "&channel=a", "&channel=odd", "&rand=0.4"):
        await who.get(f"{base}{more}")
    for asked in ("bytes=0-7", "bytes=60-99999", "bytes=-4", "bytes=-0", "bytes=-99999", "bytes=9999999-", "bytes=2-1"):
        await viewed(who, asked, base, Range=asked)
    for asked in ("bytes=0-1,4-5", "odd=0-1", "bytes=-", "bytes=x-y", "", "bytes=2-2"):
        await viewed(who, asked, base, Range=asked)
    await viewed(who, "head of a part", base, "HEAD", Range="bytes=2-5")
    await viewed(who, "if modified", base, **{"If-Modified-Since": "Wed, 01 Jan 2020 00:00:00 GMT"})
    await viewed(who, "if never modified", base, **{"If-Modified-Since": "Wed, 01 Jan 2098 00:00:00 GMT"})
    await viewed(who, "if another", base, **{"If-None-Match": '"another"'})
    await who.get(f"/view?filename={name}&type=output&subfolder=clipspace")
    await who.get(f"/view?filename={name}&type=input")


async def bodies_without_an_upload(who: Caller) -> None:
    for path in ("/upload/image", "/upload/mask"):
        await who.post(path, b"", gateway=_NO_FORM)
        await who.post(path, {}, gateway=_NO_FORM)
        await who.ask("POST", path, b"x", headers={"Content-Type": "multipart/form-data"}, gateway=_NO_FORM)


async def refused_masks(who: Caller) -> None:
    name = _new(who)
    original = f"{name}.png"
    await who.upload(original, _picture(200))
    good = {"filename": original, "type": "input"}
    for number, told in enumerate(("", "{", "[]", "null", json.dumps({"type": "input"}))):
        content, mask = _picture(0, number), f"{name}-{number}.png"
        await who.upload(mask, content, path="/upload/mask", original_ref=told, instead=_BAD_REF)
    for number, odd in enumerate((b"", b"no picture")):
        content, mask = odd, f"{name}-odd-{number}.png"
        await who.upload(mask, content, path="/upload/mask", original_ref=json.dumps(good), instead=_NO_MASK)
    await who.upload(f"{name}-plain.png", _picture(0, 3), path="/upload/mask", original_ref=json.dumps(good))
    await who.get(f"/view?filename={name}-plain.png&type=input")


async def a_mask_for_a_rendered_picture(who: Caller) -> None:
    prompt_id = await who.submit("one", who.plain(0x4488CC))
    await who.ended(prompt_id)
    async with who.http.get(f"{who.prefix}/history/{prompt_id}") as response:
        file = (await response.json())[prompt_id]["outputs"]["3"]["images"][0]
    told, name = json.dumps(file), f"{_new(who)}.png"
    mask = _picture(0, 9, (64, 48))
    await who.upload(name, mask, path="/upload/mask", original_ref=told, subfolder="clipspace")
    for more in ("&channel=rgb", "&channel=a"):
        await who.get(f"/view?filename={name}&type=input&subfolder=clipspace{more}")


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
    # Another picture, because for a `user` both texts become the same name and ComfyUI would use its cache.
    await who.upload(f"2-{name}", _picture(160))
    await who.upload(f"3-{name}", _picture(170), type="temp")
    await who.upload(f"4-{name}", _picture(180), type="output", subfolder="b")
    texts = (name, f"2-{name} [input]", f"a/{name}", f"3-{name} [temp]", f"b/4-{name} [output]")
    for number, text in enumerate(texts):
        prompt_id = await who.submit(f"prompt {number}", _load(text, _new(who)))
        await who.ended(prompt_id)
        await who.get(f"/history/{prompt_id}")
    await who.post("/prompt", {"prompt": _load(f"b/{name}", "x")}, user=_NOT_OWN)


CASES = (
    names_of_uploads,
    refused_uploads,
    odd_uploads,
    requests_for_an_upload,
    bodies_without_an_upload,
    masks,
    refused_masks,
    a_mask_for_a_rendered_picture,
    a_prompt_that_names_an_upload,
)
