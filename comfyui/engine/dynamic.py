"""Inputs that take shape in a prompt, as in newer ComfyUI versions: the inputs that they stand for, and a node's
values.

An autogrow input stands for as many inputs as are given (``images.image0``, …), a dynamic combo for the inputs behind
the option that is chosen (``resize_type.width``, …). A node gets one dict for each, with the inputs' last names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui.engine.nodes.registry import InputTypes

AUTOGROW, DYNAMIC_COMBO, MATCH_TYPE = "COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_MATCHTYPE_V3"
_DYNAMIC = frozenset({AUTOGROW, DYNAMIC_COMBO})


def is_dynamic(declared: InputTypes) -> bool:
    return any(
        spec[0] in _DYNAMIC for named in declared.values() for spec in named.values() if isinstance(spec[0], str)
    )


def expanded(declared: InputTypes, given: Mapping[str, Any]) -> InputTypes:
    """The declared inputs of a node whose inputs are `given`. A dynamic combo without a known option is not
    declared.
    """
    found: InputTypes = {"required": {}, "optional": {}}
    _expand(declared, given, "", found)
    return found


def _expand(declared: Mapping[str, Any], given: Mapping[str, Any], prefix: str, found: InputTypes) -> None:
    for category in ("required", "optional"):
        for name, spec in declared.get(category, {}).items():
            full = f"{prefix}{name}"
            if spec[0] == AUTOGROW:
                _expand_autogrow(spec[1]["template"], given, full, found)
            elif spec[0] == DYNAMIC_COMBO:
                chosen = [option for option in spec[1]["options"] if full in given and option["key"] == given[full]]
                if chosen:
                    _expand(chosen[0]["inputs"], given, f"{full}.", found)
                    found[category][full] = spec
            else:
                found[category][full] = spec


def _expand_autogrow(template: Mapping[str, Any], given: Mapping[str, Any], full: str, found: InputTypes) -> None:
    (spec,) = template["input"]["required"].values()
    for index in range(template["max"]):
        name = f"{full}.{template['prefix']}{index}"
        category = "required" if index < template["min"] else "optional"
        if category == "required" or name in given:
            found[category][name] = spec


def nested(values: Mapping[str, Any], declared: InputTypes) -> dict[str, Any]:
    """The inputs of a node as its function takes them: those of a dynamic input in a dict under its name.

    The value of a dynamic combo itself stands in its dict under its own name.
    """
    result: dict[str, Any] = {}
    for category in ("required", "optional"):
        result.update({name: {} for name, spec in declared.get(category, {}).items() if spec[0] in _DYNAMIC})
    for name, value in values.items():
        owner, _, last = name.partition(".")
        if owner in result and isinstance(result[owner], dict):
            result[owner][last or owner] = value
        else:
            result[name] = value
    return result
