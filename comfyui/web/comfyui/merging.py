"""Unites what several ComfyUI servers tell about themselves. Pure.

Each function takes the answers of the servers in the order of their configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comfyui.workflows.union import choices_united


def merged_features(servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The features of all: a boolean is true if it is so everywhere, a number is the smallest, anything else is the
    first server's.
    """
    first, *others = servers or [{}]
    return {
        name: _merged([value, *(other[name] for other in others)])
        for name, value in first.items()
        if all(name in other for other in others)
    }


def _merged(values: Sequence[Any]) -> Any:
    if all(isinstance(value, bool) for value in values):
        return all(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return min(values)
    if all(isinstance(value, Mapping) for value in values):
        return merged_features(values)
    return values[0]


def merged_stats(said: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The answer of ``GET /system_stats``: the first server's `system`, and the devices of all.

    Args:
        said: name and answer of each server.
    """
    devices = [
        {**device, "name": f"{server}: {device.get('name', '')}"}
        for server, stats in said
        for device in stats.get("devices") or ()
        if isinstance(device, Mapping)
    ]
    return {**said[0][1], "devices": [{**device, "index": index} for index, device in enumerate(devices)]}


def merged_names(said: Iterable[Any]) -> list[Any]:
    """Lists of names, such as that of ``GET /models``."""
    return choices_united(one for one in said if isinstance(one, list))


def merged_folders(said: Iterable[Any]) -> list[Any]:
    """The answer of ``GET /experiment/models``: each kind of model with its folders on all servers."""
    found: dict[Any, dict[str, Any]] = {}
    for entry in _entries(said):
        known = found.get(entry.get("name"))
        if known is None:
            found[entry.get("name")] = entry
        else:
            known["folders"] = choices_united((known.get("folders") or (), entry.get("folders") or ()))
    return list(found.values())


def merged_files(said: Iterable[Any]) -> list[Any]:
    """The answer of ``GET /experiment/models/{folder}``: each file once, as the first server that has it says it."""
    found: dict[Any, dict[str, Any]] = {}
    for entry in _entries(said):
        found.setdefault(entry.get("name"), entry)
    return list(found.values())


def _entries(said: Iterable[Any]) -> Iterable[dict[str, Any]]:
    for one in said:
        if isinstance(one, list):
            yield from (dict(entry) for entry in one if isinstance(entry, Mapping))
