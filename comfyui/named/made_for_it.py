"""Nodes that packs for services have for values of their callers, resolved away. Pure."""

from __future__ import annotations

from comfyui.named import deploy_nodes, pack_nodes, serving_nodes
from comfyui.named.replacing import Replacing
from comfyui.workflows.api_format import node_order

PACKS = (deploy_nodes, pack_nodes, serving_nodes)
# In the Serving-Toolkit every node of an argument gets the same value.
MERGED = (serving_nodes.SOURCE,)


def resolve_made_for_it(work: Replacing) -> None:
    """Take the nodes of these packs out of the workflow, and note the parameters and outputs that they name."""
    order = node_order(work.prompt)
    for table in ([pack.OUTPUTS for pack in PACKS], [pack.INPUTS for pack in PACKS]):
        handlers = {class_type: handler for part in table for class_type, handler in part.items()}
        for node_id in order:
            if node_id in work.prompt and (handler := handlers.get(work.prompt[node_id]["class_type"])):
                handler(work, node_id, work.prompt[node_id]["inputs"])
    for node_id in order:
        class_type = work.prompt[node_id]["class_type"] if node_id in work.prompt else ""
        if deploy_nodes.INPUT_CLASS.fullmatch(class_type) and class_type not in deploy_nodes.INPUTS:
            work.warn(node_id, "it is none of ComfyUI-Deploy's nodes that are known here")
