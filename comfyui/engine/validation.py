"""Checks a prompt as ComfyUI does before it is queued: same error types, texts and shapes."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

from comfyui.engine.dynamic import MATCH_TYPE, expanded, is_dynamic
from comfyui.engine.files import Folders
from comfyui.engine.graph import Prompt, is_link
from comfyui.engine.nodes.registry import NODES, InputTypes, NodeType
from comfyui.engine.raising import type_name

Error = dict[str, Any]

_CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_LONGEST_LIST_TOLD = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """`error` None: queue it, for `outputs`; `node_errors` may still name outputs that will not be produced."""

    error: Error | None
    outputs: list[str]
    node_errors: dict[str, Any]


def validate_prompt(prompt: Prompt, targets: list[str] | None, folders: Folders, *, modern: bool) -> Verdict:
    """Converts the prompt's plain values to their inputs' types in place, as ComfyUI does."""
    outputs: list[str] = []
    for node_id in prompt:
        node = prompt[node_id]
        node_type = NODES.get(node["class_type"]) if "class_type" in node else None
        if node_type is None or (node_type.newer and not modern):
            return _refused_node(node_id, node, modern=modern)
        if node_type.output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return _refused("prompt_no_outputs", "Prompt has no outputs", "")
    return _validate_outputs(_Validation(prompt, folders, modern), outputs)


def _refused(kind: str, message: str, details: str, node_errors: dict[str, Any] | None = None) -> Verdict:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return Verdict(error, [], node_errors or {})


def _refused_node(node_id: str, node: Any, *, modern: bool) -> Verdict:
    class_type = node["class_type"] if "class_type" in node else None  # noqa: SIM401 - a list may stand there
    details = f"Node ID '#{node_id}'"
    if not modern:
        reason = (
            f"node {class_type} does not exist" if "class_type" in node else "a node is missing the class_type property"
        )
        return _refused("invalid_prompt", f"Cannot execute because {reason}.", details)
    title = node.get("_meta", {}).get("title", class_type)
    if "class_type" in node:
        message = f"Node '{title}' not found. The custom node may not be installed."
    else:
        name = title or f"ID #{node_id}"
        message = f"Node '{name}' has no class_type. The workflow may be corrupted or a custom node is missing."
    extra_info = {"node_id": node_id, "class_type": class_type, "node_title": title}
    return Verdict(
        {"type": "missing_node_type", "message": message, "details": details, "extra_info": extra_info}, [], {}
    )


def _validate_outputs(validation: _Validation, outputs: list[str]) -> Verdict:
    good: list[str] = []
    told: list[str] = []
    node_errors: dict[str, Any] = {}
    for output in outputs:
        try:
            valid = validation.is_valid(output)
        except Exception as error:
            valid = False
            validation.verdicts[output] = [_exception_error("exception_during_validation", "node", error)]
        if valid:
            good.append(output)
            continue
        told += [f"{error['message']}: {error['details']}" for error in validation.verdicts[output]]
        for node_id, errors in validation.verdicts.items():
            # A node below one with errors is invalid too, but has none of its own to tell.
            if errors:
                class_type = validation.prompt[node_id]["class_type"]
                entry = {"errors": errors, "dependent_outputs": [], "class_type": class_type}
                node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
    if not good:
        details = "\n".join(told)
        return _refused("prompt_outputs_failed_validation", "Prompt outputs failed validation", details, node_errors)
    return Verdict(None, good, node_errors)


class _Validation:
    """One prompt. `verdicts`: node id → its own errors; a node may be invalid without any, because of a node before
    it.
    """

    def __init__(self, prompt: Prompt, folders: Folders, modern: bool) -> None:
        self.prompt = prompt
        self.verdicts: dict[str, list[Error]] = {}
        self._invalid: set[str] = set()
        self._folders = folders
        self._modern = modern

    def is_valid(self, node_id: str) -> bool:
        if node_id not in self.verdicts:
            node_type = NODES[self.prompt[node_id]["class_type"]]
            inputs = self.prompt[node_id]["inputs"]
            declared = node_type.inputs(self._folders)
            if is_dynamic(declared):
                declared = expanded(declared, inputs)
            errors: list[Error] = []
            for category in ("required", "optional"):
                for name, spec in declared.get(category, {}).items():
                    if name in inputs:
                        errors += self._check_input(node_id, node_type, name, spec)
                    elif category == "required":
                        errors.append(_error("required_input_missing", "Required input is missing", name, name))
            errors += self._check_custom(node_type, declared, inputs)
            self.verdicts[node_id] = errors
            if errors:
                self._invalid.add(node_id)
        return node_id not in self._invalid

    def _check_input(self, node_id: str, node_type: NodeType, name: str, spec: list[Any]) -> list[Error]:
        inputs = self.prompt[node_id]["inputs"]
        value = inputs[name]
        options = spec[1] if len(spec) > 1 else {}
        if isinstance(value, list):
            return self._check_link(node_id, name, [spec[0], options], value)
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        try:
            convert = _CONVERSIONS.get(spec[0]) if isinstance(spec[0], str) else None
            if convert is not None:
                value = inputs[name] = convert(value)
        except Exception as error:
            message = f"Failed to convert an input value to a {spec[0]} value"
            details = f"{name}, {value}, {error}"
            info = {"input_config": [spec[0], options], "received_value": value, "exception_message": str(error)}
            return [_error("invalid_input_type", message, details, name, info)]
        if name in node_type.validated_inputs:
            return []
        return _check_value(name, spec[0], options, value, modern=self._modern)

    def _check_link(self, node_id: str, name: str, config: list[Any], link: list[Any]) -> list[Error]:
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return [_error("bad_linked_input", message, name, name, {"input_config": config, "received_value": link})]
        source = link[0]
        received = NODES[self.prompt[source]["class_type"]].outputs[link[1]]
        if not _types_meet(received, config[0]):
            details = f"{name}, received_type({received}) mismatch input_type({config[0]})"
            info = {"input_config": config, "received_type": received, "linked_node": link}
            return [_error("return_type_mismatch", "Return type mismatch between linked nodes", details, name, info)]
        try:
            if not self.is_valid(source):
                self._invalid.add(node_id)
        except Exception as error:
            self._invalid |= {node_id, source}
            info = {"input_name": name, "input_config": config, "exception_message": str(error), "linked_node": link}
            inner = _exception_error("exception_during_inner_validation", "inner node", error)
            inner["extra_info"] |= info
            self.verdicts[source] = [inner]
        return []

    def _check_custom(self, node_type: NodeType, declared: InputTypes, inputs: dict[str, Any]) -> list[Error]:
        if node_type.validate is None:
            return []
        named = declared.get("required", {}).keys() | declared.get("optional", {}).keys()
        received = {
            name: None if is_link(inputs[name]) else inputs[name]
            for name in inputs
            if name in node_type.validated_inputs & named
        }
        answer = node_type.validate(self._folders, **received)
        if answer is True:
            return []
        suffix = "" if answer is False else f" - {answer}"
        return [
            _error("custom_validation_failed", "Custom validation failed for node", f"{name}{suffix}", name)
            for name in received
        ]


def _check_value(name: str, kind: Any, options: dict[str, Any], value: Any, *, modern: bool) -> list[Error]:
    info = {"input_config": [kind, options], "received_value": value}
    if "min" in options and value < options["min"]:
        message = f"Value {value} smaller than min of {options['min']}"
        return [_error("value_smaller_than_min", message, name, name, info)]
    if "max" in options and value > options["max"]:
        message = f"Value {value} bigger than max of {options['max']}"
        return [_error("value_bigger_than_max", message, name, name, info)]
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" and modern else None
    if choices is None or value in choices:
        return []
    told = str(choices)
    if len(choices) > _LONGEST_LIST_TOLD:
        told = f"(list of length {len(choices)})"
        info["input_config"] = None
    quoted = repr(value) if modern else f"'{value}'"
    return [_error("value_not_in_list", "Value not in list", f"{name}: {quoted} not in {told}", name, info)]


def _types_meet(received: Any, wanted: Any) -> bool:
    """Types are comma lists that must share one; `*` takes all, and so does a type that only the editor settles."""
    if received == wanted or "*" in (received, wanted) or MATCH_TYPE in (received, wanted):
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    return not {part.strip() for part in received.split(",")}.isdisjoint(part.strip() for part in wanted.split(","))


def _error(kind: str, message: str, details: str, input_name: str, info: dict[str, Any] | None = None) -> Error:
    extra_info = {"input_name": input_name, **(info or {})}
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _exception_error(kind: str, subject: str, error: Exception) -> Error:
    return {
        "type": kind,
        "message": f"Exception when validating {subject}",
        "details": str(error),
        "extra_info": {"exception_type": type_name(error), "traceback": traceback.format_tb(error.__traceback__)},
    }
