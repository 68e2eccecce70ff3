"""Reads the result of a prompt that has ended, or its error, from ComfyUI's history entry."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from comfyui.exceptions import ComfyUIError, ComfyUITaskCancelledError, ComfyUITaskError
from comfyui.models import OutputFile, PromptResult, Timings, Told
from comfyui.outputs.history import cached_nodes, executing_s, files_of, raise_if_failed
from comfyui.replies import HistoryEntry, QueueItem
from comfyui.servers.backend import Backend

_log = structlog.get_logger(__name__)


def result_of(
    backend: Backend,
    prompt_id: str,
    entry: HistoryEntry,
    staging_s: float = 0.0,
    waited_s: float = 0.0,
    node_errors: Mapping[str, tuple[str, ...]] | None = None,
    node_seconds: Mapping[str, float] | None = None,
) -> PromptResult:
    """The result in a history entry; raises the entry's error, with the outputs that were saved before it."""
    executing = executing_s(entry)
    timings = Timings(staging_s, queued_s=max(0.0, waited_s - executing), executing_s=executing, nodes=node_seconds)
    result = PromptResult(
        prompt_id,
        backend.name,
        entry.outputs,
        files_of(entry.outputs),
        timings,
        node_errors or {},
        simulated=backend.simulated,
        told=Told(entry.messages, entry.meta),
    )
    try:
        raise_if_failed(entry, prompt_id)
    except (ComfyUITaskError, ComfyUITaskCancelledError) as error:
        error.saved = result
        raise
    return result


def was_cancelled(found: HistoryEntry | QueueItem) -> bool:
    """Whether the prompt was interrupted in an earlier try: the caller asks again, so it runs again."""
    if isinstance(found, QueueItem):
        return False
    try:
        raise_if_failed(found, "")
    except ComfyUITaskCancelledError:
        return True
    except ComfyUITaskError:
        return False
    return False


async def nodes_without_files(backend: Backend, result: PromptResult, entry: HistoryEntry) -> set[str]:
    """The output nodes that came from ComfyUI's cache without their files, or without any output (trap 9).

    A file that was just written exists, and a node that ran without output has none to show.
    """
    cached = cached_nodes(entry.messages)
    if not result.outputs:
        return set(cached.intersection(entry.output_nodes))
    files = [file for file in result.files if file.node_id in cached]
    if not files:
        return set()
    there = await asyncio.gather(*(_is_there(backend, file) for file in files))
    return {file.node_id for file, exists in zip(files, there, strict=True) if not exists}


async def _is_there(backend: Backend, file: OutputFile) -> bool:
    try:
        return await backend.client.size_of(file) is not None
    except ComfyUIError as error:
        # The prompt has succeeded: whether its file can be read shows when it is fetched.
        _log.warning("output.not_checked", server=backend.name, detail=error.detail)
        return True
