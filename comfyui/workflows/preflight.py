"""Will ComfyUI accept this workflow? Answered from ``/object_info`` alone, with names that help. Pure: no I/O.

The rules are those of ComfyUI's own validation (measured on 0.3.64 by ``tests/contract/test_preflight.py``):

* every node's class must exist, whether the node is needed or not;
* beyond that, only the output nodes are checked, with all nodes that they need through declared inputs;
* one output node that can run is enough: ComfyUI then leaves the others out and answers 200.

So an *error* here means that ComfyUI would answer 400, and a *warning* is anything else that a user would want to know.
Doubtful cases are warnings: nodes may check (and accept) values and types in their own code, which ``/object_info``
does not show. As far as we know, of ComfyUI's own nodes only those with upload widgets do.

``/object_info`` ages: models and files come and go. Before a workflow is refused, ask ComfyUI for it again.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from comfyui.exceptions import ComfyUIValidationError
from comfyui.limits import DEFAULT_LIMITS, Limits, named
from comfyui.workflows.api_format import CACHE_TOKEN_INPUT, Prompt, node_order, node_title, nodes_on_cycles
from comfyui.workflows.node_definitions import (
    DYNAMIC_COMBO,
    InputSpec,
    ObjectInfo,
    has_dynamic_inputs,
    input_specs,
    live_specs,
    possible_names,
)

Severity = Literal["error", "warning"]

MODEL_ENDINGS = (
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
# Likeness is slow to compute, and a workflow can be made of nothing but mistakes.
_MAX_LOOKUPS = 24
_MORE = "more_problems"
# No name that a user may have meant is longer.
_LONGEST_NAME = 256


class _Shown(reprlib.Repr):
    """Values as messages show them: the work does not grow with the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxdict = 6
        self.maxstring = self.maxlong = self.maxother = 80

    def repr_str(self, x: str, level: int) -> str:  # noqa: ARG002 - the library's signature
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}…"


_shown = _Shown().repr


class ProblemEntry(TypedDict):
    """A `Problem` as clients see it."""

    node_id: Annotated[str, Field(description="Empty when it is the workflow as a whole.")]
    title: str
    class_type: str
    input_name: str | None
    code: Annotated[str, Field(description="ComfyUI's name if it has one, otherwise the gateway's own.")]
    message: str
    closest: Annotated[Sequence[str], Field(description="Existing names that may have been meant, the closest first.")]
    severity: Annotated[Severity, Field(description="error: ComfyUI would refuse the workflow.")]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or looks wrong, with a workflow.

    Attributes:
        node_id, title, class_type: where; all empty when it is the workflow as a whole.
        code: ComfyUI's name if it has one (``value_not_in_list``, …), otherwise ours (``missing_model_file``, …).
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

    def to_json(self) -> ProblemEntry:
        return {
            "node_id": self.node_id,
            "title": self.title,
            "class_type": self.class_type,
            "input_name": self.input_name,
            "code": self.code,
            "message": self.message,
            "closest": self.closest,
            "severity": self.severity,
        }


def preflight(
    prompt: Prompt,
    object_info: ObjectInfo,
    *,
    staged: Collection[tuple[str, str]] = (),
    targets: Collection[str] | None = None,
    new_choices_checked: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    names_closest: bool = True,
) -> list[Problem]:
    """Everything that is wrong with a workflow in API format, in node order, errors and warnings.

    There are at most ``max_problems`` of each severity; the last one, ``more_problems``, counts those left out.

    Args:
        prompt: has passed `comfyui.workflows.api_format.check_api_format`.
        staged: ``(node id, input name)`` of inputs whose file is placed in ComfyUI before the workflow is queued.
        targets: see ``partial_execution_targets``; None: every output node.
        new_choices_checked: this ComfyUI checks the choices of new (V3) nodes too; 0.3.64 does not, later ones do.
        names_closest: whether problems name what may have been meant, for which long lists are compared.
    """
    lookups = _MAX_LOOKUPS if names_closest else 0
    return _Check(prompt, object_info, frozenset(staged), targets, new_choices_checked, limits, lookups).run()


def refusal(problems: Sequence[Problem]) -> ComfyUIValidationError | None:
    """The error that refuses the workflow, with its messages by node; None if ComfyUI would accept it."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return None
    listed = [problem for problem in errors if problem.code != _MORE]
    node_errors: dict[str, list[str]] = {}
    for problem in listed:
        if problem.node_id:
            node_errors.setdefault(problem.node_id, []).append(_with_closest(problem))
    first = listed[0]
    where = f"{first.title} (node {first.node_id}): " if first.node_id else ""
    more = f", and {len(listed) - 1} more" if len(listed) > 1 else ""
    uncounted = f". {errors[-1].message}" if len(listed) < len(errors) else ""
    return ComfyUIValidationError(
        f"{where}{_with_closest(first)}{more}{uncounted}",
        node_errors=node_errors,
        codes={problem.code for problem in problems},
    )


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
        limits: Limits,
        lookups: int,
    ) -> None:
        self._prompt = prompt
        self._info = object_info
        self._staged = staged
        self._targets = None if targets is None else frozenset(targets)
        self._new_choices_checked = new_choices_checked
        self._specs: dict[str, dict[str, InputSpec]] = {}
        """The declared inputs by class; `_live` has those of nodes with dynamic inputs, by node id."""
        self._live: dict[str, dict[str, InputSpec]] = {}
        self._shaped: set[str] = set()
        self._possible: dict[str, set[str]] = {}
        """By class: see `possible_names`."""
        self._choices: dict[int, _Choices] = {}
        """By the identity of the list, which is kept with it."""
        self._by_title: dict[str, tuple[str, ...]] | None = None
        self._lookups_left = lookups
        self._found = _Found(limits.max_problems)

    def run(self) -> list[Problem]:
        for node_id in self._prompt:
            if self._definition(node_id) is None:
                self._found.add(self._missing_class(node_id))
        missing = self._found.errors > 0
        outputs = self._outputs()
        if not outputs and not missing:
            self._found.add(self._no_outputs())
        needed = self._needed(outputs) if outputs else set(self._prompt)
        cyclic = nodes_on_cycles({node_id: set(self._parents(node_id)) for node_id in needed})
        for node_id in node_order(needed):
            if self._definition(node_id) is not None:
                for problem in self._check_node(node_id):
                    self._found.add(problem)
            if node_id in cyclic:
                self._found.add(self._problem(node_id, None, "dependency_cycle", "The node depends on itself"))
        if missing or not outputs:
            return self._found.all()
        broken = self._dependents(self._found.broken)
        if all(output in broken for output in outputs):
            return self._found.all()
        left_out = [output for output in outputs if output in broken]
        skipped = named(node_order(left_out), len(left_out))
        return self._found.all(f"; ComfyUI leaves out what needs it (node {skipped}) and runs the rest")

    def _definition(self, node_id: str) -> Mapping[str, Any] | None:
        found = self._info.get(self._prompt[node_id]["class_type"])
        return found if isinstance(found, Mapping) else None

    def _specs_of(self, node_id: str) -> dict[str, InputSpec]:
        class_type = self._prompt[node_id]["class_type"]
        if node_id in self._live:
            return self._live[node_id]
        definition = self._definition(node_id) or {}
        if class_type not in self._specs:
            self._specs[class_type] = {spec.name: spec for spec in input_specs(definition)}
            if has_dynamic_inputs(definition):
                self._shaped.add(class_type)
        if class_type in self._shaped:
            inputs = self._prompt[node_id]["inputs"]
            self._live[node_id] = {spec.name: spec for spec in live_specs(definition, inputs)}
            return self._live[node_id]
        return self._specs[class_type]

    def _is_plain(self, node_id: str) -> bool:
        """True for ComfyUI's own nodes, of which we know which ones check their inputs in their own code."""
        module = str((self._definition(node_id) or {}).get("python_module") or "")
        return module == "nodes" or module.startswith("comfy_extras.")

    # The nodes that matter

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

    # The problems of one node

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

    def _possible_names(self, node_id: str) -> set[str]:
        class_type = self._prompt[node_id]["class_type"]
        if class_type not in self._possible:
            self._possible[class_type] = possible_names(self._definition(node_id) or {})
        return self._possible[class_type]

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
            closest = self._closest(value if isinstance(value, str) else _shown(value), spec.choices or ())
            yield self._problem(node_id, spec.name, "value_not_in_list", message, closest, certain=False)

    def _check_undeclared(self, node_id: str, name: str, specs: Mapping[str, InputSpec]) -> Iterator[Problem]:
        """An input that the node does not have in this workflow: one of another option, or one that it never has."""
        definition = self._definition(node_id) or {}
        hidden = (definition.get("input") or {}).get("hidden") or {}
        undeclared = _UNDECLARED.get(self._prompt[node_id]["class_type"])
        if name in hidden or (undeclared and undeclared.fullmatch(name)):
            return
        if any(name.startswith(f"{other}.") for other in specs) and name in self._possible_names(node_id):
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
            message = f"{spec.name} is {_shown(converted)}, beyond its {bound} of {spec.options[bound]}"
            yield self._problem(node_id, spec.name, code, message, certain=certain)
            return
        if spec.choices is None or self._chooses_freely(node_id):
            return
        choices = self._choices.get(id(spec.choices))
        if choices is None:
            choices = self._choices[id(spec.choices)] = _Choices(spec.choices)
        if converted not in choices:
            yield self._not_in_list(node_id, spec, choices, converted)

    def _not_in_list(self, node_id: str, spec: InputSpec, choices: _Choices, value: Any) -> Problem:
        certain = self._is_plain(node_id) and (spec.old_style or self._new_choices_checked)
        if spec.is_upload and not isinstance(value, str | list):
            code, message = "invalid_input_type", f"{spec.name} must be a file's name, not {_shown(value)}"
        elif spec.is_upload:
            code, message = "missing_input_file", f"The file {_shown(value)} is not in ComfyUI's input folder"
            certain = self._is_plain(node_id) and must_be_listed(spec, value)
        elif choices.names_models or _names_model(value):
            code, message = "missing_model_file", f"Missing model file {_shown(value)} for {spec.name}"
        else:
            code, message = (
                "value_not_in_list",
                f"{spec.name} cannot be {_shown(value)}: not in its list of {len(choices.listed)}",
            )
        closest = self._closest(value if isinstance(value, str) else _shown(value), choices.listed)
        return self._problem(node_id, spec.name, code, message, closest, certain=certain)

    def _missing_class(self, node_id: str) -> Problem:
        class_type = self._prompt[node_id]["class_type"]
        if self._by_title is None:
            self._by_title = _names_by_title(self._info)
        closest = self._by_title.get(class_type) or self._closest(class_type, list(self._info))
        return self._problem(node_id, None, "missing_node_type", f"There is no node class {class_type}", closest)

    def _no_outputs(self) -> Problem:
        if self._targets is None:
            message = "The workflow has no output node, such as SaveImage, so there is nothing to run"
        else:
            message = "None of the partial execution targets is an output node of the workflow"
        return Problem("", "", "", None, "prompt_no_outputs", message)

    def _closest(self, name: str, existing: Sequence[Any]) -> tuple[str, ...]:
        if len(name) > _LONGEST_NAME:
            return ()
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
    """The value as ComfyUI converts it before the check; raises the error of the conversion."""
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


def must_be_listed(spec: InputSpec, value: Any) -> bool:
    """A plain name of a common medium; one with a folder or a ``[output]`` mark may exist without being listed."""
    endings = [ending for option, listed in _LISTED_MEDIA.items() if spec.options.get(option) for ending in listed]
    name = str(value).lower()
    return (
        name.endswith(tuple(endings))
        and not any(sign in name for sign in "/\\[")
        and not spec.options.get("image_folder")
    )


class _Choices:
    """The choices of one input, in a form that is quick to ask for each of many nodes."""

    def __init__(self, listed: Sequence[Any]) -> None:
        self.listed = listed
        self.names_models = any(_names_model(choice) for choice in listed)
        try:
            self._known: Collection[Any] = frozenset(listed)
        except TypeError:  # a list among them, say
            self._known = listed

    def __contains__(self, value: Any) -> bool:
        try:
            return value in self._known
        except TypeError:
            return value in self.listed


class _Found:
    """The problems, of which the first of each severity are kept and the others are counted."""

    def __init__(self, most: int) -> None:
        self.broken: set[str] = set()
        """Nodes that have an error."""
        self.errors = 0
        self._warnings = 0
        self._most = most
        self._kept: list[Problem] = []

    def add(self, problem: Problem) -> None:
        if problem.severity == "error":
            self.broken.add(problem.node_id)
            self.errors += 1
            count = self.errors
        else:
            self._warnings += 1
            count = self._warnings
        if count <= self._most:
            self._kept.append(problem)

    def all(self, excuse: str = "") -> list[Problem]:
        """The problems that were kept. With an `excuse`, which is added to their texts, errors become warnings."""
        problems = self._kept
        if excuse:
            problems = [
                replace(problem, severity="warning", message=problem.message + excuse)
                if problem.severity == "error"
                else problem
                for problem in problems
            ]
        errors, warnings = max(0, self.errors - self._most), max(0, self._warnings - self._most)
        if not errors + warnings:
            return problems
        message = f"There are {errors} more errors and {warnings} more warnings"
        severity: Severity = "error" if errors and not excuse else "warning"
        return [*problems, Problem("", "", "", None, _MORE, message, (), severity)]


def _names_by_title(info: ObjectInfo) -> dict[str, tuple[str, ...]]:
    names: dict[str, list[str]] = {}
    for name, definition in info.items():
        if isinstance(title := definition.get("display_name"), str):
            names.setdefault(title, []).append(name)
    return {title: tuple(found) for title, found in names.items()}


def _names_model(name: Any) -> bool:
    return isinstance(name, str) and name[-_LONGEST_NAME:].lower().endswith(MODEL_ENDINGS)


def _closest(name: str, existing: Sequence[Any]) -> tuple[str, ...]:
    """Up to three existing names: the same file in another folder or case first, then by likeness."""
    texts = list(dict.fromkeys(str(choice) for choice in existing))
    last = _last_part(name)
    same = [text for text in texts if _last_part(text) == last]
    return tuple(dict.fromkeys([*same, *get_close_matches(name, texts, n=3, cutoff=0.5)]))[:3]


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].lower()
