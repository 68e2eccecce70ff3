"""Will ComfyUI accept this workflow? Answered from ``/object_info`` alone, with names that help. Pure: no I/O.

The rules are those of ComfyUI's own validation (measured on 0.3.64 by ``tests/contract/test_preflight.py``):

* every node's class must exist, whether the node is needed or not;
* what is checked beyond that are the output nodes and all that they need through declared inputs;
* one output node that can run is enough: ComfyUI then leaves the others out and answers 200.

So an *error* here means that ComfyUI would answer 400, and a *warning* is anything else that a user would want to know.
Where only ComfyUI can tell, it is a warning: nodes may check (and accept) values and types by code of their own, which
``/object_info`` does not show. As far as is known, among ComfyUI's own nodes only those with upload widgets do.

``/object_info`` ages: models and files come and go. Before a workflow is refused, ask ComfyUI for it again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from comfyui.exceptions import ComfyUIValidationError
from comfyui.nodedefs import DYNAMIC_COMBO, InputSpec, ObjectInfo, input_specs, live_specs, possible_names
from comfyui.workflow import CACHE_TOKEN_INPUT, Prompt, node_order, node_title, nodes_on_cycles

Severity = Literal["error", "warning"]

_MODEL_ENDINGS = (
    *(".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx", ".pkl", ".engine", ".patch"),
)
# Endings that every version of ComfyUI lists for an upload widget, so that a plain name with one must be in its list.
_LISTED_MEDIA = {
    "image_upload": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"),
    "video_upload": (".mp4", ".webm"),
    "audio_upload": (".mp3", ".wav", ".flac"),
}
# Inputs that the editor's exports carry for its own widgets.
_EDITOR_LEFTOVERS = frozenset(
    {
        *("audioUI", "refresh", "preview", "preview_text", "preview_markdown", "preview_mode", "previewMode", "upload"),
        CACHE_TOKEN_INPUT,
    }
)
# Inputs that a node takes although it does not declare them; its choices are among them.
_UNDECLARED = {"CustomCombo": re.compile(r"index|option\d+")}
# New node definitions (V3) whose inputs and outputs take shape only when a workflow uses them.
_SHAPELESS = "COMFY_"
_SHOWN = 80
# Likeness is slow to compute, and a workflow can be made of nothing but mistakes.
_MAX_LOOKUPS = 24


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or looks wrong, with a workflow.

    Attributes:
        node_id, title, class_type: where; all empty when it is the workflow as a whole.
        code: ComfyUI's name where it has one (``value_not_in_list``, …), else ours (``missing_model_file``, …).
        closest: existing names that the user may have meant, the closest first.
        severity: ``error``: ComfyUI would refuse the workflow; ``warning``: it would not, or only it can tell.
    """

    node_id: str
    title: str
    class_type: str
    input_name: str | None
    code: str
    message: str
    closest: tuple[str, ...] = ()
    severity: Severity = "error"


def preflight(
    prompt: Prompt,
    object_info: ObjectInfo,
    *,
    staged: Collection[tuple[str, str]] = (),
    targets: Collection[str] | None = None,
    new_choices_checked: bool = False,
) -> list[Problem]:
    """Everything that is wrong with a workflow in API format, in node order, errors and warnings.

    Args:
        prompt: has passed `comfyui.workflow.check_api_format`.
        staged: ``(node id, input name)`` of inputs whose file is placed in ComfyUI before the workflow is queued.
        targets: as ``partial_execution_targets``; None: every output node.
        new_choices_checked: this ComfyUI checks the choices of new (V3) nodes too; 0.3.64 does not, later ones do.
    """
    return _Check(prompt, object_info, frozenset(staged), targets, new_choices_checked).run()


def refusal(problems: Sequence[Problem]) -> ComfyUIValidationError | None:
    """The error with which to refuse the workflow, its messages by node; None when ComfyUI would take it."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return None
    node_errors: dict[str, list[str]] = {}
    for problem in errors:
        if problem.node_id:
            node_errors.setdefault(problem.node_id, []).append(_with_closest(problem))
    first = errors[0]
    where = f"{first.title} (node {first.node_id}): " if first.node_id else ""
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return ComfyUIValidationError(f"{where}{_with_closest(first)}{more}", node_errors=node_errors)


def _with_closest(problem: Problem) -> str:
    return f"{problem.message}. Closest: {', '.join(problem.closest)}" if problem.closest else problem.message


class _Check:
    def __init__(
        self,
        prompt: Prompt,
        object_info: ObjectInfo,
        staged: frozenset[tuple[str, str]],
        targets: Collection[str] | None,
        new_choices_checked: bool,
    ) -> None:
        self._prompt = prompt
        self._info = object_info
        self._staged = staged
        self._targets = targets
        self._new_choices_checked = new_choices_checked
        self._specs: dict[str, dict[str, InputSpec]] = {}
        """By class, as declared; `_live` has those of nodes with dynamic inputs, by node id."""
        self._live: dict[str, dict[str, InputSpec]] = {}
        self._lookups_left = _MAX_LOOKUPS

    def run(self) -> list[Problem]:
        missing = [self._missing_class(node_id) for node_id in self._prompt if self._definition(node_id) is None]
        outputs = self._outputs()
        needed = self._needed(outputs) if outputs else set(self._prompt)
        found = {
            node_id: list(self._check_node(node_id)) for node_id in needed if self._definition(node_id) is not None
        }
        for node_id in nodes_on_cycles({node_id: set(self._parents(node_id)) for node_id in needed}):
            found.setdefault(node_id, []).append(
                self._problem(node_id, None, "dependency_cycle", "The node depends on itself")
            )
        problems = [problem for node_id in node_order(needed) for problem in found.get(node_id, ())]
        if missing or not outputs:
            return missing + ([] if outputs or missing else [self._no_outputs()]) + problems
        broken = self._dependents({problem.node_id for problem in problems if problem.severity == "error"})
        if all(output in broken for output in outputs):
            return problems
        skipped = ", ".join(node_order([output for output in outputs if output in broken]))
        note = f"; ComfyUI leaves out what needs it (node {skipped}) and runs the rest"
        return [
            replace(problem, severity="warning", message=problem.message + note)
            if problem.severity == "error"
            else problem
            for problem in problems
        ]

    def _definition(self, node_id: str) -> Mapping[str, Any] | None:
        found = self._info.get(self._prompt[node_id]["class_type"])
        return found if isinstance(found, Mapping) else None

    def _specs_of(self, node_id: str) -> dict[str, InputSpec]:
        class_type = self._prompt[node_id]["class_type"]
        if node_id in self._live:
            return self._live[node_id]
        if class_type not in self._specs:
            definition = self._definition(node_id) or {}
            self._specs[class_type] = {spec.name: spec for spec in input_specs(definition)}
        specs = self._specs[class_type]
        if any(spec.type.startswith(_SHAPELESS) for spec in specs.values()):
            inputs = self._prompt[node_id]["inputs"]
            specs = {spec.name: spec for spec in live_specs(self._definition(node_id) or {}, inputs)}
            self._live[node_id] = specs
        return specs

    def _is_plain(self, node_id: str) -> bool:
        """True for ComfyUI's own nodes, of which it is known which ones check their inputs by code of their own."""
        module = str((self._definition(node_id) or {}).get("python_module") or "")
        return module == "nodes" or module.startswith("comfy_extras.")

    # Which nodes matter

    def _outputs(self) -> list[str]:
        return [
            node_id
            for node_id in self._prompt
            if (self._definition(node_id) or {}).get("output_node") is True
            and (self._targets is None or node_id in self._targets)
        ]

    def _parents(self, node_id: str) -> Iterator[str]:
        """The nodes that feed declared inputs of this one; ComfyUI does not follow other links."""
        inputs = self._prompt[node_id]["inputs"]
        for name in self._specs_of(node_id):
            value = inputs.get(name)
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in self._prompt:
                yield value[0]

    def _needed(self, outputs: Sequence[str]) -> set[str]:
        needed: set[str] = set()
        pending = list(outputs)
        while pending:
            node_id = pending.pop()
            if node_id not in needed:
                needed.add(node_id)
                pending += self._parents(node_id)
        return needed

    def _dependents(self, node_ids: set[str]) -> set[str]:
        """These nodes and all that need them."""
        children: dict[str, list[str]] = {}
        for node_id in self._prompt:
            for parent in self._parents(node_id):
                children.setdefault(parent, []).append(node_id)
        reached: set[str] = set()
        pending = list(node_ids)
        while pending:
            node_id = pending.pop()
            if node_id not in reached:
                reached.add(node_id)
                pending += children.get(node_id, ())
        return reached

    # What is wrong with one node

    def _check_node(self, node_id: str) -> Iterator[Problem]:
        inputs = self._prompt[node_id]["inputs"]
        specs = self._specs_of(node_id)
        for name, spec in specs.items():
            if spec.type == DYNAMIC_COMBO:
                yield from self._check_dynamic_combo(node_id, spec, inputs.get(name))
            elif name not in inputs:
                if spec.required:
                    yield self._problem(
                        node_id, name, "required_input_missing", f"The required input {name} is missing"
                    )
            elif isinstance(inputs[name], list):
                yield from self._check_link(node_id, spec, inputs[name])
            else:
                yield from self._check_value(node_id, spec, inputs[name])
        for name, value in inputs.items():
            if name not in specs and name not in _EDITOR_LEFTOVERS and value != "":
                yield from self._check_undeclared(node_id, name, specs)

    def _chooses_freely(self, node_id: str) -> bool:
        return self._prompt[node_id]["class_type"] in _UNDECLARED

    def _check_dynamic_combo(self, node_id: str, spec: InputSpec, value: Any) -> Iterator[Problem]:
        """ComfyUI does not check the choice itself, but without one of its options the node has no such input."""
        if value is None:
            if spec.required:
                message = f"{spec.name} is missing; ComfyUI does not check it, and the node most likely fails"
                yield self._problem(node_id, spec.name, "required_input_missing", message, certain=False)
        elif value not in (spec.choices or ()):
            message = f"{spec.name} cannot be {_shown(value)}: not in its list of {len(spec.choices or ())}"
            closest = self._closest(str(value), spec.choices or ())
            yield self._problem(node_id, spec.name, "value_not_in_list", message, closest, certain=False)

    def _check_undeclared(self, node_id: str, name: str, specs: Mapping[str, InputSpec]) -> Iterator[Problem]:
        """An input that the node does not have in this workflow: one of another option, or one that it never has."""
        definition = self._definition(node_id) or {}
        hidden = (definition.get("input") or {}).get("hidden") or {}
        undeclared = _UNDECLARED.get(self._prompt[node_id]["class_type"])
        if name in hidden or (undeclared and undeclared.fullmatch(name)):
            return
        if any(name.startswith(f"{other}.") for other in specs) and name in possible_names(definition):
            owner = max((other for other in specs if name.startswith(f"{other}.")), key=len)
            message = f"{name} belongs to another option of {owner} than is chosen, so it is ignored"
            yield self._problem(node_id, name, "unknown_input", message, certain=False)
            return
        message = f"The node does not declare an input {name}, so it is most likely ignored"
        yield self._problem(node_id, name, "unknown_input", message, self._closest(name, list(specs)), certain=False)

    def _check_link(self, node_id: str, spec: InputSpec, link: list[Any]) -> Iterator[Problem]:
        if len(link) != 2:
            message = f"{spec.name} is a list, which must be a link of the form [node id, output index]"
            yield self._problem(node_id, spec.name, "bad_linked_input", message)
            return
        origin, index = link
        if not isinstance(origin, str) or origin not in self._prompt:
            message = f"{spec.name} is linked to node {_shown(origin)}, which does not exist"
            yield self._problem(node_id, spec.name, "dangling_link", message)
            return
        definition = self._definition(origin)
        if definition is None:
            return
        types = definition.get("output") or ()
        if not isinstance(index, int) or not -len(types) <= index < len(types):
            message = f"{spec.name} is linked to output {_shown(index)} of node {origin}, which has {len(types)}"
            yield self._problem(node_id, spec.name, "bad_output_index", message)
        elif not _types_match(types[index], spec):
            given = "a choice" if isinstance(types[index], list) else types[index]
            wanted = "a choice of its own" if spec.old_style else spec.type
            message = (
                f"{spec.name} takes {wanted}, but output {index} of {node_title(self._prompt, origin)} gives {given}"
            )
            certain = self._is_plain(node_id) and self._is_plain(origin)
            yield self._problem(node_id, spec.name, "return_type_mismatch", message, certain=certain)

    def _check_value(self, node_id: str, spec: InputSpec, value: Any) -> Iterator[Problem]:
        if (node_id, spec.name) in self._staged:
            return
        if isinstance(value, dict) and "__value__" in value:
            value = value["__value__"]
        try:
            converted = _converted(spec.type, value)
        except (TypeError, ValueError, OverflowError):
            message = f"{spec.name} must be {spec.type}, not {_shown(value)}"
            yield self._problem(node_id, spec.name, "invalid_input_type", message)
            return
        certain = self._is_plain(node_id)
        if code := _outside(spec, converted):
            bound = "min" if code == "value_smaller_than_min" else "max"
            message = f"{spec.name} is {converted}, beyond its {bound} of {spec.options[bound]}"
            yield self._problem(node_id, spec.name, code, message, certain=certain)
            return
        if spec.choices is not None and converted not in spec.choices and not self._chooses_freely(node_id):
            yield self._not_in_list(node_id, spec, spec.choices, converted)

    def _not_in_list(self, node_id: str, spec: InputSpec, choices: Sequence[Any], value: Any) -> Problem:
        certain = self._is_plain(node_id) and (spec.old_style or self._new_choices_checked)
        if spec.is_upload and not isinstance(value, str | list):
            code, message = "invalid_input_type", f"{spec.name} must be a file's name, not {_shown(value)}"
        elif spec.is_upload:
            code, message = "missing_input_file", f"The file {_shown(value)} is not in ComfyUI's input folder"
            certain = self._is_plain(node_id) and _must_be_listed(spec, value)
        elif _names_model(value, choices):
            code, message = "missing_model_file", f"Missing model file {_shown(value)} for {spec.name}"
        else:
            code, message = (
                "value_not_in_list",
                f"{spec.name} cannot be {_shown(value)}: not in its list of {len(choices)}",
            )
        return self._problem(node_id, spec.name, code, message, self._closest(str(value), choices), certain=certain)

    def _missing_class(self, node_id: str) -> Problem:
        class_type = self._prompt[node_id]["class_type"]
        by_title = [name for name, found in self._info.items() if found.get("display_name") == class_type]
        closest = tuple(by_title) or self._closest(class_type, list(self._info))
        return self._problem(node_id, None, "missing_node_type", f"There is no node class {class_type}", closest)

    def _no_outputs(self) -> Problem:
        if self._targets is None:
            message = "The workflow has no output node, such as SaveImage, so there is nothing to run"
        else:
            message = "None of the partial execution targets is an output node of the workflow"
        return Problem("", "", "", None, "prompt_no_outputs", message)

    def _closest(self, name: str, existing: Sequence[Any]) -> tuple[str, ...]:
        self._lookups_left -= 1
        return _closest(name, existing) if self._lookups_left >= 0 else ()

    def _problem(
        self,
        node_id: str,
        name: str | None,
        code: str,
        message: str,
        closest: tuple[str, ...] = (),
        *,
        certain: bool = True,
    ) -> Problem:
        title, class_type = node_title(self._prompt, node_id), self._prompt[node_id]["class_type"]
        return Problem(node_id, title, class_type, name, code, message, closest, "error" if certain else "warning")


def _converted(kind: str, value: Any) -> Any:
    """The value as ComfyUI converts it before it checks it; raises what the conversion raises."""
    match kind:
        case "INT":
            return int(value)
        case "FLOAT":
            return float(value)
        case _:
            return value


def _outside(spec: InputSpec, value: Any) -> str | None:
    """ComfyUI's name of the bound that a number breaks."""
    low, high = spec.options.get("min"), spec.options.get("max")
    if spec.type not in ("INT", "FLOAT"):
        return None
    if isinstance(low, int | float) and value < low:
        return "value_smaller_than_min"
    return "value_bigger_than_max" if isinstance(high, int | float) and value > high else None


def _types_match(given: Any, spec: InputSpec) -> bool:
    """ComfyUI's rule for links, and true wherever a type may have a rule of its own."""
    if isinstance(given, list) or spec.old_style:
        return isinstance(given, list) and spec.choices is not None and given == list(spec.choices)
    kinds, wanted = ({part.strip() for part in str(kind).split(",")} for kind in (given, spec.type))
    return bool(kinds & wanted) or any(kind == "*" or kind.startswith(_SHAPELESS) for kind in kinds | wanted)


def _must_be_listed(spec: InputSpec, value: Any) -> bool:
    """A plain name of a common medium; one with a folder or a ``[output]`` mark may exist without being listed."""
    endings = [ending for option, listed in _LISTED_MEDIA.items() if spec.options.get(option) for ending in listed]
    name = str(value).lower()
    return (
        name.endswith(tuple(endings))
        and not any(sign in name for sign in "/\\[")
        and not spec.options.get("image_folder")
    )


def _names_model(value: Any, choices: Sequence[Any]) -> bool:
    names = [str(value), *(str(choice) for choice in choices)]
    return any(name.lower().endswith(_MODEL_ENDINGS) for name in names)


def _closest(name: str, existing: Sequence[Any]) -> tuple[str, ...]:
    """Up to three existing names: the same file in another folder or case first, then by likeness."""
    texts = list(dict.fromkeys(str(choice) for choice in existing))
    last = _last_part(name)
    same = [text for text in texts if _last_part(text) == last]
    return tuple(dict.fromkeys([*same, *get_close_matches(name, texts, n=3, cutoff=0.5)]))[:3]


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].lower()


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
