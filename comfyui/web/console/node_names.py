"""How the console names a node where it has no room for both its title and its class."""

from __future__ import annotations

from comfyui.workflows.api_format import Prompt, node_title

# Titles that a named workflow gives to its parameters and outputs: docs/workflows.md.
_MARKS = ("$", "output:")


def plain_title(title: str, class_type: str) -> str:
    """The title; the class in place of one that marks a parameter, as ``$seed``: it does not say what the node does."""
    return class_type if class_type and title.startswith(_MARKS) else title


def plain_node_title(prompt: Prompt, node_id: str) -> str:
    """`plain_title` of a node of a graph; its id where the graph has no such node."""
    title, node = node_title(prompt, node_id), prompt.get(node_id)
    class_type = node.get("class_type") if isinstance(node, dict) else None
    return plain_title(title, class_type if isinstance(class_type, str) else "")
