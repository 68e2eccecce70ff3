"""Values that the editor shows in one place and that count in others: promoted widgets and primitive nodes.

A subgraph instance shows widgets of nodes inside of it, and a primitive node holds a value for the widgets that it is
linked to. Neither is a node of the API format, so the conversion tells where each of these values went.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from comfyui.workflows.convert.graph import Workflow
from comfyui.workflows.convert.links import Placed, PromotedValue
from comfyui.workflows.convert.primitives import targets_of

# The editor's title for a primitive node without a title of its own.
_UNNAMED_PRIMITIVES = frozenset({"", "Primitive", "PrimitiveNode"})


@dataclass(frozen=True, slots=True)
class ShownWidget:
    """A value of the editor, and the inputs of the API format that take it.

    Attributes:
        kind: whether a subgraph instance or a primitive node shows it.
        owner: the instance's or the primitive's id, with those of the instances around it.
        owner_title: the owner's title in the editor; "" for a primitive without one of its own.
        name: the subgraph's input; for a primitive the first widget that it feeds.
        label: the widget's label in the editor; "" if the editor shows the name.
        top: whether the owner stands at the top of the workflow, and not inside of a subgraph.
        targets: node ids and input names, each an input that has the value and no link; at least one.
    """

    kind: Literal["promoted", "primitive"]
    owner: str
    owner_title: str
    name: str
    label: str
    top: bool
    targets: tuple[tuple[str, str], ...]


class Shown:
    """Collects the shown widgets while a workflow is written in API format."""

    def __init__(self, workflow: Workflow, placed: Mapping[str, Placed]) -> None:
        self._workflow = workflow
        self._placed = placed
        self._promoted: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def note(self, value: PromotedValue, node_id: str, input_name: str) -> None:
        """An input took the value of a promoted widget."""
        self._promoted.setdefault((value.instance, value.name), []).append((node_id, input_name))

    def all(self, prompt: Mapping[str, Any]) -> tuple[ShownWidget, ...]:
        """The shown widgets, in the order of the file; only those that have a value in the finished `prompt`."""
        found = [shown for placed in self._placed.values() for shown in self._of(placed)]
        valued = [
            replace(shown, targets=tuple(target for target in shown.targets if _is_value(prompt, *target)))
            for shown in found
        ]
        return tuple(shown for shown in valued if shown.targets)

    def _of(self, placed: Placed) -> list[ShownWidget]:
        if placed.node.type == "PrimitiveNode":
            return [self._primitive(placed)]
        return self._instance(placed) if placed.inside and placed.around is None else []

    def _primitive(self, placed: Placed) -> ShownWidget:
        node = placed.node
        around = f"{placed.around.id}:" if placed.around else ""
        fed = [
            (f"{around}{target.id}", widget.name)
            for target, widget in targets_of(node, placed.graph)
            if target.type not in self._workflow.subgraphs
        ]
        title = "" if node.title in _UNNAMED_PRIMITIVES else node.title
        name = fed[0][1] if fed else ""
        return ShownWidget("primitive", placed.id, title, name, "", placed.around is None, tuple(dict.fromkeys(fed)))

    def _instance(self, placed: Placed) -> list[ShownWidget]:
        node, inside = placed.node, placed.inside
        title = node.title or (inside.name if inside else "")
        labels = {slot.name: slot.label or "" for slot in node.inputs}
        return [
            ShownWidget(
                "promoted",
                placed.id,
                title,
                widget.name,
                labels.get(widget.name, ""),
                True,
                tuple(dict.fromkeys(self._promoted.get((placed.id, widget.name), ()))),
            )
            for widget in node.widgets
        ]


def _is_value(prompt: Mapping[str, Any], node_id: str, name: str) -> bool:
    inputs = prompt[node_id]["inputs"] if node_id in prompt else {}
    return name in inputs and not isinstance(inputs[name], list)
