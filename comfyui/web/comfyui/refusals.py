"""Our errors in the words of ComfyUI's own paths."""

from __future__ import annotations

from typing import Any

from comfyui.exceptions import ComfyUIError


def refusal_of(error: ComfyUIError) -> dict[str, Any]:
    """ComfyUI's answer to a workflow that is refused, with what we say of it."""
    node_errors = {
        node_id: {
            "errors": [
                {"type": error.code, "message": message, "details": "", "extra_info": {}} for message in messages
            ],
            "dependent_outputs": [],
            "class_type": "",
        }
        for node_id, messages in error.node_errors.items()
    }
    whole = {"type": error.code, "message": error.detail, "details": "", "extra_info": {}}
    return {"error": whole, "node_errors": node_errors}
