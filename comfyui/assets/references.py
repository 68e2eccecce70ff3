"""References to assets in a workflow: objects in place of a file's name, anywhere in it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from comfyui.exceptions import Breach, ContractError

_KIND, _ASSET = "__type", "core/ASSET"
_HASH = "blake3:"
_FOLDER = "assets"


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference. `id`, `hash`: "" if it has none; `hash` is BLAKE3 in hex."""

    id: str
    hash: str
    _holder: Any
    _place: Any

    @property
    def shown(self) -> str:
        """Its name for the caller."""
        return self.id or f"{_HASH}{self.hash}"

    def replace(self, text: str) -> None:
        """The text stands in its place from now on."""
        self._holder[self._place] = text


def references_in(prompt: dict[str, Any]) -> list[Reference]:
    """All references of a workflow, which `Reference.replace` changes.

    Raises:
        ContractError: one names no asset.
    """
    found: list[Reference] = []
    # Without recursion: a workflow may be nested as deeply as JSON may.
    left: list[Any] = [prompt]
    while left:
        holder = left.pop()
        below: list[Any] = []
        for place, value in _items(holder):
            if isinstance(value, dict) and value.get(_KIND) == _ASSET:
                found.append(_reference(value, holder, place))
            elif isinstance(value, dict | list):
                below.append(value)
        left += reversed(below)
    return found


def name_of(asset_id: str, filename: str) -> str:
    """The name by which a workflow refers to an asset's file, which comes with it."""
    return f"{_FOLDER}/{asset_id}/{filename}"


def restore(prompt: dict[str, Any], names: Collection[str]) -> None:
    """Put references back in a workflow where texts are names of `name_of`, of which others are left alone."""
    ids = {name: parts[1] for name in names if len(parts := name.split("/")) == 3 and parts[0] == _FOLDER}
    left: list[Any] = [prompt]
    while left:
        holder = left.pop()
        for place, value in _items(holder):
            if isinstance(value, str) and value in ids:
                holder[place] = {_KIND: _ASSET, "info": {"id": ids[value]}}
            elif isinstance(value, dict | list):
                left.append(value)


def hash_of(text: str) -> str | None:
    """The hex digits of ``blake3:<64 hex digits>``; None for any other text."""
    digits = text.removeprefix(_HASH).lower()
    is_hash = text.startswith(_HASH) and len(digits) == 64 and all(digit in "0123456789abcdef" for digit in digits)
    return digits if is_hash else None


def _items(holder: Any) -> Iterator[tuple[Any, Any]]:
    return iter(list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder)))


def _reference(value: dict[str, Any], holder: Any, place: Any) -> Reference:
    info = value.get("info")
    asset_id = info.get("id") if isinstance(info, dict) else None
    given = info.get("hash") if isinstance(info, dict) else None
    digest = hash_of(given) if isinstance(given, str) else None
    if not (isinstance(asset_id, str) and asset_id) and digest is None:
        raise ContractError(
            Breach.INVALID_WORKFLOW,
            f'workflow: an asset ({_ASSET}) at {str(place)[:60]!r} must have "info" with the "id" of an asset',
        )
    return Reference(asset_id if isinstance(asset_id, str) else "", digest or "", holder, place)
