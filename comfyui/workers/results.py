"""The files in a finished job's reply, the same on every platform.

A job of which no file could be delivered has failed; of some, it succeeded in part, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfyui.exceptions import ComfyUIDeliveryError, ComfyUIError, ComfyUITaskError, ComfyUIUndeliverableError
from comfyui.models import OutputFile, PromptResult

_NAMED_FILES = 5


def kept_files(files: Sequence[OutputFile]) -> list[OutputFile]:
    """The files of a result; previews and other temporary files only if there are no others."""
    return [file for file in files if file.type != "temp"] or list(files)


def is_partial(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any entry has ``error`` instead of its file."""
    return any("error" in entry for entry in entries)


def result_members(result: PromptResult, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A finished job's result, in the members that all platforms have; `files` has an entry for each file."""
    named = {} if result.call is None else {"workflow": result.call.to_json()}
    return {
        **named,
        "prompt_id": result.prompt_id,
        "status": "success",
        "partial": is_partial(files),
        "execution_time": round(result.timings.total_s, 4),
        "timings": result.timings.to_json(),
        "node_errors": {node_id: list(messages) for node_id, messages in result.node_errors.items()},
        "files": list(files),
    }


def reason_not_delivered(error: ComfyUIError) -> dict[str, Any]:
    """Members of the entry of a file that could not be delivered."""
    return {"error": error.detail, "retryable": error.retryable}


def check_delivered(result: PromptResult, entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise `ComfyUIDeliveryError` when there were files and none could be delivered.

    Raises `ComfyUIUndeliverableError` if a retry cannot help any of them.
    """
    if not entries or any("error" not in entry for entry in entries):
        return
    reasons = "; ".join(f"{entry['filename']}: {entry['error']}" for entry in entries[:_NAMED_FILES])
    more = f" and {len(entries) - _NAMED_FILES} more" if len(entries) > _NAMED_FILES else ""
    detail = f"ComfyUI finished the prompt, but none of its {len(entries)} files could be delivered: {reasons}{more}"
    if not any(entry["retryable"] for entry in entries):
        raise ComfyUIUndeliverableError(detail, prompt_id=result.prompt_id)
    raise ComfyUIDeliveryError(
        f"{detail}. The result is kept: the same job, or one with this prompt_id, delivers it without running again",
        prompt_id=result.prompt_id,
    )


def saved_before(error: ComfyUIError) -> PromptResult | None:
    """The outputs that other nodes had saved when a node failed, as a result; None if there are none."""
    if not isinstance(error, ComfyUITaskError):
        return None
    return error.saved if isinstance(error.saved, PromptResult) and error.saved.files else None
