"""Nodes that packs for services have for values of their callers, resolved away. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from comfyui.named import deploy_nodes, pack_nodes, serving_nodes
from comfyui.named.replacing import Replacing
from comfyui.workflows.api_format import is_link, node_order

PACKS = (deploy_nodes, pack_nodes, serving_nodes)
# In the Serving-Toolkit, every node of an argument gets the same value.
MERGED = (serving_nodes.SOURCE,)


def resolve_made_for_it(work: Replacing) -> None:
    """Take the nodes of these packs out of the workflow, and note the parameters and outputs that they name."""
    order = node_order(work.prompt)
    for table in ([pack.OUTPUTS for pack in PACKS], [pack.INPUTS for pack in PACKS]):
        handlers = {class_type: handler for part in table for class_type, handler in part.items()}
        pending = [node_id for node_id in order if work.prompt[node_id]["class_type"] in handlers]
        while pending:
            node_id = _fed_last(work, pending)
            pending.remove(node_id)
            if node_id in work.prompt:
                handlers[work.prompt[node_id]["class_type"]](work, node_id, work.prompt[node_id]["inputs"])
        order = [node_id for node_id in order if node_id in work.prompt]
    for node_id in order:
        class_type = work.prompt[node_id]["class_type"]
        if deploy_nodes.INPUT_CLASS.fullmatch(class_type) and class_type not in deploy_nodes.INPUTS:
            work.warn(node_id, "the gateway does not know this node of ComfyUI-Deploy")
    work.forget_removed()


def _fed_last(work: Replacing, pending: Sequence[str]) -> str:
    """The first of these nodes that feeds none of the others: what takes its value from one of them goes first."""
    waiting = set(pending)
    feeding = {
        value[0]
        for node_id in waiting & work.prompt.keys()
        for value in work.prompt[node_id]["inputs"].values()
        if is_link(value) and value[0] != node_id
    }
    return next((node_id for node_id in pending if node_id not in feeding), pending[0])
