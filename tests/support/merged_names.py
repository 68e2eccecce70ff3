"""Answers of a gateway with several servers, with ComfyUI's own file names in them."""

from __future__ import annotations

from typing import Any

from comfyui.merged_files import from_merged, is_prompt_id


def plain_names(value: Any, prompt_id: str = "") -> Any:
    """The value without the prompt ids in subfolders. Raises AssertionError if a file has another prompt's id.

    The surrounding object tells the file's prompt: a history entry has its id as its name, a job as ``id``.
    """
    if isinstance(value, list):
        return [plain_names(one, prompt_id) for one in value]
    if not isinstance(value, dict):
        return value
    if isinstance(found := value.get("id"), str) and is_prompt_id(found):
        prompt_id = found
    plain = {name: plain_names(one, name if is_prompt_id(name) else prompt_id) for name, one in value.items()}
    if "filename" in value and "subfolder" in value and prompt_id:
        merged = from_merged(value["subfolder"])
        assert merged is not None, f"{value} of {prompt_id}"
        assert merged.prompt_id == prompt_id, f"{value} of {prompt_id}"
        plain["subfolder"] = merged.subfolder
    return plain
