"""ComfyUI's CustomCombo: its choices stand in the workflow itself, and it also gives the number of the chosen one."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

_CLASS, _CHOICE, _NUMBER, _OPTION = "CustomCombo", "choice", "index", "option"


def choices_in(node: Mapping[str, Any], input_name: str) -> tuple[str, ...] | None:
    """The choices of a node's input, if they are values of the node itself; otherwise None."""
    if node["class_type"] != _CLASS or input_name != _CHOICE:
        return None
    return tuple(option for option in _options(node["inputs"]) if option) or None


def renumber(class_type: str, inputs: MutableMapping[str, Any]) -> None:
    """Makes the number that of the choice, if the node has both: otherwise only the editor does so."""
    if class_type == _CLASS and _NUMBER in inputs:
        options = _options(inputs)
        inputs[_NUMBER] = options.index(inputs[_CHOICE]) if inputs.get(_CHOICE) in options else -1


def _options(inputs: Mapping[str, Any]) -> list[str]:
    """Its options in order; the last one may be empty."""
    found: list[str] = []
    while isinstance(option := inputs.get(f"{_OPTION}{len(found) + 1}"), str):
        found.append(option)
    return found
