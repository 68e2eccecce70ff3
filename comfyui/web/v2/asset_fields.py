"""A caller's description of an asset: its place, its type, its tags, and how long it is kept. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.assets.uploaded import NewAsset
from comfyui.exceptions import Breach, ContractError
from comfyui.workflows.preflight import MODEL_ENDINGS

_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(\s*;[\x20-\x7e]{0,200})?")
# Control characters, and halves of letters that no file system takes.
_NEVER = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST_PATH, _LONGEST_NAME = 1024, 255
_MOST_TAGS, _LONGEST_TAG = 64, 256
_SHORTEST_S, _LONGEST_S = 60, 604_800
_INPUT = "input"
_OTHER_FOLDERS = ("output", "temp", "models")


def of_form(texts: Mapping[str, str], tags: Sequence[bytes]) -> NewAsset:
    """The fields of a form. Raises `ContractError`, which names the field."""
    for name in ("content_type", "file_path"):
        if name not in texts:
            raise _wrong(name, "the field is required")
    lifetime = texts.get("expires_in")
    if lifetime is not None and not re.fullmatch(r"[0-9]{1,9}", lifetime):
        raise _lifetime_wrong()
    return NewAsset(
        content_type=_content_type(texts["content_type"]),
        file_path=_file_path(texts["file_path"]),
        tags=_tags([tag.decode(errors="replace") for tag in tags]),
        lifetime_s=_lifetime(None if lifetime is None else int(lifetime)),
    )


def of_json(body: Mapping[str, Any]) -> NewAsset:
    """The members of a JSON body. Raises `ContractError`, which names the member."""
    path, tags = body.get("file_path"), body.get("tags")
    if path is not None and not isinstance(path, str):
        raise _wrong("file_path", "it must be a text")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        raise _wrong("tags", "it must be a list of texts")
    return NewAsset(
        file_path=_file_path(path) if path else "",
        tags=_tags(tags or ()),
        lifetime_s=_lifetime(body.get("expires_in")),
    )


def _content_type(text: str) -> str:
    if not _TYPE.fullmatch(text):
        raise _wrong("content_type", "it must be a media type, such as image/png")
    return text


def _file_path(text: str) -> str:
    """The path below ComfyUI's input folder."""
    parts = text.split("/")
    if parts[0] == _INPUT and len(parts) > 1:
        parts = parts[1:]
    elif parts[0] in _OTHER_FOLDERS and len(parts) > 1:
        reason = f"files can only be placed in ComfyUI's input folder, not in {parts[0]!r}"
        raise _wrong("file_path", f"{reason}; models must be on the servers")
    if len(parts) > 1 and text.lower().endswith(MODEL_ENDINGS):
        raise _wrong("file_path", "models cannot be uploaded; they must be on the servers")
    if (
        "\\" in text
        or _NEVER.search(text)
        or any(part.strip() in {"", ".", ".."} for part in parts)
        or len(text) > _LONGEST_PATH
        or len(parts[-1].encode()) > _LONGEST_NAME
    ):
        raise _wrong(
            "file_path", "it must be a file name, or folders and a file name with '/' between them, such as photo.png"
        )
    return "/".join(parts)


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    if len(tags) > _MOST_TAGS or any(len(tag) > _LONGEST_TAG or _NEVER.search(tag) for tag in tags):
        raise _wrong("tags", f"it must have at most {_MOST_TAGS} texts of at most {_LONGEST_TAG} plain characters")
    return tuple(tags)


def _lifetime(seconds: Any) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise _lifetime_wrong()
    return float(seconds)


def _lifetime_wrong() -> ContractError:
    return _wrong("expires_in", f"it must be a whole number of seconds from {_SHORTEST_S} to {_LONGEST_S}")


def _wrong(name: str, reason: str) -> ContractError:
    return ContractError(Breach.INVALID_REQUEST, f"{name}: {reason}")
