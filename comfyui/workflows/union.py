"""Unites the node definitions of several servers, and finds their differences. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfyui.workflows.node_definitions import (
    AUTOGROW,
    DYNAMIC_COMBO,
    DYNAMIC_GROUP,
    DYNAMIC_SLOT,
    ObjectInfo,
    as_mapping,
    as_sequence,
    declared_inputs,
)

_SECTIONS = ("required", "optional")
# The members of a definition that matter to a workflow; the others are for people.
_OF_WORKFLOWS = ("output", "output_is_list", "output_name", "output_node")


def union_of(known: Sequence[ObjectInfo]) -> ObjectInfo:
    """The classes of all. One that several have is the first one's, whose inputs offer the choices of all.

    Args:
        known: at least one, in the order of precedence. They are not changed; the union shares as much with them as
            possible.
    """
    union = dict(known[0])
    for other in known[1:]:
        for name, definition in other.items():
            union[name] = _united(union[name], definition) if name in union else definition
    return union


def choices_united(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """All values of the lists, each once, in the order of the first list and then of the others."""
    found: list[Any] = []
    known: set[tuple[type, Any]] = set()
    for values in lists:
        for value in values:
            # 1 and true are equal, and two choices.
            key = (type(value), value if isinstance(value, str | int | float | bool | None) else repr(value))
            if key not in known:
                known.add(key)
                found.append(value)
    return found


@dataclass(frozen=True, slots=True)
class Differences:
    """How the node definitions of a server differ from those of another one: names of classes, sorted.

    Attributes:
        lacks: classes that only the other one has.
        adds: classes that only this one has.
        differs: classes that both have, with other inputs or outputs. Choices, defaults of choices, and texts for
            people may differ: these are files of the server, and words.
    """

    lacks: tuple[str, ...]
    adds: tuple[str, ...]
    differs: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.lacks or self.adds or self.differs)


def differences(home: ObjectInfo, other: ObjectInfo) -> Differences:
    """The classes that `other` lacks, adds, and declares differently from `home`."""
    return Differences(
        tuple(sorted(name for name in home if name not in other)),
        tuple(sorted(name for name in other if name not in home)),
        tuple(
            sorted(
                name
                for name, definition in home.items()
                if name in other and definition != other[name] and _shape(definition) != _shape(other[name])
            )
        ),
    )


def _united(first: Any, other: Any) -> Any:
    """The definition of a class by the first server, with the choices of the other one."""
    if first == other or not isinstance(first, Mapping) or not isinstance(other, Mapping):
        return first
    sections = _united_sections(as_mapping(first.get("input")), as_mapping(other.get("input")))
    return first if sections is None else {**first, "input": sections}


def _united_sections(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """``{"required": …, "optional": …}`` with the choices of both; None if the other one adds nothing."""
    found: dict[str, Any] = {}
    others = {name: entry for section in _SECTIONS for name, entry in as_mapping(other.get(section)).items()}
    for section in _SECTIONS:
        inputs = as_mapping(first.get(section))
        changed = {
            name: united
            for name, declared in inputs.items()
            if name in others and (united := _united_input(declared, others[name])) is not None
        }
        if changed:
            found[section] = {**inputs, **changed}
    return {**first, **found} if found else None


def _united_input(first: Any, other: Any) -> list[Any] | None:
    """One declared input with the choices of both; None if the other one adds nothing."""
    if first == other or not as_sequence(first) or not as_sequence(other):
        return None
    listed, more = _listed(first), _listed(other)
    if listed is not None and more is not None:
        united = choices_united((listed, more))
        return None if len(united) == len(listed) else _with_choices(first, united)
    nested = _NESTED.get(first[0]) if isinstance(first[0], str) and first[0] == other[0] else None
    if nested is None or not (isinstance(first[1:2], list | tuple) and first[1:2] and other[1:2]):
        return None
    options = nested(as_mapping(first[1]), as_mapping(other[1]))
    return None if options is None else [first[0], {**first[1], **options}, *first[2:]]


def _listed(declared: Any) -> Sequence[Any] | None:
    """The choices of an input in either form; None for any other input."""
    if isinstance(declared[0], list | tuple):
        return declared[0]
    options = as_mapping(declared[1]) if len(declared) > 1 else {}
    listed = options.get("options") if declared[0] == "COMBO" and not options.get("remote") else None
    return listed if isinstance(listed, list | tuple) else None


def _with_choices(declared: Sequence[Any], choices: list[Any]) -> list[Any]:
    if isinstance(declared[0], list | tuple):
        return [choices, *declared[1:]]
    return [declared[0], {**declared[1], "options": choices}, *declared[2:]]


# Inputs that have inputs of their own, by their type


def _united_combo(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    own, more = _by_key(first.get("options")), _by_key(other.get("options"))
    changed = False
    for key, entry in more.items():
        if key not in own:
            own[key], changed = entry, True
            continue
        inputs = _united_sections(as_mapping(own[key].get("inputs")), as_mapping(entry.get("inputs")))
        if inputs is not None:
            own[key], changed = {**own[key], "inputs": inputs}, True
    return {"options": list(own.values())} if changed else None


def _united_slot(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    inputs = _united_sections(as_mapping(first.get("inputs")), as_mapping(other.get("inputs")))
    return None if inputs is None else {"inputs": inputs}


def _united_growing(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    own, more = as_mapping(first.get("template")), as_mapping(other.get("template"))
    inputs = _united_sections(as_mapping(own.get("input")), as_mapping(more.get("input")))
    return None if inputs is None else {"template": {**own, "input": inputs}}


def _united_group(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    inputs = _united_sections(as_mapping(first.get("template")), as_mapping(other.get("template")))
    return None if inputs is None else {"template": inputs}


def _by_key(options: Any) -> dict[Any, dict[str, Any]]:
    return {
        str(entry["key"]): dict(entry)
        for entry in as_sequence(options)
        if isinstance(entry, Mapping) and "key" in entry
    }


_NESTED: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any] | None]] = {
    DYNAMIC_COMBO: _united_combo,
    DYNAMIC_SLOT: _united_slot,
    AUTOGROW: _united_growing,
    DYNAMIC_GROUP: _united_group,
}


# The parts of a class that matter to a workflow


def _shape(definition: Any) -> Any:
    if not isinstance(definition, Mapping):
        return definition
    inputs = {
        section: {name: _input_shape(declared) for name, declared in declared_inputs(definition, section).items()}
        for section in _SECTIONS
    }
    return [inputs, *(definition.get(name) for name in _OF_WORKFLOWS)]


def _input_shape(value: Any) -> Any:
    """A declared input, or a part of one, without choices and words."""
    if isinstance(value, Mapping):
        is_choice = isinstance(value.get("options"), list | tuple)
        left_out = {"tooltip", "display_name"} | ({"default"} if is_choice else set())
        return {name: _option_shape(name, one) for name, one in value.items() if name not in left_out}
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list | tuple):
            rest = [{name: one for name, one in as_mapping(part).items() if name != "default"} for part in value[1:]]
            return ["COMBO", *(_input_shape(part) for part in rest)]
        return [_input_shape(part) for part in value]
    return value


def _option_shape(name: str, value: Any) -> Any:
    if name == "options" and not any(isinstance(one, Mapping) for one in as_sequence(value)):
        return None
    return _input_shape(value)
