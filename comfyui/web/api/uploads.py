"""``POST /upload/image`` of a user's key: the file lands in the folder of the key, whatever the form says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import Request, Response

from comfyui.exceptions import RequestError
from comfyui.executors.own_files import is_below
from comfyui.offload import finished_in_thread, in_thread, opened_in_thread
from comfyui.owners import KeyRules, folder_of
from comfyui.servers.pool import CHOICE_PATIENCE_S
from comfyui.web.api.multipart import FormLimits, read_form
from comfyui.web.front.errors import json_response
from comfyui.web.front.gateway_state import gateway_of
from comfyui.web.front.headers import header

_MAX_TEXT_BYTES = 64 * 1024
_MOST_PARTS = 16
_AT_ONCE = 1 << 20


async def own_upload(request: Request, rules: KeyRules) -> Response:
    """ComfyUI's answer, which names the folder of the key.

    Raises:
        RequestError: no form with one file, or a name or folder that leads elsewhere.
        ComfyUIError: the file is too large, or ComfyUI did not take it.
    """
    gateway = gateway_of(request)
    content_type = (header(request.scope, b"content-type") or b"").decode("latin-1")
    if not content_type.lower().startswith("multipart/form-data"):
        raise RequestError("a form (multipart/form-data) with the file as 'image' is wanted")
    limits = FormLimits(gateway.options.max_input_bytes, _MAX_TEXT_BYTES, lambda _: None, max_parts=_MOST_PARTS)
    texts, files = await read_form(request.stream(), content_type, limits)
    if files is None:
        raise RequestError("image: the form has no file")
    try:
        spooled = files.named(())
    except RequestError:
        await files.remove()
        raise
    spooled.hold()
    try:
        if len(spooled.paths) != 1:
            raise RequestError("image: one file is wanted")
        ((name, path),) = spooled.paths.items()
        told = {field: bytes(texts.get(field, b"")).decode(errors="replace") for field in ("subfolder", "type")}
        subfolder = _own_folder(rules, name, told["subfolder"], told["type"])
        overwrite = bytes(texts.get("overwrite", b"")) in {b"true", b"1"}
        backend = await gateway.handler.pool.choose(patience_s=CHOICE_PATIENCE_S)
        stored = await backend.client.upload_image(name, _content(path), subfolder=subfolder, overwrite=overwrite)
    finally:
        spooled.release()
    return json_response(200, stored)


def _own_folder(rules: KeyRules, name: str, subfolder: str, folder_type: str) -> str:
    """Where the file is stored."""
    own = folder_of(rules.name)
    # A client that was told the folder of an upload names it again for the next one.
    folder = subfolder if subfolder == own or is_below(own, subfolder) else f"{own}/{subfolder}".rstrip("/")
    if folder_type not in {"", "input"}:
        raise RequestError("type: a key of role 'user' uploads to 'input' only")
    if (folder != own and not is_below(own, folder)) or not is_below(folder, f"{folder}/{name}") or "/" in name:
        raise RequestError("image, subfolder: a plain file name, and a folder without . and .. are wanted")
    return folder


async def _content(path: Path) -> AsyncIterator[bytes]:
    file = await opened_in_thread(lambda: path.open("rb"))
    try:
        while piece := await in_thread(file.read, _AT_ONCE):
            yield piece
    finally:
        await finished_in_thread(file.close)
